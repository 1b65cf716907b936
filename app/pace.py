"""How steadily a reply comes, from the engine's own clock."""

from __future__ import annotations

import math
from collections import deque

BUCKET_S = 0.5
"""A bar of the sparkline."""
BARS = 12
GAPS = 1_000
"""The newest gaps between tokens are the ones that count."""
SETTLED_S = 1.0
"""Before that the figures say nothing."""
_HEIGHTS = "▁▂▃▄▅▆▇█"


class Pace:
    """Takes the number of tokens so far with the time of the newest; tells the gaps and the course."""

    def __init__(self, submitted: float = 0.0) -> None:
        """`submitted`: when the reply was asked for, on the same clock."""
        self._submitted = submitted
        self._first: float | None = None
        self._tokens, self._latest = 0, 0.0
        self._gaps: deque[float] = deque(maxlen=GAPS)
        self._buckets: deque[int] = deque([0], maxlen=BARS + 1)  # the last one is not over yet
        self._bucket = 0

    def add(self, tokens: int, time: float) -> None:
        """`tokens` have come so far, the newest at `time` (seconds); several at once share their gap."""
        if self._first is None:
            self._first, self._tokens, self._latest = time, tokens, time
            return
        new = tokens - self._tokens
        if new <= 0:
            return
        self._gaps.extend([(time - self._latest) / new] * new)
        bucket = int((time - self._first) / BUCKET_S)
        self._buckets.extend([0] * min(bucket - self._bucket, BARS + 1))
        self._bucket = bucket
        self._buckets[-1] += new
        self._tokens, self._latest = tokens, time

    @property
    def is_settled(self) -> bool:
        return self._first is not None and self._latest - self._first >= SETTLED_S

    @property
    def ttft_s(self) -> float:
        """From submission to the first token; 0 until there is one."""
        return 0.0 if self._first is None else self._first - self._submitted

    @property
    def p95_s(self) -> float:
        """95 % of the tokens came no later than this after the one before; by the nearest rank."""
        ranked = sorted(self._gaps)
        return ranked[math.ceil(0.95 * len(ranked)) - 1] if ranked else 0.0

    @property
    def sparkline(self) -> str:
        """The rate of each half second, from nothing to the highest of them."""
        over = list(self._buckets)[:-1]
        highest = max(over, default=0)
        return (
            "".join(_HEIGHTS[round(count / highest * (len(_HEIGHTS) - 1))] for count in over)
            if highest
            else ""
        )
