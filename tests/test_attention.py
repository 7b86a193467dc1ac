"""Attention over few tokens, in Triton's interpreter, since there need be no GPU; on one see test_gpu.py."""

import importlib.util
import subprocess
import sys

import numpy as np
import pytest
import torch
from support import ROOT
from timm.models.vision_transformer import Block

from util import attention

SCRIPT = """
import torch
from util.attention import short_attention, usual_attention

torch.manual_seed(0)
for batch, tokens, heads, width in ((2, 50, 2, 16), (1, 197, 1, 32), (1, 33, 2, 64)):
    qkv = torch.randn(batch, tokens, 3, heads, width, requires_grad=True)
    grad = torch.randn(batch, tokens, heads, width)
    out, lse = short_attention(qkv)
    out.backward(grad)
    exact = qkv.detach().double().requires_grad_()
    expected = usual_attention(exact)
    expected.backward(grad.double())
    torch.testing.assert_close(out.double(), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(qkv.grad.double(), exact.grad, rtol=1e-4, atol=1e-5)
print("the same")
"""


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="needs triton, which torch brings on Linux"
)
@pytest.mark.skipif(
    torch.__version__ < "2.12" and np.lib.NumpyVersion(np.__version__) >= "2.5.0",
    reason="the interpreter of torch 2.11's triton fails with numpy 2.5",
)
def test_it_is_attention():
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
        env={"TRITON_INTERPRET": "1", "PATH": ""},
    )
    assert run.stdout.strip() == "the same", run.stderr


def test_what_does_not_fit_is_computed_as_before():
    torch.manual_seed(0)
    block = Block(32, 2, qkv_bias=True)
    tokens, names = torch.randn(2, 5, 32), list(block.state_dict())
    expected = block(tokens)
    attention.use([block], short=True)
    torch.testing.assert_close(block(tokens), expected)  # float32
    assert list(block.state_dict()) == names
    assert not attention.fits(257, 16)
    assert not attention.fits(197, 24)


def test_blocks_of_one_shape_are_compiled_once():
    torch._dynamo.reset()
    blocks = torch.nn.ModuleList(Block(32, 2) for _ in range(10))  # beyond dynamo's limit
    attention.use(blocks, short=True)
    first, *others = (torch.compile(block.forward, backend="eager") for block in blocks)
    first(torch.zeros(1, 3, 32))
    with torch.compiler.set_stance("fail_on_recompile"):
        for block in others:
            block(torch.zeros(1, 3, 32))
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("batch", "tokens", "heads", "width", "chunk"),
    [(5, 50, 2, 32, 2 * 2 * 50**2 * 2), (2, 197, 4, 16, 1), (3, 33, 1, 64, 2**20)],
)
def test_gradients_on_a_cpu_in_bf16(monkeypatch, batch, tokens, heads, width, chunk):
    """As near to those in double precision as bf16 lets them be, scores far from 0 included; chunks with a
    remainder.
    """
    monkeypatch.setattr(attention, "CHUNK_BYTES", chunk)
    torch.manual_seed(0)
    qkv = torch.randn(batch, tokens, 3, heads, width)
    qkv[:, :, 1] += 3  # what all keys have in common changes no weight
    qkv = qkv.bfloat16().requires_grad_()
    grad = torch.randn(batch, tokens, heads, width).bfloat16()
    exact = qkv.detach().double().requires_grad_()
    expected = attention.usual_attention(exact)
    expected.backward(grad.double())
    out = attention.CpuAttention.apply(qkv, None)
    torch.testing.assert_close(out, attention.usual_attention(qkv), rtol=0, atol=0)
    out.backward(grad)
    for found, right in zip(qkv.grad.double().unbind(2), exact.grad.unbind(2), strict=True):
        assert (found - right).norm() < 0.02 * right.norm()


def test_a_model_takes_it_in_bf16_alone(monkeypatch):
    taken = []
    monkeypatch.setattr(
        attention.CpuAttention, "forward", lambda ctx, qkv, bias: taken.append(qkv.dtype) or qkv[:, :, 0]
    )
    block = Block(32, 2)
    attention.use([block])
    block(torch.zeros(1, 3, 32))
    with torch.autocast("cpu", torch.bfloat16):
        with torch.no_grad():
            block(torch.zeros(1, 3, 32))
        assert not taken
        block(torch.zeros(1, 3, 32))
    assert taken == [torch.bfloat16]
