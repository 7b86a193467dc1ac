"""Masked autoencoder for spectrograms: MAE's constructor and state-dict keys, any number of channels, any grid.

"Masked Autoencoders Are Scalable Vision Learners" (arXiv 2111.06377), applied to radio as in arXiv 2411.09996.
"""

import math
from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from timm.models.vision_transformer import Block, PatchEmbed
from torch import nn
from torch.utils.checkpoint import checkpoint

from util import attention
from util.drop_path import DropPath
from util.errors import UserError
from util.order import inverse, rank, share_of
from util.pos_embed import sincos_2d

PATCHES = "patch_embed.proj.weight"
MASK_KINDS = ("random", "time", "frequency", "time_frequency")

# The epsilon that released MAE weights were trained with; timm and torch default to other values.
LayerNorm = partial(nn.LayerNorm, eps=1e-6)


class ViTEncoder(nn.Module):
    """The Vision Transformer that pretraining and fine-tuning share: from images to tokens, class token first.

    A subclass adds its modules, then calls `initialize`.

    Args:
        img_size: (frequency, time) in cells, or one number for both; multiples of `patch_size`.
        patch_size: side of a square patch in cells.
        in_chans: channels of the images.
        embed_dim, depth, num_heads: width, blocks and attention heads.
        mlp_ratio: width of a block's hidden layer over its own.
        norm_layer: called with a width, makes a normalization layer.
        drop_path: probability in [0, 1) that a sample skips a branch of the last block; grows linearly from 0 at the first.
        norm_eps: epsilon of the layer norms inside blocks, the decoder's too; None: as `norm_layer` has it.
    """

    def __init__(
        self, img_size, patch_size, in_chans, embed_dim, depth, num_heads, mlp_ratio=4.0, norm_layer=LayerNorm,
        drop_path=0.0, norm_eps=None,
    ):  # fmt: skip
        super().__init__()
        self.img_size = (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)
        if any(side % patch_size or side < patch_size for side in self.img_size):
            raise ValueError(f"expected multiples of {patch_size=}: {img_size=}")
        if not 0 <= drop_path < 1:
            raise ValueError(f"expected 0 <= drop_path < 1: {drop_path=}")
        self.patch_size = patch_size
        self.in_chans = in_chans
        self.grad_ckpt = False  # in training, compute what is inside the blocks again instead of keeping it

        self.patch_embed = PatchEmbed(self.img_size, patch_size, in_chans, embed_dim)
        self.grid_size = self.patch_embed.grid_size  # (rows, columns)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(sincos_2d(embed_dim, self.grid_size), requires_grad=False)
        self.block_norm = norm_layer if norm_eps is None else partial(nn.LayerNorm, eps=norm_eps)
        self.blocks = transformer_blocks(depth, embed_dim, num_heads, mlp_ratio, self.block_norm, drop_path)
        self.norm_eps = self.blocks[0].norm1.eps
        self.drop_paths = [module for module in self.blocks.modules() if isinstance(module, DropPath)]
        self.norm = norm_layer(embed_dim)

    def initialize(self):
        """MAE's initialization of every linear layer, the patch embedding and the class token."""
        self.apply(_init_weights)
        # A patch embedding is a linear layer on flattened patches, and is initialised like one.
        nn.init.xavier_uniform_(self.patch_embed.proj.weight.flatten(1))
        nn.init.normal_(self.cls_token, std=0.02)

    @property
    def num_patches(self):
        return self.grid_size[0] * self.grid_size[1]

    def set_drop_numbers(self, numbers):
        """Decide which samples skip which branch in the next forward pass: float [N, number of `drop_paths`], or None."""
        for place, drop_path in enumerate(self.drop_paths):
            drop_path.numbers = None if numbers is None else numbers[:, place]

    def patchify(self, imgs):
        """[N, C, F, T] -> [N, L, patch * patch * C], patches row by row, channels innermost."""
        return rearrange(imgs, "n c (h p) (w q) -> n (h w) (p q c)", p=self.patch_size, q=self.patch_size)

    def unpatchify(self, patches):
        """The inverse of `patchify`: [N, L, patch * patch * C] -> [N, C, F, T]."""
        h, w = self.grid_size
        return rearrange(patches, "n (h w) (p q c) -> n c (h p) (w q)", h=h, w=w, p=self.patch_size, q=self.patch_size)

    def forward_encoder(self, imgs, ids_keep=None):
        """Images -> normalized tokens [N, 1 + kept, embed_dim]; class token first. Without `ids_keep` all are kept."""
        # embed patches, class token first
        tokens = self.embed(imgs, ids_keep)  # (N, 1 + kept, D)

        # transformer
        return self.norm(self.run(self.blocks, tokens))

    def embed(self, imgs, ids_keep=None):
        """Images -> embedded patches with their positions, class token first: [N, 1 + kept, embed_dim]."""
        # add position embeddings, without the class token's; what is removed is not embedded either
        if ids_keep is None:
            tokens = self.patch_embed(imgs) + self.pos_embed[:, 1:]  # (N, L, D)
        else:
            patches = rearrange(imgs, "n c (h p) (w q) -> n (h w) (c p q)", p=self.patch_size, q=self.patch_size)
            proj = self.patch_embed.proj
            tokens = F.linear(_gather(patches, ids_keep), proj.weight.flatten(1), proj.bias)  # (N, kept, D)
            tokens = tokens + self.pos_embed[0, 1:][ids_keep]

        # put the class token first
        cls_token = self.cls_token.flatten() + self.pos_embed[0, 0]  # (D,): so flat a gradient can be exchanged in place
        # `len` would fix the batch at what an exporter traces with.
        return torch.cat([cls_token.expand(tokens.shape[0], 1, -1), tokens], dim=1)

    def run(self, blocks, tokens):
        """Tokens [N, L, D] through transformer blocks."""
        for block in blocks:
            if self.grad_ckpt and self.training and torch.is_grad_enabled():
                tokens = checkpoint(block, tokens, use_reentrant=False)
            else:
                tokens = block(tokens)
        return tokens

    def encode(self, imgs):
        """Features without masking: [N, in_chans, frequency, time] -> [N, 1 + L, embed_dim], class token first."""
        return self.forward_encoder(imgs)


class MaskedAutoencoderViT(ViTEncoder):
    """Vision Transformer encoder on visible patches, light decoder on all of them.

    Args:
        img_size, patch_size, in_chans, embed_dim, depth, num_heads, mlp_ratio, norm_layer, norm_eps: see `ViTEncoder`.
        decoder_embed_dim, decoder_depth, decoder_num_heads: width, blocks and attention heads of the decoder.
        norm_pix_loss: predict patches scaled to zero mean and unit variance each.
        mask_kind: "random" removes patches; "time" whole columns of patches, "frequency" whole rows, "time_frequency"
            both, so that what stays is the crossing of the kept columns with the kept rows.
    """

    def __init__(
        self,
        img_size=224,
        patch_size=16,
        in_chans=1,
        embed_dim=1024,
        depth=24,
        num_heads=16,
        decoder_embed_dim=512,
        decoder_depth=8,
        decoder_num_heads=16,
        mlp_ratio=4.0,
        norm_layer=LayerNorm,
        norm_pix_loss=False,
        mask_kind="random",
        norm_eps=None,
    ):
        super().__init__(
            img_size, patch_size, in_chans, embed_dim, depth, num_heads, mlp_ratio, norm_layer, norm_eps=norm_eps
        )
        if mask_kind not in MASK_KINDS:
            raise ValueError(f"expected one of {MASK_KINDS}: {mask_kind=}")
        self.norm_pix_loss = norm_pix_loss
        self.mask_kind = mask_kind

        self.decoder_embed = nn.Linear(embed_dim, decoder_embed_dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_embed_dim))
        self.decoder_pos_embed = nn.Parameter(sincos_2d(decoder_embed_dim, self.grid_size), requires_grad=False)
        self.decoder_blocks = transformer_blocks(
            decoder_depth, decoder_embed_dim, decoder_num_heads, mlp_ratio, self.block_norm
        )
        self.decoder_norm = norm_layer(decoder_embed_dim)
        self.decoder_pred = nn.Linear(decoder_embed_dim, patch_size**2 * in_chans)

        self.initialize()
        nn.init.normal_(self.mask_token, std=0.02)

    def masking(self, noise, mask_ratio):
        """Which patches stay, as a function of the noise.

        Args:
            noise: float [N, L]. The patches with the smallest values stay; of the structured kinds, the columns and rows
                with the smallest means.
            mask_ratio: share of patches to remove, in [0, 1). The number that stays is rounded down, never below one
                patch, row or column.

        Returns:
            ids_keep: int64 [N, kept], the patches that stay; ids_restore: int64 [N, L], the place of every patch in the
            order "kept, then removed"; mask: float32 [N, L], 0 keeps, 1 removes.
        """
        if not 0 <= mask_ratio < 1:
            raise ValueError(f"expected 0 <= mask_ratio < 1: {mask_ratio=}")
        order, kept = self._removal_order(noise, 1 - mask_ratio)
        ids_shuffle = torch.argsort(order, dim=1, stable=True)
        ids_restore = inverse(ids_shuffle)
        mask = (ids_restore >= kept).float()
        return ids_shuffle[:, :kept], ids_restore, mask

    def num_visible(self, mask_ratio):
        """How many patches stay."""
        return self.masking(torch.empty(1, self.num_patches, device="meta"), mask_ratio)[0].shape[1]

    def _removal_order(self, noise, keep_share):
        """A value for each patch [N, L], and how many of the smallest stay."""
        rows, columns = self.grid_size
        if self.mask_kind == "random":
            return noise, share_of(self.num_patches * keep_share)

        rows_kept, columns_kept = rows, columns
        if self.mask_kind == "time":
            columns_kept = share_of(columns * keep_share)
        elif self.mask_kind == "frequency":
            rows_kept = share_of(rows * keep_share)
        else:
            # About the same share of rows as of columns, then the columns that bring the product nearest.
            rows_kept = max(1, round(rows * math.sqrt(keep_share)))
            columns_kept = min(columns, share_of(rows * columns * keep_share / rows_kept))
        noise = noise.unflatten(1, self.grid_size)  # (N, rows, columns)
        row_removed = rank(noise.mean(dim=2)) >= rows_kept  # (N, rows)
        column_removed = rank(noise.mean(dim=1)) >= columns_kept  # (N, columns)
        removed = row_removed[:, :, None] | column_removed[:, None, :]
        return removed.flatten(1).to(torch.uint8), rows_kept * columns_kept

    def forward_decoder(self, tokens, ids_restore):
        """Encoded tokens [N, 1 + kept, embed_dim] -> predicted patches [N, L, patch * patch * C]."""
        # embed tokens, mask tokens where patches were removed
        tokens = self.embed_for_decoder(tokens, ids_restore)  # (N, 1 + L, D)

        # transformer
        tokens = self.decoder_norm(self.run(self.decoder_blocks, tokens))

        # predict patches, without the class token
        return self.decoder_pred(tokens)[:, 1:]

    def embed_for_decoder(self, tokens, ids_restore):
        """Encoded tokens [N, 1 + kept, embed_dim] -> [N, 1 + L, decoder_embed_dim], every patch in its place."""
        tokens = self.decoder_embed(tokens)

        # append mask tokens, then put every patch in its place
        missing = ids_restore.shape[1] + 1 - tokens.shape[1]
        mask_tokens = self.mask_token.flatten().to(tokens.dtype).expand(len(tokens), missing, -1)
        patches = _gather(torch.cat([tokens[:, 1:], mask_tokens], dim=1), ids_restore)  # (N, L, D)
        tokens = torch.cat([tokens[:, :1], patches], dim=1)

        # add position embedding
        return tokens + self.decoder_pos_embed

    def target(self, imgs):
        """What is to be predicted: patches [N, L, patch * patch * C] float32, scaled each with `norm_pix_loss`."""
        patches = self.patchify(imgs.float())
        if self.norm_pix_loss:
            mean, var = patch_statistics(patches)
            patches = (patches - mean) / (var + 1e-6).sqrt()
        return patches

    def forward_loss(self, imgs, pred, mask):
        """Mean squared error over the removed patches, or over all where none is removed: a float32 scalar."""
        return _masked_mean((pred.float() - self.target(imgs)).square().mean(dim=-1), mask)

    def mean_loss(self, imgs, mask):
        """The same loss for predicting each image's mean everywhere, hidden patches counted in: what learning must beat."""
        target = self.target(imgs)
        return _masked_mean((target - target.mean(dim=(1, 2), keepdim=True)).square().mean(dim=-1), mask)

    def forward(self, imgs, mask_ratio=0.75, noise=None):
        """Mask, encode, decode.

        Args:
            imgs: float [N, in_chans, frequency, time].
            mask_ratio: share of patches to remove, in [0, 1); 0 removes none and takes the loss over all.
            noise: float [N, L] that decides the mask (see `masking`); drawn from torch's generator where not given.

        Returns:
            loss: scalar; pred: [N, L, patch * patch * C]; mask: [N, L], 0 keeps, 1 removes.
        """
        if noise is None:
            noise = torch.rand(len(imgs), self.num_patches, device=imgs.device)
        ids_keep, ids_restore, mask = self.masking(noise, mask_ratio)
        pred = self.forward_decoder(self.forward_encoder(imgs, ids_keep), ids_restore)
        return self.forward_loss(imgs, pred, mask), pred, mask


def patch_statistics(patches):
    """Mean and unbiased variance of each patch, as `norm_pix_loss` uses them: [N, L, values] -> two of [N, L, 1]."""
    return patches.mean(dim=-1, keepdim=True), patches.var(dim=-1, keepdim=True)


def transformer_blocks(depth, width, num_heads, mlp_ratio, norm_layer, drop_path=0.0):
    """`depth` blocks, their drop path growing linearly from 0 to `drop_path`."""
    blocks = nn.ModuleList(Block(width, num_heads, mlp_ratio, qkv_bias=True, norm_layer=norm_layer) for _ in range(depth))
    for number, block in enumerate(blocks):
        if rate := drop_path * number / max(1, depth - 1):
            block.drop_path1, block.drop_path2 = DropPath(rate), DropPath(rate)
    attention.use(blocks)
    return blocks


def _init_weights(module):
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)


def _gather(tokens, ids):
    return torch.gather(tokens, 1, repeat(ids, "n l -> n l d", d=tokens.shape[-1]))


def _masked_mean(per_patch, mask):
    # Where no patch is removed, all count. Decided on the device: reading the mask on the host would stall it.
    weight = torch.where(mask.any(), mask, torch.ones_like(mask))
    return (per_patch * weight).sum() / weight.sum()


_DECODER_512 = {"decoder_embed_dim": 512, "decoder_depth": 8, "decoder_num_heads": 16}
_BASE = {"patch_size": 16, "embed_dim": 768, "depth": 12, "num_heads": 12, **_DECODER_512}
_LARGE = {"patch_size": 16, "embed_dim": 1024, "depth": 24, "num_heads": 16, **_DECODER_512}
_HUGE = {"patch_size": 14, "embed_dim": 1280, "depth": 32, "num_heads": 16, **_DECODER_512}

PRESETS = {
    "mae_vit_tiny_patch16": {
        "patch_size": 16, "embed_dim": 192, "depth": 12, "num_heads": 3,
        "decoder_embed_dim": 128, "decoder_depth": 4, "decoder_num_heads": 4,
    },
    # The encoder of WavesFM v1.0 (arXiv 2511.15162); its decoder is not published, this one is the tiny model's.
    "mae_vit_wavesfm_patch16": {
        "patch_size": 16, "embed_dim": 256, "depth": 8, "num_heads": 8,
        "decoder_embed_dim": 128, "decoder_depth": 4, "decoder_num_heads": 4,
    },
    "mae_vit_small_patch16": {
        "patch_size": 16, "embed_dim": 512, "depth": 12, "num_heads": 8,
        "decoder_embed_dim": 256, "decoder_depth": 8, "decoder_num_heads": 16,
    },
    "mae_vit_medium_patch16": _BASE,
    "mae_vit_base_patch16": _BASE,
    "mae_vit_large_patch16": _LARGE,
    "mae_vit_huge_patch14": _HUGE,
    # MAE's longer names of the same
    "mae_vit_base_patch16_dec512d8b": _BASE,
    "mae_vit_large_patch16_dec512d8b": _LARGE,
    "mae_vit_huge_patch14_dec512d8b": _HUGE,
}  # fmt: skip
DEFAULT_PRESET = "mae_vit_small_patch16"  # the published one


def create_model(name, **kwargs):
    """The preset `name`, with the constructor arguments of `MaskedAutoencoderViT` on top.

    Raises:
        UserError: no such preset, or an image size that its patches do not tile.
    """
    if name not in PRESETS:
        raise UserError(f"--model: expected one of {', '.join(PRESETS)}; found {name!r}")
    try:
        return MaskedAutoencoderViT(**PRESETS[name], **kwargs)
    except ValueError as error:
        raise UserError(f"--model {name}: {error}") from error


def preset_of(weights, path):
    """The preset whose encoder a file's weights are of: by the name that they come with, else by their sizes.

    Args:
        weights: `util.pretrained.Weights`; path: where they come from, for messages.

    Raises:
        UserError: no preset has these sizes.
    """
    state = weights.state_dict
    projection = state.get(PATCHES)
    if projection is None or projection.ndim != 4:
        raise UserError(f"{path}: expected an encoder with patch_embed.proj.weight; found {', '.join(list(state)[:3])}, ...")
    blocks = {name.split(".")[1] for name in state if name.startswith("blocks.")}
    found = {"patch_size": projection.shape[-1], "embed_dim": len(projection), "depth": len(blocks)}
    fitting = [name for name, sizes in PRESETS.items() if found.items() <= sizes.items()]
    own = str(weights.preset or weights.args.get("model") or "")
    own = own if own.startswith("mae_") else f"mae_{own}"
    if not fitting:
        sizes = ", ".join(f"{key} {value}" for key, value in found.items())
        raise UserError(f"{path}: expected the encoder of a preset ({', '.join(PRESETS)}); found {sizes}")
    return own if own in fitting else fitting[0]


# `models_mae.mae_vit_base_patch16(...)` and `models_mae.__dict__["mae_vit_base_patch16"](...)`, as in MAE
globals().update({name: partial(create_model, name) for name in PRESETS})
