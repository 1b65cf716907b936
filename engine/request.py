"""What a caller asks for: messages and sampling parameters, as plain data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from .images import Image

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True)
class Message:
    """One turn of a conversation; its images come before its text."""

    role: Role
    content: str
    thinking: str = ""
    """What was thought before the content. It counts only in a reply to be continued: without content the
    thinking itself is taken up. No other turn passes its thinking on."""
    images: tuple[Image, ...] = field(default=(), kw_only=True)


@dataclass(frozen=True)
class SamplingParams:
    """How the next token is chosen and when a reply ends.

    temperature 0 is greedy; top_k 0, top_p 1, min_p 0 and repetition_penalty 1 are off; `seed` None draws
    one (reported in Usage); `max_new_tokens` None means up to the end of the context; `stop` strings end
    the reply and are not part of it.
    """

    temperature: float = 0.7
    top_p: float = 0.9
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    max_new_tokens: int | None = None
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raises ValueError, naming the parameter and its bounds."""
        checks = {
            "temperature must be between 0 and 5": 0 <= self.temperature <= 5,
            "top_p must be above 0 and at most 1": 0 < self.top_p <= 1,
            "top_k must be 0 (off) or more": self.top_k >= 0,
            "min_p must be at least 0 and below 1": 0 <= self.min_p < 1,
            "repetition_penalty must be between 0.1 and 10": 0.1 <= self.repetition_penalty <= 10,
            "seed must be between 0 and 2^63 - 1": self.seed is None or 0 <= self.seed < 2**63,
            "max_new_tokens must be 1 or more": self.max_new_tokens is None or self.max_new_tokens >= 1,
            "stop strings must not be empty": all(self.stop),
        }
        for message, holds in checks.items():
            if not holds:
                raise ValueError(message)


@dataclass(frozen=True)
class GenerationRequest:
    """A conversation to be continued by one assistant turn.

    With `continue_last`, the last message is an assistant turn that is taken up where it stops instead of
    a new turn being opened. `thinking` switches that of a model which can do with and without; None leaves
    it to the chat template. A continued reply goes on as it began.

    `begin` are token ids of this model that the new turn begins with, by thinking or not. Their text comes
    before that of the tokens that follow, and only these count as generated.
    """

    messages: tuple[Message, ...]
    params: SamplingParams = SamplingParams()
    continue_last: bool = False
    thinking: bool | None = None
    begin: tuple[int, ...] = ()


@dataclass(frozen=True)
class ScoreRequest:
    """A conversation whose last message is a reply, each token of which is to be scored.

    `token_ids` are those that it was generated as, if they are known; others than those of its text are
    passed over (of another model, say). `alternatives` is how many tokens are named at each place.
    """

    messages: tuple[Message, ...]
    token_ids: tuple[int, ...] = ()
    alternatives: int = 8
