"""FlashAttention-2 (Dao 2023, arXiv:2307.08691) over a ragged batch and a paged cache: causal, grouped."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from . import paging
from ._triton import Target, target, tl, triton


def reference(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    page_table: Tensor,
    query_start: Tensor,
    context_lens: Tensor,
    max_query_len: int,
    scale: float,
) -> Tensor:
    """Causal attention of each sequence's last rows over its cached context, one sequence at a time.

    q [T, Hq, D]; caches [pages, PAGE_SIZE, Hk, D]; page_table [B, max_pages]; query_start [B + 1];
    context_lens [B] -> [T, Hq, D].
    """
    out = q.new_empty(q.shape)
    starts, contexts = query_start.tolist(), context_lens.tolist()
    for sequence, context in enumerate(contexts):
        rows = slice(starts[sequence], starts[sequence + 1])
        queries = rows.stop - rows.start
        if queries == 0:
            continue
        table, positions = page_table[sequence : sequence + 1], torch.arange(context, device=q.device)
        k, v = paging.gather(k_cache, table, positions), paging.gather(v_cache, table, positions)
        prefix = context - queries
        mask = None
        if prefix:
            mask = torch.ones(queries, context, dtype=torch.bool, device=q.device).tril(prefix)
        attended = F.scaled_dot_product_attention(
            q[rows].transpose(0, 1)[None],
            k.transpose(1, 2),
            v.transpose(1, 2),
            attn_mask=mask,
            is_causal=mask is None,
            scale=scale,
            enable_gqa=True,
        )
        out[rows] = attended[0].transpose(0, 1)
    return out


@triton.jit
def online_softmax(scores, row_sum, row_max):
    """Scores [M, N] of further keys, in units of log 2 -> their weights, what was summed before is to be
    multiplied with, the new row_sum and row_max [M]. A row has seen a finite score, now if not before."""
    new_max = tl.maximum(row_max, tl.max(scores, 1))
    weights = tl.exp2(scores - new_max[:, None])
    correction = tl.exp2(row_max - new_max)
    return weights, correction, row_sum * correction + tl.sum(weights, 1), new_max


@triton.jit
def attend_block(
    acc, row_sum, row_max, q, k_ptr, v_ptr, table_ptr, start, context, q_position, scale, row_size,
    HEAD_DIM: tl.constexpr, DIM_PAD: tl.constexpr, BLOCK_N: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """One step of the online softmax: queries q [M, DIM_PAD] meet the keys start : start + BLOCK_N.

    acc [M, DIM_PAD], row_sum and row_max [M] are the state in fp32: the unnormalised output, the sum and
    the maximum of the scores (in units of log 2; `scale` includes the conversion). Row i sees the keys up to
    position q_position[i]; MASKED is off where every row sees the whole block.
    """
    position = start + tl.arange(0, BLOCK_N)
    valid = position < context
    dim = tl.arange(0, DIM_PAD)
    offsets = paging.row_offsets(table_ptr, position, valid, row_size)[:, None] + dim[None, :]
    # What lies beyond the context may be anything, NaN included: load zeros there.
    inside = valid[:, None] & (dim < HEAD_DIM)[None, :]
    k = tl.load(k_ptr + offsets, inside, other=0.0)
    scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
    if MASKED:
        scores = tl.where(q_position[:, None] >= position[None, :], scores, -float("inf"))
    weights, correction, row_sum, row_max = online_softmax(scores, row_sum, row_max)
    v = tl.load(v_ptr + offsets, inside, other=0.0)
    acc = tl.dot(weights.to(v.dtype), v, acc * correction[:, None], input_precision="ieee")
    return acc, row_sum, row_max


@triton.jit
def _flash_attention2_kernel(
    q_ptr, k_cache_ptr, v_cache_ptr, page_table_ptr, query_start_ptr, context_lens_ptr, out_ptr,
    scale, q_stride_token, q_stride_head, table_stride, row_size, q_heads, group,
    HEAD_DIM: tl.constexpr, DIM_PAD: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """One program (block, head, sequence): BLOCK_M query rows of one head over all the keys they see.

    q [T, Hq, D] with token and head strides; caches [slots, Hk, D], contiguous, row_size = Hk * D;
    page_table [B, table_stride]; out [T, Hq, D], contiguous. group = Hq / Hk.
    """
    block, head, sequence = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    first_row = tl.load(query_start_ptr + sequence)
    queries = tl.load(query_start_ptr + sequence + 1) - first_row
    start_m = block * BLOCK_M
    if start_m >= queries:
        return
    context = tl.load(context_lens_ptr + sequence)
    prefix = context - queries
    row = start_m + tl.arange(0, BLOCK_M)
    token = (first_row + row).to(tl.int64)
    dim = tl.arange(0, DIM_PAD)
    inside = (row < queries)[:, None] & (dim < HEAD_DIM)[None, :]
    q = tl.load(
        q_ptr + token[:, None] * q_stride_token + head * q_stride_head + dim[None, :], inside, other=0.0
    )
    k_ptr = k_cache_ptr + head // group * HEAD_DIM
    v_ptr = v_cache_ptr + head // group * HEAD_DIM
    table_ptr = page_table_ptr + sequence * table_stride
    acc = tl.zeros((BLOCK_M, DIM_PAD), tl.float32)
    row_sum = tl.zeros((BLOCK_M,), tl.float32)
    row_max = tl.full((BLOCK_M,), -float("inf"), tl.float32)
    # Key blocks that even the first row sees in full need no mask; then those on the diagonal.
    unmasked_end = (prefix + start_m + 1) // BLOCK_N * BLOCK_N
    for start in range(0, unmasked_end, BLOCK_N):
        acc, row_sum, row_max = attend_block(
            acc, row_sum, row_max, q, k_ptr, v_ptr, table_ptr, start, context, prefix + row, scale, row_size,
            HEAD_DIM, DIM_PAD, BLOCK_N, False,
        )  # fmt: skip
    for start in range(unmasked_end, tl.minimum(prefix + start_m + BLOCK_M, context), BLOCK_N):
        acc, row_sum, row_max = attend_block(
            acc, row_sum, row_max, q, k_ptr, v_ptr, table_ptr, start, context, prefix + row, scale, row_size,
            HEAD_DIM, DIM_PAD, BLOCK_N, True,
        )  # fmt: skip
    out = (acc / row_sum[:, None]).to(q.dtype)
    tl.store(out_ptr + (token[:, None] * q_heads + head) * HEAD_DIM + dim[None, :], out, inside)


def padded(extent: int) -> int:
    """The extent of a tile that holds `extent` rows or columns: a power of two, and 16 is tl.dot's least."""
    return max(16, triton.next_power_of_2(extent))


def tile(head_dim: int, dtype: torch.dtype, target: Target) -> dict[str, int]:
    """BLOCK_M x BLOCK_N, warps and pipeline stages: chosen so that the tiles fit the smallest of each kind.

    That is 99 KiB of shared memory on NVIDIA (8.6) and 64 KiB on AMD.
    """
    wide = head_dim > 128
    stages = 1 if target.hip else 2
    if dtype == torch.float32:  # full precision: no tensor cores, and twice the bytes
        block_m, block_n, threads, stages = 32, 16 if wide else 32, 256, 1
    elif target.hip:
        block_m, block_n, threads = 64, 32, 256
    elif wide:
        block_m, block_n, threads = 64, 32, 128
    else:
        block_m, block_n, threads = 128, 64, 128 if head_dim <= 64 else 256
    return {
        "BLOCK_M": block_m,
        "BLOCK_N": block_n,
        "num_warps": target.warps(threads),
        "num_stages": stages,
    }


def triton_flash_attention2(
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
    _, q_heads, head_dim = q.shape
    kv_heads = k_cache.shape[2]
    options = tile(head_dim, q.dtype, target(q.device))
    out = q.new_empty(q.shape)
    grid = (triton.cdiv(max_query_len, options["BLOCK_M"]), q_heads, context_lens.shape[0])
    _flash_attention2_kernel[grid](
        q, k_cache, v_cache, page_table, query_start, context_lens, out,
        scale * math.log2(math.e), q.stride(0), q.stride(1), page_table.stride(0), kv_heads * head_dim,
        q_heads, q_heads // kv_heads, HEAD_DIM=head_dim, DIM_PAD=padded(head_dim), **options,
    )  # fmt: skip
    return out
