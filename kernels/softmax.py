"""Softmax over the last dimension, with the running maximum and sum of Milakov & Gimelshein 2018
(arXiv:1805.02867)."""

import torch
from torch import Tensor

from ._triton import tl, triton


def reference(x: Tensor) -> Tensor:
    """Softmax over the last dimension of x [T, N], computed in fp32, returned in x's dtype."""
    return torch.softmax(x, -1, dtype=torch.float32).to(x.dtype)


@triton.jit
def _softmax_kernel(x_ptr, out_ptr, size, x_stride, BLOCK: tl.constexpr):
    """One program: one row of x [T, N] (row stride x_stride) into out [T, N], contiguous; N = size.

    The row is read twice: for its maximum and sum, then for the result; a second read comes from the L2
    cache.
    """
    row = tl.program_id(0).to(tl.int64)
    x_ptr += row * x_stride
    out_ptr += row * size
    lane = tl.arange(0, BLOCK)
    maximum = -float("inf")
    total = 0.0
    for start in range(0, size, BLOCK):
        column = start + lane
        x = tl.load(x_ptr + column, column < size, other=-float("inf")).to(tl.float32)
        new_maximum = tl.maximum(maximum, tl.max(x))
        # As long as all is -inf there is no finite maximum to subtract: -inf - -inf would be NaN.
        base = tl.where(new_maximum == -float("inf"), 0.0, new_maximum)
        total = total * tl.exp(maximum - base) + tl.sum(tl.exp(x - base))
        maximum = new_maximum
    for start in range(0, size, BLOCK):
        column = start + lane
        x = tl.load(x_ptr + column, column < size, other=-float("inf")).to(tl.float32)
        out = tl.exp(x - maximum) / total
        tl.store(out_ptr + column, out.to(out_ptr.dtype.element_ty), column < size)


def triton_softmax(x: Tensor) -> Tensor:
    """x [T, N] (rows may be strided) -> [T, N]."""
    rows, size = x.shape
    out = x.new_empty(rows, size)
    block = min(triton.next_power_of_2(size), 4096)
    _softmax_kernel[(rows,)](x, out, size, x.stride(0), BLOCK=block, num_warps=8 if block > 1024 else 4)
    return out
