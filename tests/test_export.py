"""Exported models answer as they did: encoders in timm, whole models in onnxruntime; and what cannot be
exported.
"""

import argparse
import json
import re
import sys

import onnx
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file
from support import ROOT, largest_file

import main_finetune
import main_pretrain
import models_deeplab
import models_mae
import models_vit
from util import export
from util.errors import UserError
from util.loading import load_pretrained
from util.pretrained import header, read_weights

SIZES = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4}
DECODER = {"decoder_embed_dim": 16, "decoder_num_heads": 2}
IMAGE = (32, 48)
CLASSES = ["Noise", "NR", "LTE"]
ABOUT = {
    "holds": "segmentation",
    "preset": "vit_nano",
    "front_end": {"image_size": list(IMAGE), "n_fft": 64},
    "classes": CLASSES,
    "args": {"model": "vit_nano", "in_chans": 1},
    "command": "python main_finetune.py",
    "data": "scenes",
    "licence": "CC0-1.0",
}


def snippet():
    """The lines of FINETUNE.md with timm."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "FINETUNE.md").read_text(), re.DOTALL)
    return next(block for block in blocks if "timm.create_model" in block)


def drawn(model):
    """Weights as after training: none is zero or next to it."""
    torch.manual_seed(4)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2) if parameter.ndim > 1 else torch.nn.init.uniform_(
                parameter, 0.5, 1
            )
    return model


MODELS = {
    "decoder": lambda: models_vit.SegmentationViT(3, IMAGE, **SIZES, **DECODER),
    "linear": lambda: models_vit.SegmentationViT(3, IMAGE, **SIZES, head="linear", in_chans=2),
    "global_pool": lambda: models_vit.ClassificationViT(5, IMAGE, **SIZES, drop_path=0.5),
    "cls_token": lambda: models_vit.ClassificationViT(5, IMAGE, **SIZES, global_pool=False),
    "deeplab": lambda: models_deeplab.DeepLabV3("deeplabv3_mobilenet_v3_large", 3),
}


# timm


def test_the_manuals_lines_give_the_encoders_features_in_timm(tmp_path, monkeypatch, capsys):
    model = models_mae.create_model("mae_vit_tiny_patch16").eval()
    export.export(tmp_path / "encoder.safetensors", model, ABOUT | {"holds": "mae"})
    assert "wrote" in capsys.readouterr().out
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(snippet(), names)
    assert names["tokens"].shape == (8, 197, 192)
    images = torch.randn(2, 1, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(names["encoder"](images), model.encode(images), atol=1e-5, rtol=0)


def test_the_name_of_the_file_says_whether_the_encoder_is_alone(tmp_path):
    model = models_mae.MaskedAutoencoderViT(IMAGE, **SIZES, **DECODER, decoder_depth=2)
    for name in ("encoder", "radio-encoder-v1", "mae"):
        export.export(tmp_path / f"{name}.safetensors", model, ABOUT | {"holds": "mae"})
    whole = read_weights(tmp_path / "mae.safetensors")
    assert whole.state_dict.keys() == model.state_dict().keys()
    assert whole.holds == "mae"
    assert (tmp_path / "encoder.safetensors").read_bytes() == (
        tmp_path / "radio-encoder-v1.safetensors"
    ).read_bytes()
    alone = read_weights(tmp_path / "encoder.safetensors")
    decoder = {name for name in model.state_dict() if name.startswith(("decoder_", "mask_token"))}
    assert alone.state_dict.keys() == model.state_dict().keys() - decoder
    assert alone.holds == "encoder"
    assert alone.args == {"model": "vit_nano", "in_chans": 1}
    other = models_vit.SegmentationViT(3, (48, 48), **SIZES, **DECODER)
    assert load_pretrained(other, alone.state_dict, "a", alone.front_end).adapted == [
        "pos_embed 4 x 6 -> 6 x 6"
    ]


# ONNX


@pytest.mark.slow
@pytest.mark.parametrize("kind", MODELS)
def test_onnxruntime_gives_the_logits_for_any_number_of_images(tmp_path, kind, capfd):
    model = drawn(MODELS[kind]()).train()
    size = IMAGE
    if kind == "deeplab":  # statistics of the batch norms that belong to these weights
        with torch.no_grad():
            for _ in range(5):
                model(torch.randn(4, 1, *size))
    channels = 2 if kind == "linear" else 1
    about = ABOUT | {"args": {"in_chans": channels}}
    capfd.readouterr()
    export.write_onnx(tmp_path / "model.onnx", model, about)
    assert capfd.readouterr() == ("", "")
    assert model.training  # the model itself is left as it was
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]

    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    [given], [result] = session.get_inputs(), session.get_outputs()
    assert (given.name, given.type, given.shape) == (
        "spectrogram",
        "tensor(float)",
        ["batch", channels, *size],
    )
    assert (result.name, result.shape[0]) == ("logits", "batch")
    model.eval()
    for count in (1, 3):
        images = torch.randn(count, channels, *size)
        [found] = session.run(None, {"spectrogram": images.numpy()})
        with torch.no_grad():
            expected = model(images)
        assert expected.std() > 0.01
        torch.testing.assert_close(torch.from_numpy(found), expected, atol=1e-4, rtol=0)


@pytest.mark.slow
def test_an_onnx_model_says_what_it_is_and_nothing_of_the_machine(tmp_path):
    model = models_vit.ClassificationViT(3, IMAGE, **SIZES | {"depth": 1}, in_chans=2)
    for name in "ab":
        export.write_onnx(tmp_path / f"{name}.onnx", model, ABOUT | {"args": {"in_chans": 2}})
    content = (tmp_path / "a.onnx").read_bytes()
    assert content == (tmp_path / "b.onnx").read_bytes()
    assert str(ROOT).encode() not in content
    assert b".py" not in content.replace(b"main_finetune.py", b"")
    proto = onnx.load(tmp_path / "a.onnx")
    onnx.checker.check_model(proto, full_check=True)
    assert [(opset.domain, opset.version) for opset in proto.opset_import] == [("", 18)]
    words = {entry.key: entry.value for entry in proto.metadata_props}
    assert words == header(**ABOUT | {"args": {"in_chans": 2}})
    assert json.loads(words["front_end"]) == ABOUT["front_end"]
    assert json.loads(words["classes"]) == CLASSES
    assert (words["preset"], words["licence"], words["holds"]) == ("vit_nano", "CC0-1.0", "segmentation")


@pytest.mark.slow
def test_an_onnx_model_that_cannot_be_written_leaves_what_was_there(tmp_path):
    path = tmp_path / "a.onnx"
    path.write_text("mine")
    with largest_file(1000), pytest.raises(UserError, match=r"a.onnx: the model could not be written: .+"):
        export.write_onnx(path, models_vit.ClassificationViT(3, IMAGE, **SIZES | {"depth": 1}), ABOUT)
    assert path.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("missing", ["onnx", "onnxscript"])
def test_packages_that_are_missing_are_named_with_the_command_before_training(monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    said = rf"--export a.onnx: expected onnx and onnxscript \(pip install onnx onnxscript\); found that import of {missing}"
    with pytest.raises(UserError, match=said):
        export.check_args(argparse.Namespace(export="a.onnx", export_dtype="float32"), onnx=True)


def test_a_model_too_large_for_onnx_is_refused():
    with torch.device("meta"):
        model = models_vit.create_model("vit_huge_patch14", "classification", 3, 224)
    said = r"--export a.onnx: expected a model below the 2 GiB of an ONNX file; found 2\.\d GiB"
    with pytest.raises(UserError, match=said):
        export.check_size("a.onnx", model)
    export.check_size("a.safetensors", model)
    export.check_size(None, model)


# Flags and files


@pytest.mark.parametrize(
    ("path", "onnx", "said"),
    [
        (
            "model.onnx",
            False,
            r"expected a \.safetensors file of pretraining \(main_finetune.py .*; found model\.onnx",
        ),
        ("model.pth", False, r"expected a file named \.safetensors; found model\.pth"),
        ("model.pth", True, r"expected a file named \.safetensors or \.onnx; found model\.pth"),
        ("safetensors", True, r".*; found safetensors"),
        (".onnx", True, r".*; found \.onnx"),
        ("a/", True, ".*; found a/"),
    ],
)
def test_other_files_are_refused(path, onnx, said):
    with pytest.raises(UserError, match=f"^--export: {said}$"):
        export.check_args(argparse.Namespace(export=path, export_dtype="float32"), onnx)


def test_half_precision_is_for_safetensors():
    with pytest.raises(UserError, match=r"^--export_dtype: expected float32 with a\.onnx; found float16$"):
        export.check_args(argparse.Namespace(export="a.onnx", export_dtype="float16"), onnx=True)
    export.check_args(argparse.Namespace(export="a.safetensors", export_dtype="float16"), onnx=True)


def test_the_folder_is_made_and_goes_if_the_run_fails_before_anything_is_in_it(tmp_path):
    path = tmp_path / "new" / "a.safetensors"

    def run(leaves):
        with export.destination(path):
            assert list(path.parent.iterdir()) == []
            if leaves:
                path.write_text("whole")
            raise UserError("later")

    for leaves in (False, True):
        with pytest.raises(UserError, match="later"):
            run(leaves)
        assert path.parent.exists() == path.exists() == leaves


@pytest.mark.parametrize("path", ["file/a.onnx", "folder.onnx"])
def test_what_cannot_be_written_is_said_first(tmp_path, path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder.onnx").mkdir()
    said = rf"--export {tmp_path / path}: expected a file.*; .+"
    with pytest.raises(UserError, match=said), export.destination(tmp_path / path):
        pytest.fail("it goes on")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    ("module", "flags", "line"),
    [
        (
            main_pretrain,
            "--data_path /home/me/air ../b --epochs 2 --norm_pix_loss --no-pin_mem --output_dir /o --keep 1",
            "python main_pretrain.py --data_path air b --norm_pix_loss --epochs 2",
        ),
        (
            main_pretrain,
            "--data_path synthetic:classic --set snr_db=5,40 fs=1 --input_size 32 64 --resume x.pth --export a",
            "python main_pretrain.py --data_path synthetic:classic --set snr_db=5,40 fs=1 --input_size 32 64",
        ),
        (
            main_finetune,
            "--task sensing --data_path /d/x --finetune hf://me/name --cls_token --no-flip --lr 1e-05",
            "python main_finetune.py --task sensing --data_path x --finetune hf://me/name --cls_token --lr 1e-05 --no-flip",
        ),
        (
            main_finetune,
            "--task sensing --data_path . --classes a,5\u202fG --split /a/s.json --seeds 3 --seed 2 --eval",
            "python main_finetune.py --task sensing --data_path . --classes 'a,5\u202fG' --split s.json --seed 2",
        ),
    ],
)
def test_the_recorded_command_makes_the_weights_again_and_names_no_folder(module, flags, line):
    parser = module.get_args_parser()
    args = vars(parser.parse_args(flags.split(" ")))
    assert export.command_line(f"{module.__name__}.py", parser, args) == line


def test_tensors_of_an_export_are_the_models(tmp_path):
    model = drawn(MODELS["deeplab"]())
    export.export(tmp_path / "a.safetensors", model, ABOUT)
    found = load_file(tmp_path / "a.safetensors")
    assert found.keys() == model.state_dict().keys()
    assert all(torch.equal(value, found[name]) for name, value in model.state_dict().items())


def test_weights_of_half_precision_have_half_the_size_and_answer_as_the_model_does(tmp_path):
    model = drawn(MODELS["decoder"]()).eval()
    for dtype in ("float32", "float16"):
        export.export(tmp_path / f"{dtype}.safetensors", model, ABOUT, dtype)
    whole, half = (read_weights(tmp_path / f"{dtype}.safetensors") for dtype in ("float32", "float16"))
    assert {value.dtype for value in half.state_dict.values()} == {torch.float16}
    assert half[1:] == whole[1:]
    tensors = sum(value.nbytes for value in whole.state_dict.values())
    sizes = [(tmp_path / f"{dtype}.safetensors").stat().st_size for dtype in ("float32", "float16")]
    assert sizes[0] - sizes[1] == pytest.approx(tensors / 2, rel=0.01)

    loaded = MODELS["decoder"]().eval()
    assert not load_pretrained(loaded, half.state_dict, "half", half.front_end).left
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    images = torch.randn(2, 1, *IMAGE)
    with torch.no_grad():
        expected, found = model(images), loaded(images)
    assert not torch.equal(expected, found)
    assert (expected - found).abs().max() < 0.01 * expected.abs().max()
