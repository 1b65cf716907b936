"""Keys and commands, from the one list of actions."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Static

from .. import keymap
from ..actions import ACTIONS, PROMPT_KEYS, named


class HelpScreen(ModalScreen[None]):
    """Escape or the key that opened it closes it; the arrow keys scroll."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,enter", "dismiss", "Close"),
        named("app.help").closing,
    ]

    def compose(self) -> ComposeResult:
        with VerticalScroll(id="dialog", classes="dialog") as dialog:
            dialog.border_title = "Help"
            dialog.border_subtitle = "Esc closes"
            yield Static("Writing", classes="heading")
            for keys, what in PROMPT_KEYS:
                yield _line(keys, what)
            yield Static("\nCommands", classes="heading")
            for action in ACTIONS:
                key = keymap.key(action.name) or "Ctrl+P"
                yield _line(key, f"{action.title}: {action.help}", action.command)
            yield Static("\nWith a turn selected", classes="heading")
            for action in ACTIONS:
                if action.turn_keys:
                    yield _line(action.turn_key, f"{action.title}: {action.help}")
            yield Static(
                "\nCtrl+C copies text that is selected with the mouse; with Shift held, most terminals make "
                "a selection of their own.",
                classes="remark",
            )

    def on_mount(self) -> None:
        self.query_one("#dialog").focus()


def _line(keys: str, what: str, command: str = "") -> Horizontal:
    line = Horizontal(
        Static(keys, classes="keys", markup=False), Static(what, classes="what", markup=False), classes="line"
    )
    if command:
        line.compose_add_child(Static(command, classes="command", markup=False))
    return line
