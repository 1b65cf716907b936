"""Textual's driver, for a terminal that may be lent to an editor, or closed under the app."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
from typing import IO, Any

from textual.drivers.linux_driver import LinuxDriver


class TerminalDriver(LinuxDriver):
    """Writes nothing while the app is suspended; writes on when the terminal is gone, and ends the app then.

    The suspended app goes on with its work, and would draw over the editor that has the terminal.

    When the terminal is gone, Textual's output thread would end with the first error, and the app wait for it
    instead of saving. And its input thread would ask for keys again and again, for ever: not everybody whose
    terminal is closed is told so by a signal, but only the shell, which may not pass it on.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._file: Any = _Output(self._file)
        self._suspended = False
        threading.Thread(target=self._see_the_end, name="terminal", daemon=True).start()

    def suspend_application_mode(self) -> None:
        super().suspend_application_mode()
        self._suspended = True

    def resume_application_mode(self) -> None:
        self._suspended = False
        super().resume_application_mode()

    def write(self, data: str) -> None:
        if not self._suspended:  # after it all is drawn anew
            super().write(data)

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
