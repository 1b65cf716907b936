"""What can be completed in the prompt: slash commands, and the names that some of them take."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from . import keymap, overrides, presets
from .actions import Action, commands_like
from .settings import Settings, requirement


@dataclass(frozen=True)
class Completion:
    text: str
    what: str
    argument: str = ""
    """What follows the text, such as NAME VALUE; in brackets if it can be left out."""
    key: str = ""
    """The key that does the same."""

    @property
    def begun(self) -> str:
        """What stands in the prompt when this is gone on with: Tab."""
        return f"{self.text} " if self.argument else self.text

    @property
    def chosen(self) -> str:
        """What stands in the prompt when this is taken: Enter. It ends in a space if more has to follow."""
        return self.text if self.argument.startswith("[") else self.begun


def completions(
    text: str, settings: Settings, own: Mapping[str, Any], models: Callable[[], Mapping[str, str]]
) -> list[Completion]:
    """What the prompt's `text` can become, for a chat that has the settings `own` for itself.

    `models` gives the names of those that can be loaded, each with what it is.
    """
    command, space, begun = text.partition(" ") if text.startswith("/") else ("", "", "")
    if not space:
        return [_command(action) for action in commands_like(command)]
    if command == "/set":
        lines = [_setting(name, own) for name in overrides.NAMES]
    elif command == "/preset":
        known = {**presets.known(settings), presets.NONE: {}}
        lines = [*(_preset(*each) for each in known.items()), _SAVE_PRESET]
    elif command == "/model":
        lines = [Completion(f"/model {name}", what) for name, what in models().items()]
    else:
        return []
    begun = f"{command} {begun.lstrip()}"
    return [line for line in lines if line.begun.casefold().startswith(begun.casefold())]


def _command(action: Action) -> Completion:
    what = f"{action.title}: {action.help}"
    return Completion(action.command, what, action.argument, keymap.key(action.name))


def _setting(name: str, own: Mapping[str, Any]) -> Completion:
    has = f", here {own[name]}" if name in own else ""
    return Completion(f"/set {name}", requirement(name) + has, "VALUE")


def _preset(name: str, values: Mapping[str, Any]) -> Completion:
    what = ", ".join(f"{each} {value}" for each, value in values.items())
    return Completion(f"/preset {name}", what or "as in the settings")


_SAVE_PRESET = Completion("/preset save", "what this chat has, as a preset", "NAME")
