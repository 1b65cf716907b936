"""Residual addition and the layer norm of the sum, in one pass over memory."""

from torch import Tensor

from . import layernorm
from ._triton import tl, triton
from .layernorm import normalise
from .rmsnorm import row_launch


def reference(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x, residual [T, H] -> (layernorm(total), total), total = x + residual, rounded to the dtype, [T, H]."""
    total = x + residual
    return layernorm.reference(total, weight, bias, eps), total


@triton.jit
def _skip_layernorm_kernel(
    x_ptr, residual_ptr, weight_ptr, bias_ptr, out_ptr, total_ptr, size, eps, BLOCK: tl.constexpr
):  # fmt: skip
    """One program: one row of x and residual [T, H] into out and total [T, H]. BLOCK >= H."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < size
    x = tl.load(x_ptr + row * size + column, inside, other=0.0)
    residual = tl.load(residual_ptr + row * size + column, inside, other=0.0)
    total = (x.to(tl.float32) + residual.to(tl.float32)).to(x.dtype)
    tl.store(total_ptr + row * size + column, total, inside)
    out = normalise(total, weight_ptr, bias_ptr, column, inside, size, eps)
    tl.store(out_ptr + row * size + column, out, inside)


def triton_skip_layernorm(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """As `reference`; all tensors are contiguous."""
    rows, size = x.shape
    out, total = x.new_empty(rows, size), x.new_empty(rows, size)
    _skip_layernorm_kernel[(rows,)](x, residual, weight, bias, out, total, size, eps, **row_launch(size))
    return out, total
