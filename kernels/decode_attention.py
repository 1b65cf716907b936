"""One decode step of attention in one launch: q/k norm, rope, the KV cache write and Flash-Decoding.

A sequence's context is cut into splits (Flash-Decoding, see flash_decoding.py) whose boundaries depend on
its length alone, not on how many programs share them: its result is the same, bit for bit, in any batch. The
program that finishes last combines the splits, in order.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor

from . import flash_decoding, kv_write, paging, rope, tiles
from ._triton import Target, target, tl, triton
from .flash_attention2 import padded
from .gemm import MAX_ROWS, sum_parts
from .pdl import await_previous, start_dependents
from .tiles import Options

MAX_SPLITS = 64
"""Splits of one sequence at most."""
Memo = dict[object, Any]
"""Where an operator keeps what it works out in the first layer of a step for the others."""


def in_steps(
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
    *,
    rope: Callable[..., tuple[Tensor, Tensor]],
    write: Callable[..., None],
    attend: Callable[..., Tensor],
) -> Tensor:
    """qkv [S, B, (Hq + 2 Hk) * D], summed over S -> [B, Hq * D]; the new keys and values go to the caches.

    positions [B] int64; sequence b's pages are row slots[b] (int32) of page_table [slots, pages]; cos, sin
    [max_position, D/2] fp32; caches [pages, PAGE_SIZE, Hk, D]. one_sequence: the rows may be consecutive
    tokens of one sequence, each of which sees those before it. The steps are those given: all rows' keys
    are written before any row attends.
    """
    batch = positions.shape[0]
    kv_heads, head_dim = k_cache.shape[2:]
    heads = sum_parts(qkv, k_cache.dtype).view(batch, q_heads + 2 * kv_heads, head_dim)
    q, k, v = heads.split((q_heads, kv_heads, kv_heads), dim=1)
    q, k = rope(q, k, positions, cos, sin, q_norm, k_norm, eps)
    table = page_table[slots.long()]
    pages = table.gather(1, positions[:, None] // paging.PAGE_SIZE)[:, 0].long()
    write(k, v, k_cache, v_cache, pages * paging.PAGE_SIZE + positions % paging.PAGE_SIZE)
    return attend(q, k_cache, v_cache, table, positions.int() + 1, scale).view(batch, -1)


reference = partial(in_steps, rope=rope.reference, write=kv_write.reference, attend=flash_decoding.reference)
"""In plain PyTorch: the specification."""


@triton.jit
def _load_heads(
    qkv_ptr, part_stride, offsets, mask, PARTS: tl.constexpr, dtype: tl.constexpr,
):  # fmt: skip
    """The sum over PARTS of the partial sums at `offsets`, rounded to `dtype` as a linear layer's output."""
    total = tl.load(qkv_ptr + offsets, mask, other=0.0).to(tl.float32)
    for part in tl.static_range(1, PARTS):
        total += tl.load(qkv_ptr + part * part_stride + offsets, mask, other=0.0).to(tl.float32)
    return total.to(dtype)


@triton.jit
def _norm_and_turn(
    first, second, norm_ptr, cos, sin, eps, HALF: tl.constexpr, HALF_PAD: tl.constexpr, NORM: tl.constexpr,
):  # fmt: skip
    """Per-head RMSNorm (with NORM) and rope of heads in two halves [N, HALF_PAD]; cos, sin [HALF_PAD]."""
    dtype: tl.constexpr = first.dtype
    if NORM:
        column = tl.arange(0, HALF_PAD)
        first32, second32 = first.to(tl.float32), second.to(tl.float32)
        squares = tl.sum(first32 * first32 + second32 * second32, 1)
        scale = tl.rsqrt(squares / (2 * HALF) + eps)[:, None]
        weight = tl.load(norm_ptr + column, column < HALF, other=0.0)
        first = (first32 * scale).to(dtype) * weight[None, :]
        weight = tl.load(norm_ptr + HALF + column, column < HALF, other=0.0)
        second = (second32 * scale).to(dtype) * weight[None, :]
    first32, second32 = first.to(tl.float32), second.to(tl.float32)
    turned_first = first32 * cos[None, :] - second32 * sin[None, :]
    turned_second = second32 * cos[None, :] + first32 * sin[None, :]
    return turned_first.to(dtype), turned_second.to(dtype)


@triton.jit
def split_length(context, BLOCK_N: tl.constexpr, MIN_SPLIT: tl.constexpr, MAX_SPLITS: tl.constexpr):
    """Tokens of each split of a context: whole blocks, and a function of the context alone."""
    return tl.maximum(tl.cdiv(tl.cdiv(context, MAX_SPLITS), BLOCK_N) * BLOCK_N, MIN_SPLIT)


@triton.jit
def _load_block(
    k_ptr, v_ptr, table_ptr, start, end, row_size,
    HALF: tl.constexpr, HALF_PAD: tl.constexpr, HEAD_DIM: tl.constexpr, DIM_PAD: tl.constexpr,
    BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Both halves of the keys, and the values, of positions start : start + BLOCK_N; zeros from `end` on."""
    position = start + tl.arange(0, BLOCK_N)
    valid = position < end
    rows = paging.row_offsets(table_ptr, position, valid, row_size)[:, None]
    half, dim = tl.arange(0, HALF_PAD)[None, :], tl.arange(0, DIM_PAD)[None, :]
    half_mask = valid[:, None] & (half < HALF)
    first = tl.load(k_ptr + rows + half, half_mask, other=0.0)
    second = tl.load(k_ptr + rows + HALF + half, half_mask, other=0.0)
    value = tl.load(v_ptr + rows + dim, valid[:, None] & (dim < HEAD_DIM), other=0.0)
    return first, second, value


@triton.jit
def _combine(
    partial_ptr, log_sum_ptr, out_ptr, first_head, group, splits,
    GROUP_POWER: tl.constexpr, HEAD_DIM: tl.constexpr, DIM_PAD: tl.constexpr, MAX_SPLITS: tl.constexpr,
    CHUNK: tl.constexpr,
):  # fmt: skip
    """The mean of the splits' outputs, weighted by their sums, for one group's heads; CHUNK at a time."""
    member = tl.arange(0, GROUP_POWER)
    in_group = member < group
    row = (first_head + member).to(tl.int64)
    every = tl.arange(0, MAX_SPLITS)
    log_sums = tl.load(
        log_sum_ptr + row[None, :] * MAX_SPLITS + every[:, None],
        (every < splits)[:, None] & in_group[None, :], other=-1.0e30,
    )  # fmt: skip
    largest = tl.max(log_sums, 0)
    total = tl.sum(tl.exp2(log_sums - largest[None, :]), 0)
    dim = tl.arange(0, DIM_PAD)
    combined = tl.zeros((GROUP_POWER, DIM_PAD), tl.float32)
    for start in range(0, splits, CHUNK):
        split = start + tl.arange(0, CHUNK)
        source = row[None, :] * MAX_SPLITS + split[:, None]
        written = (split < splits)[:, None] & in_group[None, :]
        weight = tl.exp2(tl.load(log_sum_ptr + source, written, other=-1.0e30) - largest[None, :])
        partial = tl.load(
            partial_ptr + source[:, :, None] * HEAD_DIM + dim[None, None, :],
            written[:, :, None] & (dim < HEAD_DIM)[None, None, :], other=0.0,
        )  # fmt: skip
        combined += tl.sum(partial * weight[:, :, None], 0)
    out = (combined / total[:, None]).to(out_ptr.dtype.element_ty)
    inside = in_group[:, None] & (dim < HEAD_DIM)[None, :]
    tl.store(out_ptr + row[:, None] * HEAD_DIM + dim[None, :], out, inside)


@triton.jit
def _kernel(
    qkv_ptr, positions_ptr, slots_ptr, page_table_ptr, cos_ptr, sin_ptr, q_norm_ptr, k_norm_ptr,
    k_cache_ptr, v_cache_ptr, partial_ptr, log_sum_ptr, arrived_ptr, out_ptr,
    scale, eps, part_stride, table_stride, row_size, q_heads, kv_heads, group,
    PARTS: tl.constexpr, GROUP_PAD: tl.constexpr, GROUP_POWER: tl.constexpr, HALF: tl.constexpr,
    HALF_PAD: tl.constexpr, HEAD_DIM: tl.constexpr, DIM_PAD: tl.constexpr, BLOCK_N: tl.constexpr,
    NORM: tl.constexpr, MIN_SPLIT: tl.constexpr, MAX_SPLITS: tl.constexpr, CHUNK: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """One program (sequence, key/value head, share): every num_programs(2)-th split of the sequence.

    Tensors as in `reference`; part_stride: elements of one part of qkv; row_size = Hk * D. Scratch: partial
    [B, Hq, MAX_SPLITS, D] and log_sum [B, Hq, MAX_SPLITS] in fp32 hold each split's own attention output and
    the log2 of its sum of exponentials; arrived [B, Hk] int32 is zero before and after.
    """
    start_dependents(PDL)
    sequence, kv_head, share = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    shares = tl.num_programs(2)
    # Nothing up to `await_previous` is written by this step's kernels: the lengths, the pages, the old keys.
    position = tl.load(positions_ptr + sequence).to(tl.int32)
    context = position + 1
    length = split_length(context, BLOCK_N, MIN_SPLIT, MAX_SPLITS)
    splits = tl.cdiv(context, length)
    if share >= splits:
        return
    slot = tl.load(slots_ptr + sequence).to(tl.int64)
    table_ptr = page_table_ptr + slot * table_stride
    k_ptr, v_ptr = k_cache_ptr + kv_head * HEAD_DIM, v_cache_ptr + kv_head * HEAD_DIM
    dtype: tl.constexpr = k_cache_ptr.dtype.element_ty
    first, second, value = _load_block(
        k_ptr, v_ptr, table_ptr, share * length, tl.minimum((share + 1) * length, position), row_size,
        HALF, HALF_PAD, HEAD_DIM, DIM_PAD, BLOCK_N,
    )  # fmt: skip
    half, dim = tl.arange(0, HALF_PAD), tl.arange(0, DIM_PAD)
    in_half, in_head = half < HALF, dim < HEAD_DIM
    cos = tl.load(cos_ptr + position * HALF + half, in_half, other=0.0)
    sin = tl.load(sin_ptr + position * HALF + half, in_half, other=0.0)
    await_previous(PDL)

    member = tl.arange(0, GROUP_PAD)
    width = (q_heads + 2 * kv_heads) * HEAD_DIM
    qkv_row = sequence.to(tl.int64) * width
    heads = qkv_row + (kv_head * group + member)[:, None] * HEAD_DIM + half[None, :]
    mask = (member < group)[:, None] & in_half[None, :]
    q_first = _load_heads(qkv_ptr, part_stride, heads, mask, PARTS, dtype)
    q_second = _load_heads(qkv_ptr, part_stride, heads + HALF, mask, PARTS, dtype)
    q_first, q_second = _norm_and_turn(q_first, q_second, q_norm_ptr, cos, sin, eps, HALF, HALF_PAD, NORM)

    head = sequence * q_heads + kv_head * group + member
    for split in range(share, splits, shares):
        end = tl.minimum((split + 1) * length, position)
        acc = tl.zeros((GROUP_PAD, DIM_PAD), tl.float32)
        row_sum = tl.zeros((GROUP_PAD,), tl.float32)
        row_max = tl.full((GROUP_PAD,), -1.0e30, tl.float32)
        for start in range(split * length, end, BLOCK_N):
            scores = tl.dot(q_first, tl.trans(first), input_precision="ieee")
            scores = tl.dot(q_second, tl.trans(second), scores, input_precision="ieee") * scale
            scores = tl.where((start + tl.arange(0, BLOCK_N) < end)[None, :], scores, -float("inf"))
            new_max = tl.maximum(row_max, tl.max(scores, 1))
            weights = tl.exp2(scores - new_max[:, None])
            correction = tl.exp2(row_max - new_max)
            row_sum = row_sum * correction + tl.sum(weights, 1)
            acc = tl.dot(weights.to(dtype), value, acc * correction[:, None], input_precision="ieee")
            row_max = new_max
            # The next block, of this split or of the next one this program has.
            more = start + BLOCK_N < end
            following = tl.where(more, split, split + shares)
            first, second, value = _load_block(
                k_ptr, v_ptr, table_ptr, tl.where(more, start + BLOCK_N, following * length),
                tl.minimum((following + 1) * length, position), row_size,
                HALF, HALF_PAD, HEAD_DIM, DIM_PAD, BLOCK_N,
            )  # fmt: skip
        if split == splits - 1:  # the new token is the last of the last split
            new_k = qkv_row + (q_heads + kv_head) * HEAD_DIM + half
            new_k, half_mask = new_k[None, :], in_half[None, :]
            k_first = _load_heads(qkv_ptr, part_stride, new_k, half_mask, PARTS, dtype)
            k_second = _load_heads(qkv_ptr, part_stride, new_k + HALF, half_mask, PARTS, dtype)
            k_first, k_second = _norm_and_turn(
                k_first, k_second, k_norm_ptr, cos, sin, eps, HALF, HALF_PAD, NORM
            )
            new_v = qkv_row + (q_heads + kv_heads + kv_head) * HEAD_DIM + dim
            v = _load_heads(qkv_ptr, part_stride, new_v, in_head, PARTS, dtype)
            score = tl.sum(q_first.to(tl.float32) * k_first.to(tl.float32), 1)
            score = (score + tl.sum(q_second.to(tl.float32) * k_second.to(tl.float32), 1)) * scale
            new_max = tl.maximum(row_max, score)
            weight = tl.exp2(score - new_max)
            correction = tl.exp2(row_max - new_max)
            row_sum = row_sum * correction + weight
            acc = acc * correction[:, None] + weight[:, None] * v.to(tl.float32)[None, :]
            row_max = new_max
            page = tl.load(table_ptr + position // paging.PAGE_SIZE).to(tl.int64)
            slot_row = (page * paging.PAGE_SIZE + position % paging.PAGE_SIZE) * row_size
            tl.store(k_ptr + slot_row + half[None, :], k_first, in_half[None, :])
            tl.store(k_ptr + slot_row + HALF + half[None, :], k_second, in_half[None, :])
            tl.store(v_ptr + slot_row + dim, v, in_head)
        result = acc / row_sum[:, None]
        inside = (member < group)[:, None] & in_head[None, :]
        if splits == 1:
            out = out_ptr + head.to(tl.int64)[:, None] * HEAD_DIM + dim[None, :]
            tl.store(out, result.to(dtype), inside)
        else:
            place = head.to(tl.int64) * MAX_SPLITS + split
            tl.store(partial_ptr + place[:, None] * HEAD_DIM + dim[None, :], result, inside)
            tl.store(log_sum_ptr + place, row_max + tl.log2(row_sum), member < group)
    if splits == 1:
        return

    # The last of the sequence's programs to get here has everybody's results before it.
    tl.debug_barrier()
    counter_ptr = arrived_ptr + sequence * kv_heads + kv_head
    before = tl.atomic_add(counter_ptr, 1, sem="acq_rel", scope="gpu")
    if before == tl.minimum(shares, splits) - 1:
        tl.store(counter_ptr, 0)
        _combine(
            partial_ptr, log_sum_ptr, out_ptr, sequence * q_heads + kv_head * group, group, splits,
            GROUP_POWER, HEAD_DIM, DIM_PAD, MAX_SPLITS, CHUNK,
        )  # fmt: skip


def tile(head_dim: int, group: int, dtype: torch.dtype, where: Target) -> Options:
    """BLOCK_N and warps (the block in hand and the next one are in registers), and the least split."""
    return tiles.lookup(tile_key(head_dim, group, dtype, where)) or rule(head_dim, dtype, where)


def tile_key(head_dim: int, group: int, dtype: torch.dtype, where: Target) -> str:
    """The shape's key in the table of tiles."""
    return tiles.key("decode_attention", where, dtype, head_dim=head_dim, group=group)


def rule(head_dim: int, dtype: torch.dtype, where: Target) -> Options:
    """As `tile`, where nothing was measured."""
    large = dtype == torch.float32
    block_n = 16 if head_dim > 128 or (large and head_dim > 64) else 32 if large or head_dim > 64 else 64
    warps = where.warps(256 if large else 128)
    return {"BLOCK_N": block_n, "MIN_SPLIT": 64, "num_warps": warps, "num_stages": 1}


def candidates(head_dim: int, where: Target) -> Iterator[Options]:
    """Options worth measuring."""
    for block_n, min_split, threads in product((32, 64, 128), (64, 128, 256), (64, 128, 256)):
        if block_n <= min_split and block_n * head_dim // threads <= 128:
            warps = where.warps(threads)
            yield {"BLOCK_N": block_n, "MIN_SPLIT": min_split, "num_warps": warps, "num_stages": 1}


class Scratch:
    """The memory that programs of one launch exchange their results in, kept between launches.

    Launches that share it must be on one stream.
    """

    def __init__(self, batch: int, q_heads: int, kv_heads: int, head_dim: int, device: torch.device) -> None:
        self.partial = torch.empty(batch, q_heads, MAX_SPLITS, head_dim, device=device)
        self.log_sum = torch.empty(batch, q_heads, MAX_SPLITS, device=device)
        self.arrived = torch.zeros(batch, kv_heads, dtype=torch.int32, device=device)


_scratch: dict[tuple[object, ...], Scratch] = {}


def scratch(batch: int, q_heads: int, kv_heads: int, head_dim: int, device: torch.device) -> Scratch:
    """The scratch memory for up to `batch` sequences (at least gemm.MAX_ROWS) of such heads, made once."""
    key = (max(batch, MAX_ROWS), q_heads, kv_heads, head_dim, device)
    if key not in _scratch:
        _scratch[key] = Scratch(*key)  # pyright: ignore[reportArgumentType]
    return _scratch[key]


def share_count(batch: int, kv_heads: int, where: Target) -> int:
    """Programs for each sequence and head: about four to a processor, at most one a split."""
    wanted = max(1, 4 * where.processors // (batch * kv_heads))
    return min(triton.next_power_of_2(wanted), MAX_SPLITS)


def triton_decode_attention(
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
    """As `reference`; qkv is contiguous.

    The rows of one sequence need each other's keys, which a first launch writes; only the second one's
    attention counts. Each waits for all before it, since it reads old keys ahead of its inputs.
    """
    parts, batch, _ = qkv.shape
    kv_heads, head_dim = k_cache.shape[2:]
    where = target(qkv.device)
    half, group = head_dim // 2, q_heads // kv_heads
    out = k_cache.new_empty(batch, q_heads * head_dim)
    space = scratch(batch, q_heads, kv_heads, head_dim, qkv.device)
    chain = {"PDL": 0} if one_sequence else where.chain(early=batch == 1)
    launch = partial(
        _kernel[(batch, kv_heads, share_count(batch, kv_heads, where))],
        qkv, positions, slots, page_table, cos, sin, q_norm, k_norm, k_cache, v_cache,
        space.partial, space.log_sum, space.arrived, out,
        scale * math.log2(math.e), eps, qkv.stride(0), page_table.stride(0), kv_heads * head_dim,
        q_heads, kv_heads, group, PARTS=parts, GROUP_PAD=padded(group),
        GROUP_POWER=triton.next_power_of_2(group), HALF=half, HALF_PAD=padded(half),
        HEAD_DIM=head_dim, DIM_PAD=padded(head_dim), NORM=q_norm is not None,
        MAX_SPLITS=MAX_SPLITS, CHUNK=8, **tile(head_dim, group, k_cache.dtype, where),
        **chain,
    )  # fmt: skip
    if one_sequence:
        launch()
    launch()
    return out
