"""Where the time of a decode step goes on a GPU: each launch's time and rate, gaps, and the host's share."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from ...models.errors import UserError
from .report import Column, Panel, Report, Row, copy_facts, engine_facts, rate
from .roofline import copy_bandwidth, kv_bytes
from .subject import Subject, check_fits
from .timing import Tell
from .workload import Replies, equal_jobs, submit

if TYPE_CHECKING:
    from ...engine.engine import Engine
    from ...models.config import ModelConfig

STEPS = 40
"""Steps that are recorded, after as many that are not."""
FIRST = "step"
"""The kernel that every step begins with (kernels/step.py)."""
LINEARS = ("qkv", "o", "gate + up", "down")
"""The linear layers of a layer, in the order of their launches."""


@dataclass
class Launch:
    """One kind of launch: its nanoseconds in every layer of every recorded step."""

    kernel: str
    bytes: int = 0
    advance: list[int] = field(default_factory=list)
    """From the end of the launch before it to its own end: with launches that overlap, what it adds."""
    gap: list[int] = field(default_factory=list)
    """From the end of the launch before it to its start; below 0 where they overlap."""


def measure(subject: Subject, *, batch: int, prompt_tokens: int, tell: Tell) -> Report:
    """Record decode steps of `batch` greedy requests with the GPU's own clock (CUPTI, by torch.profiler).

    Raises UserError without a GPU, or when the requests do not fit.
    """
    import torch

    from ...engine.device import resolve_device

    device = resolve_device(subject.device)
    if device.type != "cuda":
        raise UserError("A profile is taken on a GPU, and none that PyTorch can use was found.")
    copy = copy_bandwidth(device)
    tell(f"Loading {subject.name}")
    engine = subject.load(prefix_cache=False, speculate=False)
    tokens = 4 * STEPS + batch  # the prefill of the others takes a few steps too
    check_fits(engine.info, batch, prompt_tokens + tokens)
    tell(f"Recording {STEPS} steps")
    _begin(engine, batch, prompt_tokens, tokens)
    start = time.perf_counter()
    for _ in range(STEPS):
        engine.step()
    torch.cuda.synchronize()
    step_s = (time.perf_counter() - start) / STEPS
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profiler:
        for _ in range(STEPS):
            engine.step()
        torch.cuda.synchronize()
    context = prompt_tokens + 2.5 * STEPS
    config, itemsize = subject.config, engine.runner.model.embed_tokens.weight.itemsize
    launches = _launches(_kernels(profiler), config, itemsize, batch * context)
    waiting = sum(
        event.self_cpu_time_total for event in profiler.key_averages() if "Synchronize" in event.key
    )
    rows: list[Row] = [_row(label, launch) for label, launch in launches.items()]
    total = sum(row["us_per_step"] for row in rows)
    facts = engine_facts(
        "profile",
        subject,
        engine,
        batch=batch,
        mean_context=context,
        step_s=step_s,
        launches_per_step=round(sum(row["launches_per_step"] for row in rows), 1),
        us_per_step=total,
        largest_gap_us=max(row["largest_gap_us"] for row in rows),
        host_waits_us_per_step=waiting / STEPS,
        **copy_facts(copy),
    )
    panel = Panel(
        "Microseconds of a step", [row["launch"] for row in rows], {"": [row["us_per_step"] for row in rows]}
    )
    return Report(facts, rows, _COLUMNS, (panel,), "1 sequence" if batch == 1 else f"{batch} sequences")


def _begin(engine: Engine, batch: int, prompt_tokens: int, tokens: int) -> None:
    """Bring all requests to decoding, with their graph captured."""
    engine.tokenizer.eos_ids = frozenset()
    jobs = equal_jobs(engine.runner.model.config.vocab_size, batch, prompt_tokens, tokens)
    for number, job in enumerate(jobs):
        submit(engine, number, job, Replies(), time.monotonic())
    while any(not sequence.is_decoding for sequence in engine.scheduler.sequences):
        engine.step()
    for _ in range(STEPS):
        engine.step()


def _kernels(profiler: Any) -> list[tuple[str, int, int]]:
    """(name, start, end in ns) of the kernels that ran, in the order of their ends."""
    from torch._C._autograd import DeviceType

    events = profiler.profiler.kineto_results.events()
    kernels = [
        (event.name(), event.start_ns(), event.start_ns() + event.duration_ns())
        for event in events
        if event.device_type() == DeviceType.CUDA and not event.name().startswith("Mem")
    ]
    return sorted(kernels, key=lambda kernel: kernel[2])


def _launches(
    kernels: list[tuple[str, int, int]], config: ModelConfig, itemsize: int, context: float
) -> dict[str, Launch]:
    """What the launches of all whole steps took, by what they do; layers are taken together."""
    starts = [at for at, (name, _, _) in enumerate(kernels) if _short(name) == FIRST]
    if len(starts) < 3:
        raise UserError("The profiler did not see the steps' kernels: is its use of the GPU restricted here?")
    found: dict[str, Launch] = {}
    # The first step has no launch before it, the last one no end to it.
    for first, end in pairwise(starts[1:]):
        labels = _labels(config)
        for at in range(first, end):
            name, start, done = kernels[at]
            before = kernels[at - 1][2]
            label = next(labels) if _short(name) in ("gemv", "gemm") else _short(name)
            launch = found.setdefault(label, Launch(_short(name), _bytes(label, config, itemsize, context)))
            launch.advance.append(done - before)
            launch.gap.append(start - before)
    steps = len(starts) - 2
    # What is rarer, such as the copy of a new page's number, is no part of a step.
    return {label: launch for label, launch in found.items() if len(launch.advance) >= steps}


def _short(name: str) -> str:
    return name.removeprefix("_").removesuffix("_kernel")


def _labels(config: ModelConfig) -> Iterator[str]:
    """What the linear layers of a step are, in order."""
    for _ in range(config.num_layers):
        yield from LINEARS
    while True:
        yield "head"


def _bytes(label: str, config: ModelConfig, itemsize: int, context: float) -> int:
    """Bytes that one launch must read, of weights or, for attention, of `context` tokens of KV."""
    hidden, ffn = config.hidden_size, config.intermediate_size
    weights = {
        "qkv": hidden * (config.q_size + 2 * config.kv_size),
        "o": config.q_size * hidden,
        "gate + up": 2 * hidden * ffn,
        "down": ffn * hidden,
        "head": hidden * config.vocab_size,
    }
    if label == "decode_attention":
        return kv_bytes(config, itemsize, context) // config.num_layers
    return weights.get(label, 0) * itemsize


def _row(label: str, launch: Launch) -> Row:
    mean = statistics.mean(launch.advance) / 1e3
    per_step = len(launch.advance) / (STEPS - 2)
    return {
        "launch": label,
        "kernel": launch.kernel,
        "launches_per_step": per_step,
        "us": mean,
        "us_per_step": mean * per_step,
        "largest_gap_us": statistics.quantiles(launch.gap, n=100)[-1] / 1e3,
        "bytes": launch.bytes,
        "gb_per_s": launch.bytes / mean / 1e3,
    }


_COLUMNS = (
    Column("Launch", lambda row: row["launch"]),
    Column("Kernel", lambda row: row["kernel"]),
    Column("A step", lambda row: f"{row['launches_per_step']:.0f}"),
    Column("us", lambda row: f"{row['us']:.2f}"),
    Column("us a step", lambda row: f"{row['us_per_step']:.1f}"),
    Column("Gap us", lambda row: f"{max(0.0, row['largest_gap_us']):.2f}"),
    Column("GB/s", lambda row: rate(row["gb_per_s"]) if row["bytes"] else ""),
)
