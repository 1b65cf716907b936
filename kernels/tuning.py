"""Finds the fastest tiles for a model's shapes on this GPU, by measuring each kernel's candidates."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from . import decode_attention, gemm, gemv, tiles
from ._triton import target, triton
from .paging import PAGE_SIZE
from .tiles import Options

_COLD_BYTES = 512 << 20
"""Weights are rotated so that what is read was not read so many bytes ago: no cache holds them."""
_FEW_SEQUENCES = ((1, 256), (1, 1024), (1, 4096))
"""(sequences, tokens of context) that attention is measured at."""
_MANY_SEQUENCES = ((16, 256), (16, 1024), (64, 256), (64, 1024))


@dataclass(frozen=True)
class LinearShape:
    """One linear layer: y [.., outputs] of x [.., inputs]; gated layers have 2 * outputs rows of weights.

    `split`: K may be split over programs, since the consumer adds partial sums.
    """

    inputs: int
    outputs: int
    gated: bool = False
    split: bool = False


@dataclass(frozen=True)
class AttentionShape:
    """The heads of a model."""

    q_heads: int
    kv_heads: int
    head_dim: int


def tune(
    linears: Iterable[LinearShape],
    attention: AttentionShape,
    device: torch.device,
    dtype: torch.dtype,
    tell: Callable[[str], None] = lambda _: None,
) -> dict[str, Options]:
    """The best options of each kernel at each shape, as entries of the table of tiles.

    `tell` gets a line about each. Raises RuntimeError where nothing of a kernel can be launched.
    """
    where = target(device)
    found: dict[str, Options] = {}
    for shape in dict.fromkeys(linears):
        rows = shape.outputs * (2 if shape.gated else 1)
        weights = _weights(rows, shape.inputs, device, dtype)
        one = torch.randn(1, shape.inputs, device=device, dtype=dtype)
        key = gemv.tile_key(shape.inputs, shape.outputs, shape.gated, dtype, where)
        options = gemv.candidates(shape.inputs, shape.gated, where)
        run = _rotate(weights, lambda weight, x=one, s=shape: gemv.gemv(x, weight, gated=s.gated))
        found[key] = _best(key, options, [run], tell)
        key = gemm.tile_key(shape.inputs, rows, dtype, where, split=shape.split)
        options = gemm.candidates(shape.inputs, rows, where, split=shape.split)
        runs = []
        for count in (16, 64):  # the same tile serves every number of tokens
            few = torch.randn(count, shape.inputs, device=device, dtype=dtype)
            runs.append(
                _rotate(weights, lambda w, x=few, s=shape: gemm.gemm(x, w, gated=s.gated, split=s.split))
            )
        found[key] = _best(key, options, runs, tell)
    group = attention.q_heads // attention.kv_heads
    for few, cases in ((True, _FEW_SEQUENCES), (False, _MANY_SEQUENCES)):
        key = decode_attention.tile_key(attention.head_dim, group, dtype, where, few=few)
        options = decode_attention.candidates(attention.head_dim, where, few=few)
        runs = [_attention(attention, batch, length, device, dtype) for batch, length in cases]
        found[key] = _best(key, options, runs, tell)
    return found


def _weights(rows: int, columns: int, device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    size = rows * columns * dtype.itemsize
    count = max(2, min(32, _COLD_BYTES // size)) if device.type == "cuda" else 1
    return [torch.randn(rows, columns, device=device, dtype=dtype) * 0.02 for _ in range(count)]


def _rotate(weights: list[Tensor], call: Callable[[Tensor], object]) -> Callable[[], int]:
    """Calls once with each weight; returns the number of calls."""

    def run() -> int:
        for weight in weights:
            call(weight)
        return len(weights)

    return run


def _attention(
    shape: AttentionShape, batch: int, context: int, device: torch.device, dtype: torch.dtype
) -> Callable[[], int]:
    heads, dim = shape.kv_heads, shape.head_dim
    pages = triton.cdiv(context, PAGE_SIZE)
    caches = [
        torch.randn(2, batch * pages + 1, PAGE_SIZE, heads, dim, device=device, dtype=dtype) for _ in range(4)
    ]
    table = torch.arange(1, batch * pages + 1, device=device, dtype=torch.int32).view(batch, pages)
    positions = torch.full((batch,), context - 1, device=device)
    slots = torch.arange(batch, device=device, dtype=torch.int32)
    angles = torch.randn(context, dim // 2, device=device)
    width = (shape.q_heads + 2 * heads) * dim
    qkv = torch.randn(1, batch, width, device=device, dtype=dtype)

    def run() -> int:
        for k, v in caches:
            decode_attention.triton_decode_attention(
                qkv, positions, slots, table, angles, angles, k, v, shape.q_heads, dim**-0.5
            )
        return len(caches)

    return run


def _best(
    key: str, options: Iterable[Options], runs: list[Callable[[], int]], tell: Callable[[str], None]
) -> Options:
    """The options whose runs take the least time, the sum of each run's time over the best one's."""
    times: list[tuple[Options, list[float]]] = []
    for candidate in options:
        tiles.update({key: candidate})
        try:
            times.append((candidate, [_seconds(run) for run in runs]))
        except Exception as error:  # too large for this GPU, or one that its compiler refuses
            tell(f"{key}: {candidate} cannot run ({type(error).__name__})")
    if not times:
        raise RuntimeError(f"No tile of {key} can run on this GPU.")
    least = [min(seconds) for seconds in zip(*(own for _, own in times), strict=True)]
    best, seconds = min(times, key=lambda entry: sum(t / m for t, m in zip(entry[1], least, strict=True)))
    tiles.update({key: best})
    tell(f"{key}: {best}, {' '.join(f'{1e6 * value:.1f}' for value in seconds)} us")
    return best


def _seconds(run: Callable[[], int]) -> float:
    """Median time of one call of a run, its launches replayed as a CUDA graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        calls = run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=side):
        run()
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(12)]
    for mark in marks:
        mark.record()
        graph.replay()
    torch.cuda.synchronize()
    spans = [first.elapsed_time(second) for first, second in pairwise(marks)]
    return statistics.median(spans) / 1e3 / calls
