"""The tensors of one forward pass: prompts, or one more token of each sequence."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from ..kernels import Memo


@dataclass(frozen=True)
class PrefillBatch:
    """T new tokens of B sequences, one sequence after the other, and where their keys and values live.

    All tensors are on the model's device.
    """

    token_ids: Tensor
    """[T] int64."""
    positions: Tensor
    """[T] int64, counted from the start of each sequence."""
    cache_slots: Tensor
    """[T] int64: where in the KV cache the token goes, page * PAGE_SIZE + offset."""
    page_table: Tensor
    """[B, max_pages] int32: the pages of each sequence, in order; unused entries are 0."""
    context_lens: Tensor
    """[B] int32: tokens of each sequence, the new ones included."""
    query_start: Tensor
    """[B + 1] int32: first row of each sequence, and T."""
    max_query_len: int
    """The most new tokens of one sequence."""
    logit_rows: Tensor | None
    """Rows [R] int64 whose logits are wanted; None: no logits are."""
    images: tuple[Tensor, Tensor] | None = None
    """Which rows belong to images [T] bool, and embeddings [T, H], for those rows in place of the tokens'."""


@dataclass(frozen=True)
class DecodeBatch:
    """One new token of each of B sequences. All tensors are on the model's device."""

    positions: Tensor
    """[B] int64: where in its sequence the new token is."""
    slots: Tensor
    """[B] int32: the sequences' rows of the page table."""
    page_table: Tensor
    """[S, max_pages] int32: the pages of each slot's sequence, in order; unused entries are 0."""
    one_sequence: bool = False
    """Rows are consecutive tokens of one sequence, each of which sees those before it."""
    memo: Memo = field(default_factory=dict)
    """For the operators: what the first layer works out for the others."""
