"""What the engine tells its caller, as plain data. All times are seconds on the engine's monotonic clock."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

FinishReason = Literal["stop", "length", "cancelled"]
ThinkingMode = Literal["never", "optional", "always"]
"""Whether a model thinks before it answers; `optional`: as the request says, else as its template does."""
UNKNOWN_CONTEXT = 2**62
"""More than any conversation has, so that what is compared with it needs no special case."""


@dataclass(frozen=True)
class ModelInfo:
    """The model that is loaded and how it runs."""

    name: str
    family: str
    parameter_count: int
    device: str
    """`cpu` or `cuda`, as torch names it (ROCm is `cuda` too); `remote` for a server elsewhere."""
    device_name: str
    """What people call it: `NVIDIA H100`, `CPU, 2 threads`."""
    dtype: str
    max_context: int
    """Tokens that one conversation may hold, prompt and reply together; UNKNOWN_CONTEXT where a server does
    not say."""
    kv_pages: int
    """Pages of the KV cache, 16 tokens each."""
    weight_bytes: int
    kv_bytes: int
    operators: str
    """`triton` or `reference`."""
    defaults: dict[str, float | int]
    """Sampling defaults from the checkpoint's generation_config.json (temperature, top_p, top_k, ...)."""
    thinking: ThinkingMode = "never"
    image_tokens: int = 0
    """Tokens of the prompt that one image takes; 0 if messages may carry none."""

    @property
    def sees_images(self) -> bool:
        """Whether messages may carry images."""
        return self.image_tokens > 0


@dataclass(frozen=True)
class EngineFigures:
    """What the engine holds at this moment."""

    pages_used: int
    """Of the KV cache: held by requests that run."""
    pages_cached: int
    """Left by earlier ones, for a prompt that begins alike."""
    pages_total: int
    running: int
    waiting: int
    """Requests."""


@dataclass(frozen=True)
class LoadProgress:
    """A model is being loaded: `done` of `total` bytes, and what is going on in words."""

    done: int
    total: int
    text: str


@dataclass(frozen=True)
class Loaded:
    info: ModelInfo


@dataclass(frozen=True)
class LoadFailed:
    """Loading failed; the thread is usable and the model that was loaded before, if any, is gone."""

    message: str


@dataclass(frozen=True)
class Queued:
    """The request was accepted and tokenised."""

    request_id: int
    prompt_tokens: int


@dataclass(frozen=True)
class PrefillProgress:
    """`done` of `total` prompt tokens are processed."""

    request_id: int
    done: int
    total: int
    tokens_per_s: float = 0.0
    """Since the request was submitted; what the prefix cache had does not count."""


@dataclass(frozen=True)
class Thinking:
    """What a model thought before it answered; empty if it did not."""

    text: str = ""
    tokens: int = 0
    """Without the tags around them."""
    seconds: float = 0.0
    """From the first token of the thinking to its last."""

    def __add__(self, more: Thinking) -> Thinking:
        """This thinking and what came when it was taken up again."""
        return Thinking(self.text + more.text, self.tokens + more.tokens, self.seconds + more.seconds)


@dataclass(frozen=True)
class ThinkingDelta:
    """New text of what the model thinks; it never ends in half a character."""

    request_id: int
    text: str
    thinking_tokens: int
    """As in Thinking, so far."""
    thinking_s: float
    completion_tokens: int
    """Tokens generated so far, this one included; the other fields too are as in TextDelta."""
    time: float
    decode_tokens_per_s: float


@dataclass(frozen=True)
class TextDelta:
    """New text of an answer; it never ends in half a character or in the beginning of a stop string."""

    request_id: int
    text: str
    completion_tokens: int
    """Tokens generated so far, this one included."""
    time: float
    decode_tokens_per_s: float
    """Rate since the first token; 0 until there are two."""


@dataclass(frozen=True)
class Usage:
    """The figures of a finished reply."""

    prompt_tokens: int
    cached_prompt_tokens: int
    completion_tokens: int
    ttft_s: float
    """From submission to the first token."""
    decode_tokens_per_s: float
    """(completion_tokens - 1) over the time from the first to the last token; 0 for a single one."""
    total_s: float
    seed: int
    remote: bool = False
    """The times were taken where a server's reply was read, the network included, and not in an engine."""


@dataclass(frozen=True)
class Finished:
    """The reply is complete: all of its text, its ids (an end-of-turn token included) and its figures.

    `text` is the answer alone; the ids and the figures are those of thinking and answer together.
    """

    request_id: int
    reason: FinishReason
    text: str
    token_ids: tuple[int, ...]
    usage: Usage
    thinking: Thinking = Thinking()


@dataclass(frozen=True)
class Failed:
    """The request ended in an error, said in one sentence; the rest is what had been generated."""

    request_id: int
    message: str
    text: str
    thinking: Thinking = Thinking()


@dataclass(frozen=True)
class Alternative:
    """A token that might have come; `logprob` is as in TokenScore."""

    id: int
    text: str
    logprob: float


@dataclass(frozen=True)
class TokenScore:
    """A token of a reply and how likely it was to the model after all tokens before it."""

    id: int
    text: str
    """What the token adds to the text: a special token its name, a part of a character U+FFFD."""
    logprob: float
    """Natural logarithm of the softmax of the model's logits, before any sampling parameter."""
    alternatives: tuple[Alternative, ...]
    """The likeliest tokens there, the best first; the one that came may be among them."""


@dataclass(frozen=True)
class Scored:
    """All tokens of a reply, thinking, tags and end of turn included."""

    request_id: int
    tokens: tuple[TokenScore, ...]
    as_generated: bool
    """False: its own tokens are not known (any more), and its text was encoded anew."""


LoadEvent = LoadProgress | Loaded | LoadFailed
GenerationEvent = Queued | PrefillProgress | ThinkingDelta | TextDelta | Finished | Failed
Event = LoadEvent | GenerationEvent | Scored
