"""Settings that one conversation has for itself: `/set temperature 0.2`, `/system You are a pirate.`"""

from __future__ import annotations

from typing import Any

from ..models.errors import UserError
from .settings import Settings, invalid, requirement

NAMES = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "max_gen_len",
    "seed",
    "thinking",
)


def parse(text: str) -> tuple[str, Any]:
    """The setting and its value in `NAME VALUE`; the value None takes the setting back.

    Raises UserError that says which settings there are, or what the value must be.
    """
    name, _, value = text.strip().partition(" ")
    name, value = name.lower().replace("-", "_"), value.strip()
    if name not in NAMES:
        raise UserError(f"A chat can set {', '.join(NAMES)}: /set {NAMES[0]} 0.2, for example.")
    if value in ("", "default"):
        return name, None
    if invalid({name: value}):
        raise UserError(f"{name} must be {requirement(name)}: /set {name} default takes it back.")
    return name, getattr(Settings.model_validate({name: value}), name)
