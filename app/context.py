"""When a conversation no longer fits the model's context: which of the oldest turns to leave out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .conversation import Turn

FREE_SHARE = 0.25
"""Part of the context that is free after turns were left out: the question shall not come again at once."""


@dataclass(frozen=True)
class Overflow:
    """A request of `used` tokens that does not fit the context of `limit`."""

    used: int
    limit: int
    left_out: int
    """Turns from the beginning that would have to be left out, with those that are already; 0: of no use."""
    questions: tuple[str, ...]
    """The messages of the user among those that would be left out now."""
    used_after: int


def plan(
    turns: Sequence[Turn], left_out: int, limit: int, count: Callable[[Sequence[Turn]], int]
) -> tuple[int, int] | None:
    """How many turns to leave out from the beginning, and the tokens of the rest; None when nothing helps.

    `left_out` are already; `count` tells the tokens of turns. It always begins with a question, and the last
    one stays. Some room for what is to come is left if that can be.
    """
    starts = [number for number, turn in enumerate(turns) if turn.role == "user" and number > left_out]
    for room in (int(limit * FREE_SHARE), 1):
        low, high, best = 0, len(starts) - 1, None
        while low <= high:  # the more is left out, the fewer tokens there are
            middle = (low + high) // 2
            tokens = count(turns[starts[middle] :])
            if tokens + room <= limit:
                best, high = (starts[middle], tokens), middle - 1
            else:
                low = middle + 1
        if best is not None:
            return best
    return None
