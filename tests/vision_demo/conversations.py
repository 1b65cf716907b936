"""Conversations about scenes, as text and as the tokens that the demo model is trained on."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from tokenizers import Tokenizer
from torch.utils.data import Dataset

from .questions import KINDS, NO_IMAGE, PAIR_KINDS, random_question, small_talk
from .scenes import Scene, Table, random_scene

IGNORED = -100
"""The label of what is not learned by heart: all but the answers."""
_SYSTEM = ("", "", "", "", "You are a helpful assistant.", "Be brief.", "Answer in one sentence.")


@dataclass(frozen=True)
class Turn:
    """A question with the images that are shown with it, and its answer."""

    kind: str
    scenes: tuple[Scene, ...]
    question: str
    answer: str


def random_conversation(rng: random.Random) -> tuple[str, Iterator[Turn]]:
    """The system prompt (mostly none) of a conversation, and its turns as they come."""
    return rng.choice(_SYSTEM), _turns(rng)


def _turns(rng: random.Random) -> Iterator[Turn]:
    way = rng.random()
    if way < 0.06:
        yield from _ask_blindly(rng)
        if way < 0.04:
            return
    scenes = [random_scene(rng)]
    if way < 0.7:
        yield from _ask(rng, scenes, 1, KINDS, rng.randint(1, 4))
    elif way < 0.82:
        yield from _ask(rng, scenes, 1, KINDS, rng.randint(1, 2))
        scenes.append(random_scene(rng))
        yield from _ask(rng, scenes, 1, KINDS, rng.randint(1, 2))
        if rng.random() < 0.3:
            yield from _ask(rng, scenes, 0, PAIR_KINDS, 1)
    else:
        scenes.append(random_scene(rng))
        yield from _ask(rng, scenes, 2, PAIR_KINDS, rng.randint(1, 3))


def _ask(
    rng: random.Random, scenes: Sequence[Scene], new: int, kinds: Sequence[str], count: int
) -> Iterator[Turn]:
    """Questions about the scenes, of which the last `new` are shown with the first question."""
    shown = tuple(scenes[len(scenes) - new :])
    for _ in range(count):
        if rng.random() < 0.05:
            yield Turn("small talk", shown, *small_talk(rng))
        else:
            question = random_question(rng, scenes, kinds)
            yield Turn(question.kind, shown, question.text, question.answer(scenes))
        shown = ()


def _ask_blindly(rng: random.Random) -> Iterator[Turn]:
    for _ in range(rng.randint(1, 2)):
        if rng.random() < 0.4:
            yield Turn("small talk", (), *small_talk(rng))
        else:
            scenes = [random_scene(rng), random_scene(rng)]
            question = random_question(rng, scenes, KINDS if rng.random() < 0.8 else PAIR_KINDS)
            yield Turn("no image", (), question.text, NO_IMAGE)


def asked(turn: Turn, image: str) -> str:
    """A question up to where its answer begins, as the chat template has it."""
    return f"USER:\n{image * len(turn.scenes)}{turn.question}\nASSISTANT:\n"


@dataclass(frozen=True)
class Batch:
    """Conversations of one batch, B of them with at most T tokens."""

    ids: np.ndarray
    """[B, T] int32."""
    labels: np.ndarray
    """[B, T] int32: the ids of answers, IGNORED elsewhere."""
    turns: np.ndarray
    """[B, T] int32: where a label is, the number of its turn."""
    kinds: tuple[str, ...]
    """Of the turns."""
    scenes: Table
    """In the order of the image tokens."""


class Conversations(Dataset[Batch]):
    """Batches that depend on `seed` and their number alone."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        seed: str,
        batches: int,
        size: int,
        image_tokens: int,
        most_tokens: int = 288,
    ) -> None:
        """`size` conversations in each batch; they end before the turn that would exceed `most_tokens`."""
        self._seed, self._batches, self._size = seed, batches, size
        self._image_tokens, self._most = image_tokens, most_tokens
        self._image = tokenizer.token_to_id("<image>")
        self._pad = tokenizer.token_to_id("<pad>")
        self._begin = tokenizer.token_to_id("<s>")
        # Text splits at newlines, so that its parts give the tokens of the whole.
        self._encode = lru_cache(100_000)(lambda text: tokenizer.encode(text, add_special_tokens=False).ids)

    def __len__(self) -> int:
        return self._batches

    def __getitem__(self, number: int) -> Batch:
        rng = random.Random(f"{self._seed} {number}")
        rows: list[tuple[list[int], list[int], list[int]]] = []
        kinds: list[str] = []
        scenes: list[Scene] = []
        for _ in range(self._size):
            system, turns = random_conversation(rng)
            ids = [self._begin, *(self._encode(f"{system}\n") if system else ())]
            labels, numbers = [IGNORED] * len(ids), [0] * len(ids)
            for turn in turns:
                question = self._expanded(self._encode(asked(turn, "<image>\n")))
                answer = self._encode(f"{turn.answer}</s>")
                if len(ids) + len(question) + len(answer) > self._most:
                    break
                ids += question + answer
                labels += [IGNORED] * len(question) + answer
                numbers += [len(kinds)] * (len(question) + len(answer))
                kinds.append(turn.kind)
                scenes += turn.scenes
            rows.append((ids, labels, numbers))
        width = -(-max(len(ids) for ids, _, _ in rows) // 32) * 32
        fills = (self._pad, IGNORED, 0)
        ids, labels, turns = (
            np.array([row[part] + [fill] * (width - len(row[part])) for row in rows], np.int32)
            for part, fill in enumerate(fills)
        )
        return Batch(ids, labels, turns, tuple(kinds), Table.of(scenes))

    def _expanded(self, ids: list[int]) -> list[int]:
        return [t for id in ids for t in [id] * (self._image_tokens if id == self._image else 1)]
