"""Attention in bf16 on a CPU: torch's forward pass, and a backward pass of matrix products.

torch's own backward pass (2.14, on an Intel Xeon with AMX) takes longer in bf16 than in float32: two fifths of the step in
which ViT-tiny is fine-tuned. Matrix products of some samples at a time, so few that their scores stay in the cache, take a
half to a fifth of that: ViT-S at batch 32 is pretrained at 17.2 images/s instead of 10.5.
"""

import torch

CHUNK_BYTES = 2**20  # scores of the samples that are computed at a time, about


class CpuAttention(torch.autograd.Function):
    """Attention of all tokens to all: qkv bf16 [B, N, 3, heads, width] -> [B, N, heads, width]."""

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
