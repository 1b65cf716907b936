"""Attention of a decode step on a CPU: what decode_attention.py specifies, by few and small operators.

Over one token a PyTorch operator takes longer to be called than to compute. So what all layers of a step
need is looked up once, and there are no more operators than it takes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from . import decode_attention, paging, rmsnorm, rope
from .decode_attention import Memo
from .gemm import sum_parts

MAX_ROWS = 8
"""Tokens that are taken one by one; of more, the calls would cost more than the padding of a batch."""


class Context(NamedTuple):
    """Where the tokens of one sequence lie, up to the new one."""

    length: int
    start: int
    """The cache row of the first token, where the others follow it."""
    pages: Tensor | None
    """Where they do not: the pages of all tokens in order, int32."""


class Places(NamedTuple):
    """What every layer of a step of B tokens asks for."""

    angles: rope.Angles
    new_rows: Tensor
    """[B] int64: the cache rows of the new tokens."""
    contexts: list[Context]


def look_up(positions: Tensor, slots: Tensor, page_table: Tensor, cos: Tensor, sin: Tensor) -> Places:
    """Arguments as of `decode_attention.in_steps`."""
    new_rows, contexts = [], []
    for position, slot in zip(positions.tolist(), slots.tolist(), strict=True):
        pages = page_table[slot, : position // paging.PAGE_SIZE + 1]
        numbers = pages.tolist()
        first = numbers[0]
        side_by_side = numbers == list(range(first, first + len(numbers)))
        new_rows.append(numbers[-1] * paging.PAGE_SIZE + position % paging.PAGE_SIZE)
        contexts.append(Context(position + 1, first * paging.PAGE_SIZE, None if side_by_side else pages))
    return Places(rope.angles(positions, cos, sin), torch.tensor(new_rows), contexts)


def tokens(cache: Tensor, context: Context) -> Tensor:
    """The keys or values [1, Hk, length, D] of a context; cache [pages, PAGE_SIZE, Hk, D], contiguous.

    They are copied, head by head: attention reads a head at a time, and strided reads from memory take longer
    than this copy (at 1,000 tokens and 3 heads by a fifth; at 100 there is no difference).
    """
    length, start, pages = context
    if pages is not None:
        cache, start = cache.index_select(0, pages), 0
    heads, size = cache.shape[2:]
    row = heads * size
    # view, narrow and transpose in one call
    first = cache.storage_offset() + start * row
    return cache.as_strided((1, heads, length, size), (0, size, row, 1), first).contiguous()


def decode(
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
    """As `decode_attention.reference`, which it leaves more than MAX_ROWS tokens to."""
    batch = positions.shape[0]
    if batch > MAX_ROWS or not positions.is_cpu:
        place = (positions, slots, page_table, cos, sin)
        return decode_attention.reference(qkv, *place, k_cache, v_cache, q_heads, scale, q_norm, k_norm, eps)
    memo = {} if memo is None else memo
    if (places := memo.get(Places)) is None:
        places = memo[Places] = look_up(positions, slots, page_table, cos, sin)
    kv_heads, head_dim = k_cache.shape[2:]
    whole = qkv if len(qkv) == 1 else sum_parts(qkv, k_cache.dtype)
    heads = whole.view(batch, -1, head_dim)
    turning, v = heads.split_with_sizes((q_heads + kv_heads, kv_heads), 1)
    if q_norm is not None and k_norm is not None:
        q, k = turning.split_with_sizes((q_heads, kv_heads), 1)
        turning = torch.cat((rmsnorm.reference(q, q_norm, eps), rmsnorm.reference(k, k_norm, eps)), 1)
    q, k = rope.turn(turning, places.angles).split_with_sizes((q_heads, kv_heads), 1)
    k_cache.view(-1, kv_heads, head_dim).index_copy_(0, places.new_rows, k)
    v_cache.view(-1, kv_heads, head_dim).index_copy_(0, places.new_rows, v)
    # A group's query heads are the rows of one matrix: no key is read twice.
    q = q.view(batch, kv_heads, q_heads // kv_heads, head_dim)
    attended = [
        F.scaled_dot_product_attention(
            q.narrow(0, row, 1), tokens(k_cache, context), tokens(v_cache, context), scale=scale
        )
        for row, context in enumerate(places.contexts)
    ]
    return (attended[0] if batch == 1 else torch.cat(attended)).reshape(batch, -1)
