"""`bench tune`: measures tiles in the decode steps of one model's shapes and keeps them for this user."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from ...models.config import ModelConfig
from ...models.errors import UserError

if TYPE_CHECKING:
    from ...engine.engine import Engine

LAYERS = 4
"""Layers of the model that is measured: enough for the neighbours of each kernel to be what they will be."""
CASES = ({1: (256, 2048)}, {16: (256, 1024), 64: (256, 1024)})
"""Tokens of context by the number of sequences; few and many sequences have tiles of their own."""
REPLAYS = 12


def tune(config: ModelConfig, path: Path, *, device: str, dtype: str, tell: Callable[[str], None]) -> int:
    """Tune the kernels for `config` and write them to the table at `path`; returns the number of entries.

    Raises UserError where there is no GPU, or no room for the model.
    """
    from ...engine.device import resolve_device
    from ...engine.engine import Engine
    from ...engine.options import EngineOptions
    from ...kernels import tiles
    from ...kernels.tuning import tune as tune_kernels

    if resolve_device(device).type != "cuda":
        raise UserError("Tiles are tuned on a GPU, and none that PyTorch can use was found.")
    part = replace(config, num_layers=min(config.num_layers, LAYERS))
    options = EngineOptions(device=device, dtype=dtype, max_context=4096, cuda_graphs=False)
    engine = Engine.random(part, options, name="tune")
    found = {}
    for cases in CASES:
        found |= tune_kernels(partial(step_seconds, engine, cases), tell)
    tiles.save(path, found)
    return len(found)


def step_seconds(engine: Engine, cases: dict[int, tuple[int, ...]]) -> list[float]:
    """Median seconds of a decode step of so many sequences with so many tokens of context each."""
    import torch

    from ...engine.graphs import capture
    from ...engine.kv_cache import pages_for

    runner, state = engine.runner, engine.runner.state
    taken = []
    for batch, contexts in cases.items():
        pages = pages_for(max(contexts) + 2 * REPLAYS)
        table = torch.arange(1, batch * pages + 1, device=state.page_table.device).view(batch, pages)
        state.page_table[:batch, :pages] = table % engine.pool.total + 1
        inputs = torch.zeros(2, batch, dtype=torch.int32, device=table.device)
        inputs[0] = torch.arange(batch)
        graph = capture(partial(runner.decode_step, inputs))
        for context in contexts:
            state.positions.fill_(context)
            marks = [torch.cuda.Event(enable_timing=True) for _ in range(REPLAYS)]
            for mark in marks:
                mark.record()
                graph.replay()
            torch.cuda.synchronize()
            spans = [first.elapsed_time(second) for first, second in pairwise(marks)]
            taken.append(statistics.median(spans) / 1e3)
    return taken
