"""The linear layers of one token (matrix times vector), with the norm before and what comes after; or of the
few tokens that speculative decoding checks at once, each exactly as if it were alone.

All that counts is to keep the memory busy: every program asks for the first tile of its weights before it
waits for the kernel before it (programmatic dependent launch), and for the next tile before it uses one.
"""

# pyright: reportPossiblyUnboundVariable=false
# (Branches on a constexpr are taken when a kernel is compiled, together or not at all.)

from collections.abc import Iterator
from itertools import product

import torch
from torch import Tensor

from . import tiles
from ._triton import Target, target, tl, triton
from .pdl import await_previous, start_dependents
from .tiles import Options

MAX_ROWS = 4
"""Tokens up to which this kernel is used: the weights are read once, but each token multiplies by itself."""


@triton.jit
def _gemv_kernel(
    x_ptr, norm_ptr, weight_ptr, bias_ptr, residual_ptr, out_ptr, outputs, eps,
    ROWS: tl.constexpr, K: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    NORM: tl.constexpr, BIAS: tl.constexpr, RESIDUAL: tl.constexpr, GATED: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_N outputs of all tokens, the whole of K.

    x [ROWS, K]; norm [K]; weight [outputs, K], with GATED [2 * outputs, K] (gate rows, then up rows); bias
    as many; residual, out [ROWS, outputs]. Products and sums are in fp32, in an order that does not depend
    on ROWS. NORM multiplies x by the norm's weight and the result by 1 / rms(x), which is a scalar: the row
    is read once.
    """
    start_dependents(PDL)
    output = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = output < outputs
    column = tl.arange(0, BLOCK_K)
    gate_ptr = weight_ptr + output[:, None].to(tl.int64) * K + column[None, :]
    up_ptr = gate_ptr + outputs.to(tl.int64) * K
    mask = inside[:, None] & (column < K)[None, :]
    gate = tl.load(gate_ptr, mask, other=0.0, eviction_policy="evict_first")
    if GATED:
        up = tl.load(up_ptr, mask, other=0.0, eviction_policy="evict_first")
    if NORM:
        norm = tl.load(norm_ptr + column, column < K, other=0.0)
    await_previous(PDL)
    gate_sums, up_sums, squares = (), (), ()
    for _ in tl.static_range(ROWS):
        gate_sums = gate_sums + (tl.zeros((BLOCK_N, BLOCK_K), tl.float32),)
        up_sums = up_sums + (tl.zeros((BLOCK_N, BLOCK_K), tl.float32),)
        squares = squares + (tl.zeros((BLOCK_K,), tl.float32),)
    for start in tl.static_range(0, K, BLOCK_K):
        if start + BLOCK_K < K:
            following = start + BLOCK_K + column < K
            mask = inside[:, None] & following[None, :]
            next_gate = tl.load(gate_ptr + start + BLOCK_K, mask, other=0.0, eviction_policy="evict_first")
            if GATED:
                next_up = tl.load(up_ptr + start + BLOCK_K, mask, other=0.0, eviction_policy="evict_first")
            if NORM:
                next_norm = tl.load(norm_ptr + start + BLOCK_K + column, following, other=0.0)
        new_gate_sums, new_up_sums, new_squares = (), (), ()
        for row in tl.static_range(ROWS):
            x = tl.load(x_ptr + row * K + start + column, start + column < K, other=0.0).to(tl.float32)
            new_squares = new_squares + (squares[row] + x * x,)
            if NORM:
                x *= norm.to(tl.float32)
            new_gate_sums = new_gate_sums + (gate_sums[row] + gate.to(tl.float32) * x[None, :],)
            if GATED:
                new_up_sums = new_up_sums + (up_sums[row] + up.to(tl.float32) * x[None, :],)
            else:
                new_up_sums = new_up_sums + (up_sums[row],)
        gate_sums, up_sums, squares = new_gate_sums, new_up_sums, new_squares
        if start + BLOCK_K < K:
            gate = next_gate
            if GATED:
                up = next_up
            if NORM:
                norm = next_norm
    for row in tl.static_range(ROWS):
        scale = 1.0
        if NORM:
            scale = tl.rsqrt(tl.sum(squares[row]) / K + eps)
        y = tl.sum(gate_sums[row], 1) * scale
        if BIAS:
            y += tl.load(bias_ptr + output, inside, other=0.0).to(tl.float32)
        if GATED:
            z = tl.sum(up_sums[row], 1) * scale
            if BIAS:
                z += tl.load(bias_ptr + outputs + output, inside, other=0.0).to(tl.float32)
            y = y / (1 + tl.exp(-y)) * z
        if RESIDUAL:
            y += tl.load(residual_ptr + row * outputs + output, inside, other=0.0).to(tl.float32)
        tl.store(out_ptr + row * outputs + output, y.to(out_ptr.dtype.element_ty), inside)


def tile(inputs: int, outputs: int, gated: bool, dtype: torch.dtype, where: Target) -> Options:
    """BLOCK_N x BLOCK_K and warps: a few rows read in long runs, so many weights a thread at once."""
    return tiles.choose(
        tiles.key("gemv", where, dtype, inputs=inputs, outputs=outputs, gated=int(gated)),
        lambda: rule(inputs, gated, dtype, where),
        lambda: candidates(inputs, gated, where),
    )


def rule(inputs: int, gated: bool, dtype: torch.dtype, where: Target) -> Options:
    """As `tile`, where nothing was measured: 32 to 64 weights a thread."""
    block_k = min(triton.next_power_of_2(inputs), 1024 if inputs > 4096 or dtype.itemsize > 2 else 2048)
    threads = max(64, 4 * block_k // (16 if gated else 64))
    return {"BLOCK_N": 4, "BLOCK_K": block_k, "num_warps": where.warps(threads), "num_stages": 1}


def candidates(inputs: int, gated: bool, where: Target) -> Iterator[Options]:
    """Options worth measuring: as few as 8 weights a thread, since many small programs end together."""
    each = (8, 16, 32) if gated else (16, 32, 64)
    for block_n, block_k, threads in product((1, 2, 4, 8), (512, 1024, 2048, 4096), (64, 128, 256, 512)):
        if block_k <= triton.next_power_of_2(inputs) and block_n * block_k // threads in each:
            warps = where.warps(threads)
            yield {"BLOCK_N": block_n, "BLOCK_K": block_k, "num_warps": warps, "num_stages": 1}


def gemv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    norm: Tensor | None = None,
    eps: float = 0.0,
    residual: Tensor | None = None,
    gated: bool = False,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """x [T, K] with T <= MAX_ROWS, weight [N, K] -> [T, N] in `dtype` (default x's), sums in fp32.

    norm [K]: x is normalised by RMSNorm first. residual [T, N] is added. gated: weight [2N, K] gives
    silu(first half) * second half. A token's result does not depend on T.
    """
    outputs, inputs = weight.shape
    outputs = outputs // 2 if gated else outputs
    where = target(x.device)
    out = x.new_empty((len(x), outputs), dtype=dtype)
    options = tile(inputs, outputs, gated, weight.dtype, where)
    _gemv_kernel[(triton.cdiv(outputs, options["BLOCK_N"]),)](
        x, norm, weight, bias, residual, out, outputs, eps, ROWS=len(x), K=inputs,
        NORM=norm is not None, BIAS=bias is not None, RESIDUAL=residual is not None, GATED=gated,
        **options, **where.chain(early=True),
    )  # fmt: skip
    return out
