"""Tokenizers rebuilt from GGUF metadata, against slow implementations of the same rules."""

from __future__ import annotations

import json
import random
import unicodedata
from itertools import pairwise
from pathlib import Path
from typing import Any

import gguf
import pytest
import regex

from lite_llama.converter.gguf import open_gguf
from lite_llama.converter.gguf_file import Metadata
from lite_llama.converter.gguf_tokenizer import PRE_TOKENIZERS, GGUFTokenizer
from lite_llama.models.errors import CheckpointError, UnsupportedModelError

TEXTS = [
    "",
    " ",
    "Hello, world! It's 12345 o'clock; they'LL've 3.14159 or 1,000,000.",
    "  two  spaces   and\ttabs\t\tand \r\n line ends \n\n\n   \n end   ",
    "你好，世界。日本語のテキスト 한국어 ١٢٣ Ⅳ ½",
    "👩‍👩‍👧‍👦 🏳️‍🌈 🙂🙂 e\u0301le\u0300ve cafe\u0301 ñ n\u0303 \u1e9b\u0323",
    "def f(x):\n    if x >= 10:\n        return {'a': x**2}  # ok\n\treturn None\n",
    "Привет, мир! Ελληνικά العربية עברית हिन्दी ไทย",
    "a" * 50 + " " * 40 + "\x00\x01\u200b\ufeff",
    "<|im_start|>user\nWhat?<|im_end|>\n<|endoftext|>",
]
CORPUS = [
    *TEXTS,
    "the then there that this those theory of other brothers",
    "1 12 123 1234 12345",
    "élève café",
]
CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]

# The patterns as the models' own publications spell them.
GPT2_PATTERN = r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
LLAMA3_PATTERN = (
    r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_PATTERN = LLAMA3_PATTERN.replace(r"\p{N}{1,3}", r"\p{N}")


def byte_letters() -> dict[int, str]:
    """GPT-2's letter for every byte: printable ones stand for themselves, the rest from U+0100 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = {byte: chr(byte) for byte in printable}
    for byte in range(256):
        letters.setdefault(byte, chr(256 + len(letters) - len(printable)))
    return letters


class SlowBPE:
    """Byte-level BPE by its definition."""

    def __init__(self, tokens: list[str], merges: list[str], special: list[str], pre: str):
        self.ids = {token: index for index, token in enumerate(tokens)}
        self.ranks = {tuple(merge.split(" ")): rank for rank, merge in enumerate(merges)}
        self.special = regex.compile("(" + "|".join(map(regex.escape, special)) + ")")
        self.pre = pre
        self.letters = byte_letters()

    def encode(self, text: str) -> list[int]:
        ids = []
        for index, part in enumerate(self.special.split(text)):
            ids += [self.ids[part]] if index % 2 else self._encode_plain(part)
        return ids

    def _encode_plain(self, text: str) -> list[int]:
        if self.pre == "qwen2":
            text = unicodedata.normalize("NFC", text)
        if self.pre == "smollm":
            parts = [part for part in regex.split(r"(\p{N})", text) if part]
        else:
            parts = [text]
        pattern = {"llama-bpe": LLAMA3_PATTERN, "qwen2": QWEN2_PATTERN}.get(self.pre, GPT2_PATTERN)
        ids = []
        for part in parts:
            for piece in regex.findall(pattern, part):
                word = "".join(self.letters[byte] for byte in piece.encode())
                if self.pre == "llama-bpe" and word in self.ids:
                    ids.append(self.ids[word])
                else:
                    ids += [self.ids[symbol] for symbol in self._merge(list(word))]
        return ids

    def _merge(self, symbols: list[str]) -> list[str]:
        while len(symbols) > 1:
            pairs = list(pairwise(symbols))
            best = min(pairs, key=lambda pair: self.ranks.get(pair, len(self.ranks)))
            if best not in self.ranks:
                break
            merged, index = [], 0
            while index < len(symbols):
                if tuple(symbols[index : index + 2]) == best:
                    merged.append(symbols[index] + symbols[index + 1])
                    index += 2
                else:
                    merged.append(symbols[index])
                    index += 1
            symbols = merged
        return symbols


def byte_level(pre: str = "qwen2", **changes: Any) -> dict[str, Any]:
    """GGUF metadata of a small byte-level BPE, trained on CORPUS."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer: Any = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS * 3, trainer)
    trained = json.loads(tokenizer.to_str())["model"]
    tokens = CONTROL + sorted(trained["vocab"], key=trained["vocab"].__getitem__)
    values = {
        "general.architecture": "llama",
        "llama.context_length": 2048,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3] * len(CONTROL) + [1] * (len(tokens) - len(CONTROL)),
        "tokenizer.ggml.merges": [" ".join(merge) for merge in trained["merges"]],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 2,
    }
    values.update({key.replace("__", "."): value for key, value in changes.items()})
    return {key: value for key, value in values.items() if value is not None}


def rebuild(values: dict[str, Any], directory: Path) -> Any:
    """Write the tokenizer and load it as the Hugging Face libraries do."""
    from transformers import AutoTokenizer

    GGUFTokenizer(Metadata(directory / "model.gguf", values)).write(directory)
    (directory / "config.json").write_text('{"model_type": "llama"}')
    return AutoTokenizer.from_pretrained(directory)


def generation_config(values: dict[str, Any], directory: Path) -> dict[str, Any]:
    rebuild(values, directory)
    return json.loads((directory / "generation_config.json").read_text())


@pytest.mark.parametrize("pre", ["smollm", "gpt-2", "llama-bpe", "qwen2"])
def test_byte_level_follows_its_rules(pre: str, tmp_path: Path) -> None:
    values = byte_level(pre)
    # A word that no merges lead to: only Llama 3 takes it as it is.
    values["tokenizer.ggml.tokens"].append("zebra")
    values["tokenizer.ggml.token_type"].append(1)
    tokens, merges = values["tokenizer.ggml.tokens"], values["tokenizer.ggml.merges"]
    tokenizer = rebuild(values, tmp_path)
    assert tokenizer.get_vocab() == {token: index for index, token in enumerate(tokens)}
    slow = SlowBPE(tokens, merges, CONTROL, pre)
    for text in [*TEXTS, "zebra", "a zebra"]:
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert ids == slow.encode(text), text
        assert tokenizer.decode(ids) == (unicodedata.normalize("NFC", text) if pre == "qwen2" else text)
    assert (tokenizer.encode("zebra", add_special_tokens=False) == [len(tokens) - 1]) == (pre == "llama-bpe")
    assert tokenizer.encode("x")[:-1] == ([0] if pre == "llama-bpe" else [])
    for index, token in enumerate(CONTROL):
        assert tokenizer.encode(f"a{token}b", add_special_tokens=False)[1] == index
        assert tokenizer.decode([index], skip_special_tokens=True) == ""


def test_qwen2_is_what_transformers_builds(tmp_path: Path) -> None:
    from transformers import Qwen2Tokenizer

    values = byte_level("qwen2")
    ours = rebuild(values, tmp_path)
    merges: Any = [tuple(merge.split(" ")) for merge in values["tokenizer.ggml.merges"]]
    theirs = Qwen2Tokenizer(
        vocab={token: index for index, token in enumerate(values["tokenizer.ggml.tokens"])},
        merges=merges,
        extra_special_tokens=CONTROL,
    )
    for text in TEXTS:
        assert ours.encode(text) == theirs.encode(text)


def test_bos_as_the_file_says(tmp_path: Path) -> None:
    for wanted in (True, False):
        values = byte_level("llama-bpe", tokenizer__ggml__add_bos_token=wanted)
        assert (rebuild(values, tmp_path).encode("x")[0] == 0) == wanted


def test_user_defined_tokens_are_found_but_not_hidden(tmp_path: Path) -> None:
    values = byte_level()
    values["tokenizer.ggml.tokens"] += ["<think>", "[PAD700]"]
    values["tokenizer.ggml.token_type"] += [4, 5]
    tokenizer = rebuild(values, tmp_path)
    think = len(values["tokenizer.ggml.tokens"]) - 2
    assert tokenizer.encode("<think>") == [think]
    assert tokenizer.decode([think], skip_special_tokens=True) == "<think>"
    assert len(tokenizer.encode("[PAD700]")) > 1  # unused: no text means it


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"tokenizer__ggml__pre": "klingon"}, UnsupportedModelError, "'klingon'"),
        ({"tokenizer__ggml__pre": None}, UnsupportedModelError, "does not say how"),
        ({"tokenizer__ggml__model": "bert"}, UnsupportedModelError, "'bert'"),
        ({"tokenizer__ggml__model": None}, CheckpointError, "tokenizer.ggml.model"),
        ({"tokenizer__ggml__tokens": ["a", "a"]}, CheckpointError, "2 tokens and"),
        (
            {"tokenizer__ggml__tokens": ["a", "a"], "tokenizer__ggml__token_type": None},
            UnsupportedModelError,
            "the same token twice",
        ),
        ({"tokenizer__ggml__tokens": [1, 2]}, CheckpointError, "wrong type"),
        ({"tokenizer__ggml__eos_token_id": 10**6}, CheckpointError, "eos_token_id is 1000000"),
        ({"tokenizer__ggml__merges": ["a nosuchtoken"]}, CheckpointError, "cannot be built: .*nosuchtoken"),
        ({"tokenizer__ggml__merges": ["a"]}, CheckpointError, "cannot be built"),
    ],
)
def test_refusals(changes: dict[str, Any], error: type[Exception], message: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=message) as refusal:
        rebuild(byte_level(**changes), tmp_path)
    assert "\n" not in str(refusal.value)


def test_ends_of_an_answer(tmp_path: Path) -> None:
    plain = byte_level()
    assert generation_config(plain, tmp_path)["eos_token_id"] == [0, 2]  # both are so by convention
    names = ["<s>", "<end>", "<eot>", "<eom>"]
    plain["tokenizer.ggml.tokens"][:3] = names[:3]
    plain["tokenizer.ggml.tokens"].append(names[3])
    plain["tokenizer.ggml.token_type"].append(3)
    last = len(plain["tokenizer.ggml.tokens"]) - 1
    assert generation_config(plain, tmp_path) == {"bos_token_id": 0, "eos_token_id": [2]}
    for extra in [
        {"tokenizer.ggml.eot_token_id": last},
        {"tokenizer.ggml.eom_token_id": last},
        {"tokenizer.ggml.eos_token_ids": [2, last]},
        {"tokenizer.chat_template": "{% for m in messages %}<s>{{ m.content }} <eom>\n{% endfor %}"},
    ]:
        assert generation_config(plain | extra, tmp_path)["eos_token_id"] == [2, last]
    broken = {"tokenizer.chat_template": "{{ raise_exception('no') }}"}
    assert generation_config(plain | broken, tmp_path)["eos_token_id"] == [2]


def test_recommended_sampling(tmp_path: Path) -> None:
    sampling = {"general.sampling.temp": 0.6, "general.sampling.top_k": 20, "general.sampling.top_p": 0.95}
    config = generation_config(byte_level() | sampling, tmp_path)
    assert config | {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95} == config


class SlowSentencePiece:
    """SentencePiece's BPE by its definition: join the best-scored neighbours, the leftmost first."""

    def __init__(self, tokens: list[str], scores: list[float], types: list[int]):
        self.ids = {token: index for index, token in enumerate(tokens)}
        self.scores = {t: s for t, s, kind in zip(tokens, scores, types, strict=True) if kind == 1}

    def encode(self, text: str) -> list[int]:
        symbols = list("▁" + text.replace(" ", "▁"))
        while True:
            joints = [
                (-self.scores[left + right], index)
                for index, (left, right) in enumerate(pairwise(symbols))
                if left + right in self.scores
            ]
            if not joints:
                break
            _, index = min(joints)
            symbols[index : index + 2] = [symbols[index] + symbols[index + 1]]
        ids = []
        for symbol in symbols:
            ids += [self.ids[symbol]] if symbol in self.ids else [byte + 3 for byte in symbol.encode()]
        return ids


def sentencepiece(**changes: Any) -> dict[str, Any]:
    """GGUF metadata of a small SentencePiece BPE laid out as Llama 2's: 3 control tokens, bytes, pieces."""
    draw = random.Random(0)
    pieces = sorted(set("".join(CORPUS[2:]).replace(" ", "▁")) - set("你好世界🙂\n\t"))
    joined: list[str] = []
    for _ in range(400):  # each piece joins two others, as in a trained vocabulary
        text = "▁" + draw.choice(CORPUS[2:]).replace(" ", "▁")
        cut = draw.randrange(len(text))
        known = [p for p in pieces + joined if text.startswith(p, cut)]
        left = max(known, key=len, default="")
        right = [p for p in pieces + joined if left and text.startswith(p, cut + len(left))]
        if right and left + (new := draw.choice(right)) not in joined:
            joined.append(left + new)
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *joined, *pieces]
    types = [2, 3, 3, *[6] * 256, *[1] * (len(joined) + len(pieces))]
    scores = [0.0] * 259 + [-float(rank) for rank in range(len(joined) + len(pieces))]
    values = {
        "general.architecture": "llama",
        "llama.context_length": 2048,
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }
    return values | {key.replace("__", "."): value for key, value in changes.items()}


def test_sentencepiece_follows_its_rules(tmp_path: Path) -> None:
    values = sentencepiece()
    tokens = values["tokenizer.ggml.tokens"]
    tokenizer = rebuild(values, tmp_path)
    assert tokenizer.get_vocab() == {token: index for index, token in enumerate(tokens)}
    slow = SlowSentencePiece(tokens, values["tokenizer.ggml.scores"], values["tokenizer.ggml.token_type"])
    joined = 0
    for text in [*TEXTS[2:], *CORPUS[-3:], "xyz new words: other 你好 therefore\n"]:
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert ids == slow.encode(text), text
        assert tokenizer.decode(ids) == text
        joined += len(text) - len(ids)
    assert joined > 0
    assert tokenizer.encode("x")[0] == 1
    assert tokenizer.encode("</s>", add_special_tokens=False) == [2]
    assert tokenizer.decode([1, 2], skip_special_tokens=True) == ""


def test_sentencepiece_without_space_prefix(tmp_path: Path) -> None:
    tokenizer = rebuild(sentencepiece(tokenizer__ggml__add_space_prefix=False), tmp_path)
    for text in ["ab", " ab", "  ab"]:
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert tokenizer.decode(ids) == text
        assert tokenizer.convert_ids_to_tokens(ids)[0].startswith("▁") == text.startswith(" ")


def test_sentencepiece_with_its_own_normalisation_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="normalisation"):
        rebuild(sentencepiece(tokenizer__ggml__precompiled_charsmap=[1, 2, 3]), tmp_path)
    with pytest.raises(CheckpointError, match="scores"):
        rebuild(sentencepiece(tokenizer__ggml__scores=[0.0]), tmp_path)


def test_every_pre_tokenizer_compiles(tmp_path: Path) -> None:
    for pre in PRE_TOKENIZERS:
        assert rebuild(byte_level(pre), tmp_path).encode("x")


@pytest.fixture(scope="module")
def demo_files(demo_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("demo")
    source = open_gguf(demo_gguf)
    source.write_files(directory)
    source.close()
    return directory


@pytest.fixture(scope="module")
def demo_fields(demo_gguf: Path) -> Any:
    """The file's metadata as the gguf package reads them."""
    return gguf.GGUFReader(demo_gguf).fields


def test_demo_tokenizer_is_the_file_s(demo_fields: Any, demo_files: Path) -> None:
    from transformers import AutoTokenizer

    fields = demo_fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    merges = fields["tokenizer.ggml.merges"].contents()
    tokenizer = AutoTokenizer.from_pretrained(demo_files)
    assert tokenizer.get_vocab() == {token: index for index, token in enumerate(tokens)}
    written = json.loads((demo_files / "tokenizer.json").read_text())
    assert [" ".join(merge) for merge in written["model"]["merges"]] == merges
    special = [
        t for t, kind in zip(tokens, fields["tokenizer.ggml.token_type"].contents(), strict=True) if kind == 3
    ]
    assert len(special) == 17
    for token in special:
        assert tokenizer.encode(token) == [tokens.index(token)]
    assert [tokenizer.decode([i]) for i in tokenizer.encode("12345")] == list("12345")
    slow = SlowBPE(tokens, merges, special, "smollm")
    for text in TEXTS:
        ids = tokenizer.encode(text)
        assert ids == slow.encode(text), text
        assert tokenizer.decode(ids) == text


def test_demo_chat(demo_fields: Any, demo_files: Path) -> None:
    from transformers import AutoTokenizer, GenerationConfig

    template = demo_fields["tokenizer.chat_template"].contents()
    assert (demo_files / "chat_template.jinja").read_text() == template
    tokenizer = AutoTokenizer.from_pretrained(demo_files)
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    assert tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|im_start|>", "<|im_end|>")
    assert (tokenizer.pad_token, tokenizer.unk_token) == ("<|im_end|>", "<|endoftext|>")
    assert GenerationConfig.from_pretrained(demo_files).eos_token_id == [0, 2]
