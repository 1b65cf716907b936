"""A conversation as plain data: its turns, in branches, and what goes with them."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass, field
from typing import Any, Literal

from ..engine.events import Thinking, Usage
from ..engine.request import Role
from . import tree
from .attachments import Attachment

Status = Literal["complete", "streaming", "stopped", "length", "error"]


def _new_id() -> str:
    return uuid.uuid4().hex


@dataclass
class Turn:
    """One message of a conversation; `note` says why a reply ended early, where there is more to say.

    `text` of a reply is its answer; `thinking` is what came before it.
    """

    role: Role
    text: str
    status: Status = "complete"
    note: str = ""
    figures: Usage | None = None
    id: str = field(default_factory=_new_id)
    created: float = field(default_factory=time.time)
    thinking: Thinking = field(default_factory=Thinking)
    images: tuple[Attachment, ...] = ()
    token_ids: tuple[int, ...] = ()
    """The tokens that a reply was generated as, empty if they are not known; before it has begun, those that
    it is to begin with."""
    parent_id: str | None = None
    """The turn before; Conversation.add sets it."""

    @property
    def label(self) -> str:
        """What a list calls it: its text, or the name of its first image where there is only that."""
        return self.text or next((image.name for image in self.images), "")

    @property
    def has_begun(self) -> bool:
        """Whether there is a part of the reply, thinking or answer, to go on from."""
        return bool(self.text or self.thinking.text)


@dataclass
class Conversation:
    """A conversation; `model` and `settings` are those last used.

    `turns` is the branch that is shown, oldest first, and `all_turns` are those of every branch in the order
    in which they were written. Without `all_turns`, the turns given are the only branch.
    """

    title: str = ""
    system_prompt: str = ""
    model: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    turns: list[Turn] = field(default_factory=list)
    id: str = field(default_factory=_new_id)
    created: float = field(default_factory=time.time)
    all_turns: list[Turn] = field(default_factory=list)
    queue: list[Turn] = field(default_factory=list)
    """Messages, of text and images, that are to be sent once the reply has ended."""
    overrides: dict[str, Any] = field(default_factory=dict)
    """Settings by name that count here instead of the user's general ones."""
    unread_id: str | None = None
    """The last turn that the model no longer reads, with all before it, since they do not fit its context."""

    def __post_init__(self) -> None:
        if not self.all_turns:
            turns, self.turns = self.turns, []
            for turn in turns:
                self.add(turn)

    @property
    def left_out(self) -> int:
        """So many turns of the branch the model no longer reads; in another branch it may read them all."""
        ids = [turn.id for turn in self.turns]
        return ids.index(self.unread_id) + 1 if self.unread_id in ids else 0

    @property
    def read_turns(self) -> list[Turn]:
        """The turns of the branch that the model reads."""
        return self.turns[self.left_out :]

    def leave_out(self, count: int) -> None:
        """Have the model read the branch only after its first `count` turns."""
        self.unread_id = self.turns[count - 1].id if count else None

    @property
    def leaf(self) -> Turn | None:
        """The last turn of the branch that is shown."""
        return self.turns[-1] if self.turns else None

    @property
    def leaf_id(self) -> str | None:
        return self.leaf.id if self.leaf else None

    def add(self, turn: Turn) -> None:
        """Add a turn after the last one that is shown."""
        turn.parent_id = self.leaf_id
        self.turns.append(turn)
        self.all_turns.append(turn)

    def remove(self, turn: Turn) -> None:
        """Take back a turn that was added, the last of its branch."""
        self.turns.remove(turn)
        self.all_turns.remove(turn)

    def cut(self, turn: Turn, *, keep: bool) -> None:
        """End the branch that is shown before `turn`, or after it with `keep`; the rest stays a branch."""
        place = next(i for i, other in enumerate(self.turns) if other.id == turn.id)
        self.turns = self.turns[: place + keep]

    def show(self, leaf: Turn) -> None:
        """Make the branch that ends with `leaf` the one that is shown."""
        self.turns = tree.path(self.all_turns, leaf)

    def siblings(self, turn: Turn) -> list[Turn]:
        """What stands in the place of `turn` in all branches, itself included, oldest first."""
        return tree.siblings(self.all_turns, turn)
