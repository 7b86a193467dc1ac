"""Attention for few tokens: on a GPU a Triton kernel that holds all queries of a head on chip, on a CPU one
in bf16.

General kernels split queries into tiles, and their backward pass sums the gradients of queries through
memory. A spectrogram of 224 x 224 has 197 tokens, or 50 when a quarter is visible, and heads have 16 to 64
values. Then one tile holds all queries, and one backward kernel reads everything once. Softmax and sums are
float32.
"""

import os

import timm
import torch

from util.timings import least_seconds

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None

MOST_TOKENS = 256
WIDTHS = (16, 32, 64)  # of a head
DTYPES = (torch.bfloat16, torch.float16)
LOG2_E = 1.4426950408889634
CHUNK_BYTES = 2**20  # of scores that CpuAttention computes at a time

if triton:
    BLOCKS_AND_WARPS = ((32, 4), (64, 4), (64, 8), (128, 8))
    if os.environ.get("TRITON_INTERPRET") == "1":  # tests have no GPU to choose by
        BLOCKS_AND_WARPS = BLOCKS_AND_WARPS[:1]
    CONFIGS = [triton.Config({"BLOCK": block}, num_warps=warps) for block, warps in BLOCKS_AND_WARPS]

    @triton.jit
    def _load_rows(pointer, rows, row_stride, d, num_tokens):
        at = pointer + rows[:, None] * row_stride + d[None, :]
        return tl.load(at, mask=rows[:, None] < num_tokens, other=0.0)

    @triton.jit
    def _store_rows(pointer, rows, row_stride, d, num_tokens, values):
        at = pointer + rows[:, None] * row_stride + d[None, :]
        tl.store(at, values.to(pointer.dtype.element_ty), mask=rows[:, None] < num_tokens)

    @triton.autotune(CONFIGS, key=["num_tokens", "HEADS", "WIDTH"])
    @triton.jit
    def _forward_kernel(
        qkv,
        out,
        lse,
        scale,
        num_tokens,
        HEADS: tl.constexpr,
        WIDTH: tl.constexpr,
        TOKENS: tl.constexpr,
        BLOCK: tl.constexpr,
    ):
        """qkv [B, N, 3, H, D] -> out [B, N, H, D], lse [B, H, N]: log2 of the sum of 2^(score · log2 e)."""
        sample, head = tl.program_id(0) // HEADS, tl.program_id(0) % HEADS
        stride: tl.constexpr = 3 * HEADS * WIDTH
        qkv += sample.to(tl.int64) * num_tokens * stride + head * WIDTH
        rows, d = tl.arange(0, TOKENS), tl.arange(0, WIDTH)
        q = _load_rows(qkv, rows, stride, d, num_tokens)
        greatest = tl.full([TOKENS], float("-inf"), tl.float32)
        total = tl.zeros([TOKENS], tl.float32)
        sums = tl.zeros([TOKENS, WIDTH], tl.float32)
        for start in range(0, num_tokens, BLOCK):
            columns = start + tl.arange(0, BLOCK)
            k = _load_rows(qkv + HEADS * WIDTH, columns, stride, d, num_tokens)
            v = _load_rows(qkv + 2 * HEADS * WIDTH, columns, stride, d, num_tokens)
            scores = tl.dot(q, tl.trans(k)) * scale
            scores = tl.where(columns[None, :] < num_tokens, scores, float("-inf"))
            new = tl.maximum(greatest, tl.max(scores, 1))
            p = tl.exp2(scores - new[:, None])
            shrink = tl.exp2(greatest - new)
            total = total * shrink + tl.sum(p, 1)
            sums = sums * shrink[:, None] + tl.dot(p.to(v.dtype), v)
            greatest = new
        out += sample.to(tl.int64) * num_tokens * HEADS * WIDTH + head * WIDTH
        _store_rows(out, rows, HEADS * WIDTH, d, num_tokens, sums / total[:, None])
        tl.store(
            lse + tl.program_id(0) * num_tokens + rows, greatest + tl.log2(total), mask=rows < num_tokens
        )

    @triton.autotune(CONFIGS, key=["num_tokens", "HEADS", "WIDTH"])
    @triton.jit
    def _backward_kernel(
        qkv,
        out,
        lse,
        grad,
        grad_qkv,
        scale,
        num_tokens,
        HEADS: tl.constexpr,
        WIDTH: tl.constexpr,
        TOKENS: tl.constexpr,
        BLOCK: tl.constexpr,
    ):
        """grad [B, N, H, D], of out -> grad_qkv [B, N, 3, H, D]."""
        sample, head = (tl.program_id(0) // HEADS).to(tl.int64), tl.program_id(0) % HEADS
        stride: tl.constexpr = 3 * HEADS * WIDTH
        qkv += sample * num_tokens * stride + head * WIDTH
        grad_qkv += sample * num_tokens * stride + head * WIDTH
        place = sample * num_tokens * HEADS * WIDTH + head * WIDTH
        rows, d = tl.arange(0, TOKENS), tl.arange(0, WIDTH)
        q = _load_rows(qkv, rows, stride, d, num_tokens)
        do = _load_rows(grad + place, rows, HEADS * WIDTH, d, num_tokens)
        o = _load_rows(out + place, rows, HEADS * WIDTH, d, num_tokens)
        delta = tl.sum(do.to(tl.float32) * o.to(tl.float32), 1)
        norm = tl.load(lse + tl.program_id(0) * num_tokens + rows, mask=rows < num_tokens, other=0.0)
        dq = tl.zeros([TOKENS, WIDTH], tl.float32)
        for start in range(0, num_tokens, BLOCK):
            columns = start + tl.arange(0, BLOCK)
            k = _load_rows(qkv + HEADS * WIDTH, columns, stride, d, num_tokens)
            v = _load_rows(qkv + 2 * HEADS * WIDTH, columns, stride, d, num_tokens)
            p = tl.exp2(tl.dot(q, tl.trans(k)) * scale - norm[:, None])
            p = tl.where(columns[None, :] < num_tokens, p, 0.0)
            ds = (p * (tl.dot(do, tl.trans(v)) - delta[:, None])).to(q.dtype)
            dv = tl.dot(tl.trans(p.to(do.dtype)), do)
            dk = tl.dot(tl.trans(ds), q) * (scale / 1.4426950408889634)
            dq += tl.dot(ds, k)
            to = grad_qkv + HEADS * WIDTH
            _store_rows(to, columns, stride, d, num_tokens, dk)
            _store_rows(to + HEADS * WIDTH, columns, stride, d, num_tokens, dv)
        _store_rows(grad_qkv, rows, stride, d, num_tokens, dq * (scale / 1.4426950408889634))


def _run(kernel, qkv, *others):
    """Start a kernel with one program for each head of each sample."""
    batch, tokens, _, heads, width = qkv.shape
    sizes = {"HEADS": heads, "WIDTH": width, "TOKENS": max(16, triton.next_power_of_2(tokens))}
    kernel[batch * heads,](qkv, *others, LOG2_E * width**-0.5, tokens, **sizes)


def _outputs(qkv):
    batch, tokens, _, heads, width = qkv.shape
    lse = qkv.new_empty(batch, heads, tokens, dtype=torch.float32)
    return qkv.new_empty(batch, tokens, heads, width), lse


@torch.library.custom_op("radio_mae::short_attention", mutates_args=())
def short_attention(qkv: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention: contiguous qkv [B, N, 3, heads, width] -> [B, N, heads, width]; lse [B, heads, N]."""
    out, lse = _outputs(qkv)
    _run(_forward_kernel, qkv, out, lse)
    return out, lse


@torch.library.custom_op("radio_mae::short_attention_backward", mutates_args=())
def _short_attention_backward(
    grad: torch.Tensor, qkv: torch.Tensor, out: torch.Tensor, lse: torch.Tensor
) -> torch.Tensor:
    grad_qkv = torch.empty_like(qkv)
    _run(_backward_kernel, qkv, out, lse, grad.contiguous(), grad_qkv)
    return grad_qkv


short_attention.register_fake(_outputs)
_short_attention_backward.register_fake(lambda grad, qkv, out, lse: torch.empty_like(qkv))
short_attention.register_autograd(
    lambda ctx, grad, _: _short_attention_backward(grad, *ctx.saved_tensors),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs, *output),
)


def fits(tokens, width):
    """Whether `short_attention` takes this number of tokens and this width of a head."""
    return triton is not None and tokens <= MOST_TOKENS and width in WIDTHS


class CpuAttention(torch.autograd.Function):
    """Attention in bf16 on a CPU: qkv bf16 [B, N, 3, heads, width] -> [B, N, heads, width].

    `bias`, [B, 1, 1, N] in bf16 or None, is added to the scores.

    The backward pass multiplies matrices of a few samples at a time, so that their scores stay in the cache.
    torch's own (2.14) is slower in bf16 than in float32: ViT-S trains at 10.5 images/s with it, at 17.2 with
    this (Intel Xeon with AMX).
    """

    @staticmethod
    def forward(ctx, qkv, bias):
        # scaled_dot_product_attention calls this on a CPU, but does not return the logarithms of the sums.
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            *qkv.permute(2, 0, 3, 1, 4), attn_mask=bias
        )
        ctx.save_for_backward(qkv, lse, bias)
        return out.transpose(1, 2)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        qkv, lse, bias = ctx.saved_tensors
        samples, tokens, _, heads, width = qkv.shape
        grad_qkv = torch.empty_like(qkv)
        at_a_time = max(1, CHUNK_BYTES // (heads * tokens**2 * qkv.element_size()))
        for first in range(0, samples, at_a_time):
            some = slice(first, first + at_a_time)
            q, k, v = qkv[some].permute(2, 0, 3, 1, 4).reshape(3, -1, tokens, width)
            d_out = grad[some].transpose(1, 2).reshape(-1, tokens, width)
            # Subtracting `lse` leaves the softmax as it is and brings the largest scores near 0, where bf16
            # is exact.
            sums = lse[some].reshape(-1, tokens, 1).to(q.dtype)
            p = torch.baddbmm(sums, q, k.mT, beta=-1, alpha=width**-0.5)
            if bias is not None:
                p = (p.unflatten(0, (-1, heads)) + bias[some]).flatten(0, 1)
            p = p.softmax(-1)
            d_scores = torch._softmax_backward_data(torch.bmm(d_out, v.mT), p, -1, p.dtype)
            d_q, d_k = torch.bmm(d_scores, k) * width**-0.5, torch.bmm(d_scores.mT, q) * width**-0.5
            for number, part in enumerate((d_q, d_k, torch.bmm(p.mT, d_out))):
                grad_qkv[some, :, number] = part.view(-1, heads, tokens, width).transpose(1, 2)
        return grad_qkv, None


class Attention(timm.layers.Attention):
    """timm's `Attention`, with its state-dict keys, by the fastest of the implementations above.

    `attn_mask`, bool [B, 1, 1, N] or None, says which tokens the others attend to.
    """

    short = False  # use `short_attention` if it fits

    def forward(self, x, attn_mask=None, is_causal=False):
        qkv = self.qkv(x).unflatten(2, (3, self.num_heads, self.head_dim))
        if self.short and attn_mask is None and qkv.dtype in DTYPES and fits(x.shape[1], self.head_dim):
            out, _ = short_attention(qkv)
        elif qkv.device.type == "cpu" and qkv.dtype == torch.bfloat16 and qkv.requires_grad:
            bias = attn_mask if attn_mask is None else _bias(attn_mask, qkv.dtype)
            out = CpuAttention.apply(qkv, bias)
        else:
            out = usual_attention(qkv, attn_mask)
        return self.proj(out.flatten(2))


def use(blocks, short=False):
    """Make the attention of timm's blocks an `Attention`, in place; weights stay."""
    for block in blocks:
        # torch.compile would compile each block anew, at most eight, if each had a function of its own.
        block.attn.__class__, block.attn.short = Attention, short


def _bias(mask, dtype):
    """0 where a mask is true, minus infinity elsewhere."""
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, float("-inf"))


def usual_attention(qkv, mask=None):
    """torch's own: qkv [B, N, 3, heads, width] -> [B, N, heads, width]."""
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)


def is_faster(attention, batch_size, tokens, dtype):
    """Measure whether `short_attention` trains faster on this GPU than torch's attention.

    Args:
        attention: timm's, on the GPU; batch_size, tokens, dtype: of its input.
    """
    if dtype not in DTYPES or not fits(tokens, attention.head_dim):
        return False
    shape = (batch_size, tokens, 3, attention.num_heads, attention.head_dim)
    qkv = torch.randn(shape, device=attention.qkv.weight.device, dtype=dtype, requires_grad=True)
    grad = torch.randn(batch_size, tokens, *shape[3:], device=qkv.device, dtype=dtype)

    def seconds(attend):
        return least_seconds(lambda: torch.autograd.grad(attend(qkv), qkv, grad), qkv.device)

    return seconds(lambda qkv: short_attention(qkv)[0]) < seconds(usual_attention)
