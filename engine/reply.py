"""The text of one reply as it grows: what the model thinks, if it does, and then its answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from .detokenizer import Detokenizer
from .events import Thinking

OPEN_TAG, CLOSE_TAG = "<think>", "</think>"

Part = Literal["start", "thinking", "answer"]


@dataclass(frozen=True)
class ThinkingTags:
    """The ids of the tokens that a model thinks between."""

    open: int
    close: int


class ReplyText:
    """Splits a reply, token by token, into thinking and answer.

    A reply thinks if its first token is the opening tag, or if the prompt ends within thinking already. Tags
    elsewhere are text like any other, since an answer may be about them. Newlines next to the closing tag
    belong to neither side, and stop strings count in the answer only.
    """

    def __init__(
        self,
        decode: Callable[[Sequence[int]], str],
        stop: Sequence[str] = (),
        tags: ThinkingTags | None = None,
        part: Part = "start",
    ) -> None:
        """`decode` and `stop` are as in Detokenizer; `part` is what the first token belongs to.

        Without `tags` all of the reply is answer.
        """
        self._decode, self._stop, self._tags = decode, stop, tags
        self._part: Part = part if tags else "answer"
        self._thought = Detokenizer(decode)
        self._answer = Detokenizer(decode, stop)
        self._thinking = ""
        self._newlines = ""  # held back: no part of the thinking if it ends after them
        self._tokens = 0
        self._began: float | None = None
        self._latest = 0.0

    @property
    def text(self) -> str:
        """The answer as far as it was handed out."""
        return self._answer.text

    @property
    def thinking(self) -> Thinking:
        """What was thought so far; empty if nothing visible was."""
        if not self._thinking or self._began is None:
            return Thinking()
        return Thinking(self._thinking, self._tokens, self._latest - self._began)

    @property
    def stopped(self) -> bool:
        """Whether a stop string has ended the answer."""
        return self._answer.stopped

    def add(self, token_id: int, now: float) -> tuple[str, str]:
        """Take a token that was drawn at the time `now`; returns the new thinking and the new answer."""
        if self._part == "start":
            self._part = "answer"
            if self._tags and token_id == self._tags.open:
                self._part, self._began, self._latest = "thinking", now, now
                self._thought = Detokenizer(self._decode, skip_newlines=True)
                return "", ""
        if self._part == "answer":
            return "", self._answer.add(token_id)
        self._began = now if self._began is None else self._began
        self._latest = now
        if self._tags and token_id == self._tags.close:
            rest, self._newlines = self._think(self._thought.flush()), ""
            self._part = "answer"
            self._answer = Detokenizer(self._decode, self._stop, skip_newlines=True)
            return rest, ""
        self._tokens += 1
        return self._think(self._thought.add(token_id)), ""

    def flush(self) -> tuple[str, str]:
        """The thinking or answer still held back; called once, at the end of the reply."""
        if self._part != "thinking":
            return "", self._answer.flush()
        rest = self._think(self._thought.flush()) + self._newlines  # thinking that is cut off may go on
        self._thinking, self._newlines = self._thinking + self._newlines, ""
        return rest, ""

    def _think(self, new: str) -> str:
        new = self._newlines + new
        certain = new.rstrip("\n")
        self._newlines = new[len(certain) :]
        self._thinking += certain
        return certain
