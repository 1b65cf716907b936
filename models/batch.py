"""The tensors of one forward pass over a ragged batch."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class TokenBatch:
    """T new tokens of B sequences, one sequence after the other, and where their keys and values live.

    All tensors are on the model's device. In a decode batch every sequence has exactly one new token
    (T == B) and `query_start` is None.
    """

    token_ids: Tensor
    """[T] int64."""
    positions: Tensor
    """[T] int64, counted from the start of each sequence."""
    slots: Tensor
    """[T] int64: where in the KV cache the token goes, page * PAGE_SIZE + offset."""
    page_table: Tensor
    """[B, max_pages] int32: the pages of each sequence, in order; unused entries are 0."""
    context_lens: Tensor
    """[B] int32: tokens of each sequence, the new ones included."""
    query_start: Tensor | None
    """[B + 1] int32: first row of each sequence, and T; None for decode."""
    max_query_len: int
    """The most new tokens of one sequence."""
    logit_rows: Tensor | None
    """Rows [R] int64 whose logits are wanted; None means all of them."""
