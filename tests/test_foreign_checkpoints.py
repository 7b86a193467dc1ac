"""Checkpoints of MAE, the radio fork and WavesFM: loaded here, they compute what they compute there.

Each `*_there` function is an independent forward pass in plain torch, written from the description of the
model. Each file is laid out as those projects save it. The features and logits must agree to 1e-5, with the
epsilon that the blocks had.
"""

import argparse
import math
import pathlib
import re

import numpy as np
import pytest
import torch
from support import NANO
from torch.nn import functional as F

import models_mae
import models_presets
import models_vit
from util.errors import UserError
from util.loading import load_pretrained
from util.pretrained import read_weights

PRESET = "vit_nano_patch4"
WIDTH, DECODER_WIDTH, DEPTH, DECODER_DEPTH, HEADS, PATCH = 16, 8, 2, 3, 2, 4
SIDE = 16
CLASSES = 5
OLD_TIMM = 1e-5  # epsilon of timm's blocks up to version 1.0.15
FINAL = 1e-6  # of MAE's own norms


@pytest.fixture(autouse=True)
def nano(monkeypatch):
    for presets, name in ((models_mae.PRESETS, f"mae_{PRESET}"), (models_vit.PRESETS, PRESET)):
        monkeypatch.setitem(presets, name, NANO)


# Forward passes


def linear(x, state, name):
    return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])


def layer_norm(x, state, name, eps):
    weight = state[f"{name}.weight"]
    return F.layer_norm(x, weight.shape, weight, state[f"{name}.bias"], eps)


def blocks(x, state, stem, depth, eps):
    for number in range(depth):
        block = f"{stem}.{number}"
        qkv = linear(layer_norm(x, state, f"{block}.norm1", eps), state, f"{block}.attn.qkv")
        query, key, value = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in qkv.chunk(3, dim=-1))
        attended = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        x = x + linear(attended, state, f"{block}.attn.proj")
        hidden = F.gelu(linear(layer_norm(x, state, f"{block}.norm2", eps), state, f"{block}.mlp.fc1"))
        x = x + linear(hidden, state, f"{block}.mlp.fc2")
    return x


def patch_tokens(images, state, name="patch_embed"):
    projected = F.conv2d(images, state[f"{name}.proj.weight"], state[f"{name}.proj.bias"], stride=PATCH)
    return projected.flatten(2).transpose(1, 2)  # (N, L, D)


def class_first(token, patches):
    return torch.cat([token.expand(len(patches), -1, -1), patches], dim=1)


def tokens_there(state, images):
    """MAE's encoder without its final norm."""
    tokens = class_first(state["cls_token"], patch_tokens(images, state)) + state["pos_embed"]
    return blocks(tokens, state, "blocks", DEPTH, OLD_TIMM)


def features_there(state, images):
    return layer_norm(tokens_there(state, images), state, "norm", FINAL)


def decoded_there(state, images, depth):
    tokens = linear(features_there(state, images), state, "decoder_embed") + state["decoder_pos_embed"]
    tokens = layer_norm(
        blocks(tokens, state, "decoder_blocks", depth, OLD_TIMM), state, "decoder_norm", FINAL
    )
    return linear(tokens, state, "decoder_pred")[:, 1:]  # (N, L, patch * patch * C)


def segmented_there(state, images):
    patches = decoded_there(state, images, depth=2)
    patches = patches.reshape(len(images), SIDE // PATCH, SIDE // PATCH, PATCH, PATCH, CLASSES)
    return torch.einsum("nhwpqc->nchpwq", patches).reshape(len(images), CLASSES, SIDE, SIDE)


def sensed_there(state, images):
    return linear(features_there(state, images)[:, 0], state, "head")


def fine_tuned_there(state, images):
    mean = tokens_there(state, images)[:, 1:].mean(dim=1)
    return linear(layer_norm(mean, state, "fc_norm", FINAL), state, "head")


def probed_there(state, images):
    found = features_there(state, images)[:, 0]
    normed = (found - state["head.0.running_mean"]) / (state["head.0.running_var"] + 1e-6).sqrt()
    return linear(normed, state, "head.1")


def waves_there(state, images, embedding="vis_patch_embed"):
    """WavesFM's image encoder: fixed positions for patches alone; then scale and shift of all tokens, where
    it has them.
    """
    if "channel_adapter.weight" in state:
        images = F.conv2d(images, state["channel_adapter.weight"], state.get("channel_adapter.bias"))
    patches = patch_tokens(images, state, embedding) + fixed_positions()
    tokens = class_first(state["cls_token"], patches)
    if "mod_ln_scale.vision" in state:
        tokens = tokens * state["mod_ln_scale.vision"] + state["mod_ln_bias.vision"]
    return layer_norm(blocks(tokens, state, "blocks", DEPTH, OLD_TIMM), state, "norm", FINAL)


def fixed_positions(side=14):
    """Sines and cosines of the column, then those of the row, each with wavelengths from 2 π to 10000 · 2 π:
    [L, D].
    """
    rates = [10000 ** (-4 * i / WIDTH) for i in range(WIDTH // 4)]
    return torch.tensor(
        [
            [wave(place * rate) for place in (column, row) for wave in (math.sin, math.cos) for rate in rates]
            for row in range(side)
            for column in range(side)
        ],
        dtype=torch.float64,
    )


# State dicts


def drawn(shapes):
    """Norms near one; what makes the first tokens so small that the epsilon matters."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(shape, generator=generator)
        * (0.005 if re.search("embed|cls_|ln_bias", name) else 0.1)
        + (name.endswith("weight") and "norm" in name)
        for name, shape in shapes.items()
    }


def affine(name, out, *inside):
    return {f"{name}.weight": (out, *inside), f"{name}.bias": (out,)}


def block_shapes(stem, depth, width):
    shapes = {}
    for block in (f"{stem}.{number}" for number in range(depth)):
        shapes |= affine(f"{block}.norm1", width) | affine(f"{block}.attn.qkv", 3 * width, width)
        shapes |= affine(f"{block}.attn.proj", width, width) | affine(f"{block}.norm2", width)
        shapes |= affine(f"{block}.mlp.fc1", 4 * width, width) | affine(f"{block}.mlp.fc2", width, 4 * width)
    return shapes


def encoder_shapes(width=WIDTH):
    return {
        "cls_token": (1, 1, width),
        "pos_embed": (1, 1 + (SIDE // PATCH) ** 2, width),
        **affine("patch_embed.proj", width, 1, PATCH, PATCH),
        **block_shapes("blocks", DEPTH, width),
        **affine("norm", width),
    }


def decoder_shapes(depth, channels):
    return {
        **affine("decoder_embed", DECODER_WIDTH, WIDTH),
        "decoder_pos_embed": (1, 17, DECODER_WIDTH),
        **block_shapes("decoder_blocks", depth, DECODER_WIDTH),
        **affine("decoder_norm", DECODER_WIDTH),
        **affine("decoder_pred", PATCH**2 * channels, DECODER_WIDTH),
    }


def mae():
    return drawn(
        encoder_shapes() | {"mask_token": (1, 1, DECODER_WIDTH)} | decoder_shapes(DECODER_DEPTH, channels=1)
    )


def segmenter():
    return drawn(encoder_shapes() | decoder_shapes(depth=2, channels=CLASSES))


def sensing():
    return drawn(encoder_shapes() | affine("head", CLASSES, WIDTH))


def fine_tuned():
    shapes = encoder_shapes() | affine("fc_norm", WIDTH) | affine("head", CLASSES, WIDTH)
    return drawn({name: shape for name, shape in shapes.items() if not name.startswith("norm.")})


def probe():
    generator = torch.Generator().manual_seed(1)
    statistics = {
        "head.0.running_mean": torch.randn(WIDTH, generator=generator),
        "head.0.running_var": torch.rand(WIDTH, generator=generator) / 10,
        "head.0.num_batches_tracked": torch.tensor(7),
    }
    return drawn(encoder_shapes() | affine("head.1", CLASSES, WIDTH)) | statistics


def waves(patches={"vis_patch_embed": 3}, more=()):  # noqa: B006
    shapes = {
        "cls_token": (1, 1, WIDTH),
        **block_shapes("blocks", DEPTH, WIDTH),
        **affine("norm", WIDTH),
        **affine("iq_segment_embed", WIDTH, 2, 16),
        "iq_ant_embed.weight": (16, WIDTH),
    }
    for name, channels in patches.items():
        shapes |= affine(f"{name}.proj", WIDTH, channels, PATCH, PATCH)
    return drawn(shapes | dict(more))


FILM = {f"mod_ln_{part}.{kind}": (WIDTH,) for part in ("scale", "bias") for kind in ("vision", "iq")}


# Files


def flags(**kwargs):
    """The arguments of a run as MAE's `save_model` keeps them."""
    return argparse.Namespace(
        **{
            "model": PRESET,
            "lr": np.float64(1e-3),
            "world_size": np.int64(2),
            "blr": 1e-3,
            "output_dir": pathlib.Path("/a/b"),
            "device": torch.device("cuda:0"),
            "amp": torch.float16,
            "nested": argparse.Namespace(size=(16, 16)),
            **kwargs,
        }
    )


def as_mae(state):
    return {
        "model": state,
        "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]},
        "epoch": 3,
        "scaler": {"scale": 1.0},
        "args": flags(),
    }


def prefixed(state):
    return {f"module.{name}": value for name, value in state.items()}


LAYOUTS = {
    "MAE": as_mae,
    "DDP": lambda state: as_mae(prefixed(state)),
    "released": lambda state: {"model": state},
    "bare": lambda state: state,
    "EMA": lambda state: {"epoch": np.int64(3), "model_ema": prefixed(state), "args": flags()},
    "timm": lambda state: {
        "epoch": 3,
        "arch": PRESET,
        "state_dict": state,
        "args": flags(),
        "metric": np.float32(1),
    },
    "nested": lambda state: {"state_dict": {"model": state}, "args": flags()},
}


def loaded(path, side=SIDE, in_chans=1, norm_eps=OLD_TIMM):
    """(model, weights, load report), built from nothing but what the file says."""
    weights = read_weights(path)
    preset, head = models_presets.preset_of(weights, path), models_vit.head_of(weights)
    make = models_vit.create_model if head else models_vit.create_encoder
    model = make(preset, img_size=side, in_chans=in_chans, norm_eps=norm_eps, **head).eval()
    return (
        model,
        weights,
        load_pretrained(model, weights.state_dict, path, weights.front_end, weights.converted),
    )


def images_of(channels=1, side=SIDE):
    return torch.randn(3, channels, side, side, generator=torch.Generator().manual_seed(2))


def error_of(found, state, there, images, **kwargs):
    """Relative to the forward pass there, in double precision."""
    expected = there({name: value.double() for name, value in state.items()}, images.double(), **kwargs)
    assert found.shape == expected.shape
    return float((found.double() - expected).norm() / expected.norm())


def assert_computes(path, state, there, channels=1, side=SIDE, **kwargs):
    """The same as there with the epsilon of its training, and something else with the other epsilon."""
    images, errors = images_of(channels, side), {}
    for eps in (OLD_TIMM, FINAL):
        model, _, report = loaded(path, side, channels, eps)
        assert report.new == []
        assert report.summary().endswith(f"norms inside blocks: epsilon {eps:g}")
        with torch.no_grad():
            errors[eps] = error_of(model(images), state, there, images, **kwargs)
    assert errors[OLD_TIMM] < 1e-5
    assert errors[FINAL] > 5e-5


@pytest.mark.parametrize(
    ("state", "there", "changed"),
    [
        (mae, features_there, []),
        (segmenter, segmented_there, ["decoder_pred -> head"]),
        (sensing, sensed_there, []),
        (fine_tuned, fine_tuned_there, []),
        (probe, probed_there, ["head.0 -> head_norm, head.1 -> head"]),
    ],
)
def test_features_and_logits_are_those_of_the_other_project(tmp_path, state, there, changed):
    torch.save(as_mae(state()), tmp_path / "checkpoint-3.pth")
    assert_computes(tmp_path / "checkpoint-3.pth", state(), there)
    assert loaded(tmp_path / "checkpoint-3.pth")[2].adapted == changed


def test_the_masked_autoencoder_of_the_fork_predicts_the_same_patches(tmp_path):
    torch.save(as_mae(mae()), tmp_path / "a.pth")
    model = models_mae.create_model(f"mae_{PRESET}", img_size=SIDE, norm_eps=OLD_TIMM).eval()
    report = load_pretrained(model, read_weights(tmp_path / "a.pth").state_dict, "a.pth")
    assert report.left == report.new == []
    with torch.no_grad():
        predicted = model(images_of(), mask_ratio=0.0)[1]
    assert error_of(predicted, mae(), decoded_there, images_of(), depth=DECODER_DEPTH) < 1e-5


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_of_a_file(tmp_path, layout, zipped):
    torch.save(LAYOUTS[layout](sensing()), tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    model, weights, report = loaded(tmp_path / "a.pth")
    with torch.no_grad():
        assert error_of(model(images_of()), sensing(), sensed_there, images_of()) < 1e-5
    assert report.left == report.new == []
    if layout in ("released", "bare"):
        assert weights.args == {}
        return
    assert weights.args == {
        "model": PRESET,
        "lr": 1e-3,
        "world_size": 2,
        "blr": 1e-3,
        "output_dir": "/a/b",
        "device": "cuda:0",
        "amp": "torch.float16",
        "nested": {"size": (16, 16)},
    }
    assert {type(weights.args[name]) for name in ("lr", "world_size", "output_dir")} == {float, int, str}


@pytest.mark.parametrize(
    ("more", "channels"),
    [
        ((), 3),
        (FILM, 3),
        (affine("channel_adapter", 3, 5, 1, 1), 5),
        ({"channel_adapter.weight": (3, 1, 1, 1), **FILM}, 1),
    ],
)
def test_wavesfms_image_encoder(tmp_path, more, channels):
    """Images of 14 x 14 patches, as there: the positions are fixed, and not in the file."""
    state = waves(more=more)
    torch.save({"model": state, "args": flags()}, tmp_path / "wavesfm.pth")
    assert_computes(tmp_path / "wavesfm.pth", state, waves_there, channels, side=14 * PATCH)
    report = loaded(tmp_path / "wavesfm.pth", 14 * PATCH, channels)[2]
    assert report.adapted == ["names of WavesFM -> MAE's"]
    assert report.left == []


@pytest.mark.parametrize(("channels", "chosen"), [(1, 1), (3, 3), (4, 4)])
def test_of_wavesfms_patch_embeddings_the_model_takes_that_of_its_channels(tmp_path, channels, chosen):
    state = waves({f"vis_patch_embeds.{number}": number for number in (3, 1, 4)}, FILM)
    torch.save({"model": state}, tmp_path / "a.pth")
    assert_computes(
        tmp_path / "a.pth", state, waves_there, channels, 14 * PATCH, embedding=f"vis_patch_embeds.{chosen}"
    )
    report = loaded(tmp_path / "a.pth", 14 * PATCH, channels)[2]
    others = [number for number in (1, 3, 4) if number != chosen]
    assert set(report.left) == {
        f"patch_embed.{number}.proj.{leaf}" for number in others for leaf in ("weight", "bias")
    }


@pytest.mark.parametrize(
    "gone", ["cls_token", "vis_patch_embed.proj.weight", "vis_patch_embed.proj.bias", "norm.bias"]
)
def test_a_file_of_wavesfm_that_lacks_something_is_refused(tmp_path, gone):
    torch.save(
        {"model": {name: value for name, value in waves().items() if name != gone}}, tmp_path / "a.pth"
    )
    with pytest.raises(UserError, match=rf"a\.pth: expected .* with {gone}.*; found none$"):
        loaded(tmp_path / "a.pth", 14 * PATCH, 3)


@pytest.mark.parametrize(
    ("name", "shape", "said"),
    [
        (
            "blocks.0.ls1.gamma",
            (WIDTH,),
            "the layers of a plain Vision Transformer; found blocks.0.ls1.gamma",
        ),
        (
            "channel_adapter.weight",
            (2, 5, 1, 1),
            r"a patch embedding of the 2 channels of channel_adapter; found \[3\]",
        ),
    ],
)
def test_a_file_of_wavesfm_with_something_else_is_refused(tmp_path, name, shape, said):
    torch.save({"model": waves(more={name: shape})}, tmp_path / "a.pth")
    with pytest.raises(UserError, match=rf"a\.pth: expected {said}$"):
        read_weights(tmp_path / "a.pth")


def test_positions_in_a_file_of_wavesfm_are_taken(tmp_path):
    """As in its pretraining checkpoints, also of another grid."""
    state = waves(more={"vis_pos_embed": (1, 17, WIDTH)})
    torch.save({"model": state}, tmp_path / "a.pth")
    assert torch.equal(read_weights(tmp_path / "a.pth").state_dict["pos_embed"], state["vis_pos_embed"])


def test_an_encoder_of_another_width_is_refused_in_a_line(tmp_path):
    torch.save(as_mae(drawn(encoder_shapes(width=24))), tmp_path / "a.pth")
    with pytest.raises(
        UserError, match=r"a\.pth: expected the encoder of a preset .* embed_dim 24, depth 2$"
    ):
        loaded(tmp_path / "a.pth")
    model = models_vit.create_encoder(PRESET, img_size=SIDE)
    with pytest.raises(UserError, match=r"^a: expected cls_token of \[1, 1, 16\]; found \[1, 1, 24\]$"):
        load_pretrained(model, read_weights(tmp_path / "a.pth").state_dict, "a")
