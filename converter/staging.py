"""Directories that appear whole or not at all, and the removal of what a killed process left of one.

A conversion writes into a hidden directory beside the models and renames it into place at the end:

    models/.staging-x7f3/.lock        flocked as long as the process lives
    models/.staging-x7f3/part.json    how far it came, once that is worth keeping (class Part)
    models/.staging-x7f3/new/NAME     the model being written
    models/.staging-x7f3/old/NAME     with --force, the model that it replaces, for the instant of the swap

A conversion that was stopped or killed leaves its part for a week, and the next one of the same source under
the same name takes it over. What it trusts is a checksum: the first `done` bytes of the weights must have
the digest that was written down. So nothing has to wait for the disk meanwhile: what a power cut kept from
getting there is found out, and converted again.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ..models.checkpoint import MANIFEST, WEIGHTS, Checkpoint
from ..models.errors import UserError
from .events import Cancelled
from .names import check_name

PREFIX = ".staging-"
_LOCK = ".lock"
_PART = "part.json"
_KEEP_S = 7 * 24 * 3600
"""How long downloads and conversions that were broken off stay, so that they can be resumed."""


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


@dataclass(frozen=True)
class Part:
    """What a stopped conversion has of a model: `done` of `total` bytes of the weights."""

    name: str
    source: str
    dtype: str
    fingerprint: str
    """Of all that the bytes depend on; see convert.py."""
    done: int
    total: int
    sha256: str
    """Of the first `done` bytes (hex)."""


class Staging:
    """A model being written: fill `directory`, then `commit`. `part` is what an earlier run left in it."""

    def __init__(self, root: Path, models_dir: Path, name: str) -> None:
        self._root = root
        self._target = models_dir / name
        self._old = root / "old" / name
        self.directory = root / "new" / name
        self.directory.mkdir(parents=True, exist_ok=True)
        self.part = _read_part(root)
        for path in self.directory.iterdir():
            if path.name != WEIGHTS:  # the small files are written anew
                path.unlink()

    def keep(self, part: Part) -> None:
        """Write down how far it came; from now on a stop leaves the directory."""
        new = self._root / f"{_PART}.new"
        new.write_text(json.dumps(asdict(part)), encoding="utf-8")
        new.replace(self._root / _PART)

    def commit(self, *, force: bool) -> Path:
        """Make the files durable and rename the directory into place; returns where it is now.

        With `force` a model that is there already is replaced. Raises UserError when one is there otherwise.
        """
        for file in self.directory.iterdir():
            _fsync(file)
        _fsync(self.directory)
        (self._root / _PART).unlink(missing_ok=True)  # from here on there is the model, or nothing
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
def staging(models_dir: Path, name: str, fingerprint: str | None = None) -> Iterator[Staging]:
    """A staging directory for the model `name`, taken over from a stopped run with the same `fingerprint`.

    Without a fingerprint it is a new one, and what stopped runs have is left alone.
    When the block ends it is removed with all that is in it, unless it was stopped and has a part to keep.
    """
    models_dir.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        root = _take_over(models_dir, name, fingerprint, stack) if fingerprint else None
        while root is None:
            new = Path(tempfile.mkdtemp(prefix=PREFIX, dir=models_dir))
            # Another process's clean_up may win the race for the directory that was just made.
            with contextlib.suppress(FileNotFoundError, Busy):
                stack.enter_context(locked(new / _LOCK))
                root = new
        try:
            yield Staging(root, models_dir, name)
        except (Cancelled, GeneratorExit, KeyboardInterrupt):
            if not _read_part(root):
                _discard(root, models_dir)
            raise
        except BaseException:
            _discard(root, models_dir)
            raise
        _discard(root, models_dir)


def _take_over(models_dir: Path, name: str, fingerprint: str, stack: contextlib.ExitStack) -> Path | None:
    """The directory of a stopped run for this very model, its lock entered into `stack`.

    Parts of that name that something else left are deleted: nobody would go on with them.
    """
    for root in models_dir.glob(f"{PREFIX}*"):
        part = _read_part(root)
        if part and part.name == name:
            with contextlib.suppress(OSError, Busy):
                if part.fingerprint == fingerprint:
                    stack.enter_context(locked(root / _LOCK))
                    return root
                with locked(root / _LOCK):
                    _discard(root, models_dir)
    return None


def parts(models_dir: Path) -> list[Part]:
    """What stopped conversions left that can be resumed; running ones are no parts."""
    found = []
    for root in sorted(models_dir.glob(f"{PREFIX}*")):
        if part := _read_part(root):
            with contextlib.suppress(OSError, Busy), locked(root / _LOCK):
                found.append(part)
    return found


def discard_part(models_dir: Path, part: Part) -> int:
    """Delete what a stopped conversion left; returns the bytes freed (none when it runs again)."""
    freed = 0
    for root in models_dir.glob(f"{PREFIX}*"):
        if _read_part(root) == part:
            with contextlib.suppress(OSError, Busy), locked(root / _LOCK):
                freed += _discard(root, models_dir)
    return freed


def _read_part(root: Path) -> Part | None:
    """What `root` says of its part, None when there is none (or nothing that can be read)."""
    with contextlib.suppress(OSError, ValueError, TypeError):
        part = Part(**json.loads((root / _PART).read_text(encoding="utf-8")))
        if (root / "new" / part.name / WEIGHTS).stat().st_size >= part.done:
            return part
    return None


def already_there(name: str) -> UserError:
    """The error for a name that is taken."""
    return UserError(
        f"There is already a model called {name}: replace it with --force or give another name with --name."
    )


def _no_model(name: str) -> UserError:
    return UserError(f"There is no model called {name}: lite-llama-tui models lists those there are.")


def clean_up(models_dir: Path, downloads_dir: Path) -> int:
    """Remove what killed conversions left behind (never one that still runs); returns the bytes freed.

    What can be resumed, be it a download or a part of a conversion, stays a week.
    """
    freed = 0
    for root in models_dir.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError, Busy), locked(root / _LOCK):
            if not _read_part(root) or _is_old(root / _PART):
                freed += _discard(root, models_dir)
    for directory in downloads_dir.iterdir() if downloads_dir.is_dir() else []:
        with contextlib.suppress(OSError, Busy):
            if directory.is_dir() and all(map(_is_old, (directory, *directory.rglob("*")))):
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
        raise _no_model(name)
    # Renamed into a staging directory it is no model any more, and whatever interrupts the deletion, the
    # next clean_up finishes it.
    with staging(models_dir, name) as doomed:
        size = _size(target)
        target.rename(doomed.directory)  # replaces the empty directory that is there
    return size


def rename(models_dir: Path, name: str, new_name: str) -> None:
    """Give a converted model another name. Raises UserError for a damaged model, and for a name that is taken
    or cannot be one.
    """
    check_name(name)
    check_name(new_name)
    source, target = models_dir / name, models_dir / new_name
    if not (source / MANIFEST).is_file():
        raise _no_model(name)
    if target.exists():
        raise UserError(f"There is already a model called {new_name}: choose another name.")
    manifest = replace(Checkpoint.open(source).manifest, name=new_name)
    new = source / f".{MANIFEST}.new"
    try:
        new.write_text(manifest.to_json(), encoding="utf-8")
        # The directory last: its name is the one that counts, the manifest's is for show.
        new.replace(source / MANIFEST)
        source.rename(target)
    except OSError as error:
        raise UserError(
            f"{name} cannot be renamed ({error.strerror}): check the owner of {source}."
        ) from None


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


def _is_old(path: Path) -> bool:
    return time.time() - path.lstat().st_mtime > _KEEP_S


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
