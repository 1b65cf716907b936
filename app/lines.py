"""Messages read from the standard input line by line, with readline where there is a terminal and one."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable

from ..models.errors import UserError
from . import terminal
from .text import inert

QUOTES = '"""'
_MORE = "... "


class Lines:
    """Reads what the user types, or what a script says."""

    def __init__(self) -> None:
        self.interactive = sys.stdin.isatty()
        self._readline = None
        terminal.mend()
        if self.interactive and sys.stdout.isatty():  # else Python reads plain lines
            try:
                import readline
            except ImportError:  # not everywhere, and without it the line is the terminal's own
                return
            readline.set_auto_history(False)  # answers to questions are none that one wants back
            self._readline = readline

    def remember(self, texts: Iterable[str]) -> None:
        """Have the up key bring these back, the last one first."""
        if self._readline:
            for text in texts:
                self._readline.add_history(text)

    @property
    def typed(self) -> str:
        """What was in the line when Ctrl-C was pressed, as far as that is known."""
        return self._readline.get_line_buffer() if self._readline else ""

    def read(self, prompt: str, text: str = "", shown: Callable[[], object] | None = None) -> str:
        """A message; a backslash at the end of a line, or three quotes around several, makes it go on.

        `text` is there to be edited, where that can be; `shown` is called once the prompt is on the screen.
        Raises EOFError at the end of the input, KeyboardInterrupt on Ctrl-C and UserError for what is no
        UTF-8 text.
        """
        line = self.line(prompt, text, shown)
        if line.lstrip().startswith(QUOTES):
            lines = [line.lstrip().removeprefix(QUOTES)]
            while not lines[-1].rstrip().endswith(QUOTES):
                lines.append(self._next(at_end=QUOTES))
            lines[-1] = lines[-1].rstrip().removesuffix(QUOTES)
            return "\n".join(lines).strip("\n")
        lines = [line]
        while lines[-1].endswith("\\"):
            lines[-1] = lines[-1].removesuffix("\\")
            lines.append(self._next(at_end=""))
        return "\n".join(lines)

    def _next(self, at_end: str) -> str:
        """The next line of a message; the end of the input is the end of the message too."""
        try:
            return self.line(_MORE)
        except EOFError:
            return at_end

    def line(self, prompt: str, text: str = "", shown: Callable[[], object] | None = None) -> str:
        """One line; see `read`."""
        try:
            if not self.interactive:
                return self._script_line(prompt, shown)
            if self._readline is None:
                sys.stdout.write(prompt)
                sys.stdout.flush()
                if shown:
                    shown()
                return input()
            self._readline.set_startup_hook(lambda: self._readline and self._readline.insert_text(text))
            self._readline.set_pre_input_hook(shown)
            return input(prompt)
        except UnicodeDecodeError:
            raise UserError("The line is not UTF-8 text: it was passed over.") from None
        except OSError:  # the terminal is gone
            raise EOFError from None

    def _script_line(self, prompt: str, shown: Callable[[], object] | None) -> str:
        """What is printed then reads as if somebody had typed it."""
        if shown:
            shown()
        line = sys.stdin.buffer.readline()
        if not line:
            raise EOFError
        text = line.decode("utf-8").removesuffix("\n").removesuffix("\r")
        print(prompt + inert(text), flush=True)
        return text
