"""What stands in the prompt and was not sent: it is there again at the next start, however this one ended."""

from __future__ import annotations

import contextlib
import logging
import threading
from pathlib import Path

from filelock import FileLock, Timeout

from .files import replace_file
from .text import inert

log = logging.getLogger(__name__)


class Draft:
    """The file that holds it. Of several instances of the app that run at once, only the first keeps one."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = FileLock(path.with_name(f"{path.name}.lock"), thread_local=False)
        self.kept = ""
        """What the file has."""
        self._one_write = threading.Lock()

    def read(self) -> str:
        """What the last start left behind; empty where there is nothing, or another instance has it."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(blocking=False)
            self.kept = inert(self._path.read_text(encoding="utf-8"))
        except (Timeout, OSError, ValueError):
            self.kept = ""
        return self.kept

    def keep(self, text: str) -> None:
        """Save the text, from any thread; at most a line in the log says that it cannot be."""
        with self._one_write:
            if text == self.kept or not self._lock.is_locked:
                return
            try:
                if text:
                    replace_file(self._path, text.encode("utf-8", "replace"))
                else:
                    self._path.unlink(missing_ok=True)
                self.kept = text
            except OSError as error:
                log.warning("the text in the prompt is not saved: %s", error)

    def close(self, text: str) -> None:
        """Save the text for the next start, and let another instance have the file."""
        self.keep(text)
        with contextlib.suppress(OSError):
            self._lock.release()
