"""Prompts with images: their places in the chat template, in the tokens and in the prefix cache's keys."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from ..kernels import PAGE_SIZE
from ..models.config import VisionConfig
from ..models.errors import CheckpointError, UserError
from .images import Image, PlacedImage
from .request import Message
from .tokenizer import Tokenizer

# The conversations that LLaVA-1.5 was tuned on, for checkpoints without a template of their own.
LLAVA_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role != 'system' %}{{ message.role.upper() + ': ' }}{% endif %}"
    "{% for part in message.content if part.type == 'image' %}{{ image_token + '\\n' }}{% endfor %}"
    "{% for part in message.content if part.type == 'text' %}{{ part.text + ' ' }}{% endfor %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


class ImageTokenizer(Tokenizer):
    """The tokenizer of a model that sees images: each takes `vision.tokens` tokens of the prompt.

    Images come before the text of their message.
    """

    def __init__(self, path: Path, vision: VisionConfig) -> None:
        """Load from a converted model's directory. Raises CheckpointError when it cannot be read."""
        self._vision = vision
        super().__init__(path)

    def _set_up(self, path: Path) -> None:
        vision = self._vision
        # A word of the vocabulary would do for a place, but then the word would be taken for one.
        added = self._backend.get_added_tokens_decoder().get(vision.image_token)
        if added is None:
            raise CheckpointError(
                f"The tokenizer of {path.name} does not know the image token {vision.image_token} of its "
                "config.json: convert the model again from a complete checkpoint."
            )
        self._token: str = added.content
        self._tokenizer.chat_template = _template(path, self._tokenizer.chat_template, self._token)
        self._takes_parts = self._renders_parts()

    def _turn(self, message: Message) -> dict[str, Any]:
        text = self._as_text(message.content)
        if not self._takes_parts:
            return {"role": message.role, "content": f"{self._token}\n" * len(message.images) + text}
        parts: list[dict[str, str]] = [{"type": "image"} for _ in message.images]
        return {"role": message.role, "content": [*parts, {"type": "text", "text": text}]}

    def _begun(self, prompt: str, reply: Message) -> str:
        # LLaVA's prompt ends in a colon: the blank after it is the model's, and a decoder may drop it.
        blank = "" if prompt[-1:].isspace() or reply.content[:1].isspace() else " "
        return super()._begun(prompt + blank, replace(reply, content=self._as_text(reply.content)))

    def _as_text(self, content: str) -> str:
        """Somebody may write the image token's name: as text it must not become the place of an image."""
        return content.replace(self._token, f"{self._token[0]} {self._token[1:]}")

    def _encode_rendered(self, text: str) -> list[int]:
        # As transformers' processors do: a template that writes no BOS token leaves it to the tokenizer.
        bos = self._tokenizer.bos_token
        ids = self.encode(text, special=not (bos and text.startswith(bos)))
        image = self._vision.image_token
        return [token for id in ids for token in [id] * (self._vision.tokens if id == image else 1)]

    def _renders_parts(self) -> bool:
        """Whether the template takes a message's content as a list of parts; else it takes a string."""
        parts = [{"type": "image"}, {"type": "text", "text": "hello"}]
        try:
            text = self._tokenizer.apply_chat_template([{"role": "user", "content": parts}], tokenize=False)
        except (TemplateError, TypeError, ValueError):
            return False
        # One that takes a string writes the list itself out, if it does not fail.
        return self._token in text and "hello" in text and "'type'" not in text


def _template(path: Path, own: Any, image_token: str) -> str:
    """The processor's template, else the tokenizer's, else LLaVA's; older processors keep theirs as JSON."""
    if not (path / "chat_template.jinja").is_file():  # which the tokenizer has read
        try:
            own = json.loads((path / "chat_template.json").read_text(encoding="utf-8"))["chat_template"]
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"The chat template of {path.name} cannot be read ({error}): convert the model again."
            ) from None
    return own or "{% set image_token = " + json.dumps(image_token) + " %}" + LLAVA_TEMPLATE


def place_images(
    prompt: Sequence[int], images: Sequence[Image], vision: VisionConfig
) -> tuple[PlacedImage, ...]:
    """Where in an encoded prompt the images of its messages are.

    Raises UserError when the prompt has another number of them: the template left some out.
    """
    places = [at for at, token in enumerate(prompt) if token == vision.image_token]
    starts = places[:: vision.tokens]
    if len(places) != len(images) * vision.tokens:
        raise UserError(
            f"The chat template shows {len(starts)} of {len(images)} images: attach images to your own "
            "messages only."
        )
    return tuple(
        PlacedImage(image, start, start + vision.tokens) for image, start in zip(images, starts, strict=True)
    )


def salts(images: Iterable[PlacedImage]) -> dict[int, bytes]:
    """What the prefix cache has to tell apart beyond tokens: block -> digests of the images that begin in it.

    Their order and, with the tokens, their places follow. Later blocks of an image need no mention of it:
    their keys contain those of the blocks before them.
    """
    found: dict[int, bytes] = {}
    for placed in images:
        block = placed.start // PAGE_SIZE
        found[block] = found.get(block, b"") + placed.image.digest
    return found
