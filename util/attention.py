"""Attention of all tokens to all; over few tokens on a GPU one program a head, which keeps all queries where it computes.

General kernels split queries and keys into tiles, and in the backward pass add up gradients of queries through memory. A
spectrogram of 224 x 224 has 197 tokens, 50 where a quarter is seen, and heads of as few as 16 values: there is one tile of
queries, so the backward pass is one kernel that reads everything once. Softmax and sums are float32, as elsewhere.
"""

import os
import time

import timm
import torch

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None

MOST_TOKENS = 256
WIDTHS = (16, 32, 64)  # of a head
DTYPES = (torch.bfloat16, torch.float16)
LOG2_E = 1.4426950408889634
CHUNK_BYTES = 2**20  # scores that CpuAttention computes at a time, about

if triton:
    CONFIGS = [triton.Config({"BLOCK": block}, num_warps=warps) for block, warps in ((32, 4), (64, 4), (64, 8), (128, 8))]
    if os.environ.get("TRITON_INTERPRET") == "1":  # tests, without a GPU to choose by
        CONFIGS = CONFIGS[:1]

    @triton.jit
    def _rows(pointer, rows, row_stride, d, num_tokens):
        return tl.load(pointer + rows[:, None] * row_stride + d[None, :], mask=rows[:, None] < num_tokens, other=0.0)

    @triton.autotune(CONFIGS, key=["num_tokens", "HEADS", "WIDTH"])
    @triton.jit
    def _forward_kernel(qkv, out, lse, scale, num_tokens, HEADS: tl.constexpr, WIDTH: tl.constexpr, TOKENS: tl.constexpr,
                        BLOCK: tl.constexpr):  # fmt: skip
        """qkv [B, N, 3, H, D] -> out [B, N, H, D], lse [B, H, N]: log2 of the sum of 2^(score · log2 e)."""
        sample, head = tl.program_id(0) // HEADS, tl.program_id(0) % HEADS
        stride: tl.constexpr = 3 * HEADS * WIDTH
        qkv += sample.to(tl.int64) * num_tokens * stride + head * WIDTH
        rows, d = tl.arange(0, TOKENS), tl.arange(0, WIDTH)
        q = _rows(qkv, rows, stride, d, num_tokens)
        greatest = tl.full([TOKENS], float("-inf"), tl.float32)
        total = tl.zeros([TOKENS], tl.float32)
        sums = tl.zeros([TOKENS, WIDTH], tl.float32)
        for start in range(0, num_tokens, BLOCK):
            columns = start + tl.arange(0, BLOCK)
            k = _rows(qkv + HEADS * WIDTH, columns, stride, d, num_tokens)
            v = _rows(qkv + 2 * HEADS * WIDTH, columns, stride, d, num_tokens)
            scores = tl.dot(q, tl.trans(k)) * scale
            scores = tl.where(columns[None, :] < num_tokens, scores, float("-inf"))
            new = tl.maximum(greatest, tl.max(scores, 1))
            p = tl.exp2(scores - new[:, None])
            shrink = tl.exp2(greatest - new)
            total = total * shrink + tl.sum(p, 1)
            sums = sums * shrink[:, None] + tl.dot(p.to(v.dtype), v)
            greatest = new
        out += sample.to(tl.int64) * num_tokens * HEADS * WIDTH + head * WIDTH
        inside = rows < num_tokens
        tl.store(out + rows[:, None] * (HEADS * WIDTH) + d[None, :], (sums / total[:, None]).to(out.dtype.element_ty),
                 mask=inside[:, None])  # fmt: skip
        tl.store(lse + tl.program_id(0) * num_tokens + rows, greatest + tl.log2(total), mask=inside)

    @triton.autotune(CONFIGS, key=["num_tokens", "HEADS", "WIDTH"])
    @triton.jit
    def _backward_kernel(qkv, out, lse, grad, grad_qkv, scale, num_tokens, HEADS: tl.constexpr, WIDTH: tl.constexpr,
                         TOKENS: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
        """The gradient of qkv, shaped as it is, of that of out."""
        sample, head = (tl.program_id(0) // HEADS).to(tl.int64), tl.program_id(0) % HEADS
        stride: tl.constexpr = 3 * HEADS * WIDTH
        qkv += sample * num_tokens * stride + head * WIDTH
        grad_qkv += sample * num_tokens * stride + head * WIDTH
        place = sample * num_tokens * HEADS * WIDTH + head * WIDTH
        rows, d = tl.arange(0, TOKENS), tl.arange(0, WIDTH)
        inside = rows < num_tokens
        q = _rows(qkv, rows, stride, d, num_tokens)
        do = _rows(grad + place, rows, HEADS * WIDTH, d, num_tokens)
        o = _rows(out + place, rows, HEADS * WIDTH, d, num_tokens)
        delta = tl.sum(do.to(tl.float32) * o.to(tl.float32), 1)
        norm = tl.load(lse + tl.program_id(0) * num_tokens + rows, mask=inside, other=0.0)
        dq = tl.zeros([TOKENS, WIDTH], tl.float32)
        for start in range(0, num_tokens, BLOCK):
            columns = start + tl.arange(0, BLOCK)
            k = _rows(qkv + HEADS * WIDTH, columns, stride, d, num_tokens)
            v = _rows(qkv + 2 * HEADS * WIDTH, columns, stride, d, num_tokens)
            p = tl.exp2(tl.dot(q, tl.trans(k)) * scale - norm[:, None])
            p = tl.where(columns[None, :] < num_tokens, p, 0.0)
            ds = (p * (tl.dot(do, tl.trans(v)) - delta[:, None])).to(q.dtype)
            dv = tl.dot(tl.trans(p.to(do.dtype)), do)
            dk = tl.dot(tl.trans(ds), q) * (scale / 1.4426950408889634)
            dq += tl.dot(ds, k)
            to = grad_qkv + columns[:, None] * stride + d[None, :]
            tl.store(to + HEADS * WIDTH, dk.to(grad_qkv.dtype.element_ty), mask=columns[:, None] < num_tokens)
            tl.store(to + 2 * HEADS * WIDTH, dv.to(grad_qkv.dtype.element_ty), mask=columns[:, None] < num_tokens)
        dq *= scale / 1.4426950408889634
        tl.store(grad_qkv + rows[:, None] * stride + d[None, :], dq.to(grad_qkv.dtype.element_ty), mask=inside[:, None])


def _sizes(qkv):
    _, tokens, _, heads, width = qkv.shape
    return {"HEADS": heads, "WIDTH": width, "TOKENS": max(16, triton.next_power_of_2(tokens))}


@torch.library.custom_op("radio_mae::short_attention", mutates_args=())
def short_attention(qkv: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of all tokens to all: qkv [B, N, 3, heads, width], contiguous -> [B, N, heads, width]; lse [B, heads, N]."""
    batch, tokens, _, heads, width = qkv.shape
    out = qkv.new_empty(batch, tokens, heads, width)
    lse = qkv.new_empty(batch, heads, tokens, dtype=torch.float32)
    _forward_kernel[batch * heads,](qkv, out, lse, LOG2_E * width**-0.5, tokens, **_sizes(qkv))
    return out, lse


@short_attention.register_fake
def _(qkv):
    batch, tokens, _, heads, width = qkv.shape
    return qkv.new_empty(batch, tokens, heads, width), qkv.new_empty(batch, heads, tokens, dtype=torch.float32)


@torch.library.custom_op("radio_mae::short_attention_backward", mutates_args=())
def short_attention_backward(grad: torch.Tensor, qkv: torch.Tensor, out: torch.Tensor, lse: torch.Tensor) -> torch.Tensor:
    batch, tokens, _, heads, width = qkv.shape
    grad_qkv = torch.empty_like(qkv)
    _backward_kernel[batch * heads,](qkv, out, lse, grad.contiguous(), grad_qkv, LOG2_E * width**-0.5, tokens, **_sizes(qkv))
    return grad_qkv


@short_attention_backward.register_fake
def _(grad, qkv, out, lse):
    return torch.empty_like(qkv)


def _keep(ctx, inputs, output):
    ctx.save_for_backward(*inputs, *output)


def _backward(ctx, grad, _):
    return short_attention_backward(grad, *ctx.saved_tensors)


short_attention.register_autograd(_backward, setup_context=_keep)


def fits(tokens, width):
    """Whether `short_attention` is for so many tokens, and heads of this width."""
    return triton is not None and tokens <= MOST_TOKENS and width in WIDTHS


class CpuAttention(torch.autograd.Function):
    """Attention in bf16 on a CPU: qkv bf16 [B, N, 3, heads, width] -> [B, N, heads, width].

    The backward pass is matrix products over a few samples, so few that their scores stay in the cache. torch's own (2.14)
    is slower in bf16 than in float32: with it ViT-S trains at 10.5 images/s, with this at 17.2 (Intel Xeon with AMX).
    """

    @staticmethod
    def forward(ctx, qkv):
        # What scaled_dot_product_attention calls on a CPU; it alone gives the logarithms of the sums.
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*qkv.permute(2, 0, 3, 1, 4))
        ctx.save_for_backward(qkv, lse)
        return out.transpose(1, 2)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        qkv, lse = ctx.saved_tensors
        samples, tokens, _, heads, width = qkv.shape
        grad_qkv = torch.empty_like(qkv)
        at_a_time = max(1, CHUNK_BYTES // (heads * tokens**2 * qkv.element_size()))
        for first in range(0, samples, at_a_time):
            some = slice(first, first + at_a_time)
            q, k, v = qkv[some].permute(2, 0, 3, 1, 4).reshape(3, -1, tokens, width)
            d_out = grad[some].transpose(1, 2).reshape(-1, tokens, width)
            # Softmax is the same for scores less any number. Less `lse` the greatest ones are near 0, where bf16 is fine.
            least = lse[some].reshape(-1, tokens, 1).to(q.dtype)
            p = torch.baddbmm(least, q, k.mT, beta=-1, alpha=width**-0.5).softmax(-1)
            d_scores = torch._softmax_backward_data(torch.bmm(d_out, v.mT), p, -1, p.dtype)
            parts = torch.bmm(d_scores, k) * width**-0.5, torch.bmm(d_scores.mT, q) * width**-0.5, torch.bmm(p.mT, d_out)
            for number, part in enumerate(parts):
                grad_qkv[some, :, number] = part.view(-1, heads, tokens, width).transpose(1, 2)
        return grad_qkv


class Attention(timm.layers.Attention):
    """timm's `Attention` without extras, each pass by what is fastest at it; state-dict keys as timm has them."""

    short = False  # on a GPU `short_attention`, where that fits

    def forward(self, x, attn_mask=None, is_causal=False):
        qkv = self.qkv(x).unflatten(2, (3, self.num_heads, self.head_dim))
        if self.short and qkv.dtype in DTYPES and fits(x.shape[1], self.head_dim):
            out, _ = short_attention(qkv)
        elif qkv.device.type == "cpu" and qkv.dtype == torch.bfloat16 and qkv.requires_grad:
            out = CpuAttention.apply(qkv)
        else:
            out = usual_attention(qkv)
        return self.proj(out.flatten(2))


def use(blocks, short=False):
    """Have timm's transformer blocks, as they are, compute attention as `Attention` does; state and weights stay."""
    for block in blocks:
        # A method of a class, not a function of each block's own: with that torch.compile compiles each block anew, up to
        # its limit of eight, and leaves the others as they are.
        block.attn.__class__, block.attn.short = Attention, short


def is_faster(attention, batch_size, tokens, dtype):
    """Whether `short_attention` trains faster on this GPU than what torch has: measured.

    Args:
        attention: timm's, on the GPU; batch_size, tokens, dtype: what it will see.
    """
    if dtype not in DTYPES or not fits(tokens, attention.head_dim):
        return False
    shape = (batch_size, tokens, 3, attention.num_heads, attention.head_dim)
    qkv = torch.randn(shape, device=attention.qkv.weight.device, dtype=dtype, requires_grad=True)
    return _seconds(lambda: short_attention(qkv)[0], qkv) < _seconds(lambda: usual_attention(qkv), qkv)


def usual_attention(qkv):
    """What `short_attention` gives first, by torch."""
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    return torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def _seconds(attend, qkv):
    """Least time of a forward and backward pass."""
    grad = torch.randn_like(attend())
    seconds = []
    for number in range(8):
        torch.cuda.synchronize()
        started = time.perf_counter()
        attend().backward(grad)
        torch.cuda.synchronize()
        if number >= 3:
            seconds.append(time.perf_counter() - started)
        qkv.grad = None
    return min(seconds)
