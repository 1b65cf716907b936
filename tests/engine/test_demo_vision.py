"""The demo model that sees: right answers about images that it never saw, from the checkpoint to the reply.

Its checkpoint, which tests/vision_demo made, is converted and run as a user's would be, on a CPU.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image as pillow
from transformers import AutoProcessor, LlavaForConditionalGeneration
from vision_demo.checkpoint import SIDE
from vision_demo.conversations import IGNORED, Conversations, random_conversation
from vision_demo.questions import KINDS, NO_IMAGE, PAIR_KINDS, Question, random_question
from vision_demo.scenes import Scene, Table, draw, random_scene

from lite_llama.converter import Done, convert
from lite_llama.converter.demo import DEMO_VISION
from lite_llama.engine.engine import Engine
from lite_llama.engine.events import Event, Failed, Finished
from lite_llama.engine.images import Image, read_image
from lite_llama.engine.options import EngineOptions
from lite_llama.engine.request import GenerationRequest, Message, SamplingParams

COUNT = 200
LEAST = 0.95
DRAWN = 240
"""Pixels of the images' edges, which the image processor makes smaller."""
GREEDY = SamplingParams(temperature=0, max_new_tokens=80)


@pytest.fixture(scope="module")
def engine(tmp_path_factory) -> Engine:
    root = tmp_path_factory.mktemp("demo-vision")
    *_, done = convert("demo-vision", root / "models", root / "downloads")
    assert isinstance(done, Done)
    return Engine.load(done.checkpoint, EngineOptions(device="cpu", dtype="float32"))


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    """Training seeds its generators with other words than these."""
    rng = random.Random("scenes that nobody was trained on")
    return [random_scene(rng) for _ in range(COUNT)]


@pytest.fixture(scope="module")
def images(scenes, tmp_path_factory) -> list[Image]:
    """The scenes as PNG files."""
    directory = tmp_path_factory.mktemp("images")
    pictures = draw(Table.of(scenes), DRAWN, torch.Generator().manual_seed(1))
    for number, picture in enumerate((pictures * 255).round().byte().permute(0, 2, 3, 1).numpy()):
        pillow.fromarray(picture).save(directory / f"{number}.png")
    return [read_image(directory / f"{number}.png") for number in range(COUNT)]


@pytest.fixture(scope="module")
def questions(scenes) -> list[Question]:
    """One for each scene, as many of each kind."""
    rng = random.Random("questions that nobody was trained on")
    return [
        random_question(rng, [scene], [KINDS[number % len(KINDS)]]) for number, scene in enumerate(scenes)
    ]


def ask(engine: Engine, conversations: Sequence[Sequence[Message]]) -> list[Finished]:
    """The replies, all run together."""
    events: list[Event] = []
    for number, messages in enumerate(conversations):
        engine.submit(number, GenerationRequest(tuple(messages), GREEDY), events.append, time.monotonic())
    while engine.busy:
        engine.step()
    assert not [event for event in events if isinstance(event, Failed)]
    return sorted(
        (event for event in events if isinstance(event, Finished)), key=lambda event: event.request_id
    )


def answers(engine: Engine, asked: Sequence[tuple[str, Sequence[Image]]]) -> list[str]:
    return [
        finished.text
        for finished in ask(engine, [[Message("user", text, images=tuple(shown))] for text, shown in asked])
    ]


def part_right(given: Sequence[str], expected: Sequence[str]) -> float:
    wrong = [pair for pair in zip(given, expected, strict=True) if pair[0] != pair[1]]
    for pair in wrong[:10]:
        print(f"gave {pair[0]!r} instead of {pair[1]!r}")
    print(f"{len(given) - len(wrong)} of {len(given)} right")
    return 1 - len(wrong) / len(given)


def test_answers_about_unseen_images_are_right(engine, scenes, images, questions):
    given = answers(engine, [(q.text, [image]) for q, image in zip(questions, images, strict=True)])
    expected = [q.answer([scene]) for q, scene in zip(questions, scenes, strict=True)]
    assert len(set(expected)) > COUNT / 2
    assert part_right(given, expected) >= LEAST


def test_another_image_gets_another_answer(engine, scenes, images, questions):
    """The same questions, each with an image for which its answer is wrong: that image is answered for."""
    swapped = []
    for number, question in enumerate(questions):
        own = question.answer([scenes[number]])
        others = ((number + step) % COUNT for step in range(1, COUNT))
        swapped.append(next(other for other in others if question.answer([scenes[other]]) != own))
    given = answers(engine, [(q.text, [images[other]]) for q, other in zip(questions, swapped, strict=True)])
    before = [q.answer([scene]) for q, scene in zip(questions, scenes, strict=True)]
    assert part_right(given, before) <= 1 - LEAST
    expected = [q.answer([scenes[other]]) for q, other in zip(questions, swapped, strict=True)]
    assert part_right(given, expected) >= LEAST


def test_two_images_are_told_apart(engine, scenes, images):
    rng = random.Random("pairs")
    asked, expected = [], []
    for first, second in zip(range(0, COUNT, 2), range(1, COUNT, 2), strict=True):
        pair = scenes[first], scenes[second]
        question = random_question(rng, pair, PAIR_KINDS)
        asked.append((question.text, (images[first], images[second])))
        expected.append(question.answer(pair))
    assert part_right(answers(engine, asked), expected) >= LEAST


def test_questions_without_an_image_are_answered_so(engine, questions):
    given = answers(engine, [(question.text, ()) for question in questions[:40]])
    assert part_right(given, [NO_IMAGE] * 40) >= LEAST


@pytest.mark.parametrize("text", ["Où est le château ? 你好 🙂", "<image>", "x" * 200])
def test_words_that_it_never_read_do_not_break_it(text, engine, images):
    (finished,) = ask(engine, [[Message("user", text, images=(images[0],))]])
    assert finished.reason == "stop"
    assert finished.text


def conversation(
    rng: random.Random, scenes: list[Scene], images: list[Image]
) -> tuple[list[Message], list[str]]:
    """Three questions about one image and then one about the next, with the right answers between them."""
    first = rng.randrange(COUNT - 1)
    messages: list[Message] = []
    expected: list[str] = []
    for number, shown in enumerate((first, first, first, first + 1)):
        question = random_question(rng, [scenes[shown]], KINDS)
        new = (images[shown],) if number in (0, 3) else ()
        expected.append(question.answer([scenes[shown]]))
        messages += [
            Message("user", question.text, images=new),
            Message("assistant", expected[-1]),
        ]
    return messages, expected


def test_later_turns_and_later_images(engine, scenes, images):
    rng = random.Random("conversations")
    asked, expected = [], []
    for _ in range(25):
        messages, right = conversation(rng, scenes, images)
        asked += [messages[:end] for end in range(1, len(messages), 2)]
        expected += right
    assert part_right([finished.text for finished in ask(engine, asked)], expected) >= LEAST


class Oracle:
    """transformers' own model and processor."""

    def __init__(self) -> None:
        self.processor: Any = AutoProcessor.from_pretrained(DEMO_VISION)
        self.model: Any = LlavaForConditionalGeneration.from_pretrained(DEMO_VISION, dtype=torch.float32)

    @torch.inference_mode()
    def __call__(self, messages: Sequence[Message]) -> tuple[list[int], tuple[int, ...]]:
        """The tokens of the prompt, and those of the reply."""
        turns = [
            {
                "role": message.role,
                "content": [{"type": "image"} for _ in message.images]
                + [{"type": "text", "text": message.content}],
            }
            for message in messages
        ]
        text = self.processor.apply_chat_template(turns, add_generation_prompt=True)
        pictures = [image.pixels() for message in messages for image in message.images]
        inputs = self.processor(text=text, images=pictures or None, return_tensors="pt")
        out = self.model.generate(**inputs, do_sample=False, max_new_tokens=GREEDY.max_new_tokens)
        prompt = inputs["input_ids"][0].tolist()
        return prompt, tuple(out[0, len(prompt) :].tolist())


def test_replies_are_those_of_transformers(engine, scenes, images, questions):
    rng = random.Random("compared")
    asked = [
        *([Message("user", questions[n].text, images=(images[n],))] for n in range(12)),
        *([Message("user", "What differs?", images=(images[n], images[n + 1]))] for n in range(4)),
        *(conversation(rng, scenes, images)[0][:-1] for _ in range(4)),
        [Message("system", "Be brief."), Message("user", "Hello!")],
    ]
    oracle = Oracle()
    for messages, finished in zip(asked, ask(engine, asked), strict=True):
        prompt, reply = oracle(messages)
        assert engine.tokenizer.encode_chat(messages) == prompt
        assert finished.token_ids == reply


def test_training_saw_the_tokens_that_chats_have(engine, images):
    """A batch of training is what the chat template makes of its conversations."""
    tokenizer = engine.tokenizer
    data = Conversations(
        tokenizer._backend, seed="s", batches=1, size=30, image_tokens=SIDE**2, most_tokens=10**6
    )
    batch, rng = data[0], random.Random("s 0")
    for ids, labels in zip(batch.ids, batch.labels, strict=True):
        system, turns = random_conversation(rng)
        messages = [Message("system", system)] if system else []
        learned: list[int] = []
        for turn in turns:
            messages.append(Message("user", turn.question, images=tuple(images[: len(turn.scenes)])))
            prompt = tokenizer.encode_chat(messages)
            assert ids[: len(prompt)].tolist() == prompt
            messages.append(Message("assistant", turn.answer))
            learned += tokenizer.encode(f"{turn.answer}</s>")
        assert labels[labels != IGNORED].tolist() == learned


def test_it_is_small_and_converts_anywhere(tmp_path, monkeypatch):
    files = list(DEMO_VISION.iterdir())
    assert sum(path.stat().st_size for path in files) <= 3_000_000
    monkeypatch.chdir(tmp_path)
    Path("demo-vision").mkdir()  # no stranger's directory is taken for it
    *_, done = convert("demo-vision", tmp_path / "models", tmp_path / "downloads")
    assert isinstance(done, Done)
    assert (done.checkpoint.manifest.source, done.checkpoint.path.name) == ("demo-vision", "demo-vision")
