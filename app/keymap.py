"""Which keys the actions have: those of app/actions.py, or the user's from `[keys]` of the settings file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from textual.binding import Binding
from textual.keys import Keys
from textual.widgets import TextArea

from ..models.errors import UserError
from .actions import ACTIONS, Action, key_name, named
from .widgets.prompt import NEW_LINE_KEYS, PromptInput

FUNCTION_KEY = re.compile(r"f\d+")
_MODIFIERS = frozenset({"alt", "ctrl", "hyper", "meta", "shift", "super"})
_NAMED = frozenset(key.value.rpartition("+")[2] for key in Keys if key.value[0] not in "<")
_BY_ID = {action.id: action for action in ACTIONS}
_TYPED = frozenset(
    key
    for binding in (*TextArea.BINDINGS, *PromptInput.BINDINGS)
    if isinstance(binding, Binding)
    for key in binding.key.split(",")
)
# The last ones are Tab, Enter and Backspace on many terminals.
_TAKEN = _TYPED | {"enter", "tab", "shift+tab", "ctrl+p", *NEW_LINE_KEYS, "ctrl+i", "ctrl+m", "ctrl+h"}

_chosen: dict[str, str] = {}
"""The user's keys by Action.id. One for the process, as there is one app in it."""


def use(wanted: Mapping[str, Any]) -> list[str]:
    """Take the user's keys in place of ours; returns a sentence for each one that cannot be taken."""
    problems, chosen = [], {}
    for name, keys in wanted.items():
        try:
            chosen[_known(name).id] = ",".join(_checked(name, keys))
        except UserError as error:
            problems.append(str(error))
    # Without one of two that want the same key its action has our key again, which may be a third one's.
    while clash := _clash(chosen):
        loser, key, winner = clash
        problems.append(
            f"keys.{loser} in the settings file is {key}, the key of {_BY_ID[winner].title}: it is ignored."
        )
        del chosen[loser]
    _chosen.clear()
    _chosen.update(chosen)
    return problems


def keys(action: Action) -> str:
    """The keys that the action has now, comma-separated; the first is the one that is shown."""
    return _chosen.get(action.id, action.keys)


def key(name: str) -> str:
    """The key of the action of that name as it is printed, `Ctrl+N`; empty if it has none."""
    return key_name(keys(named(name)).split(",")[0])


def for_textual() -> Mapping[str, str]:
    """The user's keys as App.set_keymap takes them."""
    return dict(_chosen)


def _known(name: str) -> Action:
    if (action := _BY_ID.get(name.lower())) is None:
        raise UserError(
            f"keys.{name} in the settings file is no action: it is ignored. An action is called by its "
            f"title in the help ({key('app.help')}), such as new_chat."
        )
    return action


def _checked(name: str, text: object) -> list[str]:
    """The keys in `text` as Textual names them. Raises UserError if one is none, or does not arrive."""
    where = f"keys.{name} in the settings file"
    if not isinstance(text, str) or not text.strip():
        raise UserError(f'{where} must be one or more keys, such as "alt+n, f12": it is ignored.')
    found = []
    for each in text.lower().replace(" ", "").split(","):
        *modifiers, last = each.split("+")
        printable = re.fullmatch("[a-z0-9]", last)
        if not (printable or last in _NAMED) or not _MODIFIERS.issuperset(modifiers):
            raise UserError(f'{where} has "{each}", which is no key such as alt+n or f12: it is ignored.')
        pressed = "+".join([*sorted(modifiers), last])
        if pressed in _TAKEN or (printable and set(modifiers) <= {"shift"}):
            raise UserError(f"{where} is {each}, which the message's editor needs: it is ignored.")
        found.append(pressed)
    return found


def _clash(chosen: Mapping[str, str]) -> tuple[str, str, str] | None:
    """An action whose chosen key another one has, the key, and the other one."""
    owners: dict[str, str] = {}
    # Our own keys first, so that it is a chosen one that has to go.
    for action in sorted(ACTIONS, key=lambda action: action.id in chosen):
        for each in filter(None, chosen.get(action.id, action.keys).split(",")):
            if each in owners:
                return action.id, each, owners[each]
            owners[each] = action.id
    return None
