"""Pretrained weights: MAE's and ours fit by name, what is adapted keeps its response, and nothing is dropped
unsaid.
"""

import argparse
import json
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support import ROOT, largest_file, register, table_row

import models_mae
from models_vit import ClassificationViT, SegmentationViT
from radio.grid import Grid
from util import checkpoint, fetch
from util.convert import PATCHES
from util.errors import UserError
from util.loading import load_pretrained, resample_positions
from util.pretrained import Weights, read_weights, write_weights

SIZES = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4}
DECODER = {"decoder_embed_dim": 16, "decoder_num_heads": 2}
IMAGE = (48, 48)


def mae_rgb(width=32, depth=2, channels=3, patches=36):
    """An encoder as in facebookresearch/mae's mae_pretrain_vit_*.pth, its names and shapes written out here."""
    generator = torch.Generator().manual_seed(5)
    shapes = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, 1 + patches, width),
        "patch_embed.proj.weight": (width, channels, 8, 8),
        "patch_embed.proj.bias": (width,),
    }
    for n in range(depth):
        shapes |= {
            f"blocks.{n}.norm1.weight": (width,),
            f"blocks.{n}.norm1.bias": (width,),
            f"blocks.{n}.attn.qkv.weight": (3 * width, width),
            f"blocks.{n}.attn.qkv.bias": (3 * width,),
            f"blocks.{n}.attn.proj.weight": (width, width),
            f"blocks.{n}.attn.proj.bias": (width,),
            f"blocks.{n}.norm2.weight": (width,),
            f"blocks.{n}.norm2.bias": (width,),
            f"blocks.{n}.mlp.fc1.weight": (4 * width, width),
            f"blocks.{n}.mlp.fc1.bias": (4 * width,),
            f"blocks.{n}.mlp.fc2.weight": (width, 4 * width),
            f"blocks.{n}.mlp.fc2.bias": (width,),
        }
    shapes |= {"norm.weight": (width,), "norm.bias": (width,)}
    return {name: torch.randn(shape, generator=generator) / 5 for name, shape in shapes.items()}


def mae(img_size=IMAGE, **kwargs):
    torch.manual_seed(1)
    return models_mae.MaskedAutoencoderViT(img_size, **{**SIZES, **DECODER, "decoder_depth": 3, **kwargs})


def segmenter(img_size=IMAGE, num_classes=3, **kwargs):
    torch.manual_seed(0)
    return SegmentationViT(num_classes, img_size, **{**SIZES, **DECODER, **kwargs}).eval()


def classifier(img_size=IMAGE, num_classes=3, **kwargs):
    torch.manual_seed(0)
    return ClassificationViT(num_classes, img_size, **{**SIZES, **kwargs}).eval()


def test_an_rgb_encoder_of_mae_answers_one_channel_as_its_copy_in_three(tmp_path):
    torch.save({"model": mae_rgb()}, tmp_path / "mae_pretrain_vit.pth")
    state = read_weights(tmp_path / "mae_pretrain_vit.pth").state_dict
    rgb, model = classifier(in_chans=3, global_pool=False), segmenter()
    rgb.load_state_dict(state, strict=False)
    report = load_pretrained(model, state, "a.pth")
    images = torch.randn(2, 1, *IMAGE)
    torch.testing.assert_close(
        model.encode(images), rgb.encode(images.expand(-1, 3, -1, -1)), atol=1e-5, rtol=1e-5
    )
    assert report.adapted == ["patch_embed.proj.weight 3 -> 1 channels"]
    assert set(report.loaded) == set(state)
    assert all(
        torch.equal(model.state_dict()[name], state[name])
        for name in state
        if name != "patch_embed.proj.weight"
    )


def test_one_channel_becomes_several_of_which_equal_ones_get_the_same_answer():
    state = mae_rgb(channels=1)
    one, four = classifier(global_pool=False), classifier(in_chans=4, global_pool=False)
    load_pretrained(one, state, "a.pth")
    assert load_pretrained(four, state, "a.pth").adapted == ["patch_embed.proj.weight 1 -> 4 channels"]
    images = torch.randn(2, 1, *IMAGE)
    torch.testing.assert_close(
        four.encode(images.expand(-1, 4, -1, -1)), one.encode(images), atol=1e-5, rtol=1e-5
    )
    # No channel is preferred.
    images = torch.randn(2, 4, *IMAGE)
    torch.testing.assert_close(four.encode(images), four.encode(images.flip(1)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("channels", [1, 3])
def test_weights_with_cyclic_prefix_give_their_power_to_other_channels(channels):
    state = mae_rgb(channels=4)
    model, power = classifier(in_chans=channels, global_pool=False), classifier(global_pool=False)
    power.load_state_dict(state | {PATCHES: state[PATCHES][:, :1]}, strict=False)
    front_end = Grid(image_size=(48, 48), channels=("power", "cp")).settings()
    report = load_pretrained(model, state, "a.pth", front_end)
    assert report.adapted[0] == f"{PATCHES} 4 -> {channels} channels"
    images = torch.randn(2, 1, *IMAGE)
    torch.testing.assert_close(
        model.encode(images.expand(-1, channels, -1, -1)), power.encode(images), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize(("found", "own"), [(3, 2), (2, 3), (2, 4)])
def test_other_numbers_of_channels_are_refused(found, own):
    with pytest.raises(
        UserError, match=rf"a.pth: .*proj.weight of \[32, {own}, 8, 8\]; found \[32, {found}, 8, 8\]"
    ):
        load_pretrained(classifier(in_chans=own, global_pool=False), mae_rgb(channels=found), "a.pth")


def keys_cubic(source, target):
    """Cubic convolution (Keys 1981; a as in torch) from cell centre to cell centre, edges repeated: [target,
    source].
    """
    matrix, a = np.zeros((target, source)), -0.75
    for row in range(target):
        place = (row + 0.5) * source / target - 0.5
        for neighbour in range(int(np.floor(place)) - 1, int(np.floor(place)) + 3):
            x = abs(place - neighbour)
            near, far = (a + 2) * x**3 - (a + 3) * x**2 + 1, a * (x**3 - 5 * x**2 + 8 * x - 4)
            matrix[row, min(max(neighbour, 0), source - 1)] += near if x <= 1 else far if x < 2 else 0
    return matrix


@pytest.mark.parametrize(
    ("grid", "new_grid"),
    [((6, 6), (3, 9)), ((3, 9), (6, 6)), ((4, 7), (7, 4)), ((6, 6), (4, 9)), ((1, 5), (2, 5))],
)
def test_positions_are_resampled_as_cubic_convolution_does(grid, new_grid):
    embedding = torch.randn(1, 1 + grid[0] * grid[1], 4)
    found = resample_positions(embedding, grid, new_grid)
    patches = embedding[0, 1:].double().numpy().reshape(*grid, 4)
    expected = np.einsum(
        "ir,jc,rcd->ijd", keys_cubic(grid[0], new_grid[0]), keys_cubic(grid[1], new_grid[1]), patches
    )
    np.testing.assert_allclose(found[0, 1:], expected.reshape(-1, 4), atol=1e-5)
    assert torch.equal(found[:, :1], embedding[:, :1])


@pytest.mark.parametrize(
    ("source", "front_end", "target"),
    [
        ((48, 48), None, (24, 72)),
        ((48, 48), {"image_size": [48, 48]}, (32, 72)),
        ((24, 72), {"image_size": [24, 72]}, (72, 24)),
        ((24, 72), {"image_size": [24, 72]}, (48, 48)),
    ],
)
def test_both_position_embeddings_move_to_the_grid_of_the_model(source, front_end, target):
    """Also where another grid has as many patches: 6 × 6 is not 4 × 9, and 3 × 9 not 9 × 3."""
    state = mae(source).state_dict()
    model = segmenter(target)
    report = load_pretrained(model, state, "a.pth", front_end)
    grid, new_grid = [tuple(side // 8 for side in size) for size in (source, target)]
    arrow = f"{grid[0]} x {grid[1]} -> {new_grid[0]} x {new_grid[1]}"
    assert report.adapted == [f"pos_embed {arrow}", f"decoder_pos_embed {arrow}"]
    for name in ("pos_embed", "decoder_pos_embed"):
        assert torch.equal(model.state_dict()[name], resample_positions(state[name], grid, new_grid))


def test_the_same_grid_is_loaded_as_it_is():
    state = mae((24, 72)).state_dict()
    state["pos_embed"] = torch.randn_like(state["pos_embed"])
    model = segmenter((24, 72))
    assert load_pretrained(model, state, "a.pth", {"image_size": [24, 72]}).adapted == []
    assert torch.equal(model.pos_embed, state["pos_embed"])


@pytest.mark.parametrize(
    ("front_end", "said"),
    [
        (None, "expected an image size with 27 patches, no square; found none"),
        ({"n_fft": 64}, "expected an image size with 27 patches"),
        ({"image_size": [48, 48]}, r"expected 36 patches of an image of \[48, 48\]; found 27"),
        ({"image_size": [24]}, r"expected rows and columns as 'image_size'; found \[24\]"),
        ({"image_size": None}, "no square"),
        ({"image_size": "224"}, "'image_size'"),
        ({"image_size": 216}, "'image_size'"),
    ],
)
def test_a_grid_that_cannot_be_known_is_refused(front_end, said):
    with pytest.raises(UserError, match=f"^a.pth: .*{said}"):
        load_pretrained(segmenter((24, 72)), mae((24, 72)).state_dict(), "a.pth", front_end)


def without(state, name):
    return {key: value for key, value in state.items() if key != name}


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (mae_rgb(width=48), r"cls_token of \[1, 1, 32\]; found \[1, 1, 48\]"),
        (mae_rgb(depth=1), r"an encoder with blocks.1.norm1.weight of \[32\]; found none"),
        (without(mae_rgb(), "norm.bias"), r"norm.bias of \[32\]; found none"),
        (without(mae_rgb(), "pos_embed"), r"pos_embed of \[1, 37, 32\]; found none"),
        (without(mae_rgb(), "patch_embed.proj.weight"), r"proj.weight of \[32, 1, 8, 8\]; found none"),
        (
            {**mae_rgb(), "patch_embed.proj.weight": torch.zeros(32, 1, 16, 16)},
            r"\[32, 1, 8, 8\]; found \[32, 1, 16, 16\]",
        ),
        (
            {**mae_rgb(), "pos_embed": torch.zeros(1, 37, 48)},
            r"pos_embed of \[1, 37, 32\]; found \[1, 37, 48\]",
        ),
        (
            {**mae_rgb(), "pos_embed": torch.zeros(1, 1, 32)},
            r"pos_embed of \[1, 37, 32\]; found \[1, 1, 32\]",
        ),
        ({}, r"cls_token of \[1, 1, 32\]; found none"),
    ],
)
def test_an_encoder_that_does_not_fit_is_refused_in_a_line_and_nothing_is_loaded(state, said):
    model = segmenter()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(UserError, match=rf"^runs/a\.pth: expected .*{said}$") as error:
        load_pretrained(model, state, "runs/a.pth")
    assert "\n" not in str(error.value)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


MODELS = {
    "decoder": segmenter,
    "deep decoder": lambda: segmenter(head_depth=5),
    "linear": lambda: segmenter(head="linear"),
    "global_pool": classifier,
    "cls_token": lambda: classifier(global_pool=False),
    "mae": mae,
}
STATES = {
    "mae": lambda: mae().state_dict(),
    "encoder": mae_rgb,
    "segmenter": lambda: segmenter().state_dict(),
    "other classes": lambda: segmenter(num_classes=5).state_dict(),
    "foreign": lambda: {**mae_rgb(), "ema": torch.zeros(3), "head.weight": torch.zeros(1000, 32)},
}


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("source", STATES)
def test_every_tensor_is_accounted_for(kind, source):
    model, state = MODELS[kind](), STATES[source]()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    report = load_pretrained(model, state, "a.pth")
    assert sorted(report.loaded + report.left) == sorted(state)
    assert sorted(report.loaded + report.new) == sorted(before)
    for name, value in model.state_dict().items():
        if name in report.new:
            assert torch.equal(value, before[name])
        elif not any(text.startswith(name) for text in report.adapted):
            assert torch.equal(value, state[name])


def test_an_encoder_starts_from_mean_pooled_weights():
    """The `fc_norm` of MAE's fine-tuned file becomes the `norm` of a model that has one, and the report says
    so.
    """
    state = {
        name.replace("norm.", "fc_norm.") if name.startswith("norm.") else name: value
        for name, value in mae_rgb(channels=1).items()
    }
    model = segmenter()
    assert load_pretrained(model, state, "a.pth").adapted == ["fc_norm -> norm"]
    assert all(
        torch.equal(model.state_dict()[f"norm.{leaf}"], state[f"fc_norm.{leaf}"])
        for leaf in ("weight", "bias")
    )
    assert load_pretrained(classifier(), state, "a.pth").adapted == []


def test_a_head_for_other_classes_is_left_whole():
    """Also the part of it that would fit: a bias that belongs to other weights is no start."""
    state = classifier().state_dict()
    state["head.weight"] = torch.zeros(3, 99)
    report = load_pretrained(classifier(), state, "a.pth")
    assert report.left == report.new == ["head.weight", "head.bias"]
    report = load_pretrained(classifier(), classifier().state_dict(), "a.pth")
    assert report.left == report.new == []


def test_the_summary_names_every_module_once():
    report = load_pretrained(segmenter((48, 72)), mae(depth=2).state_dict(), "a.pth")
    assert report.summary().splitlines() == [
        "loaded 59: cls_token, pos_embed, decoder_pos_embed, patch_embed.proj.*, blocks.0..1.*, norm.*, decoder_embed.*, "
        "decoder_blocks.0..1.*, decoder_norm.*",
        "adapted 2: pos_embed 6 x 6 -> 6 x 9, decoder_pos_embed 6 x 6 -> 6 x 9",
        "left 15: mask_token, decoder_blocks.2.*, decoder_pred.*",
        "new 2: head.*",
        "norms inside blocks: epsilon 1e-06",
    ]
    state = {**mae_rgb(channels=1), "head.weight": torch.zeros(2, 32), "fc_norm.bias": torch.zeros(32)}
    report = load_pretrained(classifier(norm_eps=1e-5), state, "a.pth")
    assert report.summary().splitlines()[1:] == [
        "adapted 0",
        "left 3: norm.*, head.weight",
        "new 3: fc_norm.weight, head.weight, head.bias",
        "norms inside blocks: epsilon 1e-05",
    ]


def test_a_decoder_of_another_size_is_left_whole():
    """Also its tensors that would fit: the rest of a decoder makes no sense without them."""
    state = mae(decoder_embed_dim=8).state_dict()
    model = segmenter()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    report = load_pretrained(model, state, "a.pth")
    decoder = [name for name in state if name.startswith(("mask_token", "decoder_"))]
    assert report.left == decoder
    assert {name for name in before if name.startswith("decoder_")} <= set(report.new)
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in report.new)
    # One tensor of another shape is enough.
    state = mae().state_dict() | {"decoder_embed.weight": torch.zeros(8, 32)}
    assert load_pretrained(segmenter(), state, "a.pth").left == decoder


def test_our_checkpoints_say_what_they_were_trained_on(tmp_path):
    state = {
        "model": mae().state_dict(),
        "optimizer": {},
        "scaler": None,
        "epoch": 3,
        "step": 1,
        "rng": {},
        "format": 1,
        "progress": {},
        "num_samples": 0,
        "args": {"model": "mae_vit_tiny_patch16"},
        "classes": ["Noise", "NR"],
        "front_end": {"image_size": [48, 48]},
    }
    checkpoint.save(state, tmp_path)
    found, front_end, classes, args, *others = read_weights(tmp_path / checkpoint.LAST)
    assert others == [""] * 6 + [1e-6]
    assert (front_end, classes, args) == (state["front_end"], state["classes"], state["args"])
    assert all(torch.equal(value, found[name]) for name, value in state["model"].items())
    assert set(found) == set(state["model"])


@pytest.mark.parametrize(
    "header", [None, {"front_end": {"image_size": [48, 48]}, "classes": ["a"], "args": {"seed": 0}}]
)
def test_safetensors(tmp_path, header):
    save_file(
        mae_rgb(),
        tmp_path / "a.safetensors",
        header and {key: json.dumps(value) for key, value in header.items()},
    )
    state, *about = read_weights(tmp_path / "a.safetensors")
    # A front end says that the file is ours, and so what its norms have.
    assert about == (list(header.values()) if header else [None, [], {}]) + [""] * 6 + [
        1e-6 if header else None
    ]
    assert all(torch.equal(value, state[name]) for name, value in mae_rgb().items())


def test_a_bare_state_dict(tmp_path):
    torch.save(mae_rgb(), tmp_path / "a.pth")
    state, *about = read_weights(str(tmp_path / "a.pth"))
    assert about == [None, [], {}] + [""] * 6 + [None]
    assert set(state) == set(mae_rgb())


def test_the_registry_says_the_epsilon_of_a_name(tmp_path, monkeypatch):
    epsilons = {entry.name: entry.norm_eps for entry in fetch.entries().values() if entry.norm_eps}
    assert epsilons == {
        "radio_vit_small_75": 1e-5,
        "radio_vit_medium_75": 1e-5,
        "wavesfm": 1e-5,
        "mae_vit_base": 1e-6,
        "mae_vit_large": 1e-6,
        "mae_vit_huge": 1e-6,
    }

    monkeypatch.setattr(fetch, "REGISTRY", tmp_path / "downloads.json")
    monkeypatch.setenv("RADIO_MAE_HOME", str(tmp_path / "home"))
    about = {"preset": "mae_vit_nano", "norm_eps": 1e-5}
    register(tmp_path, table_row("theirs", **about), table_row("own", **about))
    place = tmp_path / "home" / "weights" / "theirs.pth"
    place.parent.mkdir(parents=True)
    torch.save({"model": mae_rgb()}, place)
    weights = read_weights("theirs", offline=True)
    assert (weights.norm_eps, weights.preset, weights.args) == (
        1e-5,
        "mae_vit_nano",
        {"model": "mae_vit_nano"},
    )
    assert read_weights(place).norm_eps is None  # a path alone does not say it
    # What the file itself says comes first.
    torch.save({"model": mae_rgb(), "args": {"norm_eps": 3e-6}}, place.with_name("own.pth"))
    assert read_weights("own", offline=True).norm_eps == 3e-6


ABOUT = {
    "holds": "mae",
    "preset": "mae_vit_nano",
    "classes": ["Noise", "5G NR", "µ"],
    "command": "python main_pretrain.py --x 1",
    "front_end": {"n_fft": 64, "image_size": [48, 48], "normalize": "none"},
    "data": "air",
    "licence": "CC0-1.0",
    "args": {"model": "mae_vit_nano", "in_chans": 1},
}


def test_what_is_written_is_read_tensors_and_words(tmp_path):
    state = mae().state_dict() | {"steps": torch.tensor(3)}
    write_weights(tmp_path / "a.safetensors", state, **ABOUT)
    found = read_weights(tmp_path / "a.safetensors")
    assert found == Weights(found.state_dict, **ABOUT, norm_eps=1e-6)
    assert list(tmp_path.iterdir()) == [tmp_path / "a.safetensors"]
    for read in (found.state_dict, load_file(tmp_path / "a.safetensors")):  # as the library itself has it
        assert set(read) == set(state)
        assert all(torch.equal(value, read[name]) for name, value in state.items())
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        words = file.metadata()
    assert (words["format"], words["radio_mae"]) == ("pt", "1")
    assert json.loads(words["front_end"]) == ABOUT["front_end"]


def test_what_is_not_said_is_empty_and_the_preset_says_the_model(tmp_path):
    write_weights(tmp_path / "a.safetensors", mae_rgb(), holds="encoder", preset="vit_nano")
    found = read_weights(tmp_path / "a.safetensors")
    assert found[1:] == (
        None,
        [],
        {"model": "vit_nano"},
        "encoder",
        "vit_nano",
        "",
        "",
        "not stated",
        "",
        None,
    )
    save_file(mae_rgb(), tmp_path / "b.safetensors", {"preset": "vit_nano"})
    assert read_weights(tmp_path / "b.safetensors").args == {"model": "vit_nano"}


def test_views_shared_tensors_and_half_precision_are_written_whole_and_in_float32(tmp_path):
    one = torch.randn(4, 6)
    state = {
        "a": one,
        "again": one,
        "rows": one[1:3],
        "turned": one.T,
        "half": one.half(),
        "leaf": torch.nn.Parameter(one),
    }
    write_weights(tmp_path / "a.safetensors", state, holds="encoder", preset="x")
    found = read_weights(tmp_path / "a.safetensors").state_dict
    assert {value.dtype for value in found.values()} == {torch.float32}
    assert all(torch.equal(value.float(), found[name]) for name, value in state.items())


def test_values_beyond_half_precision_are_refused(tmp_path):
    state = {"a": torch.ones(3), "b": torch.tensor([1.0, 7e4]), "c": torch.tensor([float("inf")])}
    with pytest.raises(
        UserError, match=r"a\.safetensors: expected values within 65504, for torch\.float16; found more"
    ):
        write_weights(tmp_path / "a.safetensors", state, torch.float16, holds="encoder", preset="x")
    assert not list(tmp_path.iterdir())


def test_the_same_weights_are_the_same_bytes_in_any_process(tmp_path):
    """The library shuffles the words of the header, anew in each process."""
    state = {"b": torch.arange(6.0), "steps": torch.tensor(3), "a": torch.ones(2, 2)}
    torch.save(state, tmp_path / "state.pth")
    script = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import torch
from util.pretrained import write_weights
write_weights("a.safetensors", torch.load("state.pth"), **{ABOUT!r})
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120, cwd=tmp_path)
    write_weights(tmp_path / "b.safetensors", dict(reversed(state.items())), **ABOUT)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_weights_that_cannot_be_written_leave_what_was_there(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_text("mine")
    with (
        largest_file(1000),
        pytest.raises(UserError, match=r"a.safetensors: the weights could not be written: .+"),
    ):
        write_weights(path, mae_rgb(), **ABOUT)
    assert path.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [path]


def write_truncated(path):
    if path.suffix == ".pth":
        torch.save(mae_rgb(), path)
    else:
        save_file(mae_rgb(), path)
    path.write_bytes(path.read_bytes()[:3000])


def save(content):
    return lambda path: torch.save(content, path)


def words(**header):
    return lambda path: save_file(mae_rgb(), path, header)


@pytest.mark.parametrize(
    ("name", "write", "said"),
    [
        ("a.pth", lambda path: None, "found no such file"),
        ("a.safetensors", lambda path: None, "found no such file"),
        ("a.pth", write_truncated, "damaged"),
        ("a.safetensors", write_truncated, "damaged"),
        ("a.pth", lambda path: path.write_bytes(b""), "damaged"),
        ("a.safetensors", lambda path: path.write_bytes(b""), "damaged"),
        ("a.pth", lambda path: path.mkdir(), "found a folder"),
        ("a.safetensors", lambda path: path.mkdir(), "found a folder"),
        (
            "a.pth",
            save({"model": mae_rgb(), "args": argparse.Namespace(lr=Fraction(1))}),
            r"objects \(fractions.Fraction\)",
        ),
        ("a.pth", save([torch.zeros(1)]), "found a list"),
        ("a.pth", save({}), "expected a state dict of tensors"),
        ("a.pth", save({"model": {"norm.weight": 1.0}}), "expected a state dict of tensors"),
        (
            "a.pth",
            save({"model": mae_rgb(), "front_end": [48, 48]}),
            "expected a dict as 'front_end'; found a list",
        ),
        (
            "a.pth",
            save({"model": mae_rgb(), "classes": {"NR": 1}}),
            "expected a list as 'classes'; found a dict",
        ),
        (
            "a.safetensors",
            words(classes="NR, LTE"),
            "expected JSON as 'classes' in the header; found 'NR, LTE'",
        ),
        ("a.safetensors", words(args="[1]"), "expected a dict as 'args'; found a list"),
        (
            "a.pth",
            save({"model": mae_rgb(), "args": {"norm_eps": "1e-5"}}),
            "a number above 0 as 'norm_eps'; found '1e-5'",
        ),
        (
            "a.safetensors",
            words(args='{"norm_eps": -1}'),
            "expected a number above 0 as 'norm_eps'; found -1",
        ),
        (
            "a.safetensors",
            words(radio_mae="2", holds="mae"),
            "expected weights of radio-mae's format 1; found '2'",
        ),
        (
            "a.safetensors",
            words(radio_mae="1", holds="all"),
            "expected one of encoder, mae, .* as 'holds'; found 'all'",
        ),
        ("a.safetensors", words(radio_mae="1"), "as 'holds'; found None"),
        ("a.safetensors", lambda path: path.write_bytes(bytes([9, *[0] * 7]) + b"not JSON."), "damaged"),
        ("a.safetensors", lambda path: path.write_bytes(b"\xff" * 64), "damaged"),
        ("a.safetensors", lambda path: torch.save(mae_rgb(), path), "damaged"),
    ],
)
def test_files_without_weights_are_said_in_a_line(tmp_path, name, write, said):
    write(tmp_path / name)
    with pytest.raises(UserError, match=said) as error:
        read_weights(tmp_path / name)
    assert str(error.value).startswith(f"{tmp_path / name}: expected")
    assert "\n" not in str(error.value)
