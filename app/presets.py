"""Presets: named sets of sampling values and a system prompt, two of ours and the user's `[presets.NAME]`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..models.errors import UserError
from . import overrides
from .settings import Settings, invalid, requirement

NAMES = (*overrides.NAMES, "system_prompt")
"""What a preset may set."""
NONE = "default"
"""In place of a preset's name: take everything back."""
BUILT_IN: Mapping[str, Mapping[str, Any]] = {
    "precise": {"temperature": 0.2, "top_p": 0.9},
    "creative": {"temperature": 1.1, "top_p": 1.0, "min_p": 0.05},
}


def known(settings: Settings) -> dict[str, dict[str, Any]]:
    """All presets by name; one of the user's goes before ours of that name, and a wrong one is left out."""
    own = {name: values for name, values in settings.presets.items() if _problem(name, values) is None}
    return {name: dict(values) for name, values in {**BUILT_IN, **own}.items()}


def problems(settings: Settings) -> list[str]:
    """A sentence for each preset of the user's that cannot be used."""
    return [text for name, values in settings.presets.items() if (text := _problem(name, values))]


def checked_name(text: str) -> str:
    """`text` as the name of a new preset. Raises UserError if it cannot be one."""
    name = text.strip()
    if not name or name == NONE or len(name.split()) > 1:
        raise UserError(f"A preset's name is one word, but not {NONE}: /preset save brief, for example.")
    return name


def _problem(name: str, values: object) -> str | None:
    where = f"The preset {name} in the settings file"
    if not isinstance(values, Mapping):
        return f"{where} is no table of values, such as temperature = 0.2: it is ignored."
    if unknown := [each for each in values if each not in NAMES]:
        return f"{where} sets {unknown[0]}, but can set {', '.join(NAMES)}: it is ignored."
    if wrong := invalid(values):
        return f"{where} has a {wrong[0]} that is not {requirement(wrong[0])}: it is ignored."
    return None
