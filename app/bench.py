"""Measures decoding speed, with transformers beside us in the same run on the same tokens."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..engine.engine import Engine
    from ..models.checkpoint import Checkpoint


@dataclass(frozen=True)
class Result:
    """Medians over the repeats of one engine: seconds, and tokens per second of the whole batch."""

    engine: str
    ttft_s: float
    decode_tokens_per_s: float
    total_s: float


def bench_decode(
    checkpoint: Checkpoint,
    *,
    device: str = "auto",
    dtype: str = "auto",
    batch: int = 1,
    prompt_tokens: int = 128,
    new_tokens: int = 128,
    repeats: int = 3,
    compare: bool = True,
) -> dict[str, Any]:
    """Decode `batch` random prompts of `prompt_tokens` ids for exactly `new_tokens` tokens, greedily.

    Both sides are timed the same way, by the wall clock around a whole generation of one token (the time
    to first token) and of `new_tokens` tokens; the decode rate is the other tokens over the difference.
    End-of-turn tokens are ignored on both sides, so the counts are equal. One run of each is thrown away.
    Raises UserError when the model cannot be loaded.
    """
    import torch

    from ..engine.engine import Engine
    from ..engine.options import EngineOptions

    engine = Engine.load(checkpoint, EngineOptions(device=device, dtype=dtype))
    engine.tokenizer.eos_ids = frozenset()
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, checkpoint.config.vocab_size, (batch, prompt_tokens), generator=generator)
    results = [_measure("lite_llama", _ours(engine, ids.tolist()), batch, new_tokens, repeats)]
    if compare:
        oracle = _transformers_model(checkpoint, engine)
        results.append(_measure("transformers", _theirs(oracle, ids), batch, new_tokens, repeats))
    return {
        "mode": "decode",
        "model": checkpoint.manifest.name,
        "device": engine.info.device_name,
        "dtype": engine.info.dtype,
        "operators": engine.info.operators,
        "batch": batch,
        "prompt_tokens": prompt_tokens,
        "new_tokens": new_tokens,
        "repeats": repeats,
        "torch": torch.__version__,
        "results": [vars(result) for result in results],
    }


def _measure(name: str, generate: Callable[[int], None], batch: int, new_tokens: int, repeats: int) -> Result:
    """Time `generate(1)` and `generate(new_tokens)`; each returns when its tokens are on the host."""

    def seconds(count: int) -> float:
        start = time.perf_counter()
        generate(count)
        return time.perf_counter() - start

    seconds(new_tokens)
    seconds(1)
    first = statistics.median(seconds(1) for _ in range(repeats))
    total = statistics.median(seconds(new_tokens) for _ in range(repeats))
    return Result(name, first, batch * (new_tokens - 1) / (total - first), total)


def _ours(engine: Engine, prompts: list[list[int]]) -> Callable[[int], None]:
    from ..engine.request import GenerationRequest, SamplingParams

    def generate(count: int) -> None:
        request = GenerationRequest((), SamplingParams(temperature=0, max_new_tokens=count))
        for number, prompt in enumerate(prompts):
            engine.submit_tokens(number, list(prompt), request, lambda event: None, time.monotonic())
        while engine.busy:
            engine.step()

    return generate


def _theirs(model: Any, ids: Any) -> Callable[[int], None]:
    import torch

    ids = ids.to(model.device)
    mask = torch.ones_like(ids)

    def generate(count: int) -> None:
        with torch.inference_mode():
            model.generate(
                ids, attention_mask=mask, do_sample=False, min_new_tokens=count, max_new_tokens=count
            ).tolist()

    return generate


def _transformers_model(checkpoint: Checkpoint, engine: Engine) -> Any:
    """transformers' model with the weights of the converted checkpoint, on the engine's device and dtype."""
    import torch
    from safetensors import safe_open
    from transformers import AutoConfig, AutoModelForCausalLM

    from ..models.weights import targets

    config = AutoConfig.from_pretrained(checkpoint.path)
    model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, engine.info.dtype))
    state = {}
    with safe_open(checkpoint.weights, framework="pt") as file:
        for target in targets(checkpoint.config):
            rows = [source.shape[0] for source in target.sources]
            parts = file.get_tensor(target.name).split(rows)
            state |= {source.name: part for source, part in zip(target.sources, parts, strict=True)}
    model.load_state_dict(state, strict=False)
    model.tie_weights()
    model.generation_config.pad_token_id = 0
    return model.to(engine.runner.device).eval()
