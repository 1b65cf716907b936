"""Compare: one prompt, two replies side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.content import Content
from textual.widgets import Footer, Static

from ..actions import named, no_command, slash_command
from ..compare import Comparison, Side
from ..conversation import Conversation
from ..events import ControllerEvent, PromptReturned, TurnAdded
from ..widgets.message import UserMessage
from ..widgets.prompt import PromptInput
from ..widgets.side import SideView
from .attaching import AttachingScreen

_HINT = "Choose a model and a preset on each side (Shift+Tab), and write to both."


class CompareScreen(AttachingScreen[Conversation | None]):
    """Dismisses with the conversation of the reply that the user keeps, or None."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+l", "keep(0)", "Keep left"),
        Binding("ctrl+r", "keep(1)", "Keep right"),
        named("app.images").binding,
        Binding("escape", "back", "Stop, close"),
    ]
    HORIZONTAL_BREAKPOINTS = [(0, "-tiny"), (60, "-narrow"), (130, "-wide")]  # noqa: RUF012 - declared so by Textual

    def __init__(self, comparison: Comparison, models: Sequence[str], sides: Sequence[Side]) -> None:
        """`models` can be chosen from; `sides` are what is chosen at first."""
        super().__init__()
        self._comparison = comparison
        self._sides = [SideView(side, models, comparison.presets) for side in sides]
        self._plan = Static(id="plan", markup=False)
        self._asked = VerticalScroll(Static(_HINT, classes="hint"), id="asked", can_focus=False)

    def compose(self) -> ComposeResult:
        yield self._plan
        yield self._asked
        with Horizontal(id="sides"):
            yield from self._sides
        with Vertical(id="composer"):
            yield self._attachment_bar
            yield self._prompt
        yield Footer(compact=True)

    def on_mount(self) -> None:
        self._prompt.focus()

    @on(SideView.Changed)
    @work(exclusive=True, group="plan")
    async def _show_plan(self) -> None:
        plan = await self._comparison.models.plan([view.side.model for view in self._sides])
        self._plan.update(Content.assemble(("Compare", "bold $text-primary"), "  ", plan.why))

    # What the user does

    @on(PromptInput.Submitted)
    async def _submit(self, event: PromptInput.Submitted) -> None:
        text, images = event.text, self.attachments.items
        if self._comparison.running:
            self.notify("The replies are still being written: wait, or stop them with Esc.")
        elif self._attach_instead(text):
            return
        elif slash_command(text) or no_command(text):
            self.notify("Commands are for the chat: Esc leads back to it.", severity="warning")
        elif not self._still_reading() and (text or images):
            self._prompt.sent(text)
            self.attachments.put()
            left, right = (view.side for view in self._sides)
            turn = self._comparison.start(text, images, (left, right), self._told)
            await self._asked.remove_children()
            await self._asked.mount(UserMessage(Conversation(), turn))

    @work(exclusive=True, group="end")
    async def action_back(self) -> None:
        if self._comparison.running:
            await self._comparison.stop()
        else:
            self.dismiss(None)

    @work(exclusive=True, group="end")
    async def action_keep(self, number: int) -> None:
        if self._comparison.can_keep(number):
            await self._comparison.stop()
            self.dismiss(self._comparison.keep(number))
        else:
            self.notify("There is no reply on that side to keep.")

    def action_scroll_transcript(self, where: str) -> None:
        for view in self._sides:
            view.scroll_reply(where)

    # What the comparison tells

    async def _told(self, number: int, event: ControllerEvent) -> None:
        match event:
            case PromptReturned(text, None, images):
                self._give_back(text, images)
            case TurnAdded(reply):
                await self._sides[number].begin(reply, shared=self._comparison.shared)
            case _:
                await self._sides[number].handle(event, self._comparison.paces[number])
