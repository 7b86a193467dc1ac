"""torch.compile of the training step: when it compiles, and that what comes out is the same."""

import argparse

import pytest
import torch

import models_mae
import models_vit
from util import compiling
from util.errors import UserError

BATCH = 4
# What the project relies on is what dynamo compiles and when; the backend that makes fast code of it takes
# minutes on a CPU.
EAGER = {"backend": "eager"}


@pytest.fixture
def quick(monkeypatch):
    torch._dynamo.reset()
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **options: compile_(function, **options | EAGER))
    yield
    torch._dynamo.reset()


def nothing_compiles():
    """What would be compiled anew within this block is an error."""
    return torch.compiler.set_stance("fail_on_recompile")


def small(**kwargs):
    torch.manual_seed(0)
    sizes = {
        "img_size": 32,
        "patch_size": 8,
        "in_chans": 1,
        "embed_dim": 32,
        "depth": 4,
        "num_heads": 2,
        "decoder_embed_dim": 16,
        "decoder_num_heads": 2,
    }
    return sizes | kwargs


def flags(**kwargs):
    return argparse.Namespace(**{"compile": "auto", "accum_iter": 1, "grad_ckpt": False} | kwargs)


def step(model, images, *rest):
    model.zero_grad()
    out = model(images, *rest)
    loss = out[0] if isinstance(out, tuple) else out.square().mean()
    loss.backward()
    return loss.detach(), [parameter.grad for parameter in model.parameters() if parameter.requires_grad]


@pytest.mark.parametrize("grad_ckpt", [False, True])
def test_pretraining_is_the_same_compiled_and_compiles_once(quick, grad_ckpt):
    model = models_mae.MaskedAutoencoderViT(**small(decoder_depth=3)).train()
    model.grad_ckpt = grad_ckpt
    images, noise = torch.randn(BATCH, 1, 32, 32), torch.rand(BATCH, 16)
    expected = step(model, images, 0.75, noise)
    names = list(model.state_dict())
    compiling.compile_model(model, "on", BATCH, "off", 4)
    torch.testing.assert_close(step(model, images, 0.75, noise), expected)
    assert list(model.state_dict()) == names
    with nothing_compiles():
        step(model, images[:3], 0.75, noise[:3])  # the last batch, which is smaller
        with torch.no_grad():
            model.eval()(images, 0.75, noise)
        step(model.train(), images, 0.75, noise)


def test_fine_tuning_is_the_same_compiled_and_compiles_once(quick):
    """Drop path, which grows from block to block and is drawn anew in each step, makes no difference."""
    model = models_vit.SegmentationViT(3, **small(drop_path=0.3, depth=6)).train()
    images, numbers = torch.randn(BATCH, 1, 32, 32), torch.rand(BATCH, len(model.drop_paths))
    expected = step(model, images, numbers)
    compiling.compile_model(model, "on", BATCH, "off", 4)
    torch.testing.assert_close(step(model, images, numbers), expected)
    with nothing_compiles():
        step(model, images, torch.rand(BATCH, len(model.drop_paths)))


def test_warming_up_changes_no_weight_and_says_how_long_it_took(quick, capsys):
    model = models_mae.MaskedAutoencoderViT(**small(decoder_depth=1)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    numbers = torch.get_rng_state()
    compiling.compile_model(model, "on", BATCH, "off", 4)
    compiling.warm_up(
        model, "on", lambda: model(torch.zeros(BATCH, 1, 32, 32), 0.75, torch.zeros(BATCH, 16))[0]
    )
    assert capsys.readouterr().out.startswith("compiled in ")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), numbers)
    with nothing_compiles():
        step(model, torch.randn(BATCH, 1, 32, 32), 0.75, torch.rand(BATCH, 16))


def test_a_compiler_that_does_not_work_is_a_line(monkeypatch):
    def broken(graph, inputs):
        raise RuntimeError("no C++ compiler\nmore lines")

    model = models_mae.MaskedAutoencoderViT(**small(decoder_depth=1)).train()
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **options: compile_(function, backend=broken))
    compiling.compile_model(model, "on", BATCH, "off", 4)
    with pytest.raises(UserError, match=r"--compile on: .*no C\+\+ compiler") as error:
        compiling.warm_up(
            model, "on", lambda: model(torch.zeros(BATCH, 1, 32, 32), 0.75, torch.zeros(BATCH, 16))[0]
        )
    assert "\n" not in str(error.value)
    torch._dynamo.reset()


def test_ways(monkeypatch, capsys):
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert compiling.pick_compile(flags(), cpu, 1) == "off"
    assert compiling.pick_compile(flags(compile="on"), cpu, 1) == "on"
    for capability, expected in (((9, 0), "on"), ((6, 1), "off")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        monkeypatch.setattr(compiling.importlib.util, "find_spec", lambda name: object())
        monkeypatch.setattr(compiling.shutil, "which", lambda name: f"/usr/bin/{name}")
        assert compiling.pick_compile(flags(), gpu, 1) == expected
    assert compiling.pick_compile(flags(compile="graphs"), gpu, 1) == "graphs"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(compiling.shutil, "which", lambda name: None)
    monkeypatch.delenv("CC", raising=False)
    assert compiling.pick_compile(flags(), gpu, 1) == "off"
    assert capsys.readouterr().err == (
        "warning: --compile auto: not compiled, which takes longer: expected a C compiler, gcc or clang; found none\n"
    )
    monkeypatch.setenv("CC", "/opt/cc")
    assert compiling.pick_compile(flags(), gpu, 1) == "on"
    for device, processes, more in (
        (cpu, 1, {}),
        (gpu, 2, {}),
        (gpu, 1, {"accum_iter": 2}),
        (gpu, 1, {"grad_ckpt": True}),
    ):
        with pytest.raises(UserError, match="--compile graphs"):
            compiling.pick_compile(flags(compile="graphs", **more), device, processes)
