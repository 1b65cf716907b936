"""A title for a conversation, written by the model when the user asks for one."""

from __future__ import annotations

from collections.abc import Sequence

from ..engine.request import GenerationRequest, Message, SamplingParams
from .conversation import Turn
from .text import one_line

MAX_WORDS = 6
_SEEN = 1000
"""Characters of each turn that the model reads: the subject shows early, and a title is soon there."""
_WISH = f"Give this conversation a title of at most {MAX_WORDS} words. Answer with the title alone."


def title_request(turns: Sequence[Turn]) -> GenerationRequest:
    """Ask for a title after the first exchange."""
    seen = [Message(turn.role, turn.text[:_SEEN]) for turn in turns[:2] if turn.text]
    params = SamplingParams(temperature=0.0, max_new_tokens=32)
    return GenerationRequest((*seen, Message("user", _WISH)), params, thinking=False)


def title_from(answer: str) -> str:
    """The title in what the model answered; empty when there is none."""
    first = next((line for line in answer.splitlines() if line.strip()), "")
    words = one_line(first).removeprefix("Title:").strip(" \"'*#.“”").split()
    return " ".join(words[:MAX_WORDS])
