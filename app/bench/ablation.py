"""What each optimisation brings: the engine from plain attention up, one switch after the other."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING, Any

from .decode import ours
from .report import DECODE_RATE, FIRST_TOKEN, Column, Panel, Report, Row, engine_facts, rate
from .subject import Subject, check_fits, free_memory
from .timing import Tell, time_decode
from .workload import Job, Replies, equal_jobs, ragged_jobs, submit

if TYPE_CHECKING:
    from ...engine.engine import Engine
    from ...engine.events import Event

STAGES: tuple[tuple[str, dict[str, Any]], ...] = (
    (
        "plain attention, static KV",
        {
            "attention": "plain",
            "flash_decoding": False,
            "dynamic_kv": False,
            "fused": False,
            "cuda_graphs": False,
            "prefix_cache": False,
            "speculate": False,
        },
    ),
    ("+ FlashAttention-1", {"attention": "flash1"}),
    ("+ FlashAttention-2", {"attention": "flash2"}),
    ("+ flash decoding", {"flash_decoding": True}),
    ("+ dynamic KV", {"dynamic_kv": True}),
    ("+ fused operators", {"fused": True}),
    ("+ CUDA graphs", {"cuda_graphs": True}),
)
"""Name of each stage and the EngineOptions that it changes; what an earlier one changed stays."""
STATIC_REQUESTS = 16
"""The KV cache holds so many of the longest requests that the ragged workload may have."""


def measure(
    subject: Subject,
    *,
    batch: int,
    prompt_tokens: int,
    new_tokens: int,
    requests: int,
    repeats: int,
    tell: Tell,
) -> Report:
    """Run two workloads at every stage, in a KV cache of the same size.

    Equal: `batch` requests as in `bench decode`. Ragged: `requests` requests, all waiting from the start,
    of log-normal prompt and reply lengths with the given medians, at most four times as long. As in a chat
    nobody knows a reply's length beforehand: each request may get the longest, so that is what a static
    cache reserves, and it is ended from outside when it has its tokens. Raises UserError when a stage cannot
    be loaded, the requests do not fit, or one gets another number of tokens.
    """
    from ...kernels import PAGE_SIZE

    vocab = subject.config.vocab_size
    prompts = [job.prompt for job in equal_jobs(vocab, batch, prompt_tokens, new_tokens)]
    jobs = ragged_jobs(vocab, requests, prompt_tokens, new_tokens)
    longest = 4 * (prompt_tokens + new_tokens)
    kv_tokens = max(STATIC_REQUESTS * longest, batch * (prompt_tokens + new_tokens + PAGE_SIZE))
    switches: dict[str, Any] = {}
    facts: dict[str, Any] = {}
    rows: list[Row] = []
    for name, change in STAGES:
        tell(name)
        switches |= change
        engine = subject.load(max_sequences=max(64, batch), **switches)
        check_fits(engine.info, STATIC_REQUESTS, longest)
        check_fits(engine.info, batch, prompt_tokens + new_tokens)
        held: list[int] = []  # the rest of the cache, so that every stage on every device has as much
        engine.pool.grow(held, max(0, engine.pool.total * PAGE_SIZE - kv_tokens))
        tell(f"{name}: {batch} equal requests")
        timing = time_decode(ours(engine, prompts), batch, new_tokens, repeats)
        tell(f"{name}: {requests} ragged requests")
        runs = [_ragged(engine, jobs, 4 * new_tokens) for _ in range(repeats + 1)][1:]
        generated = sum(job.new_tokens for job in jobs)
        rows.append(
            {
                "stage": name,
                "options": dict(switches),
                **timing.as_dict(),
                "ragged_generated_tokens": generated,
                "ragged_repeats_s": [seconds for seconds, _ in runs],
                "ragged_tokens_per_s": generated / statistics.median(seconds for seconds, _ in runs),
                "most_requests_at_once": max(peak for _, peak in runs),
            }
        )
        facts = engine_facts("ablation", subject, engine)
        del engine
        free_memory()
    facts |= {
        "batch": batch,
        "prompt_tokens": prompt_tokens,
        "new_tokens": new_tokens,
        "repeats": repeats,
        "kv_tokens": kv_tokens,
        "ragged_prompt_tokens": [len(job.prompt) for job in jobs],
        "ragged_new_tokens": [job.new_tokens for job in jobs],
        "ragged_reserved_new_tokens": 4 * new_tokens,
    }
    labels = [row["stage"] for row in rows]
    panels = tuple(
        Panel(title, labels, {"": [scale * row[key] for row in rows]})
        for title, key, scale in (
            (f"Ragged: {requests} requests, generated tokens/s", "ragged_tokens_per_s", 1),
            (f"Equal: batch {batch}, decode tokens/s", "decode_tokens_per_s", 1),
            (f"Equal: batch {batch}, prompt {prompt_tokens}, time to first token, ms", "ttft_s", 1000),
        )
    )
    return Report(facts, rows, _COLUMNS, panels)


def _ragged(engine: Engine, jobs: list[Job], reserved: int) -> tuple[float, int]:
    """Seconds by the wall clock for all jobs, and the most of them that were on the device at once."""
    from ...engine.events import Finished, PrefillProgress, TextDelta
    from ...engine.no_tokenizer import NoTokenizer

    engine.tokenizer = NoTokenizer()  # every token has its event at once, none ends a reply
    replies = Replies()
    running: set[int] = set()
    complete: list[int] = []
    peak = 0

    def sink(event: Event) -> None:
        nonlocal peak
        replies(event)
        if isinstance(event, PrefillProgress):
            running.add(event.request_id)
            peak = max(peak, len(running))
        elif isinstance(event, TextDelta) and event.completion_tokens == jobs[event.request_id].new_tokens:
            complete.append(event.request_id)
        elif isinstance(event, Finished):
            running.discard(event.request_id)

    start = time.perf_counter()
    for number, job in enumerate(jobs):
        submit(engine, number, Job(job.prompt, reserved), sink, time.monotonic())
    while engine.busy:
        engine.step()
        while complete:
            engine.cancel(complete.pop())
    taken = time.perf_counter() - start
    replies.check(jobs)
    return taken, peak


_COLUMNS = (
    Column("Stage", lambda row: row["stage"]),
    FIRST_TOKEN,
    DECODE_RATE,
    Column("Ragged tokens/s", lambda row: rate(row["ragged_tokens_per_s"])),
    Column("At once", lambda row: str(row["most_requests_at_once"])),
)
