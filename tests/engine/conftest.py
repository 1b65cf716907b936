"""Converted tiny models, and a way to run requests on an engine without its thread."""

from __future__ import annotations

import time
from collections.abc import Callable
from collections.abc import Sequence as Sequences
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from lite_llama.converter import Done, convert
from lite_llama.engine.engine import Engine
from lite_llama.engine.events import Event, Failed, Finished
from lite_llama.engine.images import Image
from lite_llama.engine.request import GenerationRequest, SamplingParams
from lite_llama.kernels import PAGE_SIZE
from lite_llama.models.batch import PrefillBatch
from lite_llama.models.checkpoint import Checkpoint


@dataclass(frozen=True)
class TinyModel:
    """A random checkpoint as transformers wrote it, and the same converted by us."""

    source: Path
    checkpoint: Checkpoint


def _converted(source: Path) -> Checkpoint:
    root = source.parent
    *_, last = convert(str(source), root / "models", root / "downloads", name="tiny")
    assert isinstance(last, Done)
    return last.checkpoint


@pytest.fixture(scope="session")
def converted() -> Callable[[Path], Checkpoint]:
    """Converts a checkpoint directory, beside it."""
    return _converted


@pytest.fixture(scope="session")
def tiny_model(make_checkpoint, tmp_path_factory) -> Callable[..., TinyModel]:
    """Make (once per set of arguments) and convert a tiny checkpoint in float32."""
    made: dict[str, TinyModel] = {}

    def make(architecture: str, **overrides: Any) -> TinyModel:
        key = repr((architecture, sorted(overrides.items())))
        if key not in made:
            source = make_checkpoint(architecture, tmp_path_factory.mktemp("tiny") / "source", **overrides)
            made[key] = TinyModel(source, _converted(source))
        return made[key]

    return make


@pytest.fixture(scope="session")
def tiny_llava(make_llava, tmp_path_factory) -> Callable[..., TinyModel]:
    """The same for LLaVA; arguments as for MakeLlava."""
    made: dict[str, TinyModel] = {}

    def make(text: str = "LlamaForCausalLM", **overrides: Any) -> TinyModel:
        key = repr((text, sorted(overrides.items())))
        if key not in made:
            source = make_llava(tmp_path_factory.mktemp("llava") / "source", text, **overrides)
            made[key] = TinyModel(source, _converted(source))
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
        images: Sequences[Sequences[Image]] | None = None,
    ) -> list[Finished]:
        """The Finished event of each prompt, in order; a Failed one is an error.

        images: those of each prompt, whose places are among its tokens.
        """
        self.events.clear()
        each = [params] * len(prompts) if isinstance(params, SamplingParams) else params
        seen = images or [()] * len(prompts)
        for number, (prompt, own, shown) in enumerate(zip(prompts, each, seen, strict=True)):
            request = GenerationRequest((), own)
            engine.submit_tokens(number, list(prompt), request, self.events.append, time.monotonic(), shown)
        while engine.busy:
            engine.step()
        assert not [event for event in self.events if isinstance(event, Failed)]
        finished = [event for event in self.events if isinstance(event, Finished)]
        return sorted(finished, key=lambda event: event.request_id)


@pytest.fixture
def run() -> Run:
    return Run()


@torch.inference_mode()
def _prefill_logits(
    engine: Engine, sequences: Sequences[list[int]], image_rows: torch.Tensor | None = None
) -> list[torch.Tensor]:
    """Logits of every position, all sequences in one ragged prefill batch.

    `image_rows` [I, H] are the embeddings for the places of the model's image token, in order.
    """
    lengths = torch.tensor([len(tokens) for tokens in sequences])
    pages: list[list[int]] = [[] for _ in sequences]
    for owned, tokens in zip(pages, sequences, strict=True):
        assert engine.pool.grow(owned, len(tokens))
    table = torch.nn.utils.rnn.pad_sequence([torch.tensor(owned) for owned in pages], batch_first=True)
    positions = torch.cat([torch.arange(len(tokens)) for tokens in sequences])
    rows = torch.arange(len(sequences)).repeat_interleave(lengths)
    device = engine.runner.device
    config = engine.runner.model.config
    images = None
    if image_rows is not None and config.vision:
        tokens = torch.tensor([token for tokens in sequences for token in tokens])
        is_image = (tokens == config.vision.image_token).to(device)
        embedded = image_rows.new_zeros(len(tokens), config.hidden_size)
        embedded[is_image] = image_rows
        images = is_image, embedded
    batch = PrefillBatch(
        token_ids=torch.tensor([token for tokens in sequences for token in tokens]).to(device),
        positions=positions.to(device),
        cache_slots=(table[rows, positions // PAGE_SIZE] * PAGE_SIZE + positions % PAGE_SIZE).to(device),
        page_table=table.int().to(device),
        context_lens=lengths.int().to(device),
        query_start=torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).int().to(device),
        max_query_len=int(lengths.max()),
        logit_rows=torch.arange(len(positions)).to(device),
        images=images,
    )
    logits = engine.runner.model.prefill(batch, engine.runner.cache)
    assert logits is not None
    for owned in pages:
        engine.pool.give_back(owned)
    return list(logits.split(lengths.tolist()))


@pytest.fixture
def prefill_logits() -> Callable[..., list[torch.Tensor]]:
    """Runs token sequences as one ragged prefill batch; returns the logits [T, V] of each."""
    return _prefill_logits


@pytest.fixture
def run_ahead(monkeypatch) -> Callable[[Engine], None]:
    """Makes an engine's host work one step behind its device, as on a GPU."""

    def change(engine: Engine) -> None:
        monkeypatch.setattr(engine.runner, "steps_ahead", 1)

    return change
