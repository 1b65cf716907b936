"""The app and the plain chat in a pseudo-terminal, with an engine that streams, to be typed at and killed.

Each run is a process of its own. They are forked from one that has imported everything, since that takes
seconds: this file, run as a script.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import json
import os
import pty
import select
import signal
import socket
import subprocess
import sys
import termios
import threading
import time
from pathlib import Path
from typing import Any


class TerminalChat:
    """A terminal in which one chat after another is started."""

    def __init__(self) -> None:
        self._master, slave = pty.openpty()
        self.output = bytearray()
        self.resize(80, 24)
        self._control, theirs = socket.socketpair()
        self._nursery = subprocess.Popen(
            [sys.executable, __file__, str(theirs.fileno())],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            pass_fds=[theirs.fileno()],
            env=os.environ | {"TERM": "xterm-256color"},
        )
        os.close(slave)
        theirs.close()
        self._control.settimeout(20)
        self._answers = self._control.makefile("r")
        self.pid = 0
        self._hung_up = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def close(self) -> None:
        """End the chat, if one runs, and the terminal."""
        self._answers.close()
        self._control.close()  # which ends the nursery and its chat, as the end of this process does
        self._nursery.wait(20)
        self.hang_up()

    def hang_up(self) -> None:
        """Close the terminal as its window does."""
        if not self._hung_up.is_set():
            self._hung_up.set()
            self._reader.join()  # a terminal that is still read is not closed
            os.close(self._master)

    def start(self, home: Path, mode: str, *, words: int = 3, delay: float = 0.0) -> None:
        """Start `app` or `plain` on that home. Each reply has that many words, `delay` seconds before each.

        What the engine streams is in `home / "streamed"`, as lines of time.monotonic() and a word.
        """
        spec = {"home": str(home), "mode": mode, "words": words, "delay": delay}
        self.output.clear()
        self._control.sendall(json.dumps(spec).encode() + b"\n")
        self.pid = int(self._answers.readline())

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self) -> int:
        """The exit code of the chat when it has ended, negative for a signal."""
        code = int(self._answers.readline())
        self.pid = 0
        return code

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def resize(self, columns: int, lines: int) -> None:
        termios.tcsetwinsize(self._master, (lines, columns))

    def settings(self) -> list[Any]:
        """The terminal's modes, as termios tells them."""
        return termios.tcgetattr(self._master)

    def wait_for(self, *texts: str, seconds: float = 20) -> None:
        """Wait until the texts were written one after the other."""
        end, place = time.monotonic() + seconds, 0
        for text in texts:
            while (found := self.output.find(text.encode(), place)) < 0:
                assert time.monotonic() < end, f"{text!r} is not in {self.output[place:].decode()!r}"
                time.sleep(0.01)
            place = found + len(text)

    def _read(self) -> None:
        while not self._hung_up.is_set():
            if select.select([self._master], [], [], 0.05)[0]:
                try:
                    self.output += os.read(self._master, 1 << 16)
                except OSError:  # so Linux tells that no program has the terminal any more
                    return


def nursery(control: socket.socket) -> None:
    """Fork a chat for each line on `control`; answer with its process id and, at its end, its exit code."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # so that Ctrl-C and a closed window reach whoever runs in it
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    for number in signals:
        signal.signal(number, signal.SIG_IGN)
    sys.path.insert(0, str(Path(__file__).with_name("app")))
    conftest: Any = importlib.import_module("conftest")  # which holds the scripted engine

    from lite_llama.app import plain, tui
    from lite_llama.app.paths import Paths

    class StreamingEngine(conftest.FakeEngine):
        """Answers every request with words that no other reply has, and notes when each was streamed."""

        def __init__(self, spec: dict[str, Any]) -> None:
            super().__init__()
            self._spec = spec
            self._log = os.open(Path(spec["home"]) / "streamed", os.O_WRONLY | os.O_APPEND | os.O_CREAT)

        def submit(self, request, sink):
            name = f"{os.getpid()}-{len(self.requests)}"
            words = [f"{name}-{number} " for number in range(self._spec["words"])]
            self.reply(*words, delay=self._spec["delay"])

            def noted(event: Any) -> None:
                sink(event)
                if isinstance(event, conftest.TextDelta):
                    os.write(self._log, f"{time.monotonic()} {event.text}\n".encode())

            return super().submit(request, noted)

    def chat(spec: dict[str, Any]) -> int:
        paths = Paths(data=Path(spec["home"]), config=Path(spec["home"]))
        engine = StreamingEngine(spec)
        run = plain.run if spec["mode"] == "plain" else tui.run
        return run(paths, None, lambda: engine)

    lines = control.makefile("r")
    for line in lines:
        pid = os.fork()
        if pid == 0:
            for number in signals:
                default = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
                signal.signal(number, default)
            code = 70
            try:
                code = chat(json.loads(line))
            except SystemExit as end:
                code = int(end.code or 0)
            finally:
                os._exit(code)
        with contextlib.suppress(BrokenPipeError):
            control.sendall(f"{pid}\n".encode())
            control.sendall(f"{_exit_code(pid, control)}\n".encode())


def _exit_code(pid: int, control: socket.socket) -> int:
    """Wait for the chat; it is killed when the test that started it is gone, whatever became of that."""
    while not (ended := os.waitpid(pid, os.WNOHANG))[0]:
        if select.select([control], [], [], 0.02)[0]:  # its end: nothing is sent while a chat runs
            os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(ended[1])


if __name__ == "__main__":
    nursery(socket.socket(fileno=int(sys.argv[1])))
