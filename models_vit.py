"""The encoder of `models_mae` with a segmentation or a classification head; state-dict keys as in MAE."""

import re
from functools import partial

from torch import nn

import models_mae
from models_mae import LayerNorm, ViTEncoder, transformer_blocks
from util import lora
from util.errors import UserError
from util.pos_embed import sincos_2d

HEADS = ("decoder", "linear")
# These are functions of the grid, not weights: no mode trains them.
FIXED = ("pos_embed", "decoder_pos_embed")


def probe_norm(width):
    """Batch norm without weights of its own, as MAE's linear probe has it: features of any scale suit one learning rate."""
    return nn.BatchNorm1d(width, affine=False, eps=1e-6)


class Encoder(ViTEncoder):
    """The encoder alone: images [N, in_chans, frequency, time] -> tokens [N, 1 + L, embed_dim], class token first."""

    def __init__(self, img_size=224, **kwargs):
        super().__init__(img_size, **kwargs)
        self.initialize()

    def forward(self, imgs):
        """See `ViTEncoder.encode`."""
        return self.encode(imgs)


class SegmentationViT(ViTEncoder):
    """Encoder, then a class for every cell.

    The "decoder" head is the start of MAE's decoder, its keys and shapes included, so that it can begin where pretraining
    ended; then a linear layer from tokens to patches of logits. The "linear" head is that layer alone. New linear layers
    start as in MAE (Xavier).

    Args:
        num_classes: classes of a cell.
        img_size, patch_size, in_chans, embed_dim, depth, num_heads, mlp_ratio, norm_layer, drop_path, norm_eps: see
            `ViTEncoder`; the head's blocks have no drop path.
        head: "decoder" or "linear".
        head_depth: transformer blocks of the "decoder" head.
        decoder_embed_dim, decoder_num_heads: their width and attention heads.
        head_norm: put `probe_norm` before the linear layer.
    """

    def __init__(
        self,
        num_classes,
        img_size=224,
        patch_size=16,
        in_chans=1,
        embed_dim=1024,
        depth=24,
        num_heads=16,
        head="decoder",
        head_depth=2,
        decoder_embed_dim=512,
        decoder_num_heads=16,
        mlp_ratio=4.0,
        norm_layer=LayerNorm,
        drop_path=0.0,
        norm_eps=None,
        head_norm=False,
    ):
        super().__init__(
            img_size, patch_size, in_chans, embed_dim, depth, num_heads, mlp_ratio, norm_layer, drop_path, norm_eps
        )
        if head not in HEADS:
            raise ValueError(f"expected one of {HEADS}: {head=}")
        if head == "decoder" and head_depth < 1:
            raise ValueError(f"expected 1 block or more: {head_depth=}")
        self.has_decoder = head == "decoder"
        if self.has_decoder:
            self.decoder_embed = nn.Linear(embed_dim, decoder_embed_dim)
            self.decoder_pos_embed = nn.Parameter(sincos_2d(decoder_embed_dim, self.grid_size), requires_grad=False)
            self.decoder_blocks = transformer_blocks(
                head_depth, decoder_embed_dim, decoder_num_heads, mlp_ratio, self.block_norm
            )
            self.decoder_norm = norm_layer(decoder_embed_dim)
        width = decoder_embed_dim if self.has_decoder else embed_dim
        self.head_norm = probe_norm(width) if head_norm else nn.Identity()
        self.head = nn.Linear(width, patch_size**2 * num_classes)
        self.initialize()
        if head_norm:
            nn.init.trunc_normal_(self.head.weight, std=0.01)

    @property
    def head_modules(self):
        """What is trained anew or further for the task, whatever becomes of the encoder."""
        if not self.has_decoder:
            return [self.head_norm, self.head]
        return [self.decoder_embed, self.decoder_blocks, self.decoder_norm, self.head_norm, self.head]

    def forward_decoder(self, tokens):
        """Encoded tokens [N, 1 + L, embed_dim] -> [N, 1 + L, decoder_embed_dim]."""
        # embed tokens, add position embedding
        tokens = self.decoder_embed(tokens) + self.decoder_pos_embed

        # transformer
        return self.decoder_norm(self.run(self.decoder_blocks, tokens))

    def forward(self, imgs, drop_numbers=None):
        """Images [N, in_chans, frequency, time] -> logits [N, num_classes, frequency, time]; see `set_drop_numbers`."""
        # encode
        self.set_drop_numbers(drop_numbers)
        tokens = self.forward_encoder(imgs)  # (N, 1 + L, embed_dim)

        # decode
        if self.has_decoder:
            tokens = self.forward_decoder(tokens)  # (N, 1 + L, decoder_embed_dim)

        # predict patches, without the class token; the norm is over all patches of the batch
        tokens = self.head_norm(tokens[:, 1:].flatten(0, 1)).unflatten(0, (-1, self.num_patches))  # (N, L, D)
        patches = self.head(tokens)  # (N, L, patch * patch * num_classes)

        # fold patches back to the image
        return self.unpatchify(patches)


class ClassificationViT(ViTEncoder):
    """Encoder, then a class for the image, by one linear layer on the mean of the patches or on the class token.

    The linear layer starts next to zero (truncated normal of 2e-5, as in MAE's fine-tuning), so that the pretrained
    features see no large random gradients in the first steps.

    Args:
        num_classes: classes of an image.
        img_size, patch_size, in_chans, embed_dim, depth, num_heads, mlp_ratio, norm_layer, drop_path, norm_eps: see
            `ViTEncoder`.
        global_pool: the mean of the patches, then `fc_norm`, and no `norm` (MAE's fine-tuning); else `norm`, then the class
            token.
        head_norm: put `probe_norm` before the linear layer.
    """

    def __init__(
        self,
        num_classes,
        img_size=224,
        patch_size=16,
        in_chans=1,
        embed_dim=1024,
        depth=24,
        num_heads=16,
        global_pool=True,
        mlp_ratio=4.0,
        norm_layer=LayerNorm,
        drop_path=0.0,
        norm_eps=None,
        head_norm=False,
    ):
        super().__init__(
            img_size, patch_size, in_chans, embed_dim, depth, num_heads, mlp_ratio, norm_layer, drop_path, norm_eps
        )
        self.global_pool = global_pool
        if global_pool:
            self.norm = nn.Identity()
            self.fc_norm = norm_layer(embed_dim)
        self.head_norm = probe_norm(embed_dim) if head_norm else nn.Identity()
        self.head = nn.Linear(embed_dim, num_classes)
        self.initialize()
        # LARS moves a weight by a share of its norm, so the head of a linear probe starts larger, as in MAE.
        nn.init.trunc_normal_(self.head.weight, std=0.01 if head_norm else 2e-5)

    @property
    def head_modules(self):
        """What is trained anew for the task, whatever becomes of the encoder."""
        return [*([self.fc_norm] if self.global_pool else []), self.head_norm, self.head]

    def forward(self, imgs, drop_numbers=None):
        """Images [N, in_chans, frequency, time] -> logits [N, num_classes]; see `set_drop_numbers`."""
        # encode
        self.set_drop_numbers(drop_numbers)
        tokens = self.forward_encoder(imgs)  # (N, 1 + L, embed_dim)

        # pool
        features = self.fc_norm(tokens[:, 1:].mean(dim=1)) if self.global_pool else tokens[:, 0]  # (N, embed_dim)

        # predict classes
        return self.head(self.head_norm(features))


def training_modules(model, mode):
    """The modules that `mode` trains (see `trainable`), each with all that it contains.

    Of an encoder with adapters these are the adapters, and the head.
    """
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
    raise UserError(f"--train: expected full, head, probe or last:N, N from 1 to {len(model.blocks)}; found {mode!r}")


def trainable(model, mode):
    """Set which parameters train.

    Args:
        model: a model of this module; of any other, "full" is all that is known.
        mode: "full", everything; "head", the head with its decoder blocks or `fc_norm`; "probe", the linear layer `head`
            alone; "last:N", the last N blocks of the encoder, its `norm` and the head. Position embeddings never train. Of
            an encoder with adapters (`util.lora`) these and the head train, whatever the mode.

    Returns:
        The names of the parameters that train.

    Raises:
        UserError: another mode, or more blocks than there are.
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
    """`model.train()` for what `mode` trains, and `model.eval()` for the rest: no drop path in an encoder that is frozen.

    To be called before every epoch, since evaluation puts the whole model in eval mode.
    """
    modules = training_modules(model, mode)
    model.eval()
    for module in modules:
        module.train()


PRESETS = {name.removeprefix("mae_"): sizes for name, sizes in models_mae.PRESETS.items()}
DEFAULT_PRESET = models_mae.DEFAULT_PRESET.removeprefix("mae_")


def create_model(
    name, task, num_classes, img_size, in_chans=1, drop_path=0.1, head="decoder", head_depth=2, global_pool=True, **kwargs
):
    """The preset `name`, made for a task.

    Args:
        name: one of `PRESETS`.
        task: "segmentation" or "classification".
        head, head_depth: of segmentation only, see `SegmentationViT`.
        global_pool: of classification only, see `ClassificationViT`.
        kwargs: more arguments of the class, on top of the preset's.

    Raises:
        UserError: no such preset, an image size that its patches do not tile, or another value that the class refuses.
    """
    if task not in ("segmentation", "classification"):
        raise UserError(f"--model {name}: expected segmentation or classification: {task=}")
    sizes = encoder_sizes(name) | {"img_size": img_size, "in_chans": in_chans, "drop_path": drop_path}
    try:
        if task == "classification":
            return ClassificationViT(num_classes, **sizes | {"global_pool": global_pool} | kwargs)
        decoder = {key: PRESETS[name][key] for key in ("decoder_embed_dim", "decoder_num_heads")}
        return SegmentationViT(num_classes, **sizes | decoder | {"head": head, "head_depth": head_depth} | kwargs)
    except ValueError as error:
        raise UserError(f"--model {name}: {error}") from error


def create_encoder(name, img_size, in_chans=1, **kwargs):
    """The `Encoder` of the preset `name`; raises as `create_model`."""
    try:
        return Encoder(img_size, in_chans=in_chans, **encoder_sizes(name), **kwargs)
    except ValueError as error:
        raise UserError(f"--model {name}: {error}") from error


def encoder_sizes(name):
    """The sizes of a preset's encoder, as `ViTEncoder` takes them.

    Raises:
        UserError: no such preset.
    """
    if name not in PRESETS:
        raise UserError(f"--model: expected one of {', '.join(PRESETS)}; found {name!r}")
    return {key: size for key, size in PRESETS[name].items() if not key.startswith("decoder_")}


def preset_of(weights, path):
    """See `models_mae.preset_of`."""
    return models_mae.preset_of(weights, path).removeprefix("mae_")


def head_of(weights):
    """What a file's weights say of its head: dict of the arguments of `create_model`, {} without a head.

    It is `task` and `num_classes`, and `head` with `head_depth`, or `global_pool`; `head_norm`.
    """
    state = weights.state_dict
    if "head.weight" not in state:
        return {}
    rows = len(state["head.weight"])
    patch_cells = state[models_mae.PATCHES].shape[-1] ** 2
    depth = len({name.split(".")[1] for name in state if name.startswith("decoder_blocks.")})
    known = {"head_norm": "head_norm.running_mean" in state}
    is_masks = weights.holds == "segmentation" or weights.args.get("task") == "segmentation"
    if depth or is_masks:
        return {**known, "task": "segmentation", "num_classes": rows // patch_cells,
                **({"head": "decoder", "head_depth": depth} if depth else {"head": "linear"})}  # fmt: skip
    return {**known, "task": "classification", "num_classes": rows, "global_pool": "fc_norm.weight" in state}


# `models_vit.__dict__["vit_base_patch16"](...)`, as in MAE
globals().update({name: partial(create_model, name) for name in PRESETS})
