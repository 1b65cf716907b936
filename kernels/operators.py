"""The table of operators that a model is given, and the choice between its two columns."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from . import (
    cpu_attention,
    decode_attention,
    flash_attention1,
    flash_attention2,
    gelu,
    image_attention,
    kv_write,
    layernorm,
    mul,
    rmsnorm,
    rope,
    sampling,
    skip_layernorm,
    skip_rmsnorm,
    softmax,
    step,
    swiglu,
)
from . import flash_decoding as decoding
from ._triton import HAS_TRITON
from .decode_attention import Memo
from .linear import REFERENCE, UNFUSED, FusedLinear, Hidden
from .paging import PAGE_SIZE
from .sampling import SamplingState

__all__ = ["PAGE_SIZE", "Operators", "reference_operators", "select", "triton_operators"]


class RmsNorm(Protocol):
    def __call__(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """x [T, H], weight [H] -> [T, H] in x's dtype."""
        ...


class SkipRmsNorm(Protocol):
    def __call__(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """x [S, T, H], residual [T, H] -> (rmsnorm(total), total) of total = sum of x over S + residual."""
        ...


class LayerNorm(Protocol):
    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        """x [T, H]; weight, bias [H] -> [T, H] in x's dtype."""
        ...


class SkipLayerNorm(Protocol):
    def __call__(
        self, x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """x, residual [T, H] -> (layernorm(total), total) of total = x + residual."""
        ...


class Rope(Protocol):
    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        positions: Tensor,
        cos: Tensor,
        sin: Tensor,
        q_norm: Tensor | None = None,
        k_norm: Tensor | None = None,
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


class Gelu(Protocol):
    def __call__(self, x: Tensor) -> Tensor:
        """Elementwise activation of a tensor of any shape."""
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


class ImageAttention(Protocol):
    def __call__(self, qkv: Tensor, heads: int, scale: float) -> Tensor:
        """Attention of every token of an image to all of them; qkv [N, T, 3 * H * D] -> [N, T, H * D]."""
        ...


class DecodeAttention(Protocol):
    def __call__(
        self,
        qkv: Tensor,
        positions: Tensor,
        slots: Tensor,
        page_table: Tensor,
        cos: Tensor,
        sin: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        q_heads: int,
        scale: float,
        q_norm: Tensor | None = None,
        k_norm: Tensor | None = None,
        eps: float = 1e-6,
        one_sequence: bool = False,
        memo: Memo | None = None,
    ) -> Tensor:
        """One new token of each sequence: norm and rope of q and k, KV cache write, attention.

        qkv [S, B, (Hq + 2 Hk) * D] is summed over S; positions [B] int64; slots [B] int32 are the
        sequences' rows of page_table [slots, max_pages] int32; the rest as in Rope and PrefillAttention.
        With `one_sequence` the rows are consecutive tokens of one sequence and see those before them.
        `memo`, empty at first, is the same in all layers of a step, whose places and angles do not change.
        Returns [B, Hq * D].
        """
        ...


class LinearOperators(Protocol):
    """The linear layers with their neighbours; `linear.StepwiseLinear` documents each."""

    def norm_linear(
        self, hidden: Hidden, norm: Tensor, eps: float, weight: Tensor, bias: Tensor | None
    ) -> Tensor: ...

    def linear_add(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, hidden: Hidden, norm: Tensor, eps: float
    ) -> Hidden: ...

    def norm_gate_up(
        self, hidden: Hidden, norm: Tensor, eps: float, weight: Tensor, bias: Tensor | None
    ) -> Tensor: ...

    def norm_logits(self, hidden: Hidden, norm: Tensor, eps: float, weight: Tensor) -> Tensor: ...


class BeginStep(Protocol):
    def __call__(
        self,
        embedding: Tensor,
        slots: Tensor,
        new_pages: Tensor,
        tokens: Tensor,
        positions: Tensor,
        page_table: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Embeddings [B, H] and positions [B] of the sequences' last tokens; see step.reference."""
        ...


class Sample(Protocol):
    def __call__(self, logits: Tensor, slots: Tensor, positions: Tensor, state: SamplingState) -> Tensor:
        """Draw one token per row: logits [B, V] fp32 -> [B] int64; see sampling.reference."""
        ...


PREFILL_ATTENTION: dict[str, PrefillAttention] = {
    "flash2": flash_attention2.triton_flash_attention2,
    "flash1": flash_attention1.triton_flash_attention1,
    "reference": flash_attention2.reference,
}


@dataclass(frozen=True)
class Operators:
    """One column of the table: every operator a model or the engine calls."""

    name: str
    linear: LinearOperators
    rmsnorm: RmsNorm
    skip_rmsnorm: SkipRmsNorm
    layernorm: LayerNorm
    skip_layernorm: SkipLayerNorm
    rope: Rope
    swiglu: Swiglu
    gelu: Gelu
    quick_gelu: Gelu
    mul: Mul
    softmax: Softmax
    kv_write: KVWrite
    prefill_attention: PrefillAttention
    image_attention: ImageAttention
    decode_attention: DecodeAttention
    begin_step: BeginStep
    sample: Sample


def reference_operators() -> Operators:
    """The column in plain PyTorch, for any device."""
    return Operators(
        name="reference",
        linear=REFERENCE,
        rmsnorm=rmsnorm.cpu,
        skip_rmsnorm=skip_rmsnorm.reference,
        layernorm=layernorm.reference,
        skip_layernorm=skip_layernorm.reference,
        rope=rope.reference,
        swiglu=swiglu.reference,
        gelu=gelu.reference,
        quick_gelu=gelu.quick_reference,
        mul=mul.reference,
        softmax=softmax.reference,
        kv_write=kv_write.reference,
        prefill_attention=flash_attention2.reference,
        image_attention=image_attention.reference,
        decode_attention=cpu_attention.decode,
        begin_step=step.reference,
        sample=sampling.reference,
    )


def triton_operators(
    attention: str = "flash2",
    *,
    flash_decoding: bool = True,
    fused: bool = True,
    batch_invariant: bool = False,
) -> Operators:
    """The column of Triton kernels, for a GPU; see `select` for the choices."""
    decode: DecodeAttention = decode_attention.triton_decode_attention
    if batch_invariant:
        decode = partial(decode_attention.triton_decode_attention, few_rows=0)
    if not (fused and flash_decoding):
        attend = decoding.triton_flash_decoding if flash_decoding else decoding.reference
        decode = partial(
            decode_attention.in_steps, rope=rope.triton_rope, write=kv_write.triton_kv_write, attend=attend
        )
    return Operators(
        name="triton",
        linear=FusedLinear(batch_invariant) if fused else UNFUSED,
        rmsnorm=rmsnorm.triton_rmsnorm,
        skip_rmsnorm=skip_rmsnorm.triton_skip_rmsnorm,
        layernorm=layernorm.triton_layernorm,
        skip_layernorm=skip_layernorm.triton_skip_layernorm,
        rope=rope.triton_rope,
        swiglu=swiglu.triton_swiglu,
        gelu=gelu.triton_gelu,
        quick_gelu=gelu.triton_quick_gelu,
        mul=mul.triton_mul,
        softmax=softmax.triton_softmax,
        kv_write=kv_write.triton_kv_write,
        prefill_attention=PREFILL_ATTENTION[attention],
        image_attention=image_attention.triton_image_attention,
        decode_attention=decode,
        begin_step=step.triton_begin_step,
        sample=sampling.triton_sample,
    )


def select(
    device: torch.device,
    attention: str = "flash2",
    *,
    flash_decoding: bool = True,
    fused: bool = True,
    batch_invariant: bool = False,
) -> Operators:
    """The operators for `device`: Triton on a GPU (NVIDIA or ROCm), plain PyTorch elsewhere.

    On a GPU, `attention` picks the prefill kernel: flash2 (default), flash1 or reference; any other name
    raises ValueError. Without `flash_decoding` the attention of decode steps is plain PyTorch; without
    `fused` every step of a layer is a launch of its own; `batch_invariant` makes a token's result
    independent of the number of tokens beside it. A GPU without Triton (Windows) runs plain PyTorch.
    """
    if attention not in PREFILL_ATTENTION:
        raise ValueError(f"attention must be one of {', '.join(PREFILL_ATTENTION)}, not {attention!r}")
    if device.type == "cuda" and HAS_TRITON:
        return triton_operators(
            attention, flash_decoding=flash_decoding, fused=fused, batch_invariant=batch_invariant
        )
    return reference_operators()
