"""The input of the chat: several lines, Enter sends."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from textual import events
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.widgets import TextArea

from ..incoming import image_paths
from ..text import inert

if TYPE_CHECKING:  # it knows the keys of all actions, which know those of the prompt
    from .commands import CommandList

# Many terminals cannot tell Shift+Enter from Enter, and on some Ctrl+J is Enter, hence three of them.
NEW_LINE_KEYS = ("alt+enter", "shift+enter", "ctrl+j")


class PromptInput(TextArea):
    """Sends with Enter; NEW_LINE_KEYS start a new line."""

    BINDINGS: list[BindingType] = [  # noqa: RUF012 - declared so by Textual
        Binding("pageup", "screen.scroll_transcript('page_up')", show=False),
        Binding("pagedown", "screen.scroll_transcript('page_down')", show=False),
        Binding("ctrl+home", "screen.scroll_transcript('home')", show=False),
        Binding("ctrl+end", "screen.scroll_transcript('end')", show=False),
    ]

    @dataclass
    class Submitted(Message):
        """The user wants `text`, which may be empty, to be sent; it is still in the input."""

        text: str

    class QueueWanted(Message):
        """Up was pressed in an empty prompt while messages wait."""

    @dataclass
    class ImagesDropped(Message):
        """Paths of images were pasted, as terminals do with files dropped on them; they are not text."""

        paths: list[Path]

    class PasteAsked(Message):
        """The user pressed the key that pastes where the terminal does not do so itself."""

    def __init__(self) -> None:
        super().__init__(
            id="prompt",
            compact=True,
            highlight_cursor_line=False,
            placeholder="Message",
        )
        self.queued = False
        """Whether messages wait to be sent: then Up means the last of them."""
        self.commands: CommandList | None = None
        """Completes what begins with a slash."""
        self._sent: list[str] = []
        self._recalled: int | None = None

    def _submit(self) -> None:
        self.post_message(self.Submitted(inert(self.text).rstrip()))

    def remember(self, texts: Iterable[str]) -> None:
        """Earlier messages for the up key, the newest at the end."""
        self._sent[:0] = texts

    def sent(self, text: str) -> None:
        """`text` was accepted: keep it for the up key, and in the input only what was typed since."""
        if text:
            self._sent.append(text)
        self._recalled = None
        rest = self.text.removeprefix(text) if self.text.startswith(text) else ""
        self.show(rest if rest.strip() else "")

    def give_back(self, text: str) -> None:
        """Put text back that could not be sent, before what has been typed since."""
        self.show("\n".join(part for part in (text, self.text) if part))

    def begin_edit(self, text: str, what: str) -> None:
        """Take in a turn's text for another version; until `end_edit` the frame says so."""
        self.border_title = f"Edit the {what}"
        self.border_subtitle = "Enter keeps both   Esc gives up"
        self.show(text)

    def end_edit(self, text: str) -> None:
        """Go on with `text`, which was there before."""
        self.border_title = self.border_subtitle = None
        self.show(text)

    def action_paste(self) -> None:
        self.post_message(self.PasteAsked())

    def paste_text(self) -> None:
        """Paste what was copied within the app."""
        super().action_paste()

    def action_cursor_up(self, select: bool = False) -> None:
        if self.queued and not self.text:
            self.post_message(self.QueueWanted())
            return
        at = len(self._sent) if self._recalled is None else self._recalled
        if self.cursor_at_first_line and at > 0 and (self._recalled is not None or not self.text):
            self._recall(at - 1)
        else:
            super().action_cursor_up(select)

    def action_cursor_down(self, select: bool = False) -> None:
        if self.cursor_at_last_line and self._recalled is not None:
            self._recall(self._recalled + 1)
        else:
            super().action_cursor_down(select)

    def _recall(self, number: int) -> None:
        recalled = number < len(self._sent)
        self._recalled = number if recalled else None
        self.show(self._sent[number] if recalled else "")

    def show(self, text: str) -> None:
        """Put `text` in place of what there is."""
        self.text = text
        self.move_cursor(self.document.end)

    def take(self, completed: str) -> None:
        """Put in what a completion gives, and send it unless it ends in a space: then more has to follow."""
        self.show(completed)
        if not completed.endswith(" "):
            self._submit()

    def _put(self, text: str) -> None:
        result = self.replace(text, *self.selection, maintain_selection_offset=False)
        self.move_cursor(result.end_location)

    async def _on_key(self, event: events.Key) -> None:
        # All of it here: Textual looks up bindings later, after keys that were typed fast have gone in.
        completed = self.commands.press(event.key, self.text) if self.commands else None
        if completed is not None:
            event.stop()
            event.prevent_default()
            if event.key == "enter":
                self.take(completed)
            elif completed != self.text:
                self.show(completed)
            return
        if event.key == "enter" or event.key in NEW_LINE_KEYS:
            event.stop()
            event.prevent_default()  # TextArea's own handler would start a new line on Enter
            if event.key == "enter":
                self._submit()
            else:
                self._put("\n")
            return
        for binding in self._bindings.key_to_bindings.get(event.key, ()):
            if await self.app.run_action(binding.action, self):
                event.stop()
                return

    async def _on_paste(self, event: events.Paste) -> None:
        event.stop()
        event.prevent_default()  # TextArea's own handler would keep all that a terminal acts on
        text = inert(event.text.replace("\r\n", "\n").replace("\r", "\n"))
        paths = image_paths(text)
        if paths and all(os.path.exists(path) for path in paths):
            self.post_message(self.ImagesDropped(paths))
        else:
            self._put(text)
