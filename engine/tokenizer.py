"""Text to token ids and back, with the chat template of the checkpoint."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from ..models.errors import CheckpointError, UserError
from .request import Message


class Tokenizer:
    """The checkpoint's own tokenizer, template, end-of-turn ids and sampling defaults."""

    def __init__(self, path: Path) -> None:
        """Load from a converted model's directory. Raises CheckpointError when it cannot be read."""
        try:
            # AutoTokenizer rebuilds some families' tokenizers by rules of its own: the file's word counts.
            loader = PreTrainedTokenizerFast if (path / "tokenizer.json").is_file() else AutoTokenizer
            self._tokenizer: Any = loader.from_pretrained(path, local_files_only=True)
            # The Rust tokenizer itself: unlike its wrapper it may be called from several threads at once.
            self._backend = self._tokenizer.backend_tokenizer
        except (AttributeError, OSError, ValueError, KeyError, TypeError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise CheckpointError(f"The tokenizer of {path.name} cannot be loaded: {reason}") from None
        self._name = path.name
        self._set_up(path)
        generation = _read_json(path / "generation_config.json")
        config = _read_json(path / "config.json")
        eos = generation.get("eos_token_id", config.get("eos_token_id", self._tokenizer.eos_token_id))
        self.eos_ids: frozenset[int] = frozenset([eos] if isinstance(eos, int) else eos or [])
        names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
        self.defaults: dict[str, float | int] = {
            name: generation[name] for name in names if generation.get(name) is not None
        }
        if generation.get("do_sample") is False:
            self.defaults = {"temperature": 0.0}

    @property
    def has_template(self) -> bool:
        """Whether the model was trained to chat; without a template it only continues text."""
        return bool(self._tokenizer.chat_template)

    def encode_chat(self, messages: Sequence[Message], *, continue_last: bool = False) -> list[int]:
        """Ids of the conversation as the template renders it, ready for the assistant's answer.

        With `continue_last` the last (assistant) message is left open to be continued. A base model without
        a template gets the messages' plain text. Raises UserError when the template refuses the
        conversation (some accept no system message, say) or the model sees no images and there are some.
        """
        turns = [self._turn(message) for message in messages]
        if not self.has_template:
            return self.encode("\n\n".join(message.content for message in messages), special=True)
        try:
            text = self._tokenizer.apply_chat_template(
                turns,
                tokenize=False,
                add_generation_prompt=not continue_last,
                continue_final_message=continue_last,
            )
        except (TemplateError, ValueError) as error:
            raise UserError(
                f"The chat template of {self._name} refuses this conversation: {error}."
            ) from None
        return self._encode_rendered(text)

    def _set_up(self, path: Path) -> None:
        """What a kind of model needs of its files before any conversation is rendered."""

    def _turn(self, message: Message) -> dict[str, Any]:
        """A message as the chat template takes it."""
        if message.images:
            raise UserError(
                f"{self._name} reads text only: leave the image out, or choose a model that sees images, "
                "such as LLaVA-1.5."
            )
        return {"role": message.role, "content": message.content}

    def _encode_rendered(self, text: str) -> list[int]:
        """Ids of what the template made of a conversation; it has written the special tokens itself."""
        return self.encode(text)

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Ids of `text`; with `special`, framed by the tokenizer's own begin and end tokens."""
        return self._backend.encode(text, add_special_tokens=special).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids` without special tokens; incomplete UTF-8 comes out as U+FFFD."""
        return self._backend.decode(ids, skip_special_tokens=True)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON ({error}): convert the model again.") from None
    return raw if isinstance(raw, dict) else {}
