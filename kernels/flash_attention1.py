"""FlashAttention-1 (Dao et al. 2022, arXiv:2205.14135, algorithm 1), the step before FlashAttention-2.

The loop over key blocks is the outer one, so the output and the softmax statistics of every query block go
through global memory once per key block; FlashAttention-2 swaps the loops and keeps them in registers.
"""

import math

import torch
from torch import Tensor

from . import paging
from ._triton import Target, target, tl, triton
from .flash_attention2 import padded, reference

__all__ = ["reference", "triton_flash_attention1"]


@triton.jit
def _flash_attention1_kernel(
    q_ptr, k_cache_ptr, v_cache_ptr, page_table_ptr, query_start_ptr, context_lens_ptr,
    out_ptr, row_max_ptr, row_sum_ptr,
    scale, q_stride_token, q_stride_head, table_stride, row_size, q_heads, group,
    HEAD_DIM: tl.constexpr, DIM_PAD: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """One program (head, sequence): all the query rows of one head over the whole context.

    q [T, Hq, D] with token and head strides; caches [slots, Hk, D], contiguous, row_size = Hk * D;
    page_table [B, table_stride]; out [T, Hq, D] fp32 starts as zeros; row_max (from -inf) and row_sum
    (from 0) are [T, Hq] fp32, all contiguous. group = Hq / Hk.
    """
    head, sequence = tl.program_id(0), tl.program_id(1)
    first_row = tl.load(query_start_ptr + sequence)
    queries = tl.load(query_start_ptr + sequence + 1) - first_row
    context = tl.load(context_lens_ptr + sequence)
    prefix = context - queries
    dim = tl.arange(0, DIM_PAD)
    in_head = (dim < HEAD_DIM)[None, :]
    k_ptr = k_cache_ptr + head // group * HEAD_DIM
    v_ptr = v_cache_ptr + head // group * HEAD_DIM
    for start_n in range(0, context, BLOCK_N):
        position = start_n + tl.arange(0, BLOCK_N)
        valid = position < context
        offsets = paging.row_offsets(page_table_ptr + sequence * table_stride, position, valid, row_size)
        offsets = offsets[:, None] + dim[None, :]
        k = tl.load(k_ptr + offsets, valid[:, None] & in_head, other=0.0)
        v = tl.load(v_ptr + offsets, valid[:, None] & in_head, other=0.0)
        # Query blocks that lie before this key block see none of it.
        for start_m in range(tl.maximum(start_n - prefix, 0) // BLOCK_M * BLOCK_M, queries, BLOCK_M):
            row = start_m + tl.arange(0, BLOCK_M)
            in_rows = row < queries
            inside = in_rows[:, None] & in_head
            token = (first_row + row).to(tl.int64)
            statistic = token * q_heads + head
            output = out_ptr + statistic[:, None] * HEAD_DIM + dim[None, :]
            q_offsets = token[:, None] * q_stride_token + head * q_stride_head + dim[None, :]
            q = tl.load(q_ptr + q_offsets, inside, other=0.0)
            out = tl.load(output, inside, other=0.0)
            row_max = tl.load(row_max_ptr + statistic, in_rows, other=-float("inf"))
            row_sum = tl.load(row_sum_ptr + statistic, in_rows, other=0.0)

            scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
            scores = tl.where((prefix + row)[:, None] >= position[None, :], scores, -float("inf"))
            new_max = tl.maximum(row_max, tl.max(scores, 1))
            weights = tl.exp2(scores - new_max[:, None])
            old_sum = row_sum * tl.exp2(row_max - new_max)
            new_sum = old_sum + tl.sum(weights, 1)
            update = tl.dot(weights.to(v.dtype), v, input_precision="ieee")
            out = (out * old_sum[:, None] + update) / new_sum[:, None]

            # A thread may store what another one loads, here or in the next round.
            tl.debug_barrier()
            tl.store(output, out, inside)
            tl.store(row_max_ptr + statistic, new_max, in_rows)
            tl.store(row_sum_ptr + statistic, new_sum, in_rows)
            tl.debug_barrier()


def tile(head_dim: int, dtype: torch.dtype, target: Target) -> dict[str, int]:
    """BLOCK_M x BLOCK_N, warps and stages: q, k, v and the fp32 output all pass through one program."""
    wide = head_dim > 128
    block_n = 16 if wide and dtype == torch.float32 else 32
    return {"BLOCK_M": 32, "BLOCK_N": block_n, "num_warps": target.warps(256), "num_stages": 1}


def triton_flash_attention1(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    page_table: Tensor,
    query_start: Tensor,
    context_lens: Tensor,
    max_query_len: int,
    scale: float,
) -> Tensor:
    """As `reference`; q may be a strided view whose last dimension is contiguous."""
    tokens, q_heads, head_dim = q.shape
    kv_heads = k_cache.shape[2]
    out = q.new_zeros(q.shape, dtype=torch.float32)
    row_max = q.new_full((tokens, q_heads), -math.inf, dtype=torch.float32)
    row_sum = q.new_zeros(tokens, q_heads, dtype=torch.float32)
    _flash_attention1_kernel[(q_heads, context_lens.shape[0])](
        q, k_cache, v_cache, page_table, query_start, context_lens, out, row_max, row_sum,
        scale * math.log2(math.e), q.stride(0), q.stride(1), page_table.stride(0), kv_heads * head_dim,
        q_heads, q_heads // kv_heads, HEAD_DIM=head_dim, DIM_PAD=padded(head_dim),
        **tile(head_dim, q.dtype, target(q.device)),
    )  # fmt: skip
    return out.to(q.dtype)
