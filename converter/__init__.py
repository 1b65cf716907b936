"""Turns a checkpoint (directory, Hub repo, GGUF file or the demo) into the lite_llama format."""

from __future__ import annotations

from .convert import SourceInfo, convert, inspect
from .events import Cancelled, ConvertEvent, Done, Notice, Progress
from .local import Local, find_local
from .staging import Part, clean_up, discard_part, parts, remove, rename

__all__ = [
    "Cancelled",
    "ConvertEvent",
    "Done",
    "Local",
    "Notice",
    "Part",
    "Progress",
    "SourceInfo",
    "clean_up",
    "convert",
    "discard_part",
    "find_local",
    "inspect",
    "parts",
    "remove",
    "rename",
]
