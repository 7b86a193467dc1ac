"""The masked autoencoder: MAE's shapes, keys and masks, exact under given noise."""

import numpy as np
import pytest
import torch
from torch import nn

import models_mae
from util.errors import UserError
from util.pos_embed import sincos_2d

PARAMETERS = {
    "mae_vit_small_patch16": 44_628_992,
    "mae_vit_medium_patch16": 111_251_968,
    "mae_vit_base_patch16": 111_251_968,
    "mae_vit_large_patch16": 328_754_944,
}
SIZES = {  # width, blocks, heads, decoder width, blocks, heads, patch
    "mae_vit_tiny_patch16": (192, 12, 3, 128, 4, 4, 16),
    "mae_vit_wavesfm_patch16": (256, 8, 8, 128, 4, 4, 16),
    "mae_vit_small_patch16": (512, 12, 8, 256, 8, 16, 16),
    "mae_vit_medium_patch16": (768, 12, 12, 512, 8, 16, 16),
    "mae_vit_base_patch16": (768, 12, 12, 512, 8, 16, 16),
    "mae_vit_large_patch16": (1024, 24, 16, 512, 8, 16, 16),
    "mae_vit_huge_patch14": (1280, 32, 16, 512, 8, 16, 14),
}
SIZES |= {f"{name}_dec512d8b": SIZES[name] for name in list(SIZES)[-3:]}  # MAE's longer names


def small(**kwargs):
    torch.manual_seed(0)
    sizes = {
        "img_size": (48, 64),
        "patch_size": 8,
        "embed_dim": 32,
        "depth": 2,
        "num_heads": 4,
        "decoder_embed_dim": 16,
        "decoder_depth": 1,
        "decoder_num_heads": 2,
    }
    return models_mae.MaskedAutoencoderViT(**{**sizes, **kwargs})


def test_every_preset_is_tested():
    assert set(SIZES) == set(models_mae.PRESETS)


@pytest.mark.parametrize("name", SIZES)
def test_presets(name):
    with torch.device("meta"):
        model = models_mae.create_model(name)
    width, blocks, heads, decoder_width, decoder_blocks, decoder_heads, patch = SIZES[name]
    assert model.cls_token.shape[-1] == width
    assert len(model.blocks) == blocks
    assert model.mask_token.shape[-1] == decoder_width
    assert len(model.decoder_blocks) == decoder_blocks
    assert {block.attn.num_heads for block in model.blocks} == {heads}
    assert {block.attn.num_heads for block in model.decoder_blocks} == {decoder_heads}
    assert {block.mlp.fc1.out_features / width for block in model.blocks} == {4}
    assert model.patch_embed.proj.weight.shape == (width, 1, patch, patch)
    if name in PARAMETERS:
        assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[name]


def test_presets_are_names_of_the_module_too():
    with torch.device("meta"):
        assert models_mae.mae_vit_tiny_patch16(norm_pix_loss=True).norm_pix_loss
        for name in SIZES:
            assert models_mae.__dict__[name](norm_pix_loss=True).norm_pix_loss, name
    with pytest.raises(AttributeError, match="mae_vit_giant"):
        _ = models_mae.mae_vit_giant


def test_state_dict_has_the_keys_of_mae():
    block = [
        "norm1.weight",
        "norm1.bias",
        "attn.qkv.weight",
        "attn.qkv.bias",
        "attn.proj.weight",
        "attn.proj.bias",
        "norm2.weight",
        "norm2.bias",
        "mlp.fc1.weight",
        "mlp.fc1.bias",
        "mlp.fc2.weight",
        "mlp.fc2.bias",
    ]
    expected = {
        "cls_token",
        "pos_embed",
        "patch_embed.proj.weight",
        "patch_embed.proj.bias",
        "norm.weight",
        "norm.bias",
        "mask_token",
        "decoder_embed.weight",
        "decoder_embed.bias",
        "decoder_pos_embed",
        "decoder_norm.weight",
        "decoder_norm.bias",
        "decoder_pred.weight",
        "decoder_pred.bias",
    }
    expected |= {f"blocks.{n}.{key}" for n in range(2) for key in block} | {
        f"decoder_blocks.0.{key}" for key in block
    }
    state = small().state_dict()
    assert set(state) == expected
    assert state["pos_embed"].shape == (1, 1 + 48, 32)
    assert state["decoder_pred.weight"].shape == (64, 16)


def test_every_layer_norm_has_our_epsilon():
    epsilons = [module.eps for module in small().modules() if isinstance(module, nn.LayerNorm)]
    assert len(epsilons) == 2 * 3 + 2
    assert set(epsilons) == {1e-6}


def test_position_embedding_follows_its_formula():
    """Column first, then row; each sine, then cosine; checked at one patch against numbers from the formula."""
    embedding = sincos_2d(8, (3, 5))
    assert embedding.shape == (1, 16, 8)
    assert (embedding[0, 0] == 0).all()
    row, column = 2, 3
    expected = [
        np.sin(3.0),
        np.sin(0.03),
        np.cos(3.0),
        np.cos(0.03),
        np.sin(2.0),
        np.sin(0.02),
        np.cos(2.0),
        np.cos(0.02),
    ]
    np.testing.assert_allclose(embedding[0, 1 + row * 5 + column], expected, atol=1e-7)
    with pytest.raises(ValueError, match="width=6"):
        sincos_2d(6, (3, 5))


def test_patchify_and_back():
    model = small(in_chans=2)
    images = torch.randn(3, 2, 48, 64)
    patches = model.patchify(images)
    assert patches.shape == (3, 48, 128)
    assert torch.equal(model.unpatchify(patches), images)
    # Patch 9 is row 1, column 1; a cell's channels stand together.
    assert torch.equal(patches[0, 9].view(8, 8, 2), images[0, :, 8:16, 8:16].permute(1, 2, 0))


def test_patch_embedding_sees_the_patch_that_patchify_cuts():
    model = small()
    images = torch.randn(2, 1, 48, 64)
    expected = (
        model.patchify(images) @ model.patch_embed.proj.weight.flatten(1).T + model.patch_embed.proj.bias
    )
    torch.testing.assert_close(model.patch_embed(images), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("mask_kind", models_mae.MASK_KINDS)
@pytest.mark.parametrize("img_size", [(48, 64), (8, 80), (80, 8), (8, 8), (224, 16)])
@pytest.mark.parametrize("mask_ratio", [0, 0.3, 0.5, 0.75, 0.9])
def test_masks(mask_kind, img_size, mask_ratio):
    """One count for all samples, structure as named, and the encoder sees the kept patches and no other."""
    model = small(img_size=img_size, mask_kind=mask_kind)
    rows, columns = model.grid_size
    noise = torch.rand(5, model.num_patches)
    ids_keep, ids_restore, mask, _ = model.masking(noise, mask_ratio)
    kept = ids_keep.shape[1]
    assert mask.shape == (5, rows * columns)
    assert ((mask == 0).sum(dim=1) == kept).all()
    assert torch.equal(mask.gather(1, ids_keep), torch.zeros(5, kept))
    assert torch.equal(ids_restore.sort(dim=1).values, torch.arange(rows * columns).expand(5, -1))
    assert kept >= 1
    if mask_ratio == 0:
        assert kept == rows * columns
    grid = mask.view(5, rows, columns)
    if mask_kind == "time":
        assert (grid == grid[:, :1]).all()
        assert kept == rows * max(1, int(columns * (1 - mask_ratio) + 1e-6))
    elif mask_kind == "frequency":
        assert (grid == grid[:, :, :1]).all()
        assert kept == columns * max(1, int(rows * (1 - mask_ratio) + 1e-6))
    elif mask_kind == "time_frequency":
        rows_removed, columns_removed = grid.min(dim=2).values, grid.min(dim=1).values
        assert torch.equal(grid, torch.maximum(rows_removed[:, :, None], columns_removed[:, None, :]))
        assert abs(kept / mask[0].numel() - (1 - mask_ratio)) <= max(1 / rows, 1 / columns)
    else:
        assert kept == max(1, int(rows * columns * (1 - mask_ratio) + 1e-6))

    images = torch.randn(5, 1, *img_size)
    seen = model.forward_encoder(images, ids_keep)
    assert seen.shape == (5, 1 + kept, 32)
    hidden = torch.where(
        model.unpatchify(mask[..., None].expand(-1, -1, 64)) == 1, torch.randn_like(images), images
    )
    assert torch.equal(model.forward_encoder(hidden, ids_keep), seen)


def test_the_smallest_noise_is_kept():
    model = small(img_size=(16, 24))
    noise = torch.tensor([[0.9, 0.1, 0.8, 0.3, 0.2, 0.7]])
    assert model.masking(noise, 0.5)[2].tolist() == [[1, 0, 1, 0, 0, 1]]
    assert small(img_size=(16, 24), mask_kind="time").masking(noise, 0.6)[2].tolist() == [[1, 0, 1, 1, 0, 1]]
    # Row means 0.6 and 0.4.
    assert small(img_size=(16, 24), mask_kind="frequency").masking(noise, 0.5)[2].tolist() == [
        [1, 1, 1, 0, 0, 0]
    ]


def test_ten_percent_of_a_hundred_is_ten():
    """100 * (1 - 0.9) is 9.999..., which is not to be rounded down to 9."""
    model = small(img_size=(80, 80))
    assert model.masking(torch.rand(1, 100), 0.9)[0].shape == (1, 10)


@pytest.mark.parametrize("mask_ratio", [-0.1, 1, 1.5, float("nan")])
def test_mask_ratio_out_of_range(mask_ratio):
    with pytest.raises(ValueError, match="mask_ratio"):
        small()(torch.randn(1, 1, 48, 64), mask_ratio)


@pytest.mark.parametrize("mask_ratio", [0, 0.5, 0.75])
@pytest.mark.parametrize("norm_pix_loss", [False, True])
def test_forward_is_exact_under_noise(mask_ratio, norm_pix_loss):
    """Prediction and loss put together by hand: tokens in their own places, loss over the removed patches
    alone.
    """
    model = small(norm_pix_loss=norm_pix_loss).double()
    images = torch.randn(3, 1, 48, 64, dtype=torch.float64)
    noise = torch.rand(3, 48)
    loss, pred, mask = model(images, mask_ratio, noise)
    assert pred.shape == (3, 48, 64)
    assert torch.equal(model(images, mask_ratio, noise)[1], pred)

    kept = 48 - round(48 * mask_ratio)
    for n in range(3):
        ids = noise[n].argsort()[:kept].sort().values
        tokens = model.patch_embed(images[n : n + 1])[0] + model.pos_embed[0, 1:]
        tokens = torch.cat([model.cls_token[0] + model.pos_embed[0, :1], tokens[ids]])[None]
        for block in model.blocks:
            tokens = block(tokens)
        tokens = model.decoder_embed(model.norm(tokens))[0]
        patches = model.mask_token[0].repeat(48, 1)
        patches[ids] = tokens[1:]
        tokens = (torch.cat([tokens[:1], patches]) + model.decoder_pos_embed[0])[None]
        for block in model.decoder_blocks:
            tokens = block(tokens)
        expected = model.decoder_pred(model.decoder_norm(tokens))[0, 1:]
        torch.testing.assert_close(pred[n], expected)

    target = model.patchify(images).float()
    if norm_pix_loss:
        target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()
    errors = (pred.float() - target).square().mean(dim=-1)
    torch.testing.assert_close(loss, errors[mask == 1].mean() if mask_ratio else errors.mean())


def test_loss_of_the_mean_predictor():
    model = small()
    images = torch.randn(4, 1, 48, 64) + torch.arange(4.0).view(4, 1, 1, 1)
    mask = model.masking(torch.rand(4, 48), 0.75)[2]
    patches = model.patchify(images)
    expected = [(patches[n][mask[n] == 1] - images[n].mean()).square().mean() for n in range(4)]
    torch.testing.assert_close(model.mean_loss(images, mask), torch.stack(expected).mean())


def test_gradients_reach_every_trained_parameter():
    model = small()
    model(torch.randn(2, 1, 48, 64), 0.75)[0].backward()
    without = [
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and parameter.grad is None
    ]
    assert without == []
    assert not model.pos_embed.requires_grad
    assert not model.decoder_pos_embed.requires_grad


def test_noise_comes_from_torch_generator_when_not_given():
    model, images = small(), torch.randn(2, 1, 48, 64)
    torch.manual_seed(3)
    first = model(images)[2]
    torch.manual_seed(3)
    assert torch.equal(model(images)[2], first)
    assert not torch.equal(model(images)[2], first)


def test_encode_is_the_encoder_on_all_patches():
    model = small()
    images = torch.randn(2, 1, 48, 64)
    features = model.encode(images)
    assert features.shape == (2, 49, 32)
    ids = torch.arange(48).expand(2, -1)
    torch.testing.assert_close(features, model.forward_encoder(images, ids))


def test_unknown_presets_and_sizes_that_patches_do_not_tile():
    with pytest.raises(UserError, match="mae_vit_giant"):
        models_mae.create_model("mae_vit_giant")
    with pytest.raises(UserError, match="100"):
        models_mae.create_model("mae_vit_tiny_patch16", img_size=(224, 100))
    with pytest.raises(UserError, match="diagonal"):
        models_mae.create_model("mae_vit_tiny_patch16", mask_kind="diagonal")
