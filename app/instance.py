"""Tells which instances of the app are running on the same database.

Each holds a lock on a file of its own beside it. The system frees the lock however the program ends, so a
file that can be locked belongs to nobody any more.
"""

from __future__ import annotations

import contextlib
import uuid
from pathlib import Path

from filelock import FileLock, Timeout


class Instance:
    """This one, from its construction until `close`."""

    def __init__(self, database: Path) -> None:
        self.id = uuid.uuid4().hex
        self._prefix = f"{database.name}.running-"
        self._directory = database.parent
        self._lock = self._lock_of(self.id)
        with contextlib.suppress(OSError):  # a read-only directory: nothing will be written there either
            self._lock.acquire(blocking=False)

    def others(self) -> set[str]:
        """The ids of those that run besides this one; what others left behind is removed."""
        running = set()
        for path in self._directory.glob(f"{self._prefix}*"):
            if (other := path.name.removeprefix(self._prefix)) != self.id:
                lock = self._lock_of(other)
                try:
                    lock.acquire(blocking=False)
                except (Timeout, OSError):
                    running.add(other)
                else:
                    _remove(lock)
        return running

    def close(self) -> None:
        if self._lock.is_locked:
            _remove(self._lock)

    def _lock_of(self, instance: str) -> FileLock:
        return FileLock(self._directory / f"{self._prefix}{instance}", thread_local=False)


def _remove(lock: FileLock) -> None:
    with contextlib.suppress(OSError):
        Path(lock.lock_file).unlink()
    lock.release()
