"""A program in a terminal of its own, driven by keys and watched byte by byte."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import termios
import time
from collections.abc import Mapping
from types import TracebackType

from ...models.errors import UserError

_READ_BYTES = 1 << 16


class Terminal:
    """Runs a command in a pseudo-terminal; whatever it writes goes into `output`.

    A program that writes more than the terminal has room for waits until it is read: `pump` all the time.
    """

    def __init__(self, command: list[str], environment: Mapping[str, str], columns: int, lines: int) -> None:
        self._master, slave = pty.openpty()
        termios.tcsetwinsize(slave, (lines, columns))
        self.output = bytearray()
        self._read_from = 0
        self._process = subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=slave, env=environment, start_new_session=True
        )
        os.close(slave)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: TracebackType | BaseException | None) -> None:
        """End the program, whatever it is doing."""
        self._process.kill()
        self._process.wait()
        os.close(self._master)

    @property
    def pid(self) -> int:
        return self._process.pid

    def type(self, text: str) -> float:
        """Type the text; returns the time before it was written (as time.monotonic)."""
        now = time.monotonic()
        os.write(self._master, text.encode())
        return now

    def pump(self, seconds: float) -> float:
        """Read what has come within `seconds`, less if something has; returns the time when it was there.

        Raises UserError when the program has ended.
        """
        if select.select([self._master], [], [], max(0.0, seconds))[0]:
            now = time.monotonic()
            self._read_from = len(self.output)
            try:
                self.output += os.read(self._master, _READ_BYTES)
            except OSError:  # so Linux tells the end of the program
                raise UserError("The app ended in the middle of the measurement.") from None
            return now
        return time.monotonic()

    def wait_for(self, text: str, seconds: float, start: int = 0) -> float:
        """Read until `text` is in the output after `start`; returns when. UserError when it is late."""
        now = time.monotonic()
        end = now + seconds
        found = self.output.find(text.encode(), start) >= 0
        while not found:
            if now > end:
                raise UserError(f"The app did not show {text!r} within {seconds:.0f} s: not counted.")
            now = self.pump(end - now)
            found = self.brought(text, start)
        return now

    def brought(self, text: str, start: int) -> bool:
        """Whether what `pump` read last has completed `text`, all of it after `start`."""
        wanted = text.encode()
        return self.output.find(wanted, max(start, self._read_from - len(wanted))) >= 0

    def wait(self, seconds: float) -> int:
        """Read until the program ends; returns its exit code. Raises UserError when it does not end."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                self.pump(0.1)
            except UserError:
                return self._process.wait()
        raise UserError(f"The app did not end within {seconds:.0f} s.")
