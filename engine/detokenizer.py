"""Token ids to text, piece by piece, for streaming."""

from __future__ import annotations

from collections.abc import Callable, Sequence

INCOMPLETE = "\ufffd"


class Detokenizer:
    """Decodes one reply as it grows, holding back what may still change.

    Held back are half characters (the tail decodes to U+FFFD until its last byte arrives) and whatever
    could be the beginning of a stop string. Decoding starts a few tokens before the new ones, because in
    some tokenizers the text of a token depends on its left neighbour.
    """

    def __init__(
        self,
        decode: Callable[[Sequence[int]], str],
        stop: Sequence[str] = (),
        *,
        skip_newlines: bool = False,
    ) -> None:
        """`decode` turns ids into text without special tokens; `stop` are the strings that end the reply.

        With `skip_newlines` the newlines at the beginning are no part of the text.
        """
        self._decode = decode
        self._stop = stop
        self._skip_newlines = skip_newlines
        self._ids: list[int] = []
        self._context = 0  # decoding starts at this token ...
        self._read = 0  # ... and the text of the tokens before this one is in `_decoded`
        self._decoded = ""
        self._emitted = 0
        self.stopped = False

    @property
    def text(self) -> str:
        """All text that was handed out."""
        return self._decoded[: self._emitted]

    def add(self, token_id: int) -> str:
        """Take a token and return the text that is now certain. After a stop string, `stopped` is true."""
        self._ids.append(token_id)
        before = self._decode(self._ids[self._context : self._read])
        after = self._decode(self._ids[self._context :])
        if after.endswith(INCOMPLETE):
            return ""
        return self._extend(after[len(before) :])

    def flush(self) -> str:
        """The text still held back, half characters as U+FFFD; called once, at the end of the reply."""
        if self.stopped:
            return ""
        before = self._decode(self._ids[self._context : self._read])
        self._append(self._decode(self._ids[self._context :])[len(before) :])
        return self._emit(len(self._decoded))

    def _extend(self, new: str) -> str:
        self._context, self._read = self._read, len(self._ids)
        self._append(new)
        return self._emit(len(self._decoded) if self.stopped else self._certain())

    def _append(self, new: str) -> None:
        self._decoded += new
        if self._skip_newlines and not self._emitted:
            self._decoded = self._decoded.lstrip("\n")
        self._find_stop()

    def _find_stop(self) -> None:
        """Cut the text at the first stop string in what has not been handed out."""
        found = [self._decoded.find(stop, self._emitted) for stop in self._stop]
        if positions := [position for position in found if position >= 0]:
            self._decoded = self._decoded[: min(positions)]
            self.stopped = True

    def _certain(self) -> int:
        """Length of the text without a tail that is the beginning of a stop string."""
        longest = 0
        for stop in self._stop:
            for size in range(min(len(stop) - 1, len(self._decoded) - self._emitted), longest, -1):
                if self._decoded.endswith(stop[:size]):
                    longest = size
                    break
        return len(self._decoded) - longest

    def _emit(self, end: int) -> str:
        new = self._decoded[self._emitted : end]
        self._emitted = max(self._emitted, end)
        return new
