"""The question that a full context asks: nothing is cut without an answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import OptionList, Static
from textual.widgets.option_list import Option

from ..context import Overflow
from ..incoming import title_of

Choice = Literal["leave_out", "new", "shorten"]
SHOWN_QUESTIONS = 3


def quoted(questions: Sequence[str]) -> str:
    """The titles of the first few."""
    return ", ".join(f"“{title_of(text)}”" for text in questions[:SHOWN_QUESTIONS])


class ContextFullScreen(ModalScreen[Choice]):
    """Dismisses with what the user wants; Esc leaves everything as it is."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "dismiss('shorten')", "Back")]

    def __init__(self, overflow: Overflow, model: str, *, message: bool) -> None:
        """`message`: a message does not fit, and not a reply that was to go on."""
        super().__init__()
        self._overflow, self._model, self._message = overflow, model, message

    def compose(self) -> ComposeResult:
        overflow = self._overflow
        with Vertical(id="dialog", classes="dialog") as dialog:
            dialog.border_title = "The context is full"
            dialog.border_subtitle = "Esc goes back"
            yield Static(
                f"This takes {overflow.used:,} tokens, and {self._model} can hold {overflow.limit:,} with "
                "the reply. What shall be done?",
                classes="explanation",
                markup=False,
            )
            yield OptionList(*self._options(), markup=False)

    def on_mount(self) -> None:
        self.query_one(OptionList).focus()

    def _options(self) -> list[Option]:
        overflow = self._overflow
        options = []
        if overflow.left_out:
            options.append(Option(self._leave_out(), "leave_out"))
        if self._message:
            options += [
                _option("new", "Start a new chat with this message", "This conversation stays as it is."),
                _option("shorten", "Shorten the message", "It is in the input again."),
            ]
        else:
            options.append(_option("new", "Start a new chat", "This conversation stays as it is."))
        return options

    def _leave_out(self) -> Content:
        """What would be left out, and what comes of it."""
        overflow = self._overflow
        count = len(overflow.questions)
        named = quoted(overflow.questions)
        if count > SHOWN_QUESTIONS:
            named += f", {count - SHOWN_QUESTIONS} more"
        what = "the oldest question, with its reply"
        if count > 1:
            what = f"the {count} oldest questions, with their replies"
        return Content.assemble(
            (f"Leave out {what}", "bold"),
            (f"\n{named}", "$text-muted"),
            (
                f"\nThey stay in the conversation, but {self._model} no longer reads them: "
                f"{overflow.used_after:,} of {overflow.limit:,} tokens then.",
                "$text-muted",
            ),
        )

    @on(OptionList.OptionSelected)
    def _chosen(self, event: OptionList.OptionSelected) -> None:
        choices: dict[str | None, Choice] = {"leave_out": "leave_out", "new": "new"}
        self.dismiss(choices.get(event.option_id, "shorten"))


def _option(name: str, title: str, explanation: str) -> Option:
    return Option(Content.assemble((title, "bold"), (f"\n{explanation}", "$text-muted")), name)
