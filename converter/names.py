"""Names: what may be a converted model's, which one a source gets by default, those of split GGUF files."""

from __future__ import annotations

import re
from pathlib import Path

from ..models.errors import UserError

_SPLIT_NAME = re.compile(r"(?P<stem>.*)-(?P<part>\d{5})-of-(?P<count>\d{5})\.gguf")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def check_name(name: str) -> None:
    """Raise UserError unless `name` can be the name of a model, which is a directory's name too."""
    if not _NAME.fullmatch(name):
        raise UserError(
            f"{name!r} cannot be a model's name: use up to 100 letters, digits, dots, dashes and "
            "underscores, the first a letter or digit."
        )


def default_name(text: str) -> str:
    """The nearest valid name to `text`, such as a directory's or a Hub repo's last part."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip(".-_")[:100]
    return name or "model"


def directory_name(directory: Path) -> str:
    """The default name for a checkpoint directory."""
    directory = directory.resolve()
    # The Hub's cache keeps a snapshot of ORG/NAME in models--ORG--NAME/snapshots/COMMIT.
    if directory.parent.name == "snapshots" and directory.parent.parent.name.startswith("models--"):
        return default_name(directory.parent.parent.name.rsplit("--", 1)[-1])
    return default_name(directory.name)


def gguf_parts(path: Path) -> list[Path]:
    """All files of the GGUF model that `path` belongs to, in order."""
    match = _SPLIT_NAME.fullmatch(path.name)
    if not match:
        return [path]
    count = int(match["count"])
    names = (f"{match['stem']}-{part:05d}-of-{count:05d}.gguf" for part in range(1, count + 1))
    return [path.with_name(name) for name in names]


def is_gguf(path: Path) -> bool:
    """Whether the file begins as GGUF files do. Raises OSError."""
    with path.open("rb") as file:
        return file.read(4) == b"GGUF"
