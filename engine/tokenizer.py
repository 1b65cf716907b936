"""Text to token ids and back, with the chat template of the checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from ..models.checkpoint import read_json
from ..models.errors import CheckpointError, UserError
from .detokenizer import INCOMPLETE
from .events import ThinkingMode
from .reply import CLOSE_TAG, OPEN_TAG, ReplyText, ThinkingTags
from .request import Message

_TEMPLATE_SWITCH = "enable_thinking"


class Tokenizer:
    """The checkpoint's own tokenizer, template, end-of-turn ids and sampling defaults."""

    def __init__(self, path: Path) -> None:
        """Load from a converted model's directory. Raises CheckpointError when it cannot be read."""
        try:
            self._tokenizer: Any = _loader(path).from_pretrained(path, local_files_only=True)
            # The Rust tokenizer itself: unlike its wrapper it may be called from several threads at once.
            self._backend = self._tokenizer.backend_tokenizer
        except (AttributeError, OSError, ValueError, KeyError, TypeError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise CheckpointError(f"The tokenizer of {path.name} cannot be loaded: {reason}") from None
        self._name = path.name
        self._set_up(path)
        generation = read_json(path / "generation_config.json")
        config = read_json(path / "config.json")
        eos = generation.get("eos_token_id", config.get("eos_token_id", self._tokenizer.eos_token_id))
        self.eos_ids: frozenset[int] = frozenset([eos] if isinstance(eos, int) else eos or [])
        names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
        self.defaults: dict[str, float | int] = {
            name: generation[name] for name in names if generation.get(name) is not None
        }
        if generation.get("do_sample") is False:
            self.defaults = {"temperature": 0.0}
        self.tags = self._find_tags()
        """The tokens that the model thinks between, if it has them."""
        self.thinking: ThinkingMode = self._thinking_mode()

    @property
    def has_template(self) -> bool:
        """Whether the model was trained to chat; without a template it only continues text."""
        return bool(self._tokenizer.chat_template)

    def encode_chat(
        self, messages: Sequence[Message], *, thinking: bool | None = None, continue_last: bool = False
    ) -> list[int]:
        """Ids of the conversation as the template renders it, ready for the assistant's answer.

        `thinking` is given to a template that can switch it. With `continue_last` the last (assistant)
        message is left open to be continued: its prompt is that of the reply as it began, then what there is
        of it. A base model without a template gets the messages' plain text. Raises UserError when the
        template refuses the conversation (some accept no system message, say) or the model sees no images
        and there are some.
        """
        if not self.has_template:
            plain = [self._turn(message)["content"] for message in messages]
            return self.encode("\n\n".join(plain), special=True)
        if not continue_last:
            return self._encode_rendered(self._render(messages, thinking))
        *before, last = messages
        return self._encode_rendered(self._begun(self._render(before, bool(last.thinking)), last))

    def encode_reply(
        self, messages: Sequence[Message], token_ids: Sequence[int]
    ) -> tuple[list[int], list[int], bool]:
        """The prompt of the last message, a reply, and the reply's tokens.

        These are `token_ids` if they come to the reply's text, else that is encoded anew (and the third
        value is False). Raises UserError as `encode_chat` does.
        """
        *before, last = messages
        prompt = self.encode_chat(before, thinking=bool(last.thinking))
        if self._generated(prompt, token_ids, last):
            return prompt, list(token_ids), True
        whole = self.encode_chat(messages, continue_last=True)
        # At the seam the two may be encoded otherwise than the prompt alone.
        seam = next(
            (at for at, pair in enumerate(zip(prompt, whole, strict=False)) if pair[0] != pair[1]),
            len(prompt),
        )
        return whole[:seam], whole[seam:], False

    def _generated(self, prompt: Sequence[int], ids: Sequence[int], reply: Message) -> bool:
        """Whether these are the ids of the reply; a stop string that ended it is no part of its text."""
        if not ids or not 0 <= min(ids) <= max(ids) < self._backend.get_vocab_size():
            return False
        read = ReplyText(self.decode, (), self.tags, "thinking" if self.opens_thinking(prompt) else "start")
        for id in ids:
            read.add(id, 0.0)
        read.flush()
        return read.text.startswith(reply.content) and read.thinking.text.startswith(reply.thinking)

    def piece(self, before: Sequence[int], id: int) -> str:
        """What a token adds to the text of a few tokens before it; special tokens are written out."""
        decode = partial(self._backend.decode, skip_special_tokens=False)
        text, longer = decode(before), decode([*before, id])
        if not longer.startswith(text):  # the token completes a character that was U+FFFD
            text = text.rstrip(INCOMPLETE)
        return longer[len(text) :]

    def opens_thinking(self, prompt: Sequence[int]) -> bool:
        """Whether the prompt ends with the opening tag (and blanks), so that the reply begins by thinking."""
        return self.tags is not None and _ends_open(
            self._backend.decode(prompt[-4:], skip_special_tokens=False)
        )

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

    def _render(self, messages: Sequence[Message], thinking: bool | None) -> str:
        """The template's text up to where the assistant's reply begins."""
        turns = [self._turn(message) for message in messages]
        switch = {} if thinking is None or self.thinking != "optional" else {_TEMPLATE_SWITCH: thinking}
        try:
            return self._tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=True, **switch
            )
        except (TemplateError, ValueError) as error:
            raise UserError(
                f"The chat template of {self._name} refuses this conversation: {error}."
            ) from None

    def _begun(self, prompt: str, reply: Message) -> str:
        """The prompt, then what there is of its reply, as the model wrote it."""
        text, is_open = "", _ends_open(prompt)
        if reply.thinking and self.tags:
            text = reply.thinking if is_open else f"{OPEN_TAG}\n{reply.thinking}"
            is_open = True
        if reply.content and is_open:
            text = text.rstrip("\n") + f"\n{CLOSE_TAG}\n\n"
        return prompt + text + reply.content

    def _find_tags(self) -> ThinkingTags | None:
        ids = [self._backend.token_to_id(tag) for tag in (OPEN_TAG, CLOSE_TAG)]
        return None if None in ids else ThinkingTags(*ids)

    def _thinking_mode(self) -> ThinkingMode:
        """`optional` if the template has the switch, `always` if it opens the thinking of every reply."""
        if self.tags is None or not self.has_template:
            return "never"
        if _TEMPLATE_SWITCH in str(self._tokenizer.chat_template):
            return "optional"
        try:
            opens = self.opens_thinking(self.encode_chat([Message("user", "Hello")]))
        except UserError:  # refused for another reason, which the first request will meet too
            return "never"
        return "always" if opens else "never"

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Ids of `text`; with `special`, framed by the tokenizer's own begin and end tokens."""
        return self._backend.encode(text, add_special_tokens=special).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids` without special tokens; incomplete UTF-8 comes out as U+FFFD."""
        return self._backend.decode(ids, skip_special_tokens=True)


def _loader(path: Path) -> Any:
    """The file's own word counts; AutoTokenizer, which has rules of its own, only where there is none.

    Each is imported when it is needed: with some versions of transformers that takes seconds.
    """
    if (path / "tokenizer.json").is_file():
        from transformers import PreTrainedTokenizerFast

        return PreTrainedTokenizerFast
    from transformers import AutoTokenizer

    return AutoTokenizer


def _ends_open(text: str) -> bool:
    return text.rstrip().endswith(OPEN_TAG)
