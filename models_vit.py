"""The encoder of `models_mae` with a segmentation or a classification head; state-dict keys as in MAE."""

import re
from functools import partial

import torch
from torch import nn

from models_mae import ViTEncoder
from models_presets import PRESETS, build, look_up
from util import lora
from util.convert import PATCHES
from util.errors import UserError

HEADS = ("decoder", "linear")
# Fixed functions of the grid, not weights: no mode trains them.
FIXED = ("pos_embed", "decoder_pos_embed")


class ProbeNorm(nn.BatchNorm1d):
    """Batch norm without weights, as in MAE's linear probe: one learning rate suits features of any scale."""

    def __init__(self, width):
        super().__init__(width, affine=False, eps=1e-6)

    def forward(self, features, counts=None):
        """Features [N, D]; `counts`, [N, 1], is 1 for those that count in the statistics; None: all."""
        if counts is None or not self.training:
            return super().forward(features)
        features, count = features.float(), counts.sum().clamp_min(2)
        mean = (features * counts).sum(dim=0) / count
        var = ((features - mean).square() * counts).sum(dim=0) / count
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * count / (count - 1), self.momentum)
        return (features - mean) * (var + self.eps).rsqrt()


class Encoder(ViTEncoder):
    """The encoder alone: images [N, in_chans, F, T] -> tokens [N, 1 + L, embed_dim], class token first."""

    def __init__(self, img_size=224, **encoder):
        super().__init__(img_size, **encoder)
        self.initialize()

    def forward(self, imgs):
        """See `ViTEncoder.encode`."""
        return self.encode(imgs)


class SegmentationViT(ViTEncoder):
    """Encoder, then a class for every cell.

    The "decoder" head is the first blocks of MAE's decoder, then a linear layer from tokens to patches of
    logits. It has MAE's keys and shapes, so it can start from pretrained weights. The "linear" head is the
    linear layer.

    Args:
        num_classes: classes of a cell.
        img_size, encoder: see `ViTEncoder`; the head's blocks have no drop path.
        head: "decoder" or "linear".
        head_depth, decoder_embed_dim, decoder_num_heads: blocks, width and attention heads of "decoder".
        head_norm: put a `ProbeNorm` before the linear layer.
    """

    def __init__(
        self,
        num_classes,
        img_size=224,
        *,
        head="decoder",
        head_depth=2,
        decoder_embed_dim=512,
        decoder_num_heads=16,
        head_norm=False,
        **encoder,
    ):
        super().__init__(img_size, **encoder)
        if head not in HEADS:
            raise ValueError(f"expected one of {HEADS}: {head=}")
        if head == "decoder" and head_depth < 1:
            raise ValueError(f"expected 1 block or more: {head_depth=}")
        self.has_decoder, self.has_norm = head == "decoder", head_norm
        width = self.cls_token.shape[-1]
        if self.has_decoder:
            width = decoder_embed_dim
            self._add_decoder(width, head_depth, decoder_num_heads)
        self.head_norm = ProbeNorm(width) if head_norm else nn.Identity()
        self.head = nn.Linear(width, self.patch_size**2 * num_classes)
        self.initialize()
        if head_norm:
            nn.init.trunc_normal_(self.head.weight, std=0.01)

    @property
    def head_modules(self):
        """The modules of the head."""
        if not self.has_decoder:
            return [self.head_norm, self.head]
        return [self.decoder_embed, self.decoder_blocks, self.decoder_norm, self.head_norm, self.head]

    def forward(self, imgs, drop_numbers=None):
        """Images [N, in_chans, F, T] -> logits [N, num_classes, F, T]; see `set_drop_numbers`."""
        # encode
        self.set_drop_numbers(drop_numbers)
        imgs, _, present = self.inside(imgs)
        tokens = self.forward_encoder(imgs, None, present)  # (N, 1 + L, embed_dim)

        # decode
        if self.has_decoder:
            tokens = self.decoder_embed(tokens) + self.decoder_pos_embed
            tokens = self.run(self.decoder_blocks, tokens, present)
            tokens = self.decoder_norm(tokens)  # (N, 1 + L, decoder_embed_dim)

        # predict patches, without the class token; the norm is over all patches of the batch
        counts = () if present is None or not self.has_norm else (present.reshape(-1, 1),)
        patches = self.head_norm(tokens[:, 1:].flatten(0, 1), *counts)
        return self.unpatchify(self.head(patches.unflatten(0, (-1, self.num_patches))))  # (N, classes, F, T)


class ClassificationViT(ViTEncoder):
    """Encoder, then a class for the image: a linear layer on the mean of the patches or on the class token.

    As in MAE's fine-tuning the linear layer starts near zero (truncated normal of 2e-5), so that its first
    gradients do not disturb the pretrained features.

    Args:
        num_classes: classes of an image.
        img_size, encoder: see `ViTEncoder`.
        global_pool: True: the mean of the patches, then `fc_norm`, without `norm` (MAE's fine-tuning); False:
            `norm`, then the class token.
        head_norm: put a `ProbeNorm` before the linear layer.
    """

    def __init__(self, num_classes, img_size=224, *, global_pool=True, head_norm=False, **encoder):
        super().__init__(img_size, **encoder)
        width = self.cls_token.shape[-1]
        self.global_pool = global_pool
        if global_pool:
            self.norm = nn.Identity()
            self.fc_norm = self._norm_layer(width)
        self.head_norm = ProbeNorm(width) if head_norm else nn.Identity()
        self.head = nn.Linear(width, num_classes)
        self.initialize()
        # LARS moves a weight by a share of its norm, so the head of a linear probe starts larger, as in MAE.
        nn.init.trunc_normal_(self.head.weight, std=0.01 if head_norm else 2e-5)

    @property
    def head_modules(self):
        """The modules of the head."""
        return [*([self.fc_norm] if self.global_pool else []), self.head_norm, self.head]

    def forward(self, imgs, drop_numbers=None):
        """Images [N, in_chans, F, T] -> logits [N, num_classes]; see `set_drop_numbers`."""
        self.set_drop_numbers(drop_numbers)
        imgs, _, present = self.inside(imgs)
        tokens = self.forward_encoder(imgs, None, present)  # (N, 1 + L, embed_dim)
        features = self.fc_norm(mean_patch(tokens, present)) if self.global_pool else tokens[:, 0]  # (N, D)
        return self.head(self.head_norm(features))


def mean_patch(tokens, present=None):
    """The mean of the patches that are present: tokens [N, 1 + L, D], bool [N, L] or None -> [N, D]."""
    patches = tokens[:, 1:]
    if present is None:
        return patches.mean(dim=1)
    return (patches * present[:, :, None]).sum(dim=1) / present.sum(dim=1, keepdim=True).clamp_min(1)


def training_modules(model, mode):
    """The modules that `mode` trains; see `trainable`."""
    if adapters := lora.modules(model):
        return [*adapters, *model.head_modules]
    last = re.fullmatch(r"last:(\d+)", mode)
    if mode == "full":
        return [model]
    if not isinstance(model, ViTEncoder):
        raise UserError(f"--train: expected full for a {type(model).__name__}; found {mode!r}")
    if mode == "head":
        return model.head_modules
    if mode == "probe":
        return [model.head_norm, model.head]
    if last and 1 <= int(last[1]) <= len(model.blocks):
        return [*model.blocks[-int(last[1]) :], model.norm, *model.head_modules]
    modes = f"full, head, probe or last:N, N from 1 to {len(model.blocks)}"
    raise UserError(f"--train: expected {modes}; found {mode!r}")


def trainable(model, mode):
    """Set which parameters train.

    Args:
        model: a model of this module; another model takes mode "full" only.
        mode: "full", everything; "head", the head with its decoder blocks or `fc_norm`; "probe", the linear
            layer alone; "last:N", the last N blocks of the encoder, its `norm` and the head. Position
            embeddings never train. If the encoder has adapters (`util.lora`), they and the head train in
            every mode.

    Returns:
        The names of the parameters that train.

    Raises:
        UserError: unknown mode, or more blocks than the encoder has.
    """
    modules = training_modules(model, mode)
    model.requires_grad_(False)
    for module in modules:
        module.requires_grad_(True)
    for name, parameter in model.named_parameters():
        if name in FIXED:
            parameter.requires_grad_(False)
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def train_mode(model, mode):
    """Put the modules that `mode` trains in train mode and the rest, with their drop paths, in eval mode.

    Call it before every epoch: evaluation puts the whole model in eval mode.
    """
    modules = training_modules(model, mode)
    model.eval()
    for module in modules:
        module.train()


def create_model(
    name,
    task,
    num_classes,
    img_size,
    in_chans=1,
    drop_path=0.1,
    head="decoder",
    head_depth=2,
    global_pool=True,
    **kwargs,
):
    """The preset `name` with the head of a task.

    Args:
        name: one of `PRESETS`.
        task: "segmentation" or "classification".
        head, head_depth: of segmentation only, see `SegmentationViT`.
        global_pool: of classification only, see `ClassificationViT`.
        kwargs: more arguments of the class.

    Raises:
        UserError: no such preset or task, or the class refuses a value.
    """
    if task not in ("segmentation", "classification"):
        raise UserError(f"--model {name}: expected segmentation or classification: {task=}")
    sizes = encoder_sizes(name) | {"num_classes": num_classes, "img_size": img_size, "in_chans": in_chans}
    sizes["drop_path"] = drop_path
    if task == "classification":
        return build(ClassificationViT, name, **sizes | {"global_pool": global_pool} | kwargs)
    decoder = {key: PRESETS[name][key] for key in ("decoder_embed_dim", "decoder_num_heads")}
    return build(SegmentationViT, name, **sizes | decoder | {"head": head, "head_depth": head_depth} | kwargs)


def create_encoder(name, img_size, in_chans=1, **kwargs):
    """The `Encoder` of the preset `name`; raises as `create_model`."""
    return build(Encoder, name, img_size=img_size, in_chans=in_chans, **encoder_sizes(name), **kwargs)


def encoder_sizes(name):
    """The encoder's part of a preset, as arguments of `ViTEncoder`.

    Raises:
        UserError: no such preset.
    """
    return {key: size for key, size in look_up(name, PRESETS).items() if not key.startswith("decoder_")}


def head_of(weights):
    """The head of these weights as arguments of `create_model`: dict, empty without a head."""
    state = weights.state_dict
    if "head.weight" not in state:
        return {}
    rows = len(state["head.weight"])
    depth = len({name.split(".")[1] for name in state if name.startswith("decoder_blocks.")})
    known = {"head_norm": "head_norm.running_mean" in state}
    if depth or "segmentation" in (weights.holds, weights.args.get("task")):
        known |= {"head": "decoder", "head_depth": depth} if depth else {"head": "linear"}
        return known | {"task": "segmentation", "num_classes": rows // state[PATCHES].shape[-1] ** 2}
    return known | {"task": "classification", "num_classes": rows, "global_pool": "fc_norm.weight" in state}


# `models_vit.__dict__["vit_base_patch16"](...)`, as in MAE
globals().update({name: partial(create_model, name) for name in PRESETS})
