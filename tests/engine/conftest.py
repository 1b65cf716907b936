"""Converted tiny models, and a way to run requests on an engine without its thread."""

from __future__ import annotations

import time
from collections.abc import Callable
from collections.abc import Sequence as Sequences
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lite_llama.converter import Done, convert
from lite_llama.engine.detokenizer import Detokenizer
from lite_llama.engine.engine import Engine
from lite_llama.engine.events import Event, Failed, Finished
from lite_llama.engine.request import GenerationRequest, SamplingParams
from lite_llama.engine.runner import ModelRunner, Step
from lite_llama.engine.scheduler import Batch, Chunk
from lite_llama.engine.sequence import Sequence
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
        self,
        engine: Engine,
        prompts: Sequences[list[int]],
        params: SamplingParams | Sequences[SamplingParams],
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


@torch.inference_mode()
def _prefill_logits(engine: Engine, sequences: Sequences[list[int]]) -> list[torch.Tensor]:
    """Logits of every position, all sequences in one ragged prefill batch."""
    chunks = []
    for number, tokens in enumerate(sequences):
        sequence = Sequence(
            request_id=number,
            tokens=tokens,
            prompt_len=len(tokens),
            params=SamplingParams(),
            seed=0,
            max_tokens=0,
            detokenizer=Detokenizer(engine.tokenizer.decode),
            sink=lambda event: None,
            submitted=0.0,
        )
        assert engine.pool.grow(sequence.pages, len(tokens))
        chunks.append(Chunk(sequence, 0, len(tokens), is_last=True))
    batch = engine.runner.upload(chunks)
    logits = engine.runner.model(replace(batch, logit_rows=None), engine.runner.cache)
    for chunk in chunks:
        engine.pool.give_back(chunk.sequence.pages)
    return list(logits.split([len(tokens) for tokens in sequences]))


@pytest.fixture
def prefill_logits() -> Callable[[Engine, Sequences[list[int]]], list[torch.Tensor]]:
    """Runs token sequences as one ragged prefill batch; returns the logits [T, V] of each."""
    return _prefill_logits


class RunnerAhead(ModelRunner):
    """Lets the host work one step behind, as a GPU does.

    What a decode reads is not the host's newest token, which may be old, but the device's, which is kept by
    slot; where the host knows it too, they must agree.
    """

    steps_ahead = 1

    def __init__(self, runner: ModelRunner) -> None:
        super().__init__(runner.model, runner.cache, runner.device)
        self._newest: dict[int, int] = {}

    def launch(self, batch: Batch) -> Step:
        decode = []
        for sequence in batch.decode:
            known, newest = sequence.tokens[: sequence.computed], self._newest[sequence.slot]
            assert len(known) in (sequence.computed, sequence.computed - 1)
            assert known[sequence.computed - 1 :] in ([], [newest])
            decode.append(replace(sequence, tokens=[*known[: sequence.computed - 1], newest]))
        step = super().launch(Batch(tuple(decode), batch.prefill))
        for sequence, token in zip(batch.drawing, step.tokens(), strict=True):
            self._newest[sequence.slot] = token
        return step


@pytest.fixture
def run_ahead() -> Callable[[Engine], None]:
    """Makes an engine's host work one step behind its device."""

    def change(engine: Engine) -> None:
        engine.runner = RunnerAhead(engine.runner)

    return change
