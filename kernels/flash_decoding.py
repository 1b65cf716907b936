"""Flash-Decoding (Dao et al. 2023, crfm.stanford.edu/2023/10/12/flashdecoding.html): one query per sequence,
its context split over several programs, the partial results combined by a second kernel.

The number of splits depends on the launch's shape alone; each program finds its share of the context from
the length on the device. So one launch (or CUDA graph) serves every context length.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from . import paging
from ._triton import Target, target, tl, triton
from .flash_attention2 import attend_block, padded


def reference(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, page_table: Tensor, context_lens: Tensor, scale: float
) -> Tensor:
    """q [B, Hq, D] over caches [pages, PAGE_SIZE, Hk, D] -> [B, Hq, D]; zeros where the context is empty.

    Sequences whose lengths round up to the same power of two go together: at most half of a padded batch
    is padding, and many short sequences cost few calls.
    """
    _, q_heads, head_dim = q.shape
    kv_heads = k_cache.shape[2]
    out = torch.zeros_like(q)
    buckets: dict[int, list[int]] = {}
    for sequence, context in enumerate(context_lens.tolist()):
        if context:
            buckets.setdefault(context.bit_length(), []).append(sequence)
    for sequences in buckets.values():
        members = torch.tensor(sequences, device=q.device)
        lengths = context_lens[members].long()[:, None]
        positions = torch.arange(int(lengths.max()), device=q.device)
        valid = positions < lengths
        # Padding repeats the first token and is masked: a slot never written could hold a NaN.
        positions = positions * valid
        k = paging.gather(k_cache, page_table[members], positions)
        v = paging.gather(v_cache, page_table[members], positions)
        # The query heads of a group become the rows of one small matrix: no key is read twice.
        attended = F.scaled_dot_product_attention(
            q[members].reshape(len(sequences), kv_heads, q_heads // kv_heads, head_dim),
            k.transpose(1, 2),
            v.transpose(1, 2),
            attn_mask=None if len(sequences) == 1 else valid[:, None, None],
            scale=scale,
        )
        out[members] = attended.reshape(len(sequences), q_heads, head_dim)
    return out


@triton.jit
def _split_kernel(
    q_ptr, k_cache_ptr, v_cache_ptr, page_table_ptr, context_lens_ptr, partial_ptr, log_sum_ptr,
    scale, q_stride_token, q_stride_head, table_stride, row_size, q_heads, group,
    GROUP_PAD: tl.constexpr, HEAD_DIM: tl.constexpr, DIM_PAD: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """One program (sequence, key/value head, split): the group's query heads over one share of the keys.

    q [B, Hq, D] with token and head strides; caches [slots, Hk, D], contiguous, row_size = Hk * D;
    page_table [B, table_stride]; partial [B, Hq, splits, D] gets the share's own attention output in fp32,
    log_sum [B, Hq, splits] the log2 of its sum of exponentials. Shares beyond the context stay unwritten.
    """
    sequence, kv_head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    context = tl.load(context_lens_ptr + sequence)
    splits = tl.num_programs(2)
    share = _share(context, splits, BLOCK_N)
    begin = split * share
    if begin >= context:
        return
    end = tl.minimum(begin + share, context)
    member = tl.arange(0, GROUP_PAD)
    head = kv_head * group + member
    dim = tl.arange(0, DIM_PAD)
    inside = (member < group)[:, None] & (dim < HEAD_DIM)[None, :]
    q_ptr += sequence.to(tl.int64) * q_stride_token
    q = tl.load(q_ptr + head[:, None] * q_stride_head + dim[None, :], inside, other=0.0)
    q_position = tl.zeros((GROUP_PAD,), tl.int32) + context - 1
    acc = tl.zeros((GROUP_PAD, DIM_PAD), tl.float32)
    row_sum = tl.zeros((GROUP_PAD,), tl.float32)
    row_max = tl.full((GROUP_PAD,), -float("inf"), tl.float32)
    for start in range(begin, end, BLOCK_N):
        acc, row_sum, row_max = attend_block(
            acc, row_sum, row_max, q, k_cache_ptr + kv_head * HEAD_DIM, v_cache_ptr + kv_head * HEAD_DIM,
            page_table_ptr + sequence * table_stride, start, context, q_position, scale, row_size,
            HEAD_DIM, DIM_PAD, BLOCK_N, True,
        )  # fmt: skip
    result = (sequence * q_heads + head) * splits + split
    tl.store(partial_ptr + result[:, None] * HEAD_DIM + dim[None, :], acc / row_sum[:, None], inside)
    tl.store(log_sum_ptr + result, row_max + tl.log2(row_sum), member < group)


@triton.jit
def _share(context, splits, BLOCK_N: tl.constexpr):
    """Tokens per split: an equal share of the context in whole blocks."""
    return tl.cdiv(tl.cdiv(context, splits), BLOCK_N) * BLOCK_N


@triton.jit
def _combine_kernel(
    partial_ptr, log_sum_ptr, context_lens_ptr, out_ptr,
    HEAD_DIM: tl.constexpr, DIM_PAD: tl.constexpr, SPLITS: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """One program (sequence, query head): the mean of the splits' outputs, weighted by their sums.

    partial [B, Hq, SPLITS, D] and log_sum [B, Hq, SPLITS] as written above; out [B, Hq, D], contiguous.
    """
    sequence, head = tl.program_id(0), tl.program_id(1)
    context = tl.load(context_lens_ptr + sequence)
    split = tl.arange(0, SPLITS)
    dim = tl.arange(0, DIM_PAD)
    written = split * _share(context, SPLITS, BLOCK_N) < context
    row = sequence * tl.num_programs(1) + head
    log_sum = tl.load(log_sum_ptr + row * SPLITS + split, written, other=-float("inf"))
    # The first split is the only certain one, and an empty context has none: subtract 0 there.
    largest = tl.max(log_sum)
    weight = tl.exp2(log_sum - tl.where(context > 0, largest, 0.0))
    inside = written[:, None] & (dim < HEAD_DIM)[None, :]
    partial = tl.load(
        partial_ptr + (row * SPLITS + split)[:, None] * HEAD_DIM + dim[None, :], inside, other=0.0
    )
    total = tl.where(context > 0, tl.sum(weight), 1.0)
    out = tl.sum(partial * weight[:, None], 0) / total
    tl.store(out_ptr + row * HEAD_DIM + dim, out.to(out_ptr.dtype.element_ty), dim < HEAD_DIM)


def tile(head_dim: int, dtype: torch.dtype, target: Target) -> dict[str, int]:
    """BLOCK_N, warps and pipeline stages, such that the tiles of k and v fit the smallest GPUs."""
    large = dtype == torch.float32
    block_n = (16 if large else 32) if head_dim > 128 else (32 if large else 64)
    threads = 256 if large or target.hip else 128
    return {
        "BLOCK_N": block_n,
        "num_warps": target.warps(threads),
        "num_stages": 1 if target.hip else 2,
    }


def split_count(sequences: int, kv_heads: int, target: Target) -> int:
    """Splits per sequence: a power of two up to 64 that gives about four programs to each processor."""
    wanted = 4 * target.processors // (sequences * kv_heads)
    return min(triton.next_power_of_2(max(wanted, 1)), 64)


def triton_flash_decoding(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, page_table: Tensor, context_lens: Tensor, scale: float
) -> Tensor:
    """As `reference`; q may be a strided view whose last dimension is contiguous."""
    sequences, q_heads, head_dim = q.shape
    kv_heads = k_cache.shape[2]
    out = q.new_empty(q.shape)
    if sequences == 0:
        return out
    where = target(q.device)
    options = tile(head_dim, q.dtype, where)
    splits = split_count(sequences, kv_heads, where)
    group, dim_pad = q_heads // kv_heads, padded(head_dim)
    partial = q.new_empty((sequences, q_heads, splits, head_dim), dtype=torch.float32)
    log_sum = q.new_empty((sequences, q_heads, splits), dtype=torch.float32)
    _split_kernel[(sequences, kv_heads, splits)](
        q, k_cache, v_cache, page_table, context_lens, partial, log_sum,
        scale * math.log2(math.e), q.stride(0), q.stride(1), page_table.stride(0), kv_heads * head_dim,
        q_heads, group, GROUP_PAD=padded(group), HEAD_DIM=head_dim, DIM_PAD=dim_pad, **options,
    )  # fmt: skip
    _combine_kernel[(sequences, q_heads)](
        partial, log_sum, context_lens, out,
        HEAD_DIM=head_dim, DIM_PAD=dim_pad, SPLITS=splits, BLOCK_N=options["BLOCK_N"],
    )  # fmt: skip
    return out
