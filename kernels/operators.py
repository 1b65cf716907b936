"""The table of operators that a model is given, and the choice between its two columns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from . import (
    flash_attention1,
    flash_attention2,
    flash_decoding,
    kv_write,
    mul,
    rmsnorm,
    rope,
    sampling,
    skip_rmsnorm,
    softmax,
    swiglu,
)
from ._triton import HAS_TRITON
from .paging import PAGE_SIZE

__all__ = ["PAGE_SIZE", "Operators", "reference_operators", "select", "triton_operators"]


class RmsNorm(Protocol):
    def __call__(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """x [T, H], weight [H] -> [T, H] in x's dtype."""
        ...


class SkipRmsNorm(Protocol):
    def __call__(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """x, residual [T, H] -> (rmsnorm(x + residual), x + residual), both [T, H]."""
        ...


class Rope(Protocol):
    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        positions: Tensor,
        cos: Tensor,
        sin: Tensor,
        q_weight: Tensor | None = None,
        k_weight: Tensor | None = None,
        eps: float = 1e-6,
    ) -> tuple[Tensor, Tensor]:
        """Per-head RMSNorm of q and k (where weights [D] are given), then rotation by position.

        q [T, Hq, D] and k [T, Hk, D] may be strided views (the last dimension contiguous); positions [T]
        int64; cos, sin [max_position, D/2] fp32. Half-split ("neox") pairing: dimension i turns with
        i + D/2. Returns new contiguous tensors in the inputs' dtype.
        """
        ...


class Swiglu(Protocol):
    def __call__(self, gate_up: Tensor) -> Tensor:
        """gate_up [T, 2F] -> silu(gate) * up, [T, F]."""
        ...


class Mul(Protocol):
    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        """Elementwise product of two tensors of one shape."""
        ...


class Softmax(Protocol):
    def __call__(self, x: Tensor) -> Tensor:
        """Softmax over the last dimension of x [T, N], computed in fp32, returned in x's dtype."""
        ...


class KVWrite(Protocol):
    def __call__(self, k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor) -> None:
        """Write k, v [T, Hk, D] (may be strided views) in place.

        The caches are [pages, PAGE_SIZE, Hk, D]; slots [T] int64 is page * PAGE_SIZE + offset.
        """
        ...


class PrefillAttention(Protocol):
    def __call__(
        self,
        q: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        page_table: Tensor,
        query_start: Tensor,
        context_lens: Tensor,
        max_query_len: int,
        scale: float,
    ) -> Tensor:
        """Causal attention of a ragged batch of new tokens over the paged cache -> [T, Hq, D].

        q [T, Hq, D]; caches [pages, PAGE_SIZE, Hk, D], the new tokens' own keys already written;
        page_table [B, max_pages] int32; query_start [B + 1] int32: sequence b owns the rows
        query_start[b]:query_start[b + 1], which are the LAST ones of its context_lens[b] (int32) tokens,
        so a cached prefix is context_lens[b] - query_len. Sequences with no query rows are allowed.
        """
        ...


class DecodeAttention(Protocol):
    def __call__(
        self,
        q: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        page_table: Tensor,
        context_lens: Tensor,
        scale: float,
    ) -> Tensor:
        """One query per sequence over its whole context: q [B, Hq, D] -> [B, Hq, D].

        A sequence with context_lens[b] == 0 (a padded row) yields zeros.
        """
        ...


class Sample(Protocol):
    def __call__(
        self,
        logits: Tensor,
        temperature: Tensor,
        top_k: Tensor,
        top_p: Tensor,
        min_p: Tensor,
        seed: Tensor,
        position: Tensor,
    ) -> Tensor:
        """Draw one token per row: logits [B, V] fp32 -> [B] int64.

        temperature, top_p, min_p [B] fp32; top_k [B] int32 (0: off); seed, position [B] int64.
        temperature 0 is argmax (lowest id on ties). Else: logits / temperature, then top-k, then top-p over
        what is left, then min-p relative to the largest probability, then Gumbel-max with noise that is a
        function of (seed, position, token id) alone: Philox 4x32-10, the same bits in both columns.
        """
        ...


PREFILL_ATTENTION: dict[str, PrefillAttention] = {
    "flash2": flash_attention2.triton_flash_attention2,
    "flash1": flash_attention1.triton_flash_attention1,
    "reference": flash_attention2.reference,
}


@dataclass(frozen=True)
class Operators:
    """One column of the table: every operator a model or the sampler calls."""

    name: str
    rmsnorm: RmsNorm
    skip_rmsnorm: SkipRmsNorm
    rope: Rope
    swiglu: Swiglu
    mul: Mul
    softmax: Softmax
    kv_write: KVWrite
    prefill_attention: PrefillAttention
    decode_attention: DecodeAttention
    sample: Sample


def reference_operators() -> Operators:
    """The column in plain PyTorch, for any device."""
    return Operators(
        name="reference",
        rmsnorm=rmsnorm.reference,
        skip_rmsnorm=skip_rmsnorm.reference,
        rope=rope.reference,
        swiglu=swiglu.reference,
        mul=mul.reference,
        softmax=softmax.reference,
        kv_write=kv_write.reference,
        prefill_attention=flash_attention2.reference,
        decode_attention=flash_decoding.reference,
        sample=sampling.reference,
    )


def triton_operators(attention: str = "flash2") -> Operators:
    """The column of Triton kernels, for a GPU, with the prefill kernel called `attention`."""
    return Operators(
        name="triton",
        rmsnorm=rmsnorm.triton_rmsnorm,
        skip_rmsnorm=skip_rmsnorm.triton_skip_rmsnorm,
        rope=rope.triton_rope,
        swiglu=swiglu.triton_swiglu,
        mul=mul.triton_mul,
        softmax=softmax.triton_softmax,
        kv_write=kv_write.triton_kv_write,
        prefill_attention=PREFILL_ATTENTION[attention],
        decode_attention=flash_decoding.triton_flash_decoding,
        sample=sampling.triton_sample,
    )


def select(device: torch.device, attention: str = "flash2") -> Operators:
    """The operators for `device`: Triton on a GPU (NVIDIA or ROCm), plain PyTorch elsewhere.

    `attention` picks the prefill kernel on a GPU: flash2 (default), flash1 or reference; any other name
    raises ValueError. A GPU without Triton (Windows) runs the plain PyTorch operators.
    """
    if attention not in PREFILL_ATTENTION:
        raise ValueError(f"attention must be one of {', '.join(PREFILL_ATTENTION)}, not {attention!r}")
    if device.type == "cuda" and HAS_TRITON:
        return triton_operators(attention)
    return reference_operators()
