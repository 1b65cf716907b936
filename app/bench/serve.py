"""Many users at once: requests of different lengths that arrive at random moments."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING

from .report import Column, Panel, Report, Row, engine_facts, ms, rate
from .subject import Subject, check_fits
from .timing import Tell, percentiles
from .workload import SEED, Job, Replies, ragged_jobs, run, submit

if TYPE_CHECKING:
    from ...engine.engine import Engine


def measure(
    subject: Subject, *, rates: list[float], requests: int, prompt_tokens: int, new_tokens: int, tell: Tell
) -> Report:
    """Serve the same requests at each rate (requests/s), arriving as a Poisson process.

    Lengths are log-normal around the medians `prompt_tokens` and `new_tokens`. The time to first token
    counts from the arrival, whatever the engine was at then; the time per output token is the mean of one
    request's tokens after the first. Raises UserError when a request fails or gets another number of tokens.
    """
    tell(f"Loading {subject.name}")
    engine = subject.load(prefix_cache=False, speculate=False)
    jobs = ragged_jobs(subject.config.vocab_size, requests, prompt_tokens, new_tokens)
    check_fits(engine.info, 1, max(len(job.prompt) + job.new_tokens for job in jobs))
    tell("Warming up")
    engine.prepare_all()  # as in the idle moments of the app
    run(
        engine, ragged_jobs(subject.config.vocab_size, min(requests, 64), prompt_tokens, new_tokens, SEED + 1)
    )
    rows: list[Row] = []
    for per_second in rates:
        tell(f"{per_second:g} requests/s")
        rows.append({"requests_per_s": per_second, **_serve(engine, jobs, per_second)})
    more = {
        "requests": requests,
        "median_prompt_tokens": prompt_tokens,
        "median_new_tokens": new_tokens,
        "prompt_tokens": [len(job.prompt) for job in jobs],
        "new_tokens": [job.new_tokens for job in jobs],
    }
    labels = [f"{per_second:g} requests/s" for per_second in rates]

    def in_ms(key: str) -> dict[str, list[float]]:
        return {rank: [1000 * row[key][rank] for row in rows] for rank in ("p50", "p90", "p99")}

    panels = (
        Panel("Generated tokens/s", labels, {"": [row["tokens_per_s"] for row in rows]}),
        Panel("Time to first token, ms", labels, in_ms("ttft_s")),
        Panel("Time per output token, ms", labels, in_ms("tpot_s")),
    )
    return Report(engine_facts("serve", subject, engine, **more), rows, _COLUMNS, panels)


def _serve(engine: Engine, jobs: list[Job], per_second: float) -> Row:
    """Run the jobs as they arrive; the moments are drawn anew from the same seed for each rate."""
    draw = random.Random(SEED)
    replies = Replies()
    start = arrival = time.monotonic()
    number = 0
    while number < len(jobs) or engine.busy:
        while number < len(jobs) and arrival <= time.monotonic():
            submit(engine, number, jobs[number], replies, arrival)
            number += 1
            arrival += draw.expovariate(per_second)
        if engine.busy:
            engine.step()
        elif number < len(jobs):
            time.sleep(max(0.0, arrival - time.monotonic()))
    wall = time.monotonic() - start
    usages = [event.usage for event in replies.check(jobs)]
    generated = sum(usage.completion_tokens for usage in usages)
    ttft = [usage.ttft_s for usage in usages]
    tpot = [1 / usage.decode_tokens_per_s for usage in usages if usage.decode_tokens_per_s]
    return {
        "wall_s": wall,
        "generated_tokens": generated,
        "tokens_per_s": generated / wall,
        "finished_per_s": len(jobs) / wall,
        "ttft_s": percentiles(ttft),
        "tpot_s": percentiles(tpot),
        "ttft_each_s": ttft,
        "tpot_each_s": tpot,
    }


def _three(values: dict[str, float]) -> str:
    return " / ".join(ms(value) for value in values.values())


_COLUMNS = (
    Column("Requests/s", lambda row: f"{row['requests_per_s']:g}"),
    Column("Served/s", lambda row: f"{row['finished_per_s']:.2f}"),
    Column("Tokens/s", lambda row: rate(row["tokens_per_s"])),
    Column("First token ms (p50/p90/p99)", lambda row: _three(row["ttft_s"])),
    Column("Per token ms (p50/p90/p99)", lambda row: _three(row["tpot_s"])),
)
