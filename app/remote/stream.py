"""A reply as its chunks come in, in any of the shapes that servers send.

The servers differ: thinking is called `reasoning_content` (SGLang, llama.cpp, older vLLM) or `reasoning`
(vLLM, Ollama); fields that hold nothing are null, empty or absent; the token counts come in a last chunk
without choices, or in each chunk.
"""

from __future__ import annotations

from typing import Any, Literal

from ...engine.events import FinishReason, Thinking, Usage
from ...engine.reply import CLOSE_TAG, OPEN_TAG
from ...models.errors import UserError


class ReplyStream:
    """The reply so far. Times are seconds on this machine's monotonic clock."""

    def __init__(self, submitted: float, prompt_tokens: int) -> None:
        """`prompt_tokens` is what is taken for true until the server tells."""
        self.text = ""
        self.reason: FinishReason | None = None
        self.prompt_tokens = prompt_tokens
        self.cached_tokens = 0
        self.completion_tokens = 0
        """As the server counts them; until it tells, the chunks, of which each has a token or more."""
        self._submitted = submitted
        self._first: float | None = None
        self._latest = submitted
        self._thought = ""
        self._thinking_tokens = 0
        self._thinking_s = 0.0
        self._counted = False
        self._tags = TagSplitter()

    @property
    def thinking(self) -> Thinking:
        if not self._thought:
            return Thinking()
        return Thinking(self._thought, self._thinking_tokens, self._thinking_s)

    @property
    def tokens_per_s(self) -> float:
        """The decode rate since the first token; 0 until there are two."""
        seconds = self._latest - self._first if self._first is not None else 0.0
        return (self.completion_tokens - 1) / seconds if seconds > 0 and self.completion_tokens > 1 else 0.0

    def add(self, chunk: dict[str, Any], now: float) -> tuple[str, str]:
        """Take a chunk; returns the new thinking and the new answer. Raises UserError where it ends badly."""
        choice = next(iter(chunk.get("choices") or ()), {})
        delta = choice.get("delta") or {}
        thought = _text(delta.get("reasoning_content")) or _text(delta.get("reasoning"))
        tagged, text = self._tags.add(_text(delta.get("content")))
        self._count(chunk.get("usage") or {}, bool(thought or delta.get("content")))
        if reason := choice.get("finish_reason"):
            self._finish(reason)
        return self._take(thought + tagged, text, now)

    def flush(self, now: float) -> tuple[str, str]:
        """What may have been the beginning of a tag; called once, at the end."""
        return self._take(*self._tags.flush(), now)

    def _take(self, thought: str, text: str, now: float) -> tuple[str, str]:
        if thought or text:
            self._first = now if self._first is None else self._first
            self._latest = now
        if thought:
            self._thought += thought
            self._thinking_tokens += 1
            self._thinking_s = now - (self._first or now)
        self.text += text
        return thought, text

    def _count(self, usage: dict[str, Any], has_text: bool) -> None:
        if "completion_tokens" in usage and usage.get("prompt_tokens"):
            self._counted = True
            self.prompt_tokens = int(usage["prompt_tokens"])
            self.completion_tokens = int(usage["completion_tokens"] or 0)
            self.cached_tokens = int((usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0)
            details = usage.get("completion_tokens_details") or {}
            self._thinking_tokens = int(details.get("reasoning_tokens") or self._thinking_tokens)
        elif has_text and not self._counted:
            self.completion_tokens += 1

    def _finish(self, reason: str) -> None:
        if reason == "content_filter":
            raise UserError("The server's content filter ended the reply: ask in other words.")
        if reason in ("abort", "error"):
            raise UserError("The server broke off the reply: try again.")
        self.reason = "length" if reason == "length" else "stop"

    def usage(self, now: float, seed: int) -> Usage:
        """The figures so far."""
        first = now if self._first is None else self._first
        return Usage(
            prompt_tokens=self.prompt_tokens,
            cached_prompt_tokens=self.cached_tokens,
            completion_tokens=self.completion_tokens,
            ttft_s=first - self._submitted,
            decode_tokens_per_s=self.tokens_per_s,
            total_s=now - self._submitted,
            seed=seed,
            remote=True,
        )


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


class TagSplitter:
    """Thinking that a server leaves in the text, between tags at the very beginning.

    Newlines next to the tags belong to neither side, as in the engine's ReplyText.
    """

    def __init__(self) -> None:
        self._part: Literal["start", "opened", "thinking", "closed", "answer"] = "start"
        self._held = ""
        """What cannot be told apart yet."""

    def add(self, text: str) -> tuple[str, str]:
        """Take new text; returns the thinking and the answer that are certain now."""
        self._held += text
        thought = ""
        if self._part == "start":
            begun = self._held.lstrip()
            if len(begun) < len(OPEN_TAG) and OPEN_TAG.startswith(begun):
                return "", ""
            if begun.startswith(OPEN_TAG):
                self._part, self._held = "opened", begun.removeprefix(OPEN_TAG)
            else:
                self._part = "answer"
        if self._part == "opened" and (began := self._held.lstrip("\n")):
            self._part, self._held = "thinking", began
        if self._part == "thinking":
            before, tag, after = self._held.partition(CLOSE_TAG)
            thought = before.rstrip("\n") if tag else _certain(before)
            self._held = after if tag else before[len(thought) :]
            if tag:
                self._part = "closed"
        if self._part == "closed" and (began := self._held.lstrip("\n")):
            self._part, self._held = "answer", began
        if self._part == "answer":
            return thought, self._take()
        return thought, ""

    def flush(self) -> tuple[str, str]:
        """What is still held back, at the end."""
        if self._part == "thinking":
            return self._take(), ""
        return "", self._take() if self._part == "start" else ""

    def _take(self) -> str:
        text, self._held = self._held, ""
        return text


def _certain(thought: str) -> str:
    """Without an end that may be the beginning of newlines and the closing tag."""
    for size in range(len(CLOSE_TAG) - 1, 0, -1):
        if thought.endswith(CLOSE_TAG[:size]):
            thought = thought[:-size]
            break
    return thought.rstrip("\n")
