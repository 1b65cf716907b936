"""Directories that appear whole or not at all, and the removal of what a killed process left of one.

A conversion writes into a hidden directory beside the models and renames it into place at the end:

    models/.staging-x7f3/.lock        flocked as long as the process lives
    models/.staging-x7f3/new/NAME     the model being written
    models/.staging-x7f3/old/NAME     with --force, the model that it replaces, for the instant of the swap
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from ..models.checkpoint import MANIFEST
from ..models.errors import UserError
from .names import check_name

PREFIX = ".staging-"
_LOCK = ".lock"
_KEEP_DOWNLOADS_S = 7 * 24 * 3600


class Busy(Exception):
    """Another process holds the lock."""


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on the file `path` (made if need be); the kernel drops it with the process.

    Raises Busy when another holder lives, FileNotFoundError when the directory or the lock file vanished.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Busy from None
        # Somebody may have removed the file between the open and the lock: such a lock protects nothing.
        if os.stat(path).st_ino != os.fstat(descriptor).st_ino:
            raise FileNotFoundError(path)
        yield
    finally:
        os.close(descriptor)


class Staging:
    """A model being written: fill `directory`, then `commit`."""

    def __init__(self, root: Path, models_dir: Path, name: str) -> None:
        self._target = models_dir / name
        self._old = root / "old" / name
        self.directory = root / "new" / name
        self.directory.mkdir(parents=True)

    def commit(self, *, force: bool) -> Path:
        """Make the files durable and rename the directory into place; returns where it is now.

        With `force` a model that is there already is replaced. Raises UserError when one is there otherwise.
        """
        for file in self.directory.iterdir():
            _fsync(file)
        _fsync(self.directory)
        if force and self._target.exists():
            self._old.parent.mkdir()
            self._target.rename(self._old)
        try:
            self.directory.rename(self._target)
        except OSError:
            if not self._target.exists():
                raise
            raise already_there(self._target.name) from None
        _fsync(self._target.parent)
        return self._target


@contextlib.contextmanager
def staging(models_dir: Path, name: str) -> Iterator[Staging]:
    """A staging directory for the model `name`, removed with all that is in it when the block ends."""
    models_dir.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        while True:
            root = Path(tempfile.mkdtemp(prefix=PREFIX, dir=models_dir))
            # Another process's clean_up may win the race for the directory that was just made.
            with contextlib.suppress(FileNotFoundError, Busy):
                stack.enter_context(locked(root / _LOCK))
                break
        stack.callback(_discard, root, models_dir)
        yield Staging(root, models_dir, name)


def already_there(name: str) -> UserError:
    """The error for a name that is taken."""
    return UserError(
        f"There is already a model called {name}: replace it with --force or give another name with --name."
    )


def clean_up(models_dir: Path, downloads_dir: Path) -> int:
    """Remove what killed conversions left behind (never one that still runs); returns the bytes freed.

    A download that was broken off stays a week, so that it can be resumed.
    """
    freed = 0
    for root in models_dir.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError, Busy), locked(root / _LOCK):
            freed += _discard(root, models_dir)
    for directory in downloads_dir.iterdir() if downloads_dir.is_dir() else []:
        with contextlib.suppress(OSError, Busy):
            if directory.is_dir() and time.time() - _last_change(directory) > _KEEP_DOWNLOADS_S:
                with locked(directory / _LOCK):
                    freed += delete(directory)
    return freed


@contextlib.contextmanager
def download_directory(path: Path) -> Iterator[Path]:
    """Make and lock a directory for a download; it outlives the block. Raises UserError when it is in use."""
    path.mkdir(parents=True, exist_ok=True)
    try:
        with locked(path / _LOCK):
            yield path
    except Busy:
        raise UserError(
            f"{path.name} is being downloaded by another run: wait until that one is done."
        ) from None


def remove(models_dir: Path, name: str) -> int:
    """Delete a converted model; returns the bytes freed. Raises UserError when there is none of that name."""
    check_name(name)
    target = models_dir / name
    if not (target / MANIFEST).is_file():
        raise UserError(f"There is no model called {name}: lite-llama-tui models lists those there are.")
    # Renamed into a staging directory it is no model any more, and whatever interrupts the deletion, the
    # next clean_up finishes it.
    with staging(models_dir, name) as doomed:
        size = _size(target)
        target.rename(doomed.directory)  # replaces the empty directory that is there
    return size


def delete(directory: Path) -> int:
    """Delete a directory with all that is in it; returns the bytes freed."""
    size = _size(directory)
    shutil.rmtree(directory, ignore_errors=True)
    return size


def _discard(root: Path, models_dir: Path) -> int:
    """Delete a staging directory, putting back a replaced model whose successor never arrived."""
    for old in root.glob("old/*"):
        if not (models_dir / old.name).exists():
            old.rename(models_dir / old.name)
    return delete(root)


def _size(directory: Path) -> int:
    """Bytes of the files under `directory`."""
    return sum(path.lstat().st_size for path in directory.rglob("*") if path.is_file())


def _last_change(directory: Path) -> float:
    return max(path.lstat().st_mtime for path in (directory, *directory.rglob("*")))


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
