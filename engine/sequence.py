"""The run-time state of one request, as plain data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from .events import Event
from .images import PlacedImage
from .prompt_lookup import PromptLookup
from .reply import ReplyText
from .request import SamplingParams
from .scores import Scores


@dataclass(eq=False)
class Sequence:
    """Tokens so far, how many of them are in the KV cache, and where.

    The host may be a step behind the device: `computed` counts what was handed to the device, and
    `in_flight` the tokens that were drawn there and are not yet in `tokens`. So a sequence past its prefill
    has computed == length - 1: the token drawn last is always one that is not computed yet.
    """

    request_id: int
    tokens: list[int]
    """The prompt followed by what was generated, as far as the host knows it."""
    prompt_len: int
    params: SamplingParams
    seed: int
    max_tokens: int
    """The `length` at which the reply ends: prompt + max_new_tokens, or the full context."""
    reply: ReplyText
    sink: Callable[[Event], None]
    submitted: float
    """All times: seconds on the monotonic clock."""
    images: tuple[PlacedImage, ...] = ()
    """The prompt's images, in order."""
    salts: Mapping[int, bytes] = field(default_factory=dict)
    """What the keys and values of a block depend on besides tokens; see `image_prompt.salts`."""
    scores: Scores | None = None
    """For a prompt that ends in a reply to be scored; the one token that is drawn after it is dropped."""

    # The scheduler's.
    slot: int = -1
    """Row of the sequence in the device's per-sequence state, from admission on; -1 while it waits."""
    pages: list[int] = field(default_factory=list)
    computed: int = 0
    in_flight: int = 0
    prefill_len: int = 0
    """Tokens that the prefill computes: all that there were at admission."""
    cached: int = 0
    """Prompt tokens that came from the prefix cache at the first admission."""
    digests: list[bytes] = field(default_factory=list)
    """Keys of the sequence's full blocks in the prefix cache, as far as they were needed."""
    registered: int = 0
    """Full blocks, from the first, that were offered to the prefix cache or came from it."""
    preemptions: int = 0
    finished: bool = False
    """Ended, cancelled or failed: a token still in flight is dropped."""

    # For speculative decoding.
    lookup: PromptLookup | None = None
    """Reads along from the first time on that the sequence runs alone."""
    device_is_behind: bool = False
    """Whether the newest token was verified and the device's state still holds an older one."""

    first_token: float | None = None
    last_token: float | None = None

    @property
    def length(self) -> int:
        """Tokens that the host or the device knows."""
        return len(self.tokens) + self.in_flight

    @property
    def logits_from(self) -> int:
        """The first position whose logits a prefill is for, and which it therefore computes."""
        return self.scores.first if self.scores else len(self.tokens) - 1

    @property
    def is_decoding(self) -> bool:
        """Whether all of the prefill was handed to the device."""
        return self.slot >= 0 and self.computed >= self.prefill_len

    @property
    def completion_len(self) -> int:
        return len(self.tokens) - self.prompt_len

    @property
    def decode_rate(self) -> float:
        """Tokens per second from the first token to the last; 0 for fewer than two."""
        if self.first_token is None or self.last_token is None or self.last_token <= self.first_token:
            return 0.0
        return (self.completion_len - 1) / (self.last_token - self.first_token)
