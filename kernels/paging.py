"""From a token's position in its sequence to its row in the paged KV cache (arXiv:2309.06180).

A page table row lists the pages of one sequence; position p lies in entry p // PAGE_SIZE at offset
p % PAGE_SIZE.
"""

from torch import Tensor

from ._triton import tl, triton

PAGE_SIZE = 16
"""Tokens per page of the KV cache."""

_PAGE_SIZE = triton.language.constexpr(PAGE_SIZE)


def gather(cache: Tensor, page_table: Tensor, positions: Tensor) -> Tensor:
    """The rows of some positions of each sequence, copied: [B, N, Hk, D].

    cache [pages, PAGE_SIZE, Hk, D]; page_table [B, max_pages]; positions [N] or [B, N] int64. (index_select
    copies whole rows: several times faster on a CPU than indexing with brackets.)
    """
    positions = positions.expand(page_table.shape[0], -1)
    slots = page_table.long().gather(1, positions // PAGE_SIZE) * PAGE_SIZE + positions % PAGE_SIZE
    rows = cache.view(-1, *cache.shape[2:]).index_select(0, slots.flatten())
    return rows.view(*slots.shape, *cache.shape[2:])


@triton.jit
def pages_of(table_ptr, position, valid):
    """Pages that hold `position` [N], 0 unless `valid` [N]; table_ptr: the sequence's row of the table."""
    return tl.load(table_ptr + position // _PAGE_SIZE, valid, other=0)


@triton.jit
def offsets_in(pages, position, row_size):
    """Offsets (int64, in elements) of the cache rows of `position` [N], whose pages are `pages` [N].

    row_size: elements of one token's heads, Hk * D.
    """
    return (pages.to(tl.int64) * _PAGE_SIZE + position % _PAGE_SIZE) * row_size


@triton.jit
def row_offsets(table_ptr, position, valid, row_size):
    """`offsets_in` after a look-up with `pages_of`."""
    return offsets_in(pages_of(table_ptr, position, valid), position, row_size)
