"""CUDA graphs: a step's launches recorded once and replayed as one."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

Function = Callable[[Tensor], None]
Inputs = list[int] | list[list[int]]
"""What becomes a function's int32 tensor."""


@dataclass
class _Graph:
    graph: torch.cuda.CUDAGraph
    inputs: Tensor
    latest: Tensor | None = None
    """What was last copied to `inputs`, on the host."""


class Graphs:
    """One graph for each key, captured at its first use; only one runs at a time, so they share memory."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._graphs: dict[Hashable, _Graph] = {}
        self._pool: Any = None

    def run(self, key: Hashable, function: Function, inputs: Tensor, idle: Inputs) -> None:
        """`function` of `inputs` (pinned, on the host) on the device.

        `function` must do the same launches for all inputs of one key. It is called with `idle`, which must
        leave no trace that matters, when it is captured.
        """
        graph = self._graphs.get(key) or self._capture(key, function, idle)
        if graph.latest is None or not torch.equal(graph.latest, inputs):
            graph.inputs.copy_(inputs, non_blocking=True)
            graph.latest = inputs
        graph.graph.replay()

    def _capture(self, key: Hashable, function: Function, idle: Inputs) -> _Graph:
        inputs = torch.tensor(idle, dtype=torch.int32, device=self._device)
        graph = capture(partial(function, inputs), self._pool)
        self._pool = self._pool or graph.pool()
        self._graphs[key] = _Graph(graph, inputs)
        return self._graphs[key]


@cache
def _side_stream(device: int) -> torch.cuda.Stream:
    """The one that all captures are made on: cuBLAS keeps memory of its own for every stream that it sees."""
    return torch.cuda.Stream(device)


def capture(launch: Callable[[], None], pool: Any = None) -> torch.cuda.CUDAGraph:
    """The launches of a function as a graph in a memory pool; it is run once to that end.

    Other threads may use the GPU meanwhile, but not capture.
    """
    stream = _side_stream(torch.cuda.current_device())
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        launch()  # compiles kernels and sets libraries up, which a capture must not
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
        launch()
    return graph
