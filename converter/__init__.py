"""Turns a checkpoint (directory, Hub repo, GGUF file or the demo) into the lite_llama format."""

from __future__ import annotations

from .convert import Cancelled, SourceInfo, clean_up, convert, inspect, remove
from .events import ConvertEvent, Done, Notice, Progress

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
