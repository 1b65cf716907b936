"""The beginning of a decode step: each sequence's last token becomes a row of hidden state.

What a sequence's next step needs (its last token, its length, its pages) stays on the device in one row per
slot, so that the host need not know a token before the next step is launched.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from . import paging
from ._triton import tl, triton


def reference(
    embedding: Tensor, slots: Tensor, new_pages: Tensor, tokens: Tensor, positions: Tensor, page_table: Tensor
) -> tuple[Tensor, Tensor]:
    """Embedding rows [B, H] of the sequences' last tokens, and those tokens' positions [B] int64.

    embedding [V, H]; slots, new_pages [B] int32; by slot: tokens, positions [S] int64 and page_table [S, P]
    int32. new_pages is the page that the position needs where it begins a new one, else 0. The page is
    entered, and the position counted up for the next step, in place; the last slot is that of padded rows
    and stays as it is.
    """
    slots = slots.long()
    now = positions.index_select(0, slots)
    real = slots < len(positions) - 1
    entry = (slots, now // paging.PAGE_SIZE)
    page_table[entry] = torch.where((new_pages > 0) & real, new_pages, page_table[entry])
    positions.index_copy_(0, slots, now + real)
    return F.embedding(tokens.index_select(0, slots), embedding), now


@triton.jit
def _step_kernel(
    embedding_ptr, slots_ptr, new_pages_ptr, tokens_ptr, positions_ptr, page_table_ptr, out_ptr, now_ptr,
    size, table_stride, last_slot, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program: one sequence. Tensors as in `reference`; out [B, size] and now [B], contiguous.

    It does not let dependents start early: they may read what it writes before they wait.
    """
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots_ptr + row).to(tl.int64)
    token = tl.load(tokens_ptr + slot)
    now = tl.load(positions_ptr + slot)
    page = tl.load(new_pages_ptr + row)
    if slot < last_slot:
        if page > 0:
            tl.store(page_table_ptr + slot * table_stride + now // paging.PAGE_SIZE, page)
        tl.store(positions_ptr + slot, now + 1)
    tl.store(now_ptr + row, now)
    column = tl.arange(0, BLOCK)
    inside = column < size
    tl.store(out_ptr + row * size + column, tl.load(embedding_ptr + token * size + column, inside), inside)


def triton_begin_step(
    embedding: Tensor, slots: Tensor, new_pages: Tensor, tokens: Tensor, positions: Tensor, page_table: Tensor
) -> tuple[Tensor, Tensor]:
    """As `reference`."""
    rows, size = len(slots), embedding.shape[1]
    out = embedding.new_empty(rows, size)
    now = torch.empty(rows, dtype=torch.int64, device=embedding.device)
    _step_kernel[(rows,)](
        embedding, slots, new_pages, tokens, positions, page_table, out, now,
        size, page_table.stride(0), len(positions) - 1, BLOCK=triton.next_power_of_2(size),
    )  # fmt: skip
    return out, now
