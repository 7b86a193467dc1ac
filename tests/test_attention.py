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


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton, which torch brings on Linux")
@pytest.mark.skipif(torch.__version__ < "2.12" and np.lib.NumpyVersion(np.__version__) >= "2.5.0",
                    reason="the interpreter of torch 2.11's triton fails with numpy 2.5")  # fmt: skip
def test_it_is_attention():
    run = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, cwd=ROOT, check=False,
                         env={"TRITON_INTERPRET": "1", "PATH": ""})  # fmt: skip
    assert run.stdout.strip() == "the same", run.stderr


def test_what_does_not_fit_is_computed_as_before():
    torch.manual_seed(0)
    block = Block(32, 2, qkv_bias=True)
    tokens = torch.randn(2, 5, 32)
    expected = block(tokens)
    attention.use([block])
    torch.testing.assert_close(block(tokens), expected)  # float32
    assert not attention.fits(257, 16)
    assert not attention.fits(197, 24)
