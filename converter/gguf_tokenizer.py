"""Rebuilds a Hugging Face tokenizer, chat template and generation config from GGUF metadata.

GGUF keeps the tokens and merges but names the pre-tokenizer only (`tokenizer.ggml.pre`): what each name
means is known to the program that reads the file. A wrong guess would give slightly wrong tokens without any
error, so an unknown name is refused.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..models.errors import UnsupportedModelError
from .gguf_file import Metadata, damaged

# Token types of GGUF.
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = 1, 2, 3, 4

_KEY = "tokenizer.ggml"
_SPACE = "▁"  # how SentencePiece writes a space
_END_OF_TURN = (
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end_of_text|>",
    "<|endoftext|>",
    "<|end|>",
    "<end_of_turn>",
)
"""Control tokens that mean the end in every model that has them; files often name only one of theirs."""

# GGUF's recommended sampling -> generation_config.json.
_SAMPLING = {
    "temp": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "penalty_repeat": "repetition_penalty",
}


@dataclass(frozen=True)
class PreTokenizer:
    """How a byte-level BPE splits text before it merges."""

    pattern: str | None
    """Regular expression of the pieces; None: GPT-2's."""
    single_digits: bool = False
    """Every digit is a piece of its own."""
    nfc: bool = False
    """Text is composed (Unicode NFC) first."""
    whole_words: bool = False
    """A piece that is a token is not merged up from bytes (`ignore_merges`)."""
    bos: bool = False
    """The beginning-of-sequence token is added unless the file says otherwise."""


def _words(digits: str) -> str:
    """The pattern of Llama 3 and Qwen2: GPT-4's, but for how many digits go together."""
    alternatives = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
        r"[^\r\n\p{L}\p{N}]?\p{L}+",
        digits,
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
    return "|".join(alternatives)


_LLAMA3 = PreTokenizer(_words(r"\p{N}{1,3}"), whole_words=True, bos=True)
_QWEN2 = PreTokenizer(_words(r"\p{N}"), nfc=True)
_GPT2 = PreTokenizer(None)
_GPT2_DIGITS = PreTokenizer(None, single_digits=True)
PRE_TOKENIZERS = {
    "gpt-2": _GPT2,
    "llama-bpe": _LLAMA3,
    "llama-v3": _LLAMA3,
    "llama3": _LLAMA3,
    "qwen2": _QWEN2,
    "smollm": _GPT2_DIGITS,
    "starcoder": _GPT2_DIGITS,
    "refact": _GPT2_DIGITS,
}


class GGUFTokenizer:
    """What a GGUF file's metadata say of its tokenizer.

    Raises UnsupportedModelError for a tokenizer that cannot be rebuilt faithfully, CheckpointError for
    metadata that contradict themselves.
    """

    def __init__(self, data: Metadata):
        self._data = data
        self._path = data.path
        self.model = data.text(f"{_KEY}.model")
        self.tokens: list[str] = data.texts(f"{_KEY}.tokens")
        self._types: list[int] = data.numbers(f"{_KEY}.token_type") or [_NORMAL] * len(self.tokens)
        if not self.tokens or len(self._types) != len(self.tokens):
            raise damaged(self._path, f"it has {len(self.tokens)} tokens and {len(self._types)} token types")
        if len(set(self.tokens)) != len(self.tokens):
            raise UnsupportedModelError(
                f"{self._path} lists the same token twice, which no tokenizer here can represent: "
                "get another file of this model."
            )
        self._named = {name: self._token(name) for name in ("bos", "eos", "unknown", "padding")}
        if self.model == "llama":
            self._check_sentencepiece()
        elif self.model == "gpt2":
            self._pre = self._pre_tokenizer()
        else:
            raise UnsupportedModelError(
                f"{self._path} has a tokenizer of type {self.model!r}; supported are gpt2 (byte-level BPE) "
                "and llama (SentencePiece BPE)."
            )

    @property
    def ids(self) -> dict[str, int]:
        """The token ids that a config.json names."""
        names = {"bos": "bos_token_id", "eos": "eos_token_id", "padding": "pad_token_id"}
        return {key: token for name, key in names.items() if (token := self._named[name]) is not None}

    def write(self, directory: Path) -> None:
        """Write the tokenizer's two JSON files, chat_template.jinja (if any) and generation_config.json."""
        try:
            tokenizer = self._sentencepiece() if self.model == "llama" else self._byte_level()
        except Exception as error:  # the tokenizers package raises nothing more specific
            reason = str(error).splitlines()[0]
            raise damaged(self._path, f"its tokenizer cannot be built: {reason}") from None
        tokenizer.save(str(directory / "tokenizer.json"))
        config: dict[str, Any] = {
            # The class that takes tokenizer.json as it is; a model's own class would rebuild parts of it.
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            "model_max_length": self._data.integer(
                f"{self._data.text('general.architecture')}.context_length"
            ),
        }
        for name, key in (("bos", "bos"), ("eos", "eos"), ("unknown", "unk"), ("padding", "pad")):
            if (token := self._named[name]) is not None:
                config[f"{key}_token"] = self.tokens[token]
        _write_json(directory / "tokenizer_config.json", config)
        if template := self._data.text("tokenizer.chat_template", ""):
            (directory / "chat_template.jinja").write_text(template, encoding="utf-8", newline="")
        _write_json(directory / "generation_config.json", self._generation_config(directory))

    def _token(self, name: str) -> int | None:
        """The id of a named token, None when the file names none."""
        key = f"{_KEY}.{name}_token_id"
        if key not in self._data:
            return None
        token = self._data.integer(key)
        if not 0 <= token < len(self.tokens):
            raise damaged(self._path, f"{key} is {token} of {len(self.tokens)} tokens")
        return token

    def _pre_tokenizer(self) -> PreTokenizer:
        name = self._data.text(f"{_KEY}.pre", "default")
        if name not in PRE_TOKENIZERS:
            # "default" is llama.cpp's word for an old file that does not tell.
            problem = "does not say" if name == "default" else f"says by a name unknown here, {name!r},"
            raise UnsupportedModelError(
                f"{self._path} {problem} how its tokenizer splits text: get a newer file of this model, "
                "or its Hugging Face checkpoint."
            )
        return PRE_TOKENIZERS[name]

    def _byte_level(self) -> Any:
        """Byte-level BPE, as GPT-2's, SmolLM's, Llama 3's and Qwen's tokenizer.json have it."""
        from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

        pre = self._pre
        merges: list[Any] = [tuple(merge.split(" ", 1)) for merge in self._data.texts(f"{_KEY}.merges")]
        tokenizer: Any = Tokenizer(
            models.BPE(vocab=self._vocabulary(), merges=merges, ignore_merges=pre.whole_words)
        )
        if pre.nfc:
            tokenizer.normalizer = normalizers.NFC()
        steps: list[Any] = []
        if pre.single_digits:
            steps.append(pre_tokenizers.Digits(individual_digits=True))
        if pre.pattern:
            steps.append(pre_tokenizers.Split(Regex(pre.pattern), "isolated"))
        steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pre.pattern is None))
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
        tokenizer.decoder = decoders.ByteLevel()
        after: list[Any] = [processors.ByteLevel(trim_offsets=False)]
        if bos := self._bos_processor(default=pre.bos):
            after.append(bos)
        tokenizer.post_processor = processors.Sequence(after)
        self._add_special_tokens(tokenizer)
        return tokenizer

    def _check_sentencepiece(self) -> None:
        if self._data.numbers(f"{_KEY}.precompiled_charsmap"):
            raise UnsupportedModelError(
                f"{self._path} has a SentencePiece tokenizer with its own text normalisation, which is not "
                "supported: convert the model's Hugging Face checkpoint."
            )
        scores = self._data.numbers(f"{_KEY}.scores")
        if len(scores) != len(self.tokens):
            raise damaged(self._path, f"it has {len(self.tokens)} tokens and {len(scores)} scores")

    def _sentencepiece(self) -> Any:
        """SentencePiece BPE with byte fallback, as Llama 2's tokenizer.json has it."""
        from tokenizers import Tokenizer, decoders, models, normalizers

        unknown = self._named["unknown"]
        if unknown is None and _UNKNOWN in self._types:
            unknown = self._types.index(_UNKNOWN)
        tokenizer: Any = Tokenizer(
            models.BPE(
                vocab=self._vocabulary(),
                merges=self._merges_by_score(),
                unk_token=None if unknown is None else self.tokens[unknown],
                fuse_unk=True,
                byte_fallback=True,
            )
        )
        prefix = self._data.flag(f"{_KEY}.add_space_prefix", True)
        before = [normalizers.Prepend(_SPACE)] if prefix else []
        tokenizer.normalizer = normalizers.Sequence([*before, normalizers.Replace(" ", _SPACE)])
        after = [decoders.Strip(" ", 1, 0)] if prefix else []
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *after]
        )
        if bos := self._bos_processor(default=True):
            tokenizer.post_processor = bos
        self._add_special_tokens(tokenizer)
        return tokenizer

    def _merges_by_score(self) -> list[tuple[str, str]]:
        """Merge rules that do what SentencePiece does: join the neighbours whose joint piece scores highest.

        Each way to cut a piece into two others is a rule; the better the piece's score the earlier the rule,
        and among the cuts of one piece the longer left part first.
        """
        scores = self._data.numbers(f"{_KEY}.scores")
        pieces = {
            token: score
            for token, score, kind in zip(self.tokens, scores, self._types, strict=True)
            if kind == _NORMAL
        }
        merges = []
        for piece, score in pieces.items():
            for cut in range(len(piece) - 1, 0, -1):
                left, right = piece[:cut], piece[cut:]
                if left in pieces and right in pieces:
                    merges.append((score, left, right))
        merges.sort(key=lambda merge: -merge[0])  # stable: the order within a piece stays
        return [(left, right) for _, left, right in merges]

    def _vocabulary(self) -> dict[str, int]:
        return {token: index for index, token in enumerate(self.tokens)}

    def _bos_processor(self, *, default: bool) -> Any:
        """Puts the beginning-of-sequence token before a text, if this model has that."""
        from tokenizers import processors

        bos = self._named["bos"]
        if bos is None or not self._data.flag(f"{_KEY}.add_bos_token", default):
            return None
        token = self.tokens[bos]
        return processors.TemplateProcessing(
            single=[token, "$A"], pair=[token, "$A", token, "$B"], special_tokens=[(token, bos)]
        )

    def _add_special_tokens(self, tokenizer: Any) -> None:
        """Tokens that are found in the text as they are, before it is split; control tokens are hidden."""
        from tokenizers import AddedToken

        tokenizer.add_tokens(
            [
                AddedToken(token, normalized=False, special=kind != _USER_DEFINED)
                for token, kind in zip(self.tokens, self._types, strict=True)
                if kind in (_CONTROL, _USER_DEFINED, _UNKNOWN) and token
            ]
        )

    def _generation_config(self, directory: Path) -> dict[str, Any]:
        config: dict[str, Any] = {"bos_token_id": self._named["bos"], "pad_token_id": self._named["padding"]}
        config["eos_token_id"] = sorted(self._ends(directory)) or None
        for stored, name in _SAMPLING.items():
            if (key := f"general.sampling.{stored}") in self._data:
                config["do_sample"] = True
                config[name] = self._data.number(key)
        if "top_k" in config:
            config["top_k"] = int(config["top_k"])
        return {key: value for key, value in config.items() if value is not None}

    def _ends(self, directory: Path) -> set[int]:
        """Every token that ends an answer: as the file, convention or the chat template has it."""
        ends = {self._token(name) for name in ("eos", "eot", "eom")}
        ends.update(self._data.numbers(f"{_KEY}.eos_token_ids"))
        control = dict(self._control_tokens())
        ends.update(control[token] for token in _END_OF_TURN if token in control)
        after_answer = _after_answer(directory).lstrip()
        ends.update(index for token, index in control.items() if after_answer.startswith(token))
        return {token for token in ends if token is not None and 0 <= token < len(self.tokens)}

    def _control_tokens(self) -> Iterator[tuple[str, int]]:
        for index, (token, kind) in enumerate(zip(self.tokens, self._types, strict=True)):
            if kind == _CONTROL and token:
                yield token, index


def _after_answer(directory: Path) -> str:
    """What the chat template of the tokenizer in `directory` puts behind an answer ('' without one)."""
    from transformers import PreTrainedTokenizerFast

    answer = "the answer"
    turns = [{"role": "user", "content": "the question"}, {"role": "assistant", "content": answer}]
    tokenizer = PreTrainedTokenizerFast.from_pretrained(directory)
    # Templates are programs of others and raise whatever they like; this one is asked for a hint only.
    with contextlib.suppress(Exception):
        return str(tokenizer.apply_chat_template(turns, tokenize=False)).rpartition(answer)[2]
    return ""


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
