"""How many tokens a conversation may have, where nobody can count them."""

from __future__ import annotations

from collections.abc import Iterable

from ...engine.request import Message

IMAGE_TOKENS = 600
"""What an image takes; the models' own figures go from 200 to 2,000."""
_BYTES_PER_TOKEN = 4
_TOKENS_AROUND = 4
"""Of a message: what the chat template puts before and after it."""


class Estimate(int):
    """A number of tokens that was not counted, nor is any sum with it."""

    def __add__(self, other: int) -> Estimate:
        return Estimate(int(self) + int(other))

    __radd__ = __add__


def estimate(messages: Iterable[Message]) -> Estimate:
    """From the length of the text in UTF-8, which suits most languages alike."""
    return Estimate(
        sum(
            _TOKENS_AROUND
            + -(-len(message.content.encode()) // _BYTES_PER_TOKEN)
            + IMAGE_TOKENS * len(message.images)
            for message in messages
        )
    )
