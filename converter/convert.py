"""The conversion itself: source -> staging directory -> renamed into place."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .events import ConvertEvent


class Cancelled(Exception):
    """The caller's cancel event was set; nothing is left behind but a resumable download."""


@dataclass(frozen=True)
class SourceInfo:
    """What is known of a source before it is converted (sizes in bytes)."""

    source: str
    kind: str
    """directory, gguf, hub or demo."""
    name: str
    """The name that the model will get unless the caller names it."""
    family: str | None
    """None when it is not known before the download."""
    parameter_count: int | None
    download_bytes: int
    converted_bytes: int
    free_bytes: int
    """Free space where the model will be."""


def inspect(source: str, models_dir: Path, downloads_dir: Path, *, dtype: str = "auto") -> SourceInfo:
    """Look at a source without converting it. Raises UserError when it cannot be converted."""
    raise NotImplementedError


def convert(
    source: str,
    models_dir: Path,
    downloads_dir: Path,
    *,
    name: str | None = None,
    dtype: str = "auto",
    force: bool = False,
    cancel: threading.Event | None = None,
) -> Iterator[ConvertEvent]:
    """Convert `source` to models_dir/name, telling its progress; the last event is Done.

    Raises UserError for anything the user can mend and Cancelled once `cancel` is set; closing the iterator
    early cleans up as well.
    """
    raise NotImplementedError
    yield


def clean_up(models_dir: Path, downloads_dir: Path) -> int:
    """Remove what killed conversions left behind (never one that still runs); returns the bytes freed."""
    raise NotImplementedError


def remove(models_dir: Path, name: str) -> int:
    """Delete a converted model; returns the bytes freed. Raises UserError when there is none of that name."""
    raise NotImplementedError
