"""The run-time state of one request, as plain data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from .detokenizer import Detokenizer
from .events import Event
from .request import SamplingParams


@dataclass(eq=False)
class Sequence:
    """Tokens so far, how many of them are in the KV cache, and where.

    `tokens` is the prompt followed by what was generated; the last token drawn is always one that is not
    computed yet.
    """

    request_id: int
    tokens: list[int]
    prompt_len: int
    params: SamplingParams
    seed: int
    max_tokens: int
    """The length of `tokens` at which the reply ends: prompt + max_new_tokens, or the full context."""
    detokenizer: Detokenizer
    sink: Callable[[Event], None]
    submitted: float
    """All times: seconds on the monotonic clock."""
    computed: int = 0
    pages: list[int] = field(default_factory=list)
    first_token: float | None = None
    last_token: float | None = None
    cancelled: bool = False

    @property
    def completion_len(self) -> int:
        return len(self.tokens) - self.prompt_len

    @property
    def decode_rate(self) -> float:
        """Tokens per second from the first token to the last; 0 for fewer than two."""
        if self.first_token is None or self.last_token is None or self.last_token <= self.first_token:
            return 0.0
        return (self.completion_len - 1) / (self.last_token - self.first_token)
