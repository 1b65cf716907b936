"""GELU (Hendrycks & Gimpel 2016, arXiv:1606.08415), exact and as CLIP approximates it."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ._triton import tl, triton


def reference(x: Tensor) -> Tensor:
    """x times the normal distribution function of x, in x's shape and dtype, rounded once."""
    return F.gelu(x)


def quick_reference(x: Tensor) -> Tensor:
    """x * sigmoid(1.702 x), in x's shape and dtype; each step is rounded, as in transformers."""
    return x * torch.sigmoid(1.702 * x)


@triton.jit
def _gelu_kernel(x_ptr, out_ptr, size, QUICK: tl.constexpr, BLOCK: tl.constexpr):
    """One program: BLOCK of the `size` elements of two contiguous tensors; QUICK: CLIP's approximation."""
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = index < size
    x = tl.load(x_ptr + index, inside, other=0.0)
    x32 = x.to(tl.float32)
    if QUICK:
        steep = (1.702 * x32).to(x.dtype).to(tl.float32)
        out = x * (1.0 / (1.0 + tl.exp(-steep))).to(x.dtype)
    else:
        out = (x32 * 0.5 * (1.0 + tl.erf(x32 * 0.7071067811865476))).to(x.dtype)
    tl.store(out_ptr + index, out, inside)


def _launch(x: Tensor, *, quick: bool) -> Tensor:
    x = x.contiguous()
    out = torch.empty_like(x)
    block = 1024
    _gelu_kernel[(triton.cdiv(x.numel(), block),)](x, out, x.numel(), QUICK=quick, BLOCK=block)
    return out


def triton_gelu(x: Tensor) -> Tensor:
    """As `reference`."""
    return _launch(x, quick=False)


def triton_quick_gelu(x: Tensor) -> Tensor:
    """As `quick_reference`."""
    return _launch(x, quick=True)
