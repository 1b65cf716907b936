"""All that the user can do, in one list: key bindings, palette, slash commands and help come from it."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path

from textual.binding import Binding

_LIKE_A_COMMAND = re.compile("(/[a-z]+)( .*)?")


@dataclass(frozen=True)
class Action:
    """`name` is a Textual action of the chat screen, or of the app with the prefix `app.`."""

    name: str
    title: str
    help: str
    keys: str = ""
    """Comma-separated, as Textual names keys; the first is the one that is shown."""
    footer: str = ""
    """The word in the footer; empty for what is not shown there."""
    command: str = ""
    """The slash command."""
    anywhere: bool = False
    """Whether the palette offers it over other screens too."""
    argument: str = ""
    """What follows the slash command, such as NAME, in brackets if it can be left out; the action takes it
    as a string."""
    turn_keys: str = ""
    """The keys while a turn is selected; such an action is about that turn, else about the last it suits."""

    @property
    def id(self) -> str:
        """What the user calls it in `[keys]` of the settings file: `new_chat`."""
        return self.title.lower().replace(" ", "_")

    @property
    def turn_key(self) -> str:
        return key_name(self.turn_keys.split(",")[0]) if self.turn_keys else ""

    @property
    def binding(self) -> Binding:
        return Binding(self.keys, self.name, self.footer or self.title, bool(self.footer), id=self.id)

    @property
    def closing(self) -> Binding:
        """The same keys, or the user's, on the dialog that they opened: they close it."""
        return replace(self.binding, action="dismiss", description="")


ACTIONS = (
    Action("app.help", "Help", "keys and commands", "f1,ctrl+question_mark", "Help", "/help"),
    Action("app.settings", "Settings", "sampling, prompt, device", "f2", "Settings", "/settings"),
    Action("app.models", "Models", "load another one, add one", "f3", "Models", "/model", argument="[NAME]"),
    Action("app.images", "Images", "attach, look, remove", "f4", "Images", "/image"),
    Action("app.compare", "Compare", "two models or settings, one prompt", "ctrl+s", "", "/compare"),
    Action("app.figures", "Figures", "speed and memory", "f9", "", "/figures"),
    Action("new_conversation", "New chat", "an empty conversation", "ctrl+n", "New", "/new"),
    Action("app.conversations", "Open chat", "or rename, delete one", "ctrl+o", "Open", "/open"),
    Action("sidebar", "Sidebar", "all chats beside this one", "ctrl+b", command="/chats"),
    Action("app.search", "Search", "in all chats", "f8,ctrl+shift+f", "", "/search", argument="[WORDS]"),
    Action("override", "Set for this chat", "such as temperature 0.2", command="/set", argument="NAME VALUE"),
    Action("app.preset", "Preset", "named settings for this chat", command="/preset", argument="NAME"),
    Action("system_prompt", "System prompt", "of this chat", command="/system", argument="[TEXT]"),
    Action("use_own_model", "Its own model", "load what this chat was with", "ctrl+l", command="/own"),
    Action("export", "Export", "to .md, .jsonl, .html", command="/export", argument="[PATH]"),
    Action("import", "Import", "an exported file", command="/import", argument="PATH"),
    Action("retitle", "Retitle", "the model writes the title", command="/retitle"),
    Action("cancel", "Stop", "end the reply, keep its part", "escape", "", "/stop"),
    Action("continue_reply", "Continue", "a reply that was cut off", "ctrl+g", "", "/continue"),
    Action("regenerate", "Try again", "another reply beside it", "ctrl+r", "", "/retry", turn_keys="r"),
    Action("tokens", "Tokens", "how likely, what else", "f12", command="/tokens", turn_keys="t"),
    Action("select_turn(-1)", "Select", "the turn before", "alt+up,ctrl+up", turn_keys="up,k"),
    Action("select_turn(1)", "Select next", "the turn after", "alt+down,ctrl+down", turn_keys="down,j"),
    Action("edit_turn", "Edit", "a turn, as another branch", command="/edit", turn_keys="e,enter"),
    Action("other_branch(-1)", "Branch before", "of a turn with several", turn_keys="left,h"),
    Action("other_branch(1)", "Branch after", "of a turn with several", turn_keys="right,l"),
    Action("edit_queued(-1)", "Edit queued", "the last message that waits", command="/queued"),
    Action("resume_queue", "Send queued", "the messages that wait", command="/resume"),
    Action("editor", "Editor", "write in $EDITOR", "f5", command="/editor"),
    Action("copy_turn", "Copy", "a turn, as it was written", command="/copy", turn_keys="c,y"),
    Action("copy_code", "Copy code", "one code block of a reply", command="/code", turn_keys="b"),
    Action("app.toggle_theme", "Dark or light", "switch the theme", "ctrl+t", "", "/theme", True),
    Action("app.change_theme", "Choose a theme", "one of all there are", anywhere=True),
    Action("app.quit", "Quit", "stop, save and leave", "ctrl+q", "Quit", "/quit", True),
)

PROMPT_KEYS = (
    ("Enter", "Send"),
    ("/", "Commands; Tab completes, Enter runs"),
    ("Alt+Enter Shift+Enter Ctrl+J", "New line"),
    ("Up Down", "Earlier messages, from an empty prompt"),
    ("Enter in a reply", "Queues; Esc pauses, Enter alone resumes"),
    ("Shift+Tab Tab", "To images and thinking, back; Enter opens"),
    ("Page up Page down", "Scroll the conversation"),
    ("Ctrl+Home Ctrl+End", "To its beginning, to its end"),
    ("Ctrl+P", "All commands"),
)


def named(name: str) -> Action:
    """The action of that name."""
    return next(action for action in ACTIONS if action.name == name)


def key_name(key: str) -> str:
    """A key as people write it."""
    return "+".join("?" if part == "question_mark" else part.capitalize() for part in key.split("+"))


def slash_command(text: str) -> str | None:
    """The action that `text` asks for, as Textual's `run_action` takes it; None when it is no command."""
    command, _, argument = text.strip().partition(" ")
    action = next((action for action in ACTIONS if action.command and action.command == command), None)
    if action is None or (argument and not action.argument):
        return None
    return f"{action.name}({argument.strip()!r})" if argument else action.name


def commands_like(text: str) -> list[Action]:
    """The actions whose slash commands begin like `text`, first the one whose command it is."""
    found = [action for action in ACTIONS if text and action.command.startswith(text)]
    return sorted(found, key=lambda action: action.command != text)


def no_command(text: str) -> str:
    """Says that a text which looks like a command is none, such as a mistyped one; empty for a message."""
    looks = _LIKE_A_COMMAND.fullmatch(text.rstrip())
    if looks is None or slash_command(text) or Path(looks[1]).exists():  # /home, for one
        return ""
    command, commands = looks[1], [action.command for action in ACTIONS if action.command]
    if command in commands:
        what = f"{command} takes nothing after it."
    elif near := get_close_matches(command, commands, n=1):
        what = f"There is no command {command}: did you mean {near[0]}?"
    else:
        what = f"There is no command {command}: /help lists them."
    return f"{what} With a space before it, it is sent as a message."
