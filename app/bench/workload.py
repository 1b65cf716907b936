"""The work that is measured: prompts of random tokens, their lengths, and running them on an engine."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...models.errors import UserError

if TYPE_CHECKING:
    from ...engine.engine import Engine
    from ...engine.events import Event, Finished
    from ...engine.images import Image

SEED = 0
SIGMA = 0.8
"""Of the logarithm of a ragged workload's lengths: the longest tenth is then 2.8 times the median."""


@dataclass(frozen=True)
class Job:
    """One request: its prompt's token ids and how many tokens it gets."""

    prompt: list[int]
    new_tokens: int
    images: tuple[Image, ...] = ()
    """Those whose places are in the prompt."""


def random_prompt(draw: random.Random, vocab_size: int, length: int) -> list[int]:
    """Uniform token ids: no text, so that neither side can profit from what it says."""
    return draw.choices(range(vocab_size), k=length)


def equal_jobs(
    vocab_size: int, batch: int, prompt_tokens: int, new_tokens: int, seed: int = SEED
) -> list[Job]:
    """`batch` requests of the same lengths and different prompts."""
    draw = random.Random(seed)
    return [Job(random_prompt(draw, vocab_size, prompt_tokens), new_tokens) for _ in range(batch)]


def ragged_jobs(
    vocab_size: int, count: int, prompt_tokens: int, new_tokens: int, seed: int = SEED
) -> list[Job]:
    """Requests of log-normal prompt and reply lengths with these medians, at most four times as long."""
    draw = random.Random(seed)

    def length(median: int) -> int:
        return min(max(1, round(draw.lognormvariate(0, SIGMA) * median)), 4 * median)

    return [
        Job(random_prompt(draw, vocab_size, length(prompt_tokens)), length(new_tokens)) for _ in range(count)
    ]


class Replies:
    """Collects the Finished event of each request of one run, by request id."""

    def __init__(self) -> None:
        self.finished: dict[int, Finished] = {}

    def __call__(self, event: Event) -> None:
        """The engine's sink. Raises UserError when a request failed."""
        from ...engine.events import Failed, Finished

        if isinstance(event, Finished):
            self.finished[event.request_id] = event
        elif isinstance(event, Failed):
            raise UserError(f"A request failed: {event.message}")

    def check(self, jobs: Sequence[Job]) -> list[Finished]:
        """The replies in order; UserError unless every request got exactly the tokens it was to get."""
        for number, job in enumerate(jobs):
            count = len(self.finished[number].token_ids) if number in self.finished else 0
            if count != job.new_tokens:
                raise UserError(
                    f"Request {number} got {count} tokens instead of {job.new_tokens}: not counted."
                )
        return [self.finished[number] for number in range(len(jobs))]


def submit(engine: Engine, number: int, job: Job, sink: Callable[[Event], None], submitted: float) -> None:
    """Queue a greedy request; `submitted` is the time that its TTFT counts from."""
    from ...engine.request import GenerationRequest, SamplingParams

    request = GenerationRequest((), SamplingParams(temperature=0, max_new_tokens=job.new_tokens))
    engine.submit_tokens(number, list(job.prompt), request, sink, submitted, job.images)


def run(engine: Engine, jobs: Sequence[Job]) -> list[Finished]:
    """All requests at once, to their last token, end-of-turn tokens ignored.

    Raises UserError when a request fails or gets another number of tokens.
    """
    engine.tokenizer.eos_ids = frozenset()
    replies = Replies()
    for number, job in enumerate(jobs):
        submit(engine, number, job, replies, time.monotonic())
    while engine.busy:
        engine.step()
    return replies.check(jobs)
