"""A prompt with an image: encoding it, the first token, and the rate of those after it."""

from __future__ import annotations

import itertools
import random
import statistics
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ...models.errors import UserError
from . import rivals
from .decode import ENGINE, SAME_TOKENS, US, ours
from .report import DECODE_RATE, FIRST_TOKEN, Column, Panel, Report, Row, engine_facts, ms
from .subject import Subject, check_fits, free_memory
from .timing import Generate, Tell, time_calls, time_decode
from .workload import SEED, Job, random_prompt, run

if TYPE_CHECKING:
    from torch import Tensor

    from ...engine.engine import Engine
    from ...engine.images import Image

TEXT_ONLY = f"{US}, text only"


def measure(subject: Subject, *, prompt_tokens: int, new_tokens: int, repeats: int, tell: Tell) -> Report:
    """Answer a prompt of one image and `prompt_tokens` tokens greedily, with exactly `new_tokens` tokens.

    transformers gets the same weights, tokens and image. The language model alone, with weights of its own,
    answers a prompt of as many tokens without an image. Timed as in `decode`; our first token includes
    uploading the image, which transformers has on the device, and no image is found to be encoded already.
    Raises UserError when the model sees no images, cannot be loaded or the prompt does not fit.
    """
    from ...engine.image_features import KEPT_IMAGES
    from ...engine.image_processor import raw_pixels
    from ...engine.images import Image

    vision = subject.config.vision
    if not vision:
        raise UserError(f"{subject.name} reads text only: choose the shape of a model that sees images.")
    draw = random.Random(SEED)
    # Ids below the image token's: elsewhere than in the image's place it must not occur.
    text = random_prompt(draw, vision.image_token, prompt_tokens)
    prompt = [*text[:1], *[vision.image_token] * vision.tokens, *text[1:]]
    size = vision.image_size
    # More than are kept, by turns: each is forgotten when it comes again.
    images = [Image("noise", draw.randbytes(3 * size * size), (size, size)) for _ in range(KEPT_IMAGES + 1)]
    tokens = len(prompt) + new_tokens

    tell(f"Loading {subject.name}")
    engine = subject.load(prefix_cache=False, speculate=False)
    check_fits(engine.info, 1, tokens)
    facts = engine_facts(
        "images",
        subject,
        engine,
        prompt_tokens=prompt_tokens,
        image_tokens=vision.tokens,
        new_tokens=new_tokens,
        repeats=repeats,
    )
    weight = engine.runner.model.embed_tokens.weight
    pixels = raw_pixels(images[0]).to(weight.device, weight.dtype)
    tell(US)
    rows = [_ours(engine, prompt, images, pixels, new_tokens, repeats)]
    reply = _seeing(engine, prompt, iter(images))(new_tokens)
    weights = rivals.shared_weights(engine, subject.config)
    del engine, weight  # the KV cache goes, the weights stay
    free_memory()

    tell(rivals.EAGER)
    rival = rivals.Rival(rivals.EAGER, subject.raw_config, weights)
    rows.append(_theirs(rival, prompt, reply, pixels, new_tokens, repeats))
    del rival, weights
    free_memory()

    tell(TEXT_ONLY)
    alone = replace(subject, raw_config=subject.raw_config["text_config"])
    words = random_prompt(draw, alone.config.vocab_size, len(prompt))
    timing = time_decode(
        ours(alone.load(prefix_cache=False, speculate=False), [words]), 1, new_tokens, repeats
    )
    rows.append({"engine": TEXT_ONLY, **timing.as_dict()})
    return Report(facts, rows, _COLUMNS, _panels(rows))


def _ours(
    engine: Engine, prompt: list[int], images: list[Image], pixels: Tensor, new_tokens: int, repeats: int
) -> Row:
    features = engine.runner.features
    assert features
    encoded = time_calls(lambda: _finish(features.encode(pixels)), repeats)
    timing = time_decode(_seeing(engine, prompt, itertools.cycle(images)), 1, new_tokens, repeats)
    return {"engine": US, **_encoding(encoded), **timing.as_dict()}


def _theirs(
    rival: rivals.Rival,
    prompt: list[int],
    reply: list[list[int]],
    pixels: Tensor,
    new_tokens: int,
    repeats: int,
) -> Row:
    """`reply`: our tokens for the image of `pixels`."""
    shown = {"pixel_values": pixels[None]}
    encoded = time_calls(lambda: _finish(rival.image_features(**shown)), repeats)
    timing = time_decode(rival.generator([prompt], **shown), 1, new_tokens, repeats)
    agreement = {"agreement": rival.agreement([prompt], reply, timing.tokens, **shown)}
    return {"engine": rival.name, **_encoding(encoded), **timing.as_dict(), **rival.describe(), **agreement}


def _seeing(engine: Engine, prompt: list[int], images: Iterator[Image]) -> Generate:
    """Generates for the prompt with the next of the images."""

    def generate(count: int) -> list[list[int]]:
        (finished,) = run(engine, [Job(prompt, count, (next(images),))])
        return [list(finished.token_ids)]

    return generate


def _finish(result: Tensor) -> None:
    """Wait for the device."""
    import torch

    if result.is_cuda:
        torch.cuda.synchronize(result.device)


def _encoding(seconds: list[float]) -> dict[str, Any]:
    return {"encode_s": statistics.median(seconds), "encode_repeats_s": seconds}


_COLUMNS = (
    ENGINE,
    Column("Image ms", lambda row: ms(row["encode_s"]) if "encode_s" in row else ""),
    FIRST_TOKEN,
    DECODE_RATE,
    SAME_TOKENS,
)


def _panels(rows: list[Row]) -> tuple[Panel, ...]:
    names = [row["engine"] for row in rows]
    first = [1000 * row["ttft_s"] for row in rows]
    return (
        Panel("Time to first token, ms", names, {"": first}),
        Panel("Decode tokens/s", names, {"": [row["decode_tokens_per_s"] for row in rows]}),
    )
