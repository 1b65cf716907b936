"""Decode rate at long contexts, beside the time in which a copy moves the bytes that a step must read."""

from __future__ import annotations

import random

from .decode import ours
from .report import DECODE_RATE, Column, Panel, Report, Row, copy_facts, engine_facts, rate
from .roofline import copy_bandwidth, step_traffic
from .subject import Subject, check_fits, fits
from .timing import Tell, time_decode
from .workload import SEED, random_prompt

CONTEXTS = (1024, 8192, 32768)


def measure(subject: Subject, *, contexts: list[int], new_tokens: int, repeats: int, tell: Tell) -> Report:
    """Decode one request from a prompt of each length; the mean context is half the reply longer.

    No `contexts`: those of CONTEXTS that the model's context holds. Raises UserError when one does not fit.
    """
    from ...engine.device import resolve_device

    copy = copy_bandwidth(resolve_device(subject.device))
    tell(f"Loading {subject.name}")
    engine = subject.load(prefix_cache=False, speculate=False)
    itemsize = engine.runner.model.embed_tokens.weight.itemsize
    draw = random.Random(SEED)
    rows: list[Row] = []
    for length in contexts or [length for length in CONTEXTS if fits(engine.info, length + new_tokens)]:
        check_fits(engine.info, 1, length + new_tokens)
        tell(f"Context of {length} tokens")
        prompt = random_prompt(draw, subject.config.vocab_size, length)
        timing = time_decode(ours(engine, [prompt]), 1, new_tokens, repeats)
        mean = length + new_tokens / 2
        traffic = step_traffic(subject.config, itemsize, 1, mean, timing.step_s, copy)
        rows.append({"prompt_tokens": length, "mean_context": mean, **timing.as_dict(), **traffic})
    more = {"new_tokens": new_tokens, "repeats": repeats, **copy_facts(copy)}
    labels = [f"{row['prompt_tokens']} tokens" for row in rows]
    panels = (
        Panel(
            "Decode tokens/s after a prompt of", labels, {"": [row["decode_tokens_per_s"] for row in rows]}
        ),
        Panel(
            "Step time over the time in which a copy moves as many bytes",
            labels,
            {"": [row["floor_ratio"] for row in rows]},
        ),
    )
    return Report(engine_facts("context", subject, engine, **more), rows, _COLUMNS, panels)


_COLUMNS = (
    Column("Prompt tokens", lambda row: f"{row['prompt_tokens']:,}"),
    DECODE_RATE,
    Column("Weights GB/step", lambda row: f"{row['weight_bytes_per_step'] / 1e9:.3f}"),
    Column("KV GB/step", lambda row: f"{row['kv_bytes_per_step'] / 1e9:.3f}"),
    Column("GB/s", lambda row: rate(row["gb_per_s"])),
    Column("Time over floor", lambda row: f"{row['floor_ratio']:.2f}"),
)
