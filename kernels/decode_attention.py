"""One decode step of attention in one launch: q/k norm, rope, the KV cache write and Flash-Decoding.

A sequence's context is cut into splits (Flash-Decoding, see flash_decoding.py) whose boundaries depend on
its length alone, not on how many programs share them; the new token is one by itself. They are combined in
order: by one program in its registers or, where several share them, by the one that finishes last. The
result is the same, bit for bit.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor

from . import flash_decoding, gemv, kv_write, paging, rope, tiles
from ._triton import Target, target, tl, triton
from .flash_attention2 import padded
from .gemm import MAX_ROWS, sum_parts
from .pdl import await_previous, start_dependents
from .tiles import Options

MAX_SPLITS = 64
"""Splits of one sequence at most, that of the new token included."""
_FEW_SPLITS = triton.language.constexpr(16)
_LONG_SPLIT = triton.language.constexpr(256)
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
    tokens of one sequence, each of which sees those before it. The steps are those given:
    all rows' keys are written before any row attends.
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
def _norm_and_turn(first, second, norm_first, norm_second, cos, sin, eps, HALF: tl.constexpr):
    """Per-head RMSNorm (unless its weights are None) and rope of heads in two halves [N, HALF_PAD].

    norm_first, norm_second [N, HALF_PAD]; cos, sin [HALF_PAD].
    """
    dtype: tl.constexpr = first.dtype
    if norm_first is not None:
        first32, second32 = first.to(tl.float32), second.to(tl.float32)
        squares = tl.sum(first32 * first32 + second32 * second32, 1)
        scale = tl.rsqrt(squares / (2 * HALF) + eps)[:, None]
        first = (first32 * scale).to(dtype) * norm_first
        second = (second32 * scale).to(dtype) * norm_second
    first32, second32 = first.to(tl.float32), second.to(tl.float32)
    turned_first = first32 * cos[None, :] - second32 * sin[None, :]
    turned_second = second32 * cos[None, :] + first32 * sin[None, :]
    return turned_first.to(dtype), turned_second.to(dtype)


@triton.jit
def split_length(cached, BLOCK_N: tl.constexpr, MIN_SPLIT: tl.constexpr, MAX_SPLITS: tl.constexpr):
    """Tokens of each split of so many cached tokens: whole blocks, and a function of their number alone.

    There are FEW_SPLITS as long as that makes splits of MIN_SPLIT to LONG_SPLIT tokens: to combine many
    takes long. A long context has up to MAX_SPLITS, so that all processors read.
    """
    length = tl.minimum(tl.maximum(tl.cdiv(cached, _FEW_SPLITS), MIN_SPLIT), _LONG_SPLIT)
    return tl.cdiv(tl.maximum(length, tl.cdiv(cached, MAX_SPLITS - 1)), BLOCK_N) * BLOCK_N


@triton.jit
def _load_block(
    k_ptr, v_ptr, pages, position, valid, row_size,
    HALF: tl.constexpr, HALF_PAD: tl.constexpr, DIM_PAD: tl.constexpr,
):  # fmt: skip
    """Both halves of the keys, and the values, of `position` [N] in `pages` [N]; zeros unless `valid` [N]."""
    rows = paging.offsets_in(pages, position, row_size)[:, None]
    half, dim = tl.arange(0, HALF_PAD)[None, :], tl.arange(0, DIM_PAD)[None, :]
    half_mask = valid[:, None] & (half < HALF)
    first = tl.load(k_ptr + rows + half, half_mask, other=0.0)
    second = tl.load(k_ptr + rows + HALF + half, half_mask, other=0.0)
    return first, second, tl.load(v_ptr + rows + dim, valid[:, None] & (dim < 2 * HALF), other=0.0)


@triton.jit
def _power_of_two(exponent):
    """2 ** exponent, exactly, for whole exponents of at most 0; below -126 it is 0."""
    biased = tl.maximum(exponent, -127.0).to(tl.int32) + 127
    return (biased << 23).to(tl.float32, bitcast=True)


@triton.jit
def _rescale(one_max, other_max):
    """The larger of two maxima, and the factors that bring sums relative to each of them to it.

    The maxima are whole numbers, so rescaling is exact, and only the order of the additions counts: it
    makes no difference whether a piece of a context waited in registers or in memory.
    """
    new_max = tl.maximum(one_max, other_max)
    return new_max, _power_of_two(one_max - new_max), _power_of_two(other_max - new_max)


@triton.jit
def _merge(acc, row_sum, row_max, more_acc, more_sum, more_max):
    """The softmax state of two pieces of a context: acc [N, D], row_sum, row_max [N]."""
    new_max, old, new = _rescale(row_max, more_max)
    return acc * old[:, None] + more_acc * new[:, None], row_sum * old + more_sum * new, new_max


@triton.jit
def _attend(
    acc, row_sum, row_max, q_first, q_second, k_first, k_second, value, valid, scale,
):  # fmt: skip
    """The softmax state with one more block of keys and values [N, ..], those that are `valid` [N]."""
    scores = tl.dot(q_first, tl.trans(k_first), input_precision="ieee")
    scores = tl.dot(q_second, tl.trans(k_second), scores, input_precision="ieee") * scale
    scores = tl.where(valid[None, :], scores, -float("inf"))
    block_max = tl.maximum(tl.ceil(tl.max(scores, 1)), -1.0e30)
    weights = tl.exp2(scores - block_max[:, None])
    block_acc = tl.dot(weights.to(value.dtype), value, input_precision="ieee")
    return _merge(acc, row_sum, row_max, block_acc, tl.sum(weights, 1), block_max)


@triton.jit
def _combine(
    partial_ptr, sum_ptr, max_ptr, out_ptr, first_head, group, splits,
    GROUP_POWER: tl.constexpr, SIZE: tl.constexpr, DIM_PAD: tl.constexpr, MAX_SPLITS: tl.constexpr,
    AT_ONCE: tl.constexpr,
):  # fmt: skip
    """The attention output of one group's heads from the states of their splits, in order.

    The states of AT_ONCE splits are under way at a time. Each thread reads the sum and the maximum of each
    of its elements' rows: what is spread over threads would have to be exchanged.
    """
    # A zero that the compiler does not know hides that the elements are neighbours. Else they would be loaded
    # in another layout than the sums and maxima, and exchanged between threads for every split.
    dim = tl.arange(0, DIM_PAD)[None, :] ^ tl.minimum(splits, 0)
    member = tl.arange(0, GROUP_POWER)[:, None]
    inside = (member < group) & (dim < SIZE)
    row = (first_head + member).to(tl.int64)
    acc = tl.zeros((GROUP_POWER, DIM_PAD), tl.float32)
    row_sum = tl.zeros((GROUP_POWER, DIM_PAD), tl.float32)
    row_max = tl.full((GROUP_POWER, DIM_PAD), -1.0e30, tl.float32)
    for start in range(0, splits, AT_ONCE):
        accs, sums, maxima = (), (), ()
        for at in tl.static_range(AT_ONCE):
            place = row * MAX_SPLITS + start + at
            written = inside & (start + at < splits)
            accs = accs + (tl.load(partial_ptr + place * SIZE + dim, written, other=0.0),)
            sums = sums + (tl.load(sum_ptr + place + dim * 0, written, other=0.0),)
            maxima = maxima + (tl.load(max_ptr + place + dim * 0, written, other=-1.0e30),)
        for at in tl.static_range(AT_ONCE):
            row_max, old, new = _rescale(row_max, maxima[at])
            acc = acc * old + accs[at] * new
            row_sum = row_sum * old + sums[at] * new
    out = (acc / tl.where(inside, row_sum, 1.0)).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + row * SIZE + dim, out, inside)


@triton.jit
def _store_state(
    acc, row_sum, row_max, partial_ptr, sum_ptr, max_ptr, place, member, group, dim, SIZE: tl.constexpr
):  # fmt: skip
    """One split's softmax state: acc [N, D], row_sum, row_max [N] of heads whose `place` [N] that is."""
    inside = (member < group)[:, None] & (dim < SIZE)[None, :]
    tl.store(partial_ptr + place[:, None] * SIZE + dim[None, :], acc, inside)
    tl.store(sum_ptr + place, row_sum, member < group)
    tl.store(max_ptr + place, row_max, member < group)


@triton.jit
def _decode_attention_kernel(
    qkv_ptr, positions_ptr, slots_ptr, page_table_ptr, cos_ptr, sin_ptr, q_norm_ptr, k_norm_ptr,
    k_cache_ptr, v_cache_ptr, partial_ptr, sum_ptr, max_ptr, arrived_ptr, out_ptr,
    scale, eps, part_stride, table_stride, q_heads, kv_heads, group,
    PARTS: tl.constexpr, GROUP_PAD: tl.constexpr, GROUP_POWER: tl.constexpr, HALF: tl.constexpr,
    HALF_PAD: tl.constexpr, DIM_PAD: tl.constexpr, BLOCK_N: tl.constexpr, STAGES: tl.constexpr,
    MIN_SPLIT: tl.constexpr, MAX_SPLITS: tl.constexpr, SHARED: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One program (key/value head, sequence, share): every num_programs(2)-th split of the sequence.

    Heads come first: programs that run together then read whole rows of the caches.

    Tensors as in `reference`; part_stride: elements of one part of qkv. Scratch: partial [B, Hq, MAX_SPLITS,
    D], sum and max [B, Hq, MAX_SPLITS] in fp32 hold each split's softmax state; arrived [B, Hk] int32 is
    zero before and after. Without SHARED there is one share, and all stays in registers.

    The blocks of all its splits are one loop, so that STAGES - 1 of them are always on their way, the first
    ones before the inputs are there: those are read in the loop's first round, behind the loads that the
    compiler moves ahead of it.
    """
    start_dependents(PDL)
    kv_head, sequence, share = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    shares = tl.num_programs(2)
    # Nothing up to `await_previous` is written by this step's kernels: the lengths, the pages, the old keys.
    position = tl.load(positions_ptr + sequence).to(tl.int32)
    slot = tl.load(slots_ptr + sequence).to(tl.int64)
    length = split_length(position, BLOCK_N, MIN_SPLIT, MAX_SPLITS)
    splits = tl.cdiv(position, length) + 1
    if share >= splits:
        return
    dtype: tl.constexpr = k_cache_ptr.dtype.element_ty
    size: tl.constexpr = 2 * HALF
    row_size = kv_heads * size
    table_ptr = page_table_ptr + slot * table_stride
    k_ptr, v_ptr = k_cache_ptr + kv_head * size, v_cache_ptr + kv_head * size
    page = paging.pages_of(table_ptr, position, True)
    half, dim = tl.arange(0, HALF_PAD), tl.arange(0, DIM_PAD)
    in_half, in_head = half < HALF, dim < size
    cos = tl.load(cos_ptr + position * HALF + half, in_half, other=0.0)
    sin = tl.load(sin_ptr + position * HALF + half, in_half, other=0.0)
    # The rows of one tile are the group's query heads and the new key; they are normalised and turned alike.
    member = tl.arange(0, GROUP_PAD)
    is_key = (member == group)[:, None]
    norm_first, norm_second = None, None
    if q_norm_ptr is not None:
        q_norm_first = tl.load(q_norm_ptr + half, in_half, other=0.0)[None, :]
        q_norm_second = tl.load(q_norm_ptr + HALF + half, in_half, other=0.0)[None, :]
        k_norm_first = tl.load(k_norm_ptr + half, in_half, other=0.0)[None, :]
        k_norm_second = tl.load(k_norm_ptr + HALF + half, in_half, other=0.0)[None, :]
        norm_first = tl.where(is_key, k_norm_first, q_norm_first)
        norm_second = tl.where(is_key, k_norm_second, q_norm_second)
    qkv_row = sequence.to(tl.int64) * (q_heads + 2 * kv_heads) * size
    head = (sequence * q_heads + kv_head * group + member).to(tl.int64)

    # Of the old tokens' splits only the last one may have fewer blocks than the others.
    blocks, last = length // BLOCK_N, splits - 2
    count = tl.cdiv(splits - 1 - share, shares) * blocks
    if last % shares == share:
        count -= blocks - tl.cdiv(position - last * length, BLOCK_N)
    q_first = tl.zeros((GROUP_PAD, HALF_PAD), dtype)
    q_second = tl.zeros((GROUP_PAD, HALF_PAD), dtype)
    new_value = tl.zeros((GROUP_PAD, DIM_PAD), dtype)
    no_acc = tl.zeros((GROUP_PAD, DIM_PAD), tl.float32)
    no_sum = tl.zeros((GROUP_PAD,), tl.float32)
    no_max = tl.full((GROUP_PAD,), -1.0e30, tl.float32)
    total_acc, total_sum, total_max = no_acc, no_sum, no_max
    acc, row_sum, row_max = no_acc, no_sum, no_max
    split, left = share, blocks
    at = share * length + tl.arange(0, BLOCK_N)
    pages = paging.pages_of(table_ptr, at, at < position)
    # A program that has nothing but the new token has one round too, with no key in it.
    for block in tl.range(0, tl.maximum(count, 1), num_stages=STAGES):
        valid = at < position
        first, second, value = _load_block(k_ptr, v_ptr, pages, at, valid, row_size, HALF, HALF_PAD, DIM_PAD)
        ends = left == 1  # the split, with this block
        left = tl.where(ends, blocks, left - 1)
        at += BLOCK_N + tl.where(ends, (shares - 1) * length, 0)
        # Looked up a round ahead: a load whose address is itself being loaded would not be under way in time.
        pages = paging.pages_of(table_ptr, at, at < position)
        if block == 0:
            await_previous(PDL)
            row = tl.where(is_key, q_heads + kv_head, kv_head * group + member[:, None])
            heads = qkv_row + row * size + half[None, :]
            mask = (member <= group)[:, None] & in_half[None, :]
            q_first = _load_heads(qkv_ptr, part_stride, heads, mask, PARTS, dtype)
            q_second = _load_heads(qkv_ptr, part_stride, heads + HALF, mask, PARTS, dtype)
            heads = qkv_row + (q_heads + kv_heads + kv_head) * size + dim[None, :]
            new_value = _load_heads(qkv_ptr, part_stride, heads, is_key & in_head[None, :], PARTS, dtype)
            q_first, q_second = _norm_and_turn(
                q_first, q_second, norm_first, norm_second, cos, sin, eps, HALF
            )
        acc, row_sum, row_max = _attend(
            acc, row_sum, row_max, q_first, q_second, first, second, value, valid, scale
        )
        if ends | (block == count - 1):
            if SHARED:
                _store_state(
                    acc, row_sum, row_max, partial_ptr, sum_ptr, max_ptr, head * MAX_SPLITS + split,
                    member, group, dim, size,
                )  # fmt: skip
            else:
                total_acc, total_sum, total_max = _merge(
                    total_acc, total_sum, total_max, acc, row_sum, row_max
                )
            acc, row_sum, row_max = no_acc, no_sum, no_max
            split += shares

    out = head[:, None] * size + dim[None, :]
    inside = (member < group)[:, None] & in_head[None, :]
    if (splits - 1) % shares == share:  # the new token, its key and value from the tiles
        acc, row_sum, row_max = _attend(
            no_acc, no_sum, no_max, q_first, q_second, q_first, q_second, new_value, member == group, scale
        )
        row = paging.offsets_in(page, position, row_size) + 0 * member[:, None]
        tl.store(k_ptr + row + half[None, :], q_first, is_key & in_half[None, :])
        tl.store(k_ptr + row + HALF + half[None, :], q_second, is_key & in_half[None, :])
        tl.store(v_ptr + row + dim[None, :], new_value, is_key & in_head[None, :])
        if not SHARED:
            total_acc, total_sum, total_max = _merge(total_acc, total_sum, total_max, acc, row_sum, row_max)
        elif splits == 1:
            tl.store(out_ptr + out, (acc / row_sum[:, None]).to(dtype), inside)
        else:
            place = head * MAX_SPLITS + splits - 1
            _store_state(
                acc, row_sum, row_max, partial_ptr, sum_ptr, max_ptr, place, member, group, dim, size
            )
    if not SHARED:
        tl.store(out_ptr + out, (total_acc / total_sum[:, None]).to(dtype), inside)
    elif splits > 1:
        # The last of the sequence's programs to get here has everybody's results before it.
        tl.debug_barrier()
        counter_ptr = arrived_ptr + sequence * kv_heads + kv_head
        before = tl.atomic_add(counter_ptr, 1, sem="acq_rel", scope="gpu")
        if before == tl.minimum(shares, splits) - 1:
            tl.store(counter_ptr, 0)
            _combine(
                partial_ptr, sum_ptr, max_ptr, out_ptr, sequence * q_heads + kv_head * group, group, splits,
                GROUP_POWER, size, DIM_PAD, MAX_SPLITS, 8,
            )  # fmt: skip


def tile(head_dim: int, group: int, dtype: torch.dtype, where: Target, *, norm: bool, few: bool) -> Options:
    """Options of the kernel, and PROGRAMS that a processor should have.

    `few` sequences want a quick answer, many the memory's rate; `norm`: with norms of q and k.
    """
    shape = {"head_dim": head_dim, "group": group, "norm": int(norm), "few": int(few)}
    return tiles.choose(
        tiles.key("decode_attention", where, dtype, **shape),
        lambda: rule(head_dim, dtype, where, few=few),
        lambda: candidates(head_dim, where, few=few),
    )


def rule(head_dim: int, dtype: torch.dtype, where: Target, *, few: bool) -> Options:
    """As `tile`, where nothing was measured."""
    large = dtype == torch.float32
    # Few sequences have few programs, for which small blocks of large heads are quicker.
    small = large or (few and head_dim > 64)
    block_n = 16 if head_dim > 128 or (large and head_dim > 64) else 32 if small else 64
    stages = 1 if where.hip else 3 if where.shared_kib >= 160 and not large else 2
    return _options(block_n, 64 if few else 128, 256 if large else 128, stages, 2 if few else 1, where)


def _options(
    block_n: int, min_split: int, threads: int, stages: int, programs: int, where: Target
) -> Options:
    return {
        "BLOCK_N": block_n,
        "MIN_SPLIT": min_split,
        "STAGES": stages,
        "PROGRAMS": programs,
        "num_warps": where.warps(threads),
        "num_stages": 1,
    }


def candidates(head_dim: int, where: Target, *, few: bool) -> Iterator[Options]:
    """Options worth measuring."""
    for block_n, min_split, threads, stages, programs in product(
        (32, 64, 128), (64, 128, 256), (128, 256), (2, 3, 4), (2, 4) if few else (1, 2)
    ):
        # Two programs and more should have room on a processor.
        room = 4 * block_n * head_dim * stages <= 112 * 1024
        if block_n <= min_split and (min_split < 256 or not few) and room:
            yield _options(block_n, min_split, threads, stages, programs, where)


class Scratch:
    """The memory that programs of one launch exchange their results in, kept between launches.

    Launches that share it must be on one stream.
    """

    def __init__(self, batch: int, q_heads: int, kv_heads: int, head_dim: int, device: torch.device) -> None:
        self.partial = torch.empty(batch, q_heads, MAX_SPLITS, head_dim, device=device)
        self.sum = torch.empty(batch, q_heads, MAX_SPLITS, device=device)
        self.max = torch.empty(batch, q_heads, MAX_SPLITS, device=device)
        self.arrived = torch.zeros(batch, kv_heads, dtype=torch.int32, device=device)


_scratch: dict[tuple[object, ...], Scratch] = {}


def scratch(batch: int, q_heads: int, kv_heads: int, head_dim: int, device: torch.device) -> Scratch:
    """The scratch memory for up to `batch` sequences (at least gemm.MAX_ROWS) of such heads, made once."""
    key = (max(batch, MAX_ROWS), q_heads, kv_heads, head_dim, device)
    if key not in _scratch:
        _scratch[key] = Scratch(*key)  # pyright: ignore[reportArgumentType]
    return _scratch[key]


def share_count(batch: int, kv_heads: int, programs: int, where: Target) -> int:
    """Programs for each sequence and head, so that a processor has about so many; at most one a split.

    A power of two, as the number of a long context's splits nearly is: then all have as many of them.
    """
    wanted = max(1, programs * where.processors // (batch * kv_heads))
    return min(1 << (wanted.bit_length() - 1), MAX_SPLITS)


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
    *,
    few_rows: int = gemv.MAX_ROWS,
) -> Tensor:
    """As `reference`; qkv is contiguous.

    Up to `few_rows` sequences count as few (see `tile`), and a sequence's result does not depend on the
    others, bit for bit, while they stay few or many.

    The rows of one sequence need each other's keys, which a first launch writes; only the second one's
    attention counts. Each waits for all before it, since it reads old keys ahead of its inputs.
    """
    parts, batch, _ = qkv.shape
    kv_heads, head_dim = k_cache.shape[2:]
    where = target(qkv.device)
    half, group, few = head_dim // 2, q_heads // kv_heads, batch <= few_rows
    out = k_cache.new_empty(batch, q_heads * head_dim)
    space = scratch(batch, q_heads, kv_heads, head_dim, qkv.device)
    options = dict(tile(head_dim, group, k_cache.dtype, where, norm=q_norm is not None, few=few))
    shares = share_count(batch, kv_heads, options.pop("PROGRAMS"), where)
    chain = {"PDL": 0} if one_sequence else where.chain(early=True)
    launch = partial(
        _decode_attention_kernel[(kv_heads, batch, shares)],
        qkv, positions, slots, page_table, cos, sin, q_norm, k_norm, k_cache, v_cache,
        space.partial, space.sum, space.max, space.arrived, out,
        scale * math.log2(math.e), eps, qkv.stride(0), page_table.stride(0),
        q_heads, kv_heads, group, PARTS=parts, GROUP_PAD=padded(group + 1),
        GROUP_POWER=triton.next_power_of_2(group), HALF=half, HALF_PAD=padded(half),
        DIM_PAD=padded(head_dim), MAX_SPLITS=MAX_SPLITS, SHARED=shares > 1,
        **options, **chain,
    )  # fmt: skip
    if one_sequence:
        launch()
    launch()
    return out
