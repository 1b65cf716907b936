"""A stand-in for the tokenizer of a model that has no vocabulary."""

from __future__ import annotations

from collections.abc import Sequence

from ..models.errors import UserError
from .request import Message
from .tokenizer import Tokenizer


class NoTokenizer(Tokenizer):
    """For models of random weights: no end-of-turn token, no defaults, and every token is a space."""

    def __init__(self) -> None:
        self.eos_ids = frozenset()
        self.defaults = {}
        self.tags = None
        self.thinking = "never"

    @property
    def has_template(self) -> bool:
        return False

    def encode_chat(
        self, messages: Sequence[Message], *, thinking: bool | None = None, continue_last: bool = False
    ) -> list[int]:
        """Raises UserError."""
        raise UserError("A model of random weights has no vocabulary: give it token ids, or load a real one.")

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Raises UserError."""
        return self.encode_chat(())

    def decode(self, ids: Sequence[int]) -> str:
        return " " * len(ids)
