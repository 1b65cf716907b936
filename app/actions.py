"""All that the user can do, in one list: key bindings, palette, slash commands and help come from it."""

from __future__ import annotations

from dataclasses import dataclass

from textual.binding import Binding


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

    @property
    def key(self) -> str:
        """The key as it is printed: `Ctrl+N`."""
        return key_name(self.keys.split(",")[0]) if self.keys else ""

    @property
    def binding(self) -> Binding:
        shown = self.key if self.keys.startswith("f") else None  # Textual prints f1, ^n
        return Binding(self.keys, self.name, self.footer or self.title, bool(self.footer), shown)


ACTIONS = (
    Action("app.help", "Help", "keys and commands", "f1,ctrl+question_mark", "Help", "/help"),
    Action("app.settings", "Settings", "sampling, prompt, device", "f2", "Settings", "/settings"),
    Action("app.models", "Models", "load another one, add one", "f3", "Models", "/model"),
    Action("app.images", "Images", "attach, look, remove", "f4", "Images", "/image"),
    Action("new_conversation", "New chat", "an empty conversation", "ctrl+n", "New", "/new"),
    Action("app.conversations", "Open chat", "or rename, delete one", "ctrl+o", "Open", "/open"),
    Action("cancel", "Stop", "end the reply, keep its part", "escape", "", "/stop"),
    Action("continue_reply", "Continue", "a reply that was cut off", "ctrl+g", "", "/continue"),
    Action("regenerate", "Try again", "the last reply anew", "ctrl+r", "", "/retry"),
    Action("tokens", "Tokens", "how likely, what else", "f9", "", "/tokens"),
    Action("app.toggle_theme", "Dark or light", "switch the theme", "ctrl+t", "", "/theme", True),
    Action("app.change_theme", "Choose a theme", "one of all there are", anywhere=True),
    Action("app.quit", "Quit", "stop, save and leave", "ctrl+q", "Quit", "/quit", True),
)

PROMPT_KEYS = (
    ("Enter", "Send"),
    ("Alt+Enter Shift+Enter Ctrl+J", "New line"),
    ("Up Down", "Earlier messages, from an empty prompt"),
    ("Shift+Tab Tab", "To images and thinking, back; Enter opens"),
    ("Page up Page down", "Scroll the conversation"),
    ("Ctrl+Home Ctrl+End", "To its beginning, to its end"),
    ("Ctrl+P", "All commands"),
)


def key_name(key: str) -> str:
    """A key as people write it."""
    return "+".join("?" if part == "question_mark" else part.capitalize() for part in key.split("+"))


def slash_command(text: str) -> Action | None:
    """The action that `text` names, None when it is no slash command."""
    return next((action for action in ACTIONS if action.command and action.command == text.strip()), None)
