"""Residual addition and the RMSNorm of the sum, in one pass over memory."""

from torch import Tensor

from . import rmsnorm
from ._triton import target, tl, triton
from .gemm import sum_parts
from .pdl import await_previous, start_dependents
from .rmsnorm import normalise, row_launch


def reference(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x [S, T, H], residual [T, H] -> (rmsnorm(total), total), total = sum of x over S + residual, [T, H].

    The S parts are the partial sums of one linear layer: their sum is rounded to the residual's dtype, as
    the layer's output would be, then the total is.
    """
    total = sum_parts(x, residual.dtype) + residual
    return rmsnorm.reference(total, weight, eps), total


@triton.jit
def _skip_rmsnorm_kernel(
    x_ptr, residual_ptr, weight_ptr, out_ptr, total_ptr, size, part_stride, eps,
    PARTS: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One program: one row of x [PARTS, T, H] and residual [T, H] into out and total [T, H]. BLOCK >= H."""
    start_dependents(PDL)
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < size
    weight = tl.load(weight_ptr + column, inside, other=0.0)
    await_previous(PDL)
    residual = tl.load(residual_ptr + row * size + column, inside, other=0.0)
    x = tl.load(x_ptr + row * size + column, inside, other=0.0).to(tl.float32)
    for part in tl.static_range(1, PARTS):
        x += tl.load(x_ptr + part * part_stride + row * size + column, inside, other=0.0).to(tl.float32)
    total = (x.to(residual.dtype).to(tl.float32) + residual.to(tl.float32)).to(residual.dtype)
    tl.store(total_ptr + row * size + column, total, inside)
    tl.store(out_ptr + row * size + column, normalise(total, weight, size, eps), inside)


def triton_skip_rmsnorm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """As `reference`; all tensors are contiguous."""
    parts, rows, size = x.shape
    out, total = residual.new_empty(rows, size), residual.new_empty(rows, size)
    options = row_launch(size) | target(residual.device).chain(early=True)
    _skip_rmsnorm_kernel[(rows,)](
        x, residual, weight, out, total, size, x.stride(0), eps, PARTS=parts, **options
    )
    return out, total
