"""Files that are there as a whole or not at all, whatever happens."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ..models.errors import UserError


@contextlib.contextmanager
def saving(what: str, path: Path) -> Iterator[None]:
    """A block that writes `what` to `path`. Raises UserError in place of OSError."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{what} cannot be saved to {path} ({error.strerror}): check the permissions and the free space."
        ) from None


def replace_file(path: Path, content: bytes) -> None:
    """Replace the file in one step, so that a crash leaves either the old or the new one. Raises OSError."""
    target = path.resolve()  # the file behind a symlink, as people who version their dotfiles have it
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=target.name, suffix=".new")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileNotFoundError):
            shutil.copymode(target, temporary)
        os.replace(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise
