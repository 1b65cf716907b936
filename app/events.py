"""What the controller tells the screen, as plain data."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal

from ..engine.events import ModelInfo
from .attachments import Attachment
from .context import Overflow
from .conversation import Conversation, Turn


@dataclass(frozen=True)
class ConversationShown:
    """Another conversation is the current one: show all of it."""

    conversation: Conversation


@dataclass(frozen=True)
class TitleChanged:
    title: str


@dataclass(frozen=True)
class TurnAdded:
    turn: Turn


@dataclass(frozen=True)
class TurnChanged:
    """The turn's text, status or figures are others than before; show it anew."""

    turn: Turn


@dataclass(frozen=True)
class BranchShown:
    """Other turns follow than before, from some turn on: another branch, or what was added is taken back."""

    conversation: Conversation


@dataclass(frozen=True)
class PromptRead:
    """The model is reading the prompt: `done` of `total` tokens."""

    done: int
    total: int
    tokens_per_s: float = 0.0


@dataclass(frozen=True)
class ThinkingAdded:
    """The model thinks: the turn's `thinking` has grown; the figures are the engine's."""

    turn: Turn
    completion_tokens: int
    tokens_per_s: float


@dataclass(frozen=True)
class TextAdded:
    """The reply goes on: `text` was added to the turn; the figures are the engine's."""

    turn: Turn
    text: str
    completion_tokens: int
    tokens_per_s: float


@dataclass(frozen=True)
class PromptReturned:
    """What was sent could not be started: it belongs back in the input; `edited` is the turn it replaces."""

    text: str
    edited: Turn | None = None
    images: tuple[Attachment, ...] = ()


@dataclass(frozen=True)
class CannotSee:
    """The model `name` reads text only and was not asked: the message has images."""

    name: str


@dataclass(frozen=True)
class QueueChanged:
    """`messages` wait to be sent; `paused`: until the user says so."""

    messages: tuple[Turn, ...]
    paused: bool


@dataclass(frozen=True)
class PromptsKnown:
    """What was sent in earlier runs, the newest at the end."""

    texts: tuple[str, ...]


@dataclass(frozen=True)
class ModelOffered:
    """The conversation was last with this other model, which is there; None: nothing to offer."""

    name: str | None


@dataclass(frozen=True)
class ModelLoading:
    name: str
    done: int
    total: int
    text: str


@dataclass(frozen=True)
class ModelReady:
    """`name` is that of the model's directory or of the endpoint, and so is `info.name`."""

    name: str
    info: ModelInfo


@dataclass(frozen=True)
class ModelFailed:
    name: str
    message: str


@dataclass(frozen=True)
class ModelGone:
    """No model is loaded any more, or none yet."""


@dataclass(frozen=True)
class ContextUsed:
    """`used` of `limit` tokens of the context, the draft in the input included."""

    used: int
    limit: int


@dataclass(frozen=True)
class ContextFull:
    """What was asked for does not fit the context, and was not begun: the user has to choose."""

    overflow: Overflow
    prompt: PromptReturned | None
    """The message that could not be sent; None when a reply was to be continued or written anew."""
    question: Turn | None
    """What was to be answered beside the replies that it has; None: the last reply was to go on."""


@dataclass(frozen=True)
class TurnsLeftOut:
    """The model reads less of the conversation than before."""


@dataclass(frozen=True)
class Told:
    """Something the user should know."""

    text: str
    severity: Literal["information", "warning", "error"] = "warning"


ControllerEvent = (
    ConversationShown
    | TitleChanged
    | TurnAdded
    | TurnChanged
    | BranchShown
    | PromptRead
    | ThinkingAdded
    | TextAdded
    | PromptReturned
    | CannotSee
    | QueueChanged
    | PromptsKnown
    | ModelOffered
    | ModelLoading
    | ModelReady
    | ModelFailed
    | ModelGone
    | ContextUsed
    | ContextFull
    | TurnsLeftOut
    | Told
)
Listener = Callable[[ControllerEvent], Awaitable[None]]
