"""Residual addition and the RMSNorm of the sum, in one pass over memory."""

from torch import Tensor

from . import rmsnorm
from ._triton import tl, triton
from .rmsnorm import normalise, row_launch


def reference(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x, residual [T, H] -> (rmsnorm(x + residual), x + residual); the sum is rounded to x's dtype first."""
    total = x + residual
    return rmsnorm.reference(total, weight, eps), total


@triton.jit
def _kernel(
    x_ptr, residual_ptr, weight_ptr, out_ptr, total_ptr, size, x_stride, residual_stride, eps,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """One program: one row of x and residual [T, H] into out and total [T, H], contiguous. BLOCK >= H."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < size
    x = tl.load(x_ptr + row * x_stride + column, inside, other=0.0)
    residual = tl.load(residual_ptr + row * residual_stride + column, inside, other=0.0)
    weight = tl.load(weight_ptr + column, inside, other=0.0)
    total = (x.to(tl.float32) + residual.to(tl.float32)).to(x.dtype)
    tl.store(total_ptr + row * size + column, total, inside)
    tl.store(out_ptr + row * size + column, normalise(total, weight, size, eps), inside)


def triton_skip_rmsnorm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x, residual [T, H] (rows may be strided) -> (rmsnorm(x + residual), x + residual)."""
    rows, size = x.shape
    out, total = x.new_empty(rows, size), x.new_empty(rows, size)
    _kernel[(rows,)](
        x, residual, weight, out, total, size, x.stride(0), residual.stride(0), eps, **row_launch(size)
    )
    return out, total
