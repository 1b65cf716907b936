"""RMSNorm over the last dimension (Zhang & Sennrich 2019, arXiv:1910.07467)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ._triton import target, tl, triton
from .pdl import await_previous, start_dependents


def reference(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x [..., H], weight [H] -> x / rms(x) * weight in x's dtype.

    The mean square is taken in fp32; the normalised value is rounded to x's dtype before it meets the
    weight, as in transformers.
    """
    return F.rms_norm(x.float(), x.shape[-1:], eps=eps).to(x.dtype) * weight


def cpu(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """As `reference`; a single row in half the time, most of which is calls of operators."""
    size = weight.shape[0]
    if x.numel() != size or not x.is_cpu:
        return reference(x, weight, eps)
    length = torch.linalg.vector_norm(x, dtype=torch.float32).item()
    # A product with a number is taken in fp32 and rounded once, whatever the dtype.
    return x.mul((length * length / size + eps) ** -0.5).mul_(weight)


@triton.jit
def normalise(x, weight, size, eps):
    """x, weight [BLOCK], zero beyond `size` -> the normalised row, in x's dtype."""
    x32 = x.to(tl.float32)
    scale = tl.rsqrt(tl.sum(x32 * x32) / size + eps)
    return (x32 * scale).to(x.dtype) * weight


@triton.jit
def _rmsnorm_kernel(x_ptr, weight_ptr, out_ptr, size, x_stride, eps, BLOCK: tl.constexpr, PDL: tl.constexpr):
    """One program: one row of x [T, H] (row stride x_stride) into out [T, H], contiguous. BLOCK >= H."""
    start_dependents(PDL)
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < size
    weight = tl.load(weight_ptr + column, inside, other=0.0)
    await_previous(PDL)
    x = tl.load(x_ptr + row * x_stride + column, inside, other=0.0)
    tl.store(out_ptr + row * size + column, normalise(x, weight, size, eps), inside)


def row_launch(size: int) -> dict[str, object]:
    """Launch options for a kernel that holds a row of `size` elements in registers."""
    block = triton.next_power_of_2(size)
    return {"BLOCK": block, "num_warps": min(max(block // 128, 1), 16)}


def triton_rmsnorm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x [T, H] (rows may be strided), weight [H] -> [T, H]."""
    rows, size = x.shape
    out = x.new_empty(rows, size)
    options = row_launch(size) | target(x.device).chain(early=True)
    _rmsnorm_kernel[(rows,)](x, weight, out, size, x.stride(0), eps, **options)
    return out
