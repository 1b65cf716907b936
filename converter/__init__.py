"""Turns a checkpoint (directory, Hub repo, GGUF file or the demo) into the lite_llama format."""

from __future__ import annotations

from .convert import SourceInfo, convert, inspect
from .events import Cancelled, ConvertEvent, Done, Notice, Progress
from .staging import clean_up, remove

__all__ = [
    "Cancelled",
    "ConvertEvent",
    "Done",
    "Notice",
    "Progress",
    "SourceInfo",
    "clean_up",
    "convert",
    "inspect",
    "remove",
]
