"""SwiGLU's gate: silu(gate) * up (Shazeer 2020, arXiv:2002.05202)."""

import torch.nn.functional as F
from torch import Tensor

from ._triton import tl, triton


def reference(gate_up: Tensor) -> Tensor:
    """gate_up [T, 2F] -> silu(gate) * up, [T, F]; silu is rounded to the dtype before the product."""
    gate, up = gate_up.chunk(2, -1)
    return F.silu(gate).mul_(up)


@triton.jit
def _swiglu_kernel(gate_up_ptr, out_ptr, size, row_stride, BLOCK: tl.constexpr):
    """One program: BLOCK columns of one row of gate_up [T, 2F] into out [T, F], contiguous; F = size."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < size
    gate = tl.load(gate_up_ptr + row * row_stride + column, inside, other=0.0)
    up = tl.load(gate_up_ptr + row * row_stride + size + column, inside, other=0.0)
    gate32 = gate.to(tl.float32)
    silu = gate32 / (1.0 + tl.exp(-gate32))
    tl.store(out_ptr + row * size + column, silu.to(gate.dtype) * up, inside)


def triton_swiglu(gate_up: Tensor) -> Tensor:
    """gate_up [T, 2F] (rows may be strided) -> [T, F]."""
    rows, size = gate_up.shape[0], gate_up.shape[1] // 2
    out = gate_up.new_empty(rows, size)
    block = 1024
    _swiglu_kernel[(rows, triton.cdiv(size, block))](gate_up, out, size, gate_up.stride(0), BLOCK=block)
    return out
