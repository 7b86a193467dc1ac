"""Masked autoencoder for spectrograms: MAE's state-dict keys, any number of channels, any grid.

"Masked Autoencoders Are Scalable Vision Learners" (arXiv 2111.06377), used for radio as in arXiv 2411.09996.
"""

from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange
from timm.models.vision_transformer import Block, PatchEmbed
from torch import nn
from torch.utils.checkpoint import checkpoint

import models_presets
from models_presets import build, look_up
from radio.grid import OUTSIDE
from util import attention
from util.drop_path import DropPath
from util.masking import MASK_KINDS, removal_order
from util.pos_embed import sincos_2d

# MAE's weights were trained with this epsilon; timm and torch default to other values.
LayerNorm = partial(nn.LayerNorm, eps=1e-6)


class ViTEncoder(nn.Module):
    """The Vision Transformer that pretraining and fine-tuning share: images to tokens, class token first.

    A subclass adds its modules, then calls `initialize`.

    Args:
        img_size: (frequency, time) in cells, or one number for both; multiples of `patch_size`.
        patch_size: side of a square patch in cells.
        in_chans: channels of the images.
        embed_dim, depth, num_heads: width, blocks and attention heads.
        mlp_ratio: width of a block's hidden layer over its own.
        norm_layer: called with a width, makes a normalization layer.
        drop_path: probability in [0, 1) that a sample skips a branch of the last block; 0 in the first block,
            linear in between.
        norm_eps: epsilon of the layer norms inside all blocks, the decoder's too; None: that of `norm_layer`.
    """

    def __init__(
        self,
        img_size=224,
        patch_size=16,
        in_chans=1,
        embed_dim=1024,
        depth=24,
        num_heads=16,
        mlp_ratio=4.0,
        norm_layer=LayerNorm,
        drop_path=0.0,
        norm_eps=None,
    ):
        super().__init__()
        self.img_size = (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)
        if any(side % patch_size or side < patch_size for side in self.img_size):
            raise ValueError(f"expected multiples of {patch_size=}: {img_size=}")
        if not 0 <= drop_path < 1:
            raise ValueError(f"expected 0 <= drop_path < 1: {drop_path=}")
        self.patch_size, self.in_chans = patch_size, in_chans
        self.pads = False  # whether images may have cells that are `radio.grid.OUTSIDE`
        self.is_graph = False  # compiled or exported: no shape or branch depends on values
        self.grad_ckpt = False  # in training, recompute the inside of blocks instead of keeping it

        self.patch_embed = PatchEmbed(self.img_size, patch_size, in_chans, embed_dim)
        self.grid_size = self.patch_embed.grid_size  # (rows, columns)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(sincos_2d(embed_dim, self.grid_size), requires_grad=False)
        block_norm = norm_layer if norm_eps is None else partial(nn.LayerNorm, eps=norm_eps)
        self._block = partial(Block, mlp_ratio=mlp_ratio, qkv_bias=True, norm_layer=block_norm)
        self._norm_layer = norm_layer
        self.blocks = self._make_blocks(depth, embed_dim, num_heads)
        for number, block in enumerate(self.blocks):
            if rate := drop_path * number / max(1, depth - 1):
                block.drop_path1, block.drop_path2 = DropPath(rate), DropPath(rate)
        self.norm_eps = self.blocks[0].norm1.eps
        self.drop_paths = [module for module in self.blocks.modules() if isinstance(module, DropPath)]
        self.norm = norm_layer(embed_dim)

    def _make_blocks(self, depth, width, num_heads):
        blocks = nn.ModuleList(self._block(width, num_heads) for _ in range(depth))
        attention.use(blocks)
        return blocks

    def _add_decoder(self, width, depth, num_heads):
        """Add MAE's decoder without its last layer."""
        self.decoder_embed = nn.Linear(self.cls_token.shape[-1], width)
        self.decoder_pos_embed = nn.Parameter(sincos_2d(width, self.grid_size), requires_grad=False)
        self.decoder_blocks = self._make_blocks(depth, width, num_heads)
        self.decoder_norm = self._norm_layer(width)

    def initialize(self):
        """Initialize linear layers, patch embedding and class token as MAE does."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        # A patch embedding is a linear layer on flattened patches.
        nn.init.xavier_uniform_(self.patch_embed.proj.weight.flatten(1))
        nn.init.normal_(self.cls_token, std=0.02)

    @property
    def num_patches(self):
        return self.grid_size[0] * self.grid_size[1]

    def set_drop_numbers(self, numbers):
        """Set the `numbers` of all drop paths: float [N, number of `drop_paths`], or None. See `DropPath`."""
        for place, drop_path in enumerate(self.drop_paths):
            drop_path.numbers = None if numbers is None else numbers[:, place]

    def patchify(self, imgs):
        """[N, C, F, T] -> [N, L, patch * patch * C], patches row by row, channels innermost."""
        return rearrange(imgs, "n c (h p) (w q) -> n (h w) (p q c)", p=self.patch_size, q=self.patch_size)

    def unpatchify(self, patches):
        """The inverse of `patchify`: [N, L, patch * patch * C] -> [N, C, F, T]."""
        (h, w), p = self.grid_size, self.patch_size
        return rearrange(patches, "n (h w) (p q c) -> n c (h p) (w q)", h=h, w=w, p=p, q=p)

    def inside(self, imgs):
        """Split off the cells outside of the recording.

        Returns:
            (images with zeros there [N, C, F, T]; the cells inside, bool [N, 1, F, T]; the patches with a cell
            inside, bool [N, L]). The last two are None if no image has a cell outside.
        """
        if not self.pads:
            return imgs, None, None
        inside = imgs[:, :1] != OUTSIDE
        if imgs.device.type == "cpu" and not self.is_graph and bool(inside.all()):  # a GPU would wait
            return imgs, None, None
        return torch.where(inside, imgs, 0), inside, self.patchify(inside).any(dim=2)

    def forward_encoder(self, imgs, ids_keep=None, present=None):
        """Images -> normalized tokens [N, 1 + kept, embed_dim], class token first.

        Args:
            imgs: as `inside` returns them.
            ids_keep: int64 [N, kept], the patches that are encoded; None: all.
            present: bool [N, kept], the tokens that count; no other token attends to the rest. None: all.
        """
        return self.norm(self.run(self.blocks, self.embed(imgs, ids_keep), present))

    def embed(self, imgs, ids_keep=None):
        """Images -> patch and position embeddings [N, 1 + kept, embed_dim], class token first."""
        # embed the kept patches, add their position embeddings
        if ids_keep is None:
            tokens = self.patch_embed(imgs) + self.pos_embed[:, 1:]  # (N, L, D)
        else:
            p, proj = self.patch_size, self.patch_embed.proj
            patches = rearrange(imgs, "n c (h p) (w q) -> n (h w) (c p q)", p=p, q=p)
            kept = patches.take_along_dim(ids_keep[:, :, None], dim=1)
            tokens = F.linear(kept, proj.weight.flatten(1), proj.bias)  # (N, kept, D)
            tokens = tokens + self.pos_embed[0, 1:][ids_keep]

        # put the class token first
        cls_token = self.cls_token.flatten() + self.pos_embed[0, 0]  # (D,): DDP reduces it in place
        # `len` would fix the batch size when the model is exported.
        return torch.cat([cls_token.expand(tokens.shape[0], 1, -1), tokens], dim=1)

    def run(self, blocks, tokens, present=None):
        """Tokens [N, 1 + L, D] through transformer blocks; `present`, bool [N, L]: see `forward_encoder`."""
        keys = None
        if present is not None:
            keys = F.pad(present, (1, 0), value=True)[:, None, None, :]  # (N, 1, 1, 1 + L)
        for block in blocks:
            if self.grad_ckpt and self.training and torch.is_grad_enabled():
                tokens = checkpoint(block, tokens, keys, use_reentrant=False)
            else:
                tokens = block(tokens, keys)
        return tokens

    def encode(self, imgs):
        """Features without masking: [N, in_chans, F, T] -> [N, 1 + L, embed_dim], class token first."""
        imgs, _, present = self.inside(imgs)
        return self.forward_encoder(imgs, None, present)


class MaskedAutoencoderViT(ViTEncoder):
    """Vision Transformer encoder on visible patches, light decoder on all patches.

    Args:
        decoder_embed_dim, decoder_depth, decoder_num_heads: width, blocks and attention heads of the decoder.
        norm_pix_loss: predict patches scaled to zero mean and unit variance each.
        mask_kind: "random" removes patches; "time" whole columns of patches; "frequency" whole rows;
            "time_frequency" both: the patches at the crossings of kept columns and kept rows stay.
        encoder: more arguments of `ViTEncoder`.
    """

    def __init__(
        self,
        img_size=224,
        *,
        decoder_embed_dim=512,
        decoder_depth=8,
        decoder_num_heads=16,
        norm_pix_loss=False,
        mask_kind="random",
        **encoder,
    ):
        super().__init__(img_size, **encoder)
        if mask_kind not in MASK_KINDS:
            raise ValueError(f"expected one of {MASK_KINDS}: {mask_kind=}")
        self.norm_pix_loss = norm_pix_loss
        self.mask_kind = mask_kind
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_embed_dim))
        self._add_decoder(decoder_embed_dim, decoder_depth, decoder_num_heads)
        self.decoder_pred = nn.Linear(decoder_embed_dim, self.patch_size**2 * self.in_chans)
        self.initialize()
        nn.init.normal_(self.mask_token, std=0.02)

    def masking(self, noise, mask_ratio, present=None):
        """Choose the patches that stay by their noise.

        Args:
            noise: float [N, L]. Patches with the smallest values stay. The structured kinds keep the columns
                and rows with the smallest means.
            mask_ratio: share of patches to remove, in [0, 1). The number of kept patches, rows or columns is
                rounded down, but at least 1.
            present: bool [N, L], the patches to choose from; None: all.

        Returns:
            ids_keep: int64 [N, kept], the kept patches; ids_restore: int64 [N, L], the place of each patch in
            the order "kept, then the rest"; mask: float32 [N, L], 1 for the patches removed, 0 for the others;
            counted: bool [N, kept], which of `ids_keep` are kept: images with fewer patches keep fewer. None
            if all are.
        """
        if not 0 <= mask_ratio < 1:
            raise ValueError(f"expected 0 <= mask_ratio < 1: {mask_ratio=}")
        order, kept = removal_order(noise, 1 - mask_ratio, self.grid_size, self.mask_kind, present)
        ids_shuffle = torch.argsort(order, dim=1, stable=True)
        ids_restore = torch.argsort(ids_shuffle, dim=1)
        if present is None:
            return ids_shuffle[:, :kept], ids_restore, (ids_restore >= kept).float(), None
        most = self.num_visible(mask_ratio)
        if noise.device.type == "cpu" and not self.is_graph:
            most = int(kept.max())
        mask = ((ids_restore >= kept) & present).float()
        return ids_shuffle[:, :most], ids_restore, mask, torch.arange(most, device=noise.device) < kept

    def num_visible(self, mask_ratio):
        """Number of patches that stay in an image without patches outside."""
        noise = torch.empty(1, self.num_patches, device="meta")
        return removal_order(noise, 1 - mask_ratio, self.grid_size, self.mask_kind)[1]

    def forward_decoder(self, tokens, ids_restore, counted=None, present=None):
        """Encoded tokens [N, 1 + kept, embed_dim] -> predicted patches [N, L, patch * patch * C]."""
        tokens = self.embed_for_decoder(tokens, ids_restore, counted)  # (N, 1 + L, D)
        tokens = self.decoder_norm(self.run(self.decoder_blocks, tokens, present))
        return self.decoder_pred(tokens)[:, 1:]  # without the class token

    def embed_for_decoder(self, tokens, ids_restore, counted=None):
        """Encoded tokens [N, 1 + kept, embed_dim] -> [N, 1 + L, decoder_embed_dim], patches in place."""
        tokens = self.decoder_embed(tokens)
        mask_token = self.mask_token.flatten().to(tokens.dtype)
        patches = tokens[:, 1:]
        if counted is not None:
            patches = torch.where(counted[:, :, None], patches, mask_token)

        # append mask tokens, then put every patch in its place
        missing = ids_restore.shape[1] + 1 - tokens.shape[1]
        mask_tokens = mask_token.expand(len(tokens), missing, -1)
        patches = torch.cat([patches, mask_tokens], dim=1)
        patches = patches.take_along_dim(ids_restore[:, :, None], dim=1)  # (N, L, D)
        tokens = torch.cat([tokens[:, :1], patches], dim=1)

        # add position embedding
        return tokens + self.decoder_pos_embed

    def target(self, imgs, inside=None):
        """Patches to predict: float32 [N, L, patch * patch * C]; `norm_pix_loss` scales each patch."""
        patches = self.patchify(imgs.float())
        if self.norm_pix_loss:
            mean, var = patch_statistics(patches, self._counts(inside, patches))
            patches = (patches - mean) / (var + 1e-6).sqrt()
        return patches

    def forward_loss(self, imgs, pred, mask, inside=None):
        """Mean squared error over the removed patches, or over all if none is removed: float32 scalar.

        Cells outside do not count. Images weigh the same, whatever they have inside.
        """
        return self._masked_mean((pred.float() - self.target(imgs, inside)).square(), mask, inside)

    def mean_loss(self, imgs, mask):
        """The baseline for `forward_loss`: the loss of predicting each image's mean everywhere."""
        imgs, inside, _ = self.inside(imgs)
        target = self.target(imgs, inside)
        counts = self._counts(inside, target)
        sums, cells = ((each * counts).sum(dim=(1, 2), keepdim=True) for each in (target, 1.0))
        return self._masked_mean((target - sums / cells.clamp_min(1)).square(), mask, inside)

    def _counts(self, inside, values):
        """1 for the values of cells inside, else 0: float32 [N, L, patch * patch * C], as `values`."""
        if inside is None:
            return torch.ones_like(values)
        return self.patchify(inside.float().expand(-1, self.in_chans, -1, -1))

    def _masked_mean(self, errors, mask, inside):
        """The images' mean of `errors` [N, L, values] in the removed patches, or in all if none is removed."""
        removed = torch.where(mask.any(dim=1, keepdim=True), mask, 1.0)
        weight = removed[:, :, None] * self._counts(inside, errors)
        return ((errors * weight).sum(dim=(1, 2)) / weight.sum(dim=(1, 2)).clamp_min(1)).mean()

    def forward(self, imgs, mask_ratio=0.75, noise=None):
        """Mask, encode, decode.

        Args:
            imgs: float [N, in_chans, frequency, time]; if `pads` is set, cells may be `radio.grid.OUTSIDE`.
            mask_ratio: share of patches to remove, in [0, 1); with 0 the loss is over all patches.
            noise: float [N, L], decides the mask (see `masking`); None: drawn from torch's generator.

        Returns:
            loss: scalar; pred: [N, L, patch * patch * C]; mask: [N, L], 1 for the patches removed.
        """
        if noise is None:
            noise = torch.rand(len(imgs), self.num_patches, device=imgs.device)
        imgs, inside, present = self.inside(imgs)
        ids_keep, ids_restore, mask, counted = self.masking(noise, mask_ratio, present)
        tokens = self.forward_encoder(imgs, ids_keep, counted)
        pred = self.forward_decoder(tokens, ids_restore, counted, present)
        return self.forward_loss(imgs, pred, mask, inside), pred, mask


def patch_statistics(patches, counts):
    """Mean and unbiased variance of the values of patches that count: [N, L, values] -> two of [N, L, 1]."""
    count = counts.sum(dim=-1, keepdim=True)
    mean = (patches * counts).sum(dim=-1, keepdim=True) / count.clamp_min(1)
    squares = ((patches - mean).square() * counts).sum(dim=-1, keepdim=True)
    return mean, squares / (count - 1).clamp_min(1)


PRESETS = {f"mae_{name}": sizes for name, sizes in models_presets.PRESETS.items()}
DEFAULT_PRESET = f"mae_{models_presets.DEFAULT_PRESET}"


def create_model(name, **kwargs):
    """The preset `name`, with more arguments of `MaskedAutoencoderViT`.

    Raises:
        UserError: no such preset, or an image size that is no multiple of its patch size.
    """
    return build(MaskedAutoencoderViT, name, **look_up(name, PRESETS), **kwargs)


# `models_mae.mae_vit_base_patch16(...)` and `models_mae.__dict__["mae_vit_base_patch16"](...)`, as in MAE
globals().update({name: partial(create_model, name) for name in PRESETS})
