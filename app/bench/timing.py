"""Wall-clock timing, the same for every engine that is measured."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ...models.errors import UserError

Generate = Callable[[int], list[list[int]]]
"""Generates that many tokens for every request of a batch; returns their ids once they are on the host."""
Tell = Callable[[str], object]
"""Is told what goes on, for the terminal."""


@dataclass(frozen=True)
class Timing:
    """Seconds by the wall clock of whole generations of a batch, one entry a repeat.

    The median counts; of two in the middle the lower one, since a mean would take in half of a hiccup.
    """

    tokens: list[list[int]]
    """The ids that each request got in the last generation."""
    warm_up_s: list[float]
    """Generations of all tokens before the clock counts: compiling, capturing graphs."""
    first_s: list[float]
    """Generations of one token: the time to first token."""
    total_s: list[float]
    """Generations of all tokens."""
    repeatable: bool
    """Whether all repeats gave the same tokens."""

    @property
    def ttft_s(self) -> float:
        return statistics.median_low(self.first_s)

    @property
    def step_s(self) -> float:
        """Of one decode step: what the tokens after the first took, over their number."""
        return (statistics.median_low(self.total_s) - self.ttft_s) / (len(self.tokens[0]) - 1)

    @property
    def tokens_per_s(self) -> float:
        """Decode rate of the whole batch."""
        return len(self.tokens) / self.step_s

    def as_dict(self) -> dict[str, Any]:
        return {
            "generated_tokens": [len(ids) for ids in self.tokens],
            "ttft_s": self.ttft_s,
            "decode_tokens_per_s": self.tokens_per_s,
            "step_s": self.step_s,
            "total_s": statistics.median_low(self.total_s),
            "one_token_repeats_s": self.first_s,
            "all_tokens_repeats_s": self.total_s,
            "warm_up_s": self.warm_up_s,
            "repeats_gave_the_same_tokens": self.repeatable,
        }


def time_decode(
    generate: Generate, batch: int, new_tokens: int, repeats: int, *, warm_ups: int = 1
) -> Timing:
    """Time generations of one token and of `new_tokens`, by turns, after `warm_ups` that do not count.

    Raises UserError when an engine gives another number of tokens than it was asked for, or when the
    tokens after the first take no measurable time.
    """
    last: list[list[int]] = []
    repeatable = True

    def seconds(count: int) -> float:
        nonlocal last
        start = time.perf_counter()
        last = generate(count)
        taken = time.perf_counter() - start
        if [len(ids) for ids in last] != [count] * batch:
            raise UserError(
                f"An engine did not give {count} tokens to each of {batch} requests: not counted."
            )
        return taken

    warm_up, first, total = [], [], []
    for _ in range(warm_ups):
        warm_up.append(seconds(new_tokens))
        seconds(1)
    expected: list[list[int]] | None = None
    for _ in range(repeats):
        first.append(seconds(1))
        total.append(seconds(new_tokens))
        repeatable &= last == (expected or last)
        expected = last
    timing = Timing(last, warm_up, first, total, repeatable)
    if timing.step_s <= 0:
        raise UserError("The replies are too short to be timed: use more --new-tokens.")
    return timing


def time_calls(function: Callable[[], object], repeats: int) -> list[float]:
    """Seconds of `repeats` calls of what returns when its work is done, after one that is thrown away."""
    function()
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        taken.append(time.perf_counter() - start)
    return taken


def time_first_token(generate: Generate, repeats: int) -> list[float]:
    """Seconds of `repeats` generations of one token, after one that is thrown away."""
    return time_calls(lambda: generate(1), repeats)


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """p50, p90 and p99 by the nearest rank: each is one of the values."""
    ranked = sorted(values)
    return {f"p{rank}": ranked[math.ceil(rank / 100 * len(ranked)) - 1] for rank in (50, 90, 99)}
