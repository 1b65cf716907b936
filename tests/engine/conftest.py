"""Converted tiny models, and a way to run requests on an engine without its thread."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lite_llama.converter import Done, convert
from lite_llama.engine.engine import Engine
from lite_llama.engine.events import Event, Failed, Finished
from lite_llama.engine.request import GenerationRequest, SamplingParams
from lite_llama.models.checkpoint import Checkpoint


@dataclass(frozen=True)
class TinyModel:
    """A random checkpoint as transformers wrote it, and the same converted by us."""

    source: Path
    checkpoint: Checkpoint


@pytest.fixture(scope="session")
def tiny_model(make_checkpoint, tmp_path_factory) -> Callable[..., TinyModel]:
    """Make (once per set of arguments) and convert a tiny checkpoint in float32."""
    made: dict[str, TinyModel] = {}

    def make(architecture: str, **overrides: Any) -> TinyModel:
        key = repr((architecture, sorted(overrides.items())))
        if key not in made:
            root = tmp_path_factory.mktemp("tiny")
            source = make_checkpoint(architecture, root / "source", **overrides)
            *_, last = convert(str(source), root / "models", root / "downloads", name="tiny")
            assert isinstance(last, Done)
            made[key] = TinyModel(source, last.checkpoint)
        return made[key]

    return make


class Run:
    """Submits prompts (token ids) to an engine and steps it until all are finished."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def __call__(
        self, engine: Engine, prompts: Sequence[list[int]], params: SamplingParams | Sequence[SamplingParams]
    ) -> list[Finished]:
        """The Finished event of each prompt, in order; a Failed one is an error."""
        self.events.clear()
        each = [params] * len(prompts) if isinstance(params, SamplingParams) else params
        for number, (prompt, own) in enumerate(zip(prompts, each, strict=True)):
            request = GenerationRequest((), own)
            engine.submit_tokens(number, list(prompt), request, self.events.append, time.monotonic())
        while engine.busy:
            engine.step()
        assert not [event for event in self.events if isinstance(event, Failed)]
        finished = [event for event in self.events if isinstance(event, Finished)]
        return sorted(finished, key=lambda event: event.request_id)


@pytest.fixture
def run() -> Run:
    return Run()
