"""Prompt-lookup speculative decoding: what it brings on a text that repeats itself, and costs on one that
does not."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from ...models.errors import UserError
from .decode import ours
from .report import DECODE_RATE, Column, Panel, Report, Row, engine_facts
from .subject import Subject, check_fits, free_memory
from .timing import Tell, Timing, time_decode
from .workload import Job, Replies, submit

if TYPE_CHECKING:
    from ...engine.engine import Engine

TEXTS = {
    "repetitive": '''Here is a Python module. Write it out again in full, with every `print` changed to `log`.

def read_numbers(path):
    """Read one number per line from the file at path."""
    numbers = []
    with open(path) as file:
        for line in file:
            print("reading", line.strip())
            numbers.append(float(line))
    return numbers


def average(numbers):
    """The arithmetic mean of a list of numbers."""
    print("averaging", len(numbers), "numbers")
    return sum(numbers) / len(numbers)


def largest(numbers):
    """The largest of a list of numbers."""
    print("searching", len(numbers), "numbers")
    return max(numbers)


def main(path):
    numbers = read_numbers(path)
    print("average", average(numbers))
    print("largest", largest(numbers))
''',
    "not repetitive": "Tell me a story about a lighthouse keeper who finds a clock that runs backwards.",
}


def measure(subject: Subject, *, new_tokens: int, repeats: int, tell: Tell) -> Report:
    """Answer both texts greedily without and with speculation, and compare the replies token by token.

    A reply ends where the model ends it, or after `new_tokens` tokens: text after the end of a turn repeats
    itself and would flatter. Raises UserError when the model cannot be loaded or answers with one token.
    """
    asked: dict[str, Job] = {}
    timings: dict[tuple[str, bool], Timing] = {}
    facts: dict[str, Any] = {}
    for speculate in (False, True):
        tell(f"Loading {subject.name}")
        engine = subject.load(prefix_cache=False, speculate=speculate)
        asked = asked or {text: _job(engine, content, new_tokens) for text, content in TEXTS.items()}
        for text, job in asked.items():
            tell(f"{text} text, {_with(speculate)} speculation")
            timings[text, speculate] = time_decode(ours(engine, [job.prompt]), 1, job.new_tokens, repeats)
        facts = engine_facts("speculate", subject, engine, new_tokens=new_tokens, repeats=repeats)
        del engine
        free_memory()
    rows: list[Row] = [
        {
            "text": text,
            "speculation": _with(speculate),
            "prompt_tokens": len(asked[text].prompt),
            **timings[text, speculate].as_dict(),
            "same_tokens": timings[text, speculate].tokens == timings[text, False].tokens,
        }
        for text in TEXTS
        for speculate in (False, True)
    ]
    labels = [f"{row['text']}, {row['speculation']}" for row in rows]
    panel = Panel("Decode tokens/s", labels, {"": [row["decode_tokens_per_s"] for row in rows]})
    return Report(facts, rows, _COLUMNS, (panel,))


def _with(speculate: bool) -> str:
    return "with" if speculate else "without"


def _job(engine: Engine, content: str, new_tokens: int) -> Job:
    """The question as the model's template renders it, and the length of the reply up to its end of turn."""
    from ...engine.request import Message

    prompt = engine.tokenizer.encode_chat([Message("user", content)])
    check_fits(engine.info, 1, len(prompt) + new_tokens)
    replies = Replies()
    submit(engine, 0, Job(prompt, new_tokens), replies, time.monotonic())
    while engine.busy:
        engine.step()
    count = len(replies.finished[0].token_ids)
    if count < 2:
        raise UserError("The model answers with a single token: choose one that chats.")
    return Job(prompt, count)


_COLUMNS = (
    Column("Text", lambda row: row["text"]),
    Column("Speculation", lambda row: row["speculation"]),
    Column("Reply tokens", lambda row: str(row["generated_tokens"][0])),
    DECODE_RATE,
    Column("Same tokens", lambda row: "yes" if row["same_tokens"] else "NO"),
)
