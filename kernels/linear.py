"""The linear layers of a decoder, each fused with what comes before and after it, for any number of tokens.

One token (or very few) is a matrix-vector product, and up to gemm.MAX_ROWS tokens are bound by the weights as
well: they have kernels of their own. More tokens, and fp32, go to the vendor's library through PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from . import gemm, gemv, mul, rmsnorm, skip_rmsnorm, swiglu


class Hidden(NamedTuple):
    """The residual stream [T, H] and, where a kernel had it at hand, what its next norm makes of it."""

    stream: Tensor
    normed: Tensor | None = None

    def rows(self, index: Tensor) -> Hidden:
        """Some tokens' rows."""
        return Hidden(self.stream[index], None if self.normed is None else self.normed[index])


FEW_ROWS = 4
"""Up to so many tokens a CPU without fast bf16 multiplies as it is: products of vectors, bound by memory."""
BLOCK = 1 << 20
"""Elements of a weight that are widened at a time: few enough to stay in the CPU's cache."""


@cache
def onednn_takes_bf16() -> bool:
    """Whether PyTorch leaves products in bf16 to oneDNN on this CPU."""
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()


@cache
def cpu_has_bf16() -> bool:
    """Whether oneDNN multiplies bf16 matrices on this CPU without emulating it in fp32."""
    return onednn_takes_bf16() and "AVX512" in torch.backends.cpu.get_cpu_capability()


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + bias; x [T, K], weight [N, K] -> [T, N]. Sums are in fp32, whatever the dtype.

    A CPU without bf16 arithmetic takes longer for a bf16 product of many rows than for widening the weight
    and an fp32 product together.
    """
    if not x.is_cpu:
        return F.linear(x, weight, bias)
    if x.dtype == torch.float32:
        return _product_fp32(x, weight, bias)
    tokens = x.shape[0]
    if tokens == 1 and onednn_takes_bf16():
        return _without_onednn(x, weight, bias)
    if tokens <= FEW_ROWS or cpu_has_bf16():
        return F.linear(x, weight, bias)
    wide, out = x.float(), x.new_empty(tokens, weight.shape[0])
    rows = max(1, BLOCK // weight.shape[1])
    for start in range(0, len(weight), rows):
        part = slice(start, start + rows)
        wide_bias = None if bias is None else bias[part].float()
        out[:, part] = _product_fp32(wide, weight[part].float(), wide_bias)
    return out


def _product_fp32(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """By oneDNN where PyTorch has it: on an AMD CPU up to twice as fast as MKL, which F.linear calls."""
    if torch.backends.mkldnn.is_available():
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return F.linear(x, weight, bias)


def _without_onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """By PyTorch's own kernel, which multiplies a single row x [1, K] in half the time."""
    before = torch.backends.mkldnn.enabled
    torch.backends.mkldnn.enabled = False
    try:
        return F.linear(x, weight, bias)
    finally:
        torch.backends.mkldnn.enabled = before


@dataclass(frozen=True)
class StepwiseLinear:
    """Each step an operator of its own: the specification, the CPU's path, and what fusion is compared with.

    `norm` and `gated` are the RMSNorm, and SwiGLU of a row of gate and up values, to be used.
    """

    norm: Callable[[Tensor, Tensor, float], Tensor]
    gated: Callable[[Tensor], Tensor]

    def norm_linear(
        self, hidden: Hidden, norm: Tensor, eps: float, weight: Tensor, bias: Tensor | None
    ) -> Tensor:
        """Partial sums [S, T, N] whose sum over S is rmsnorm(stream) W^T + bias; weight [N, H]."""
        return product(self.norm(hidden.stream, norm, eps), weight, bias)[None]

    def linear_add(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, hidden: Hidden, norm: Tensor, eps: float
    ) -> Hidden:
        """The stream plus x W^T + bias; x [T, K], weight [H, K]; `norm` [H] is what reads it next."""
        return Hidden(product(x, weight, bias).add_(hidden.stream))

    def norm_gate_up(
        self, hidden: Hidden, norm: Tensor, eps: float, weight: Tensor, bias: Tensor | None
    ) -> Tensor:
        """silu(gate) * up [T, F], where rmsnorm(stream) W^T + bias is gate, then up; weight [2F, H]."""
        return self.gated(product(self.norm(hidden.stream, norm, eps), weight, bias))

    def norm_logits(self, hidden: Hidden, norm: Tensor, eps: float, weight: Tensor) -> Tensor:
        """rmsnorm(stream) W^T in fp32 [T, V]; weight [V, H]."""
        return product(self.norm(hidden.stream, norm, eps), weight).float()


REFERENCE = StepwiseLinear(rmsnorm.cpu, swiglu.reference)
"""In plain PyTorch."""


def _silu_and_mul(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, -1)
    return mul.triton_mul(F.silu(gate), up)


UNFUSED = StepwiseLinear(rmsnorm.triton_rmsnorm, _silu_and_mul)
"""On a GPU, every step a launch."""


@dataclass(frozen=True)
class FusedLinear:
    """The Triton kernels. With `batch_invariant` one token takes the kernel of several: the same sums."""

    batch_invariant: bool = False

    def _very_few(self, x: Tensor) -> bool:
        return len(x) <= gemv.MAX_ROWS and not self.batch_invariant

    def norm_linear(
        self, hidden: Hidden, norm: Tensor, eps: float, weight: Tensor, bias: Tensor | None
    ) -> Tensor:
        if self._very_few(hidden.stream):
            return gemv.gemv(hidden.stream, weight, bias, norm=norm, eps=eps)[None]
        normed = _normed(hidden, norm, eps)
        return (
            gemm.gemm(normed, weight, bias, split=True)
            if _few(normed)
            else F.linear(normed, weight, bias)[None]
        )

    def linear_add(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, hidden: Hidden, norm: Tensor, eps: float
    ) -> Hidden:
        if self._very_few(x):
            return Hidden(gemv.gemv(x, weight, bias, residual=hidden.stream))
        y = gemm.gemm(x, weight, bias, split=True) if _few(x) else F.linear(x, weight, bias)[None]
        normed, total = skip_rmsnorm.triton_skip_rmsnorm(y, hidden.stream, norm, eps)
        return Hidden(total, normed)

    def norm_gate_up(
        self, hidden: Hidden, norm: Tensor, eps: float, weight: Tensor, bias: Tensor | None
    ) -> Tensor:
        if self._very_few(hidden.stream):
            return gemv.gemv(hidden.stream, weight, bias, norm=norm, eps=eps, gated=True)
        normed = _normed(hidden, norm, eps)
        if _few(normed):
            return gemm.gemm(normed, weight, bias, gated=True)[0]
        return swiglu.triton_swiglu(F.linear(normed, weight, bias))

    def norm_logits(self, hidden: Hidden, norm: Tensor, eps: float, weight: Tensor) -> Tensor:
        if self._very_few(hidden.stream):
            return gemv.gemv(hidden.stream, weight, norm=norm, eps=eps, dtype=torch.float32)
        normed = _normed(hidden, norm, eps)
        if _few(normed):
            return gemm.gemm(normed, weight, dtype=torch.float32)[0]
        return F.linear(normed, weight).float()


def _normed(hidden: Hidden, norm: Tensor, eps: float) -> Tensor:
    return rmsnorm.triton_rmsnorm(hidden.stream, norm, eps) if hidden.normed is None else hidden.normed


def _few(x: Tensor) -> bool:
    return len(x) <= gemm.MAX_ROWS and x.dtype.itemsize == 2
