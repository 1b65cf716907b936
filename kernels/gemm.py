"""The linear layers of a few tokens (2 to 64), which are bound by reading the weights, as one GEMV is.

The weights are the first operand of the tensor cores and the tokens the second, so that a tile of weights
streams through however few tokens there are. Where there are too few tiles to fill the GPU, K is split and
the consumer adds the partial sums, in order: no atomics, and the same sums in the same order for every
number of tokens, so that a token's result does not depend on the others, bit for bit.
"""

# pyright: reportPossiblyUnboundVariable=false
# (Branches on a constexpr are taken when a kernel is compiled, together or not at all.)

from collections.abc import Iterator
from itertools import chain, product

import torch
from torch import Tensor

from . import tiles
from ._triton import Target, target, tl, triton
from .pdl import await_previous, read_ahead, start_dependents
from .tiles import Options

MAX_ROWS = 64
"""Tokens up to which this kernel is used; beyond, arithmetic counts and a GEMM library is at home."""
NARROW_ROWS = 32
"""Tokens beyond which tiles of their own may be faster: each tile of weights meets more tokens."""


@triton.jit
def _gemm_kernel(
    x_ptr, weight_ptr, bias_ptr, out_ptr, rows, outputs, K: tl.constexpr, SLICE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr,
    AHEAD: tl.constexpr, BIAS: tl.constexpr, GATED: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One program (tile, split): BLOCK_N rows of weights, SLICE columns of K, all tokens.

    x [rows, K], rows <= BLOCK_M; weight [outputs, K], with GATED [2 * outputs, K] (gate rows, then up
    rows), of which a tile takes BLOCK_N / 2 pairs; bias likewise; out [splits, rows, outputs]: partial sums
    in fp32 unless there is one split. GATED needs one split.

    Before the tokens are there, while the kernels before this one still run, AHEAD bytes of each row are
    asked for to be in the L2 cache: the memory need not pause between two kernels. A SLICE of one BLOCK_K is
    loaded as a whole.
    """
    start_dependents(PDL)
    split = tl.program_id(1)
    row = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    if GATED:  # pairs side by side: gate, up, gate, up, ...
        inside = row < 2 * outputs
        row = row // 2 + row % 2 * outputs
    else:
        inside = row < outputs
    token = tl.arange(0, BLOCK_M)
    column = tl.arange(0, BLOCK_K)
    first = split * SLICE
    weight_row_ptr = weight_ptr + row.to(tl.int64) * K + first
    weight_tile_ptr = weight_row_ptr[:, None] + column[None, :]
    x_tile_ptr = x_ptr + token[:, None] * K + first + column[None, :]
    if SLICE <= BLOCK_K:
        valid = (column < SLICE) & (first + column < K)
        weight = tl.load(
            weight_tile_ptr, inside[:, None] & valid[None, :], other=0.0, eviction_policy="evict_first"
        )
    elif K % 8 == 0:
        read_ahead(weight_row_ptr, inside, tl.minimum(SLICE, K - first) * 2, AHEAD, PDL)
    await_previous(PDL)
    sums = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    if SLICE <= BLOCK_K:
        x = tl.load(x_tile_ptr, (token < rows)[:, None] & valid[None, :], other=0.0)
        sums = tl.dot(weight, tl.trans(x), sums, input_precision="ieee")
    else:
        for start in tl.range(0, SLICE, BLOCK_K, num_stages=STAGES):
            valid = (start + column < SLICE) & (first + start + column < K)
            weight = tl.load(
                weight_tile_ptr + start,
                inside[:, None] & valid[None, :],
                other=0.0,
                eviction_policy="evict_first",
            )
            x = tl.load(x_tile_ptr + start, (token < rows)[:, None] & valid[None, :], other=0.0)
            sums = tl.dot(weight, tl.trans(x), sums, input_precision="ieee")
    if BIAS:
        bias = tl.load(bias_ptr + row, inside & (split == 0), other=0.0)
        sums += bias.to(tl.float32)[:, None]
    if GATED:
        pairs = tl.permute(tl.reshape(sums, (BLOCK_N // 2, 2, BLOCK_M)), (0, 2, 1))
        gate, up = tl.split(pairs)
        y = gate / (1 + tl.exp(-gate)) * up
        output = tl.program_id(0) * (BLOCK_N // 2) + tl.arange(0, BLOCK_N // 2)
    else:
        y = sums
        output = row
    out = out_ptr + (split * rows + token[None, :]).to(tl.int64) * outputs + output[:, None]
    mask = (output < outputs)[:, None] & (token < rows)[None, :]
    tl.store(out, y.to(out_ptr.dtype.element_ty), mask)


def tile(
    inputs: int, outputs: int, dtype: torch.dtype, where: Target, *, split: bool, wide: bool = False
) -> Options:
    """The kernel's options, with the SLICE of K of one program.

    `outputs` counts rows of weights. With `split`, K is cut until there is a program for nearly every
    processor, but into slices of at least 256. EARLY: the next kernel may start at once. `wide`: for more
    than NARROW_ROWS tokens; the SLICE is the same, since that alone decides in which order sums are taken.
    """
    shape = {"inputs": inputs, "outputs": outputs, "split": int(split)}
    narrow = tiles.choose(
        tiles.key("gemm", where, dtype, **shape),
        lambda: rule(inputs, outputs, where, split=split),
        lambda: candidates(inputs, outputs, where, split=split),
    )
    if not wide:
        return narrow

    def same_slice() -> Iterator[Options]:
        # Of the tiles for few tokens as they are by then: a tuner comes to them first.
        wanted = tile(inputs, outputs, dtype, where, split=split)["SLICE"]
        return (each for each in candidates(inputs, outputs, where, split=split) if each["SLICE"] == wanted)

    found = tiles.choose(tiles.key("gemm", where, dtype, **shape, wide=1), lambda: narrow, same_slice)
    return found if found["SLICE"] == narrow["SLICE"] else narrow


def rule(inputs: int, outputs: int, where: Target, *, split: bool) -> Options:
    """As `tile`, where nothing was measured."""
    enough = where.processors * 9 // 10
    block_n = 128 if outputs // 128 >= enough and not where.hip else 64
    block_k, stages, ahead = 64, 1 if where.hip else 3, 0
    if where.shared_kib >= 200 and outputs // block_n < 4 * where.processors:  # deep pipelines, short runs
        block_k, stages, ahead = 128, 6 if block_n == 64 else 4, 32768 // block_n
    programs, splits = triton.cdiv(outputs, block_n), 1
    while split and programs * splits < enough and inputs // (2 * splits) >= 256 and splits < 8:
        splits *= 2
    piece = triton.cdiv(triton.cdiv(inputs, splits), block_k) * block_k
    return _options(piece, block_n, block_k, stages, 128, ahead, True, where)


def _options(
    piece: int, block_n: int, block_k: int, stages: int, threads: int, ahead: int, early: bool, where: Target
) -> Options:
    return {
        "SLICE": piece,
        "BLOCK_N": block_n,
        "BLOCK_K": block_k,
        "STAGES": stages,
        "AHEAD": ahead,
        "EARLY": int(early),
        "num_warps": where.warps(threads),
    }


def candidates(inputs: int, outputs: int, where: Target, *, split: bool) -> Iterator[Options]:
    """Options worth measuring; whatever is chosen holds for every number of tokens."""
    depths = ((64, 3), (128, 3), (128, 4), (128, 6))
    streamed = product((64, 128), depths, (128,), (1, 2, 4, 8), ((0, False), (512, True)))
    whole = product((64,), ((256, 1), (512, 1), (1024, 1)), (128, 256), range(1, 9), ((0, False), (0, True)))
    for block_n, (block_k, stages), threads, splits, (ahead, early) in chain(streamed, whole):
        piece = triton.cdiv(triton.cdiv(inputs, splits), block_k) * block_k
        programs = triton.cdiv(outputs, block_n) * splits
        if splits > 1 and (not split or piece < 256 or programs > 3 * where.processors):
            continue
        if piece * splits >= inputs + piece or outputs < block_n:  # nothing is left for some programs
            continue
        if stages == 1 and (piece > block_k or where.shared_kib < 200):
            continue
        if stages > 3 and 2 * stages * block_k * (block_n + MAX_ROWS) > 1024 * where.shared_kib:
            continue
        if early and not where.pdl:
            continue
        yield _options(piece, block_n, block_k, stages, threads, ahead, early, where)


def gemm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    gated: bool = False,
    split: bool = False,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """x [T, K] with T <= MAX_ROWS, weight [N, K] -> [S, T, N], whose sum over S is x W^T (+ bias).

    S is 1 unless `split` allows more. One part has `dtype` (default x's), several are in fp32. gated: weight
    [2N, K] gives silu(first half) * second half.
    """
    rows, inputs = x.shape
    weight_rows = weight.shape[0]
    outputs = weight_rows // 2 if gated else weight_rows
    where = target(x.device)
    wide = rows > NARROW_ROWS
    options = dict(tile(inputs, weight_rows, weight.dtype, where, split=split, wide=wide))
    splits = triton.cdiv(inputs, options["SLICE"])
    chain = where.chain(early=bool(options.pop("EARLY")))
    out = x.new_empty((splits, rows, outputs), dtype=torch.float32 if splits > 1 else dtype)
    _gemm_kernel[(triton.cdiv(weight_rows, options["BLOCK_N"]), splits)](
        x, weight, bias, out, rows, outputs, K=inputs,
        BLOCK_M=max(16, triton.next_power_of_2(rows)), BIAS=bias is not None, GATED=gated,
        **options, **chain,
    )  # fmt: skip
    return out


def sum_parts(parts: Tensor, dtype: torch.dtype) -> Tensor:
    """The output [T, N] of a linear layer in `dtype`, of its partial sums [S, T, N]."""
    return (parts[0] if len(parts) == 1 else parts.sum(0)).to(dtype)
