"""What a conversion tells while it runs; the command line's progress bar and the wizard both read these."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..models.checkpoint import Checkpoint

Phase = Literal["download", "convert", "finish"]


class Cancelled(Exception):
    """The caller's cancel event was set; nothing is left behind but what can be resumed."""


@dataclass(frozen=True)
class Progress:
    """`done` of `total` bytes of a phase (total 0: not known yet); `item` is the file or tensor at hand."""

    phase: Phase
    done: int
    total: int
    item: str


@dataclass(frozen=True)
class Notice:
    """Something worth telling once, such as a fallback taken."""

    text: str


@dataclass(frozen=True)
class Done:
    """The model is in place and can be loaded."""

    checkpoint: Checkpoint
    seconds: float


ConvertEvent = Progress | Notice | Done
