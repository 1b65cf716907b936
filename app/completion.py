"""What can be completed in the prompt: slash commands, and what follows `/set` and `/preset`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from . import keymap, overrides, presets
from .actions import Action, commands_like
from .settings import Settings, requirement


@dataclass(frozen=True)
class Completion:
    text: str
    """What stands in the prompt then; it ends in a space where `argument` may follow."""
    what: str
    argument: str = ""
    """Such as NAME VALUE."""
    key: str = ""
    """The key that does the same."""


def completions(text: str, settings: Settings, own: Mapping[str, Any]) -> list[Completion]:
    """What the prompt's `text` can become, for a chat that has the settings `own` for itself."""
    command, space, begun = text.partition(" ") if text.startswith("/") else ("", "", "")
    if not space:
        return [_command(action) for action in commands_like(command)]
    if command == "/set":
        lines = [_setting(name, own) for name in overrides.NAMES]
    elif command == "/preset":
        known = {**presets.known(settings), presets.NONE: {}}
        lines = [*(_preset(*each) for each in known.items()), _SAVE_PRESET]
    else:
        return []
    begun = f"{command} {begun.lstrip()}"
    return [line for line in lines if line.text.startswith(begun)]


def _command(action: Action) -> Completion:
    text = f"{action.command} " if action.argument else action.command
    return Completion(text, f"{action.title}: {action.help}", action.argument, keymap.key(action.name))


def _setting(name: str, own: Mapping[str, Any]) -> Completion:
    has = f", here {own[name]}" if name in own else ""
    return Completion(f"/set {name} ", requirement(name) + has, "VALUE")


def _preset(name: str, values: Mapping[str, Any]) -> Completion:
    what = ", ".join(f"{each} {value}" for each, value in values.items())
    return Completion(f"/preset {name}", what or "as in the settings")


_SAVE_PRESET = Completion("/preset save ", "what this chat has, as a preset", "NAME")
