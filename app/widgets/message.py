"""One turn of the conversation on the screen.

A widget is some eighty objects, and a long conversation has many turns: what most of them do not need is
there for those alone that do.
"""

from __future__ import annotations

from textual.app import ComposeResult
from textual.containers import ItemGrid, Vertical
from textual.content import Content
from textual.geometry import Region
from textual.strip import Strip
from textual.widgets import Static

from .. import keymap
from ..conversation import Conversation, Turn
from ..text import inert
from .attachments import Chip
from .branch import BranchLabel, branch_line
from .markdown import ReplyMarkdown
from .thinking import ThinkingBlock


class UserMessage(Vertical):
    """What the user wrote, exactly as written, below the images that came with it."""

    def __init__(self, conversation: Conversation, turn: Turn) -> None:
        super().__init__()
        self.turn = turn
        self._conversation = conversation

    def compose(self) -> ComposeResult:
        if self.turn.images:
            yield ItemGrid(*(Chip(image) for image in self.turn.images), min_column_width=34)
        if self.turn.text:
            yield Static(Content(inert(self.turn.text)), classes="text", markup=False)
        if line := branch_line(self._conversation, self.turn):
            yield BranchLabel(line)


class ReplyMessage(Vertical):
    """A reply: thinking and Markdown while and after they come, how it ended, and what can be done then."""

    def __init__(self, conversation: Conversation, turn: Turn, *, offers: bool = True) -> None:
        """`offers`: the screen has the actions that go on with a reply that was cut off."""
        super().__init__()
        self.turn = turn
        self._conversation = conversation
        self._offers = offers
        self._thinking: ThinkingBlock | None = None
        self._body = ReplyMarkdown(inert(turn.text))
        self._outcome = Static(classes="outcome", markup=False)
        self._branch: BranchLabel | None = None

    def compose(self) -> ComposeResult:
        yield self._body
        yield self._outcome

    def render_lines(self, crop: Region) -> list[Strip]:
        """One line of the background stands for all: as the reply grows Textual would draw each of them."""
        return super().render_lines(Region(crop.x, crop.y, crop.width, 1)) * crop.height

    def on_mount(self) -> None:
        self._show_thinking()
        self._show_outcome()
        self._show_branch()

    def think(self) -> None:
        """More of the thinking has come."""
        self._show_thinking()
        self._outcome.display = False

    async def append(self, text: str) -> None:
        """More of the answer has come."""
        self._show_thinking()
        await self._body.stream(inert(text))
        self._outcome.display = False

    async def refresh_turn(self) -> None:
        """Show the turn as it is now: after its end, or set back for another try."""
        self._show_thinking()
        await self._body.show(inert(self.turn.text))
        self._show_outcome()
        self._show_branch()

    def _show_thinking(self) -> None:
        turn = self.turn
        if self._thinking is None and turn.thinking.text and self._body.is_attached:
            self._thinking = ThinkingBlock()
            self.mount(self._thinking, before=self._body)
        if self._thinking:
            self._thinking.show(turn.thinking, running=turn.status == "streaming" and not turn.text)

    def _show_branch(self) -> None:
        line = branch_line(self._conversation, self.turn)
        if self._branch:
            self._branch.update(line or "")
            self._branch.display = bool(line)
        elif line and self._body.is_attached:
            self._branch = BranchLabel(line)
            self.mount(self._branch)

    def _show_outcome(self) -> None:
        turn = self.turn
        reason, style = {
            "complete": ("", ""),
            "streaming": ("…", ""),
            "stopped": ("Stopped", "$text-warning"),
            "length": (turn.note, "$text-warning"),
            "error": (turn.note, "$text-error"),
        }[turn.status]
        parts = [Content.styled(inert(reason), style)] if reason else []
        if self._offers and turn.status in ("stopped", "length", "error"):
            offers = [offer("Try again", "regenerate")]
            if turn.has_begun:
                offers.insert(0, offer("Continue", "continue_reply"))
            parts.append(Content("   ").join(offers))
        between = "   " if turn.status == "stopped" else "\n"
        self._outcome.update(Content(between).join(parts))
        self._outcome.display = bool(parts)


def offer(label: str, action: str) -> Content:
    """Something to click, with the key that does the same."""
    return Content.from_markup(f"[@click=screen.{action}]{label}[/] {keymap.key(action)}")
