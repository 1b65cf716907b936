"""How well the model foretells a text: ours beside transformers, on the same weights and tokens."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from ...models.errors import UserError
from . import rivals
from .decode import ENGINE, US
from .report import Column, Panel, Report, Row, engine_facts, rate
from .subject import Subject, check_fits, free_memory
from .timing import Tell

if TYPE_CHECKING:
    from ...engine.engine import Engine

Score = Callable[[list[int]], list[float]]
"""Log probabilities of all tokens of a window but the first, each after those before it."""


def measure(
    subject: Subject, text: str, *, window: int, tokens: int, compare: tuple[str, ...], tell: Tell
) -> Report:
    """The perplexity of the text's first `tokens` tokens, cut into windows that begin with nothing before.

    Raises UserError when the model cannot be loaded, a window does not fit or the text is too short.
    """
    tell(f"Loading {subject.name}")
    engine = subject.load(prefix_cache=False, speculate=False)
    check_fits(engine.info, 1, window)
    ids = engine.tokenizer.encode(text)[:tokens]
    windows = [ids[start : start + window] for start in range(0, len(ids), window)]
    windows = [each for each in windows if len(each) > 1]
    if not windows:
        raise UserError("The text is too short: a perplexity takes two tokens at least.")
    facts = engine_facts("perplexity", subject, engine, window=window, tokens=len(ids))
    ours = _score(US, lambda each: engine_logprobs(engine, each), windows, tell)
    rows = [_row(US, ours)]
    if compare:
        weights = rivals.shared_weights(engine, subject.config)
        del engine  # the KV cache goes, the weights stay
        free_memory()
        rival = rivals.Rival(rivals.EAGER, subject.raw_config, weights)
        theirs = _score(rival.name, rival.logprobs, windows, tell)
        differences = [abs(a - b) for a, b in zip(ours[0], theirs[0], strict=True)]
        rows.append(_row(rival.name, theirs) | {"largest_difference": max(differences)})
    panel = Panel("Perplexity", [row["engine"] for row in rows], {"": [row["perplexity"] for row in rows]})
    return Report(facts, rows, _COLUMNS, (panel,))


def engine_logprobs(engine: Engine, tokens: list[int]) -> list[float]:
    """The Score of our engine."""
    from ...engine.events import Event, Scored

    events: list[Event] = []
    engine.score_tokens(0, tokens[:1], tokens[1:], events.append)
    while engine.busy:
        engine.step()
    last = events[-1]
    if not isinstance(last, Scored):
        raise UserError(f"A window could not be scored ({last}).")
    return [token.logprob for token in last.tokens]


def _score(name: str, score: Score, windows: list[list[int]], tell: Tell) -> tuple[list[float], float]:
    """The logarithms of all windows, and the seconds they took."""
    logprobs: list[float] = []
    start = time.perf_counter()
    for number, each in enumerate(windows, start=1):
        tell(f"{name}: window {number} of {len(windows)}")
        logprobs += score(each)
    return logprobs, time.perf_counter() - start


def _row(name: str, scored: tuple[list[float], float]) -> Row:
    logprobs, seconds = scored
    return {
        "engine": name,
        "perplexity": math.exp(-math.fsum(logprobs) / len(logprobs)),
        "scored_tokens": len(logprobs),
        "tokens_per_s": len(logprobs) / seconds,
    }


_COLUMNS = (
    ENGINE,
    Column("Perplexity", lambda row: f"{row['perplexity']:.6f}"),
    Column("Tokens", lambda row: f"{row['scored_tokens']:,}"),
    Column("Tokens/s", lambda row: rate(row["tokens_per_s"])),
    Column(
        "Largest difference of a log probability",
        lambda row: f"{row['largest_difference']:.1e}" if "largest_difference" in row else "",
    ),
)
