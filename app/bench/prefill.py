"""How fast prompts of several lengths are read."""

from __future__ import annotations

import random
import statistics

from .decode import ours
from .report import FIRST_TOKEN, Column, Panel, Report, Row, engine_facts, rate
from .subject import Subject, check_fits, fits
from .timing import Tell, time_first_token
from .workload import SEED, random_prompt

LENGTHS = (128, 512, 2048, 8192)


def measure(subject: Subject, *, lengths: list[int], repeats: int, tell: Tell) -> Report:
    """Time whole generations of one token by the wall clock, one request at a time, no prefix cached.

    No `lengths`: those of LENGTHS that the model's context holds. Raises UserError when one does not fit.
    """
    tell(f"Loading {subject.name}")
    engine = subject.load(prefix_cache=False, speculate=False)
    draw = random.Random(SEED)
    rows: list[Row] = []
    for length in lengths or [length for length in LENGTHS if fits(engine.info, length + 1)]:
        check_fits(engine.info, 1, length + 1)
        tell(f"Prompts of {length} tokens")
        prompt = random_prompt(draw, subject.config.vocab_size, length)
        taken = time_first_token(ours(engine, [prompt]), repeats)
        ttft = statistics.median(taken)
        rows.append(
            {
                "prompt_tokens": length,
                "ttft_s": ttft,
                "prefill_tokens_per_s": length / ttft,
                "repeats_s": taken,
            }
        )
    labels = [f"{row['prompt_tokens']} tokens" for row in rows]
    panels = (
        Panel("Prompt tokens/s", labels, {"": [row["prefill_tokens_per_s"] for row in rows]}),
        Panel("Time to first token, ms", labels, {"": [1000 * row["ttft_s"] for row in rows]}),
    )
    return Report(engine_facts("prefill", subject, engine, repeats=repeats), rows, _COLUMNS, panels)


_COLUMNS = (
    Column("Prompt tokens", lambda row: f"{row['prompt_tokens']:,}"),
    FIRST_TOKEN,
    Column("Prompt tokens/s", lambda row: rate(row["prefill_tokens_per_s"])),
)
