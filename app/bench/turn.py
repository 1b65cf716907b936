"""The next turn of a long chat: what the prefix cache saves."""

from __future__ import annotations

import random
import statistics
import time

from .report import FIRST_TOKEN, Column, Panel, Report, Row, engine_facts
from .subject import Subject, check_fits
from .timing import Tell
from .workload import SEED, Job, random_prompt, run

REPLY_TOKENS, MESSAGE_TOKENS = 64, 32
"""Of the first turn's reply and of the second turn's message."""


def measure(subject: Subject, *, conversation_tokens: int, repeats: int, tell: Tell) -> Report:
    """Time to first token of a second turn after a conversation, and of the same prompt with nothing cached.

    The wall clock runs around a whole generation of one token. Each repeat has a conversation of its own;
    the first is thrown away. Raises UserError when it does not fit.
    """
    tell(f"Loading {subject.name}")
    engine = subject.load(prefix_cache=True, speculate=False)
    length = conversation_tokens + MESSAGE_TOKENS
    check_fits(engine.info, 1, length + 1)
    vocab, draw = subject.config.vocab_size, random.Random(SEED)
    warm: list[float] = []
    cold: list[float] = []
    cached: dict[str, int] = {}
    for repeat in range(repeats + 1):
        tell(f"Conversation {repeat} of {repeats}" if repeat else "Warming up")
        asked = random_prompt(draw, vocab, max(1, conversation_tokens - REPLY_TOKENS))
        (first,) = run(engine, [Job(asked, conversation_tokens - len(asked))])
        second = asked + list(first.token_ids) + random_prompt(draw, vocab, MESSAGE_TOKENS)
        for kind, prompt, taken in (
            ("prefix cache", second, warm),
            ("cold", random_prompt(draw, vocab, length), cold),
        ):
            start = time.perf_counter()
            (finished,) = run(engine, [Job(prompt, 1)])
            taken.append(time.perf_counter() - start)
            cached[kind] = finished.usage.cached_prompt_tokens
    rows: list[Row] = [
        {
            "turn": kind,
            "prompt_tokens": length,
            "cached_prompt_tokens": cached[kind],
            "ttft_s": statistics.median(taken[1:]),
            "repeats_s": taken[1:],
        }
        for kind, taken in (("prefix cache", warm), ("cold", cold))
    ]
    panel = Panel(
        f"Time to first token after {length} tokens, ms",
        [row["turn"] for row in rows],
        {"": [1000 * row["ttft_s"] for row in rows]},
    )
    more = {"conversation_tokens": conversation_tokens, "message_tokens": MESSAGE_TOKENS, "repeats": repeats}
    return Report(engine_facts("turn", subject, engine, **more), rows, _COLUMNS, (panel,))


_COLUMNS = (
    Column("Second turn", lambda row: row["turn"]),
    Column("Prompt tokens", lambda row: f"{row['prompt_tokens']:,}"),
    Column("Cached", lambda row: f"{row['cached_prompt_tokens']:,}"),
    FIRST_TOKEN,
)
