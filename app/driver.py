"""Textual's driver, for a terminal that may be closed under the app."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
from typing import IO, Any

from textual.drivers.linux_driver import LinuxDriver


class TerminalDriver(LinuxDriver):
    """Writes on when the terminal is gone, and ends the app then.

    Else Textual's output thread ends with the first error, and the app waits for it instead of saving. And
    its input thread asks for keys again and again, for ever: not everybody whose terminal is closed is told
    so by a signal, but only the shell, which may not pass it on.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._file: Any = _Output(self._file)
        threading.Thread(target=self._see_the_end, name="terminal", daemon=True).start()

    def _see_the_end(self) -> None:
        terminal = select.poll()
        terminal.register(self.fileno, 0)  # of no interest but its end, which is always told
        ((_, what),) = terminal.poll()
        if what & select.POLLHUP:
            os.kill(os.getpid(), signal.SIGHUP)


class _Output:
    """The file, whose errors are passed over."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError):
            self._file.write(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._file.flush()
