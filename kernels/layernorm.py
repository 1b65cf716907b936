"""Layer normalisation over the last dimension (Ba et al. 2016, arXiv:1607.06450)."""

import torch.nn.functional as F
from torch import Tensor

from ._triton import tl, triton
from .rmsnorm import row_launch


def reference(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """x [T, H]; weight, bias [H] -> (x - mean) / sqrt(variance + eps) * weight + bias, [T, H].

    All of it is in fp32, and rounded to x's dtype once.
    """
    return F.layer_norm(x, x.shape[-1:], weight, bias, eps)


@triton.jit
def normalise(x, weight_ptr, bias_ptr, column, inside, size, eps):
    """x [BLOCK], of which `size` elements are `inside` the row -> the normalised row, in x's dtype."""
    x32 = x.to(tl.float32)
    # The variance is that of the differences: E[x^2] - E[x]^2 would cancel where the mean is large.
    centred = tl.where(inside, x32 - tl.sum(tl.where(inside, x32, 0.0)) / size, 0.0)
    scale = tl.rsqrt(tl.sum(centred * centred) / size + eps)
    weight = tl.load(weight_ptr + column, inside, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + column, inside, other=0.0).to(tl.float32)
    return (centred * scale * weight + bias).to(x.dtype)


@triton.jit
def _layernorm_kernel(x_ptr, weight_ptr, bias_ptr, out_ptr, size, x_stride, eps, BLOCK: tl.constexpr):
    """One program: one row of x [T, H] (row stride x_stride) into out [T, H], contiguous. BLOCK >= H."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < size
    x = tl.load(x_ptr + row * x_stride + column, inside, other=0.0)
    out = normalise(x, weight_ptr, bias_ptr, column, inside, size, eps)
    tl.store(out_ptr + row * size + column, out, inside)


def triton_layernorm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """As `reference`; rows of x may be strided."""
    rows, size = x.shape
    out = x.new_empty(rows, size)
    _layernorm_kernel[(rows,)](x, weight, bias, out, size, x.stride(0), eps, **row_launch(size))
    return out
