"""transformers is the oracle at real shapes: our bfloat16 is as near to its float32 as its own bfloat16 is.

Random weights at full depth, on a GPU (pytest -m gpu); the same at tiny shapes on any machine.
"""

from __future__ import annotations

import copy
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lite_llama.app.bench.shapes import SHAPES
from lite_llama.app.bench.subject import free_memory
from lite_llama.engine.engine import Engine
from lite_llama.engine.image_features import ImageFeatures
from lite_llama.engine.image_processor import raw_pixels
from lite_llama.engine.images import Image
from lite_llama.engine.options import EngineOptions
from lite_llama.engine.request import SamplingParams
from lite_llama.models.checkpoint import Checkpoint

POSITIONS, NEW_TOKENS = 512, 64
GREEDY = SamplingParams(temperature=0, max_new_tokens=NEW_TOKENS)
OPTIONS = EngineOptions(dtype="bfloat16", max_context=4096, max_sequences=4)
MOST = 1.2
"""Our error over that of transformers in bfloat16, at most."""

TINY = {"vocab_size": 400, "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 4}
TINY |= {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 8, "max_position_embeddings": 2048}
TINY |= {"initializer_range": 0.1}  # as much to 64 dimensions as 0.02 to 2,000
TINY_VISION = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4}
TINY_VISION |= {"image_size": 70}


def tiny(name: str) -> dict[str, Any]:
    raw = SHAPES[name]
    if "vision_config" not in raw:
        return raw | TINY
    return raw | {
        "text_config": raw["text_config"] | TINY,
        "vision_config": raw["vision_config"] | TINY_VISION,
    }


MODELS = ("Qwen2.5-0.5B", "Qwen3-0.6B", "Qwen3-1.7B", "Llama-3.2-1B", "LLaVA-1.5-7B")
CASES = [
    *(pytest.param((SHAPES[name], "cuda"), id=name, marks=pytest.mark.gpu) for name in MODELS),
    *(pytest.param((tiny(name), "cpu"), id=f"tiny-{name}") for name in (*MODELS[:2], MODELS[-1])),
]


@dataclass
class Expected:
    """What transformers makes of a prompt and of the tokens by which it goes on greedily in float32."""

    prompt: list[int]
    images: list[Image]
    reply: list[int]
    exact: Tensor
    """Logits of every position of the prompt and the reply in float32."""
    rounded: Tensor
    """The same in bfloat16."""


@dataclass
class Parity:
    """A model of random weights in our engine, and what transformers computed with the same ones."""

    engine: Engine
    expected: list[Expected]
    images: list[Image]
    features: tuple[Tensor, Tensor] | None
    """The embeddings of all images in float32 and in bfloat16; None: the model reads text only."""


@pytest.fixture(scope="module", params=CASES)
def parity(
    request: pytest.FixtureRequest,
    make_shape: Callable[..., Any],
    converted: Callable[[Path], Checkpoint],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Parity]:
    raw, device = request.param
    free_memory()  # of the model before
    root = tmp_path_factory.mktemp("parity")
    model = make_shape(raw, root / "source", torch.device(device))
    expected, images, features = oracle(model)
    del model
    checkpoint = converted(root / "source")
    assert checkpoint.manifest.dtype == "bfloat16"
    shutil.rmtree(root / "source")
    free_memory()
    engine = Engine.load(checkpoint, replace(OPTIONS, device=device))
    engine.tokenizer.eos_ids = frozenset()
    if images:  # theirs had no file and no processor either
        engine.runner.features = ImageFeatures(engine.runner.model, raw_pixels, cuda_graph=OPTIONS.captures)
    yield Parity(engine, expected, images, features)
    shutil.rmtree(root)


@torch.inference_mode()
def oracle(model: Any) -> tuple[list[Expected], list[Image], tuple[Tensor, Tensor] | None]:
    """What transformers' model in bfloat16, and its copy in float32, compute."""
    tf32 = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False  # of convolutions; of matrix products it is off by default
    assert not torch.backends.cuda.matmul.allow_tf32
    exact, draw = copy.deepcopy(model).float(), random.Random(0)
    exact.set_attn_implementation("eager")  # the fused kernels may take TF32 too
    images, features = [], None
    config = model.config
    image_token = tokens = 0
    if vision := getattr(config, "vision_config", None):
        images = [noise(draw, vision.image_size) for _ in range(3)]
        tokens = (vision.image_size // vision.patch_size) ** 2
        image_token, config = config.image_token_id, config.text_config
        pixels = pixels_of(images, model)
        features = features_by(exact, pixels), features_by(model, pixels)
    expected = []
    for count in range(len(images) + 1):
        # Below the image token's id, for there only the places of images may have it.
        text = draw.choices(range(3, image_token or config.vocab_size), k=POSITIONS - NEW_TOKENS)
        if count:
            text = text[:96]
        prompt = text[:32]
        for at in range(count):  # each between other words
            prompt += [image_token] * tokens + text[32 + 8 * at : 40 + 8 * at]
        prompt += text[32 + 8 * count :]
        shown = {"pixel_values": pixels_of(images[:count], model)} if count else {}
        reply = greedy(exact, prompt, shown)
        ids = torch.tensor([prompt + reply], device=model.device)
        logits = (each(ids, use_cache=False, **shown).logits[0].float() for each in (exact, model))
        expected.append(Expected(prompt, images[:count], reply, *logits))
    torch.backends.cudnn.allow_tf32 = tf32
    return expected, images, features


def noise(draw: random.Random, size: int) -> Image:
    """An image as `raw_pixels` takes it."""
    return Image("noise", draw.randbytes(3 * size * size), (size, size))


def pixels_of(images: list[Image], model: Any) -> Tensor:
    return torch.stack([raw_pixels(image) for image in images]).to(model.device)


def features_by(model: Any, pixels: Tensor) -> Tensor:
    """[images, tokens, H] fp32."""
    return torch.stack(list(model.get_image_features(pixels).pooler_output)).float()


def greedy(model: Any, prompt: list[int], shown: dict[str, Tensor]) -> list[int]:
    ids = torch.tensor([prompt], device=model.device)
    model.generation_config.eos_token_id = None
    options = {"do_sample": False, "max_new_tokens": NEW_TOKENS, "pad_token_id": 0}
    options |= {"temperature": None, "top_p": None, "top_k": None}
    out = model.generate(ids, attention_mask=torch.ones_like(ids), **options, **shown)
    return out[0, len(prompt) :].tolist()


def check_error(what: str, ours: Tensor, exact: Tensor, rounded: Tensor) -> None:
    """The relative error of ours is at most MOST times that of transformers' bfloat16."""
    assert ours.shape == exact.shape
    error, theirs = (((value - exact).norm() / exact.norm()).item() for value in (ours, rounded))
    print(f"{what}: relative error {error:.4%}, transformers' {theirs:.4%}, ratio {error / theirs:.3f}")
    assert error <= MOST * theirs


def test_image_features(parity):
    if not parity.images:
        pytest.skip("reads text only")
    encode = parity.engine.runner.features
    ours = torch.stack([encode(image) for image in parity.images]).float()
    exact, rounded = parity.features
    for index in range(len(ours)):
        check_error(f"image {index}", ours[index], exact[index], rounded[index])


def test_logits_of_every_position(parity, prefill_logits):
    encode = parity.engine.runner.features
    for known in parity.expected:
        rows = torch.cat([encode(image) for image in known.images]) if known.images else None
        (ours,) = prefill_logits(parity.engine, [known.prompt + known.reply], rows)
        check_error(f"{len(ours)} positions, {len(known.images)} images", ours, known.exact, known.rounded)


def test_greedy_tokens_differ_only_where_the_race_is_close(parity, run):
    """Where they first differ, the logits in float32 of both choices are no further apart than the errors of
    two logits of bfloat16 at that place."""
    for known in parity.expected:
        (finished,) = run(parity.engine, [known.prompt], GREEDY, [known.images])
        ours = finished.token_ids
        at = next(
            (index for index, pair in enumerate(zip(ours, known.reply, strict=True)) if len({*pair}) > 1),
            None,
        )
        what = f"{len(known.prompt)} tokens, {len(known.images)} images"
        if at is None:
            print(f"{what}: all {NEW_TOKENS} tokens are equal")
            continue
        place = len(known.prompt) + at - 1
        exact = known.exact[place]
        gap = (exact[known.reply[at]] - exact[ours[at]]).item()
        error = (known.rounded[place] - exact).abs().max().item()
        print(f"{what}: first difference at {at}, gap {gap:.5f}, largest error of bfloat16 {error:.5f}")
        assert gap <= 2 * MOST * error
