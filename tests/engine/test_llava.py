"""LLaVA on images, with transformers' LLaVA and its processor as the oracle (fp32, CPU)."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image as pillow
from transformers import AutoProcessor, LlavaForConditionalGeneration

from lite_llama.converter import Done, convert
from lite_llama.engine import image_features
from lite_llama.engine.engine import Engine
from lite_llama.engine.events import Event, Failed, Finished
from lite_llama.engine.image_prompt import place_images
from lite_llama.engine.images import Image, read_image
from lite_llama.engine.kv_cache import PagePool
from lite_llama.engine.memory import plan_memory
from lite_llama.engine.options import EngineOptions
from lite_llama.engine.request import GenerationRequest, Message, SamplingParams
from lite_llama.kernels import PAGE_SIZE
from lite_llama.kernels.operators import reference_operators, triton_operators
from lite_llama.models.config import ModelConfig
from lite_llama.models.errors import CheckpointError, UserError
from lite_llama.models.loader import load_decoder

NEW_TOKENS = 32
GREEDY = SamplingParams(temperature=0, max_new_tokens=NEW_TOKENS)
OPTIONS = EngineOptions(device="cpu", dtype="float32")
SYSTEM = "The quick brown fox jumps over the lazy dog. For the answers, be brief and precise."
SHAPES = [(90, 60), (70, 70), (50, 140), (200, 90)]


@pytest.fixture(scope="session")
def images(tmp_path_factory) -> list[Image]:
    """Noise in several shapes: no two look alike to a model of random weights."""
    directory, rng = tmp_path_factory.mktemp("images"), random.Random(1)
    for number, (width, height) in enumerate(SHAPES):
        coarse = pillow.frombytes("RGB", (5, 5), rng.randbytes(75))
        coarse.resize((width, height), pillow.Resampling.BICUBIC).save(directory / f"{number}.png")
    return [read_image(directory / f"{number}.png") for number in range(len(SHAPES))]


@dataclass
class Oracle:
    """transformers' model and processor of a checkpoint."""

    source: Path
    processor: Any = field(init=False)
    model: Any = field(init=False)

    def __post_init__(self) -> None:
        self.processor = AutoProcessor.from_pretrained(self.source)
        self.model = LlavaForConditionalGeneration.from_pretrained(self.source, dtype=torch.float32)
        self.model.generation_config.eos_token_id = None

    def inputs(self, messages: Sequence[Message], *, generation_prompt: bool = True) -> Any:
        turns = [
            {
                "role": message.role,
                "content": [
                    *({"type": "image"} for _ in message.images),
                    {"type": "text", "text": message.content},
                ],
            }
            for message in messages
        ]
        text = self.processor.apply_chat_template(turns, add_generation_prompt=generation_prompt)
        pictures = [image.pixels() for message in messages for image in message.images]
        return self.processor(text=text, images=pictures or None, return_tensors="pt")

    @torch.inference_mode()
    def greedy(self, messages: Sequence[Message]) -> tuple[int, ...]:
        inputs = self.inputs(messages)
        out = self.model.generate(
            **inputs, do_sample=False, max_new_tokens=NEW_TOKENS, temperature=None, top_p=None, top_k=None
        )
        return tuple(out[0, inputs["input_ids"].shape[1] :].tolist())


@pytest.fixture(params=["LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"], scope="module")
def pair(request, tiny_llava) -> tuple[Engine, Oracle]:
    """Our engine and transformers' model, neither of which ends a reply by itself."""
    tiny = tiny_llava(request.param)
    return load(tiny.checkpoint), Oracle(tiny.source)


def load(checkpoint) -> Engine:
    engine = Engine.load(checkpoint, OPTIONS)
    engine.tokenizer.eos_ids = frozenset()
    return engine


def features_of(engine: Engine) -> image_features.ImageFeatures:
    assert engine.runner.features
    return engine.runner.features


def reply(
    engine: Engine, *conversations: Sequence[Message], params: SamplingParams = GREEDY
) -> list[Finished]:
    """The replies to conversations that run together, in order; a failure is an error."""
    events: list[Event] = []
    for number, messages in enumerate(conversations):
        request = GenerationRequest(tuple(messages), params)
        engine.submit(number, request, events.append, time.monotonic())
    while engine.busy:
        engine.step()
    assert not [event for event in events if isinstance(event, Failed)]
    assert engine.pool.used == 0
    finished = [event for event in events if isinstance(event, Finished)]
    return sorted(finished, key=lambda event: event.request_id)


def conversations(images: list[Image]) -> dict[str, list[Message]]:
    one, two, three, _ = images
    return {
        "one": [Message("user", "What is this?", images=(one,))],
        "two": [Message("system", "Be brief."), Message("user", "Compare them, please.", images=(two, one))],
        "three": [Message("user", "Which of these is the odd one?", images=(three, one, two))],
        "turns": [
            Message("user", "What is this?", images=(one,)),
            Message("assistant", "A quick brown fox."),
            Message("user", "And this one here?", images=(two,)),
            Message("assistant", "A lazy dog."),
            Message("user", "Which is lazier?"),
        ],
        "late": [
            Message("user", "Hello there, how are you today?"),
            Message("assistant", "Fine."),
            Message("user", "Then look.", images=(three,)),
        ],
        "text": [Message("user", "What is the capital of France?")],
    }


VISION = {
    "default": {},
    "gelu": {"vision": {"hidden_act": "gelu"}},
    "full": {"vision_feature_select_strategy": "full"},
    "first-layer": {"vision_feature_layer": 1},
    "last-layer": {"vision_feature_layer": -1},
    "layers": {"vision_feature_layer": [-1, 0, -3]},
    "layers-full": {"vision_feature_layer": [1, 2], "vision_feature_select_strategy": "full"},
    "no-bias": {"multimodal_projector_bias": False},
    "uneven": {"vision": {"image_size": 75}},  # 5 pixels are left over
}


@pytest.mark.parametrize("name", VISION)
def test_image_features_are_those_of_transformers(name, tiny_llava):
    tiny = tiny_llava(**VISION[name])
    engine, oracle = load(tiny.checkpoint), Oracle(tiny.source).model
    vision = tiny.checkpoint.config.vision
    pixels = torch.randn(2, 3, vision.image_size, vision.image_size)
    with torch.inference_mode():
        ours = engine.runner.model.encode_images(pixels)
        expected = torch.stack(list(oracle.get_image_features(pixels).pooler_output))
    assert ours.shape == (2, vision.tokens, 64)
    print("largest difference", (ours - expected).abs().max().item())
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-4)


def test_the_kernels_give_the_features_of_plain_pytorch(tiny_llava):
    if torch.cuda.is_available():
        pytest.skip("this process compiles kernels for its GPU, where test_gpu_parity.py compares")
    checkpoint = tiny_llava(vision_feature_layer=[1, -1], vision_feature_select_strategy="full").checkpoint
    cpu, pixels = torch.device("cpu"), torch.randn(2, 3, 70, 70)
    ours, expected = (
        load_decoder(checkpoint, ops, cpu, torch.float32, 64).encode_images(pixels)
        for ops in (triton_operators(), reference_operators())
    )
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-4)


def test_features_in_bfloat16_are_near_those_in_float32(tiny_llava, images):
    checkpoint = tiny_llava().checkpoint
    exact, rounded = (
        features_of(Engine.load(checkpoint, EngineOptions(device="cpu", dtype=dtype)))(images[0])
        for dtype in ("float32", "bfloat16")
    )
    assert rounded.dtype == torch.bfloat16
    assert torch.cosine_similarity(exact, rounded.float()).min() > 0.99


@pytest.mark.parametrize("name", ["one", "two", "three", "turns", "late", "text"])
def test_prompts_are_those_of_the_processor(name, pair, images):
    engine, oracle = pair
    messages = conversations(images)[name]
    ids = engine.tokenizer.encode_chat(messages)
    assert ids == oracle.inputs(messages)["input_ids"][0].tolist()
    assert engine.count_tokens(messages) == len(ids)
    assert engine.info.image_tokens == 25


@pytest.mark.parametrize("name", ["one", "two", "three", "turns", "late"])
def test_logits_of_every_position(name, pair, images, prefill_logits):
    engine, oracle = pair
    messages = conversations(images)[name]
    inputs = oracle.inputs(messages)
    rows = torch.cat([features_of(engine)(image) for message in messages for image in message.images])
    (ours,) = prefill_logits(engine, [inputs["input_ids"][0].tolist()], rows)
    with torch.inference_mode():
        expected = oracle.model(**inputs).logits[0]
    print("largest difference", (ours - expected).abs().max().item())
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-3)


def test_a_ragged_batch_of_text_and_images_gives_the_oracles_tokens(pair, images):
    engine, oracle = pair
    engine.pool.forget()
    asked = conversations(images)
    for messages, finished in zip(asked.values(), reply(engine, *asked.values()), strict=True):
        assert finished.token_ids == oracle.greedy(messages)
        assert len(finished.token_ids) == NEW_TOKENS
        assert finished.usage.prompt_tokens == oracle.inputs(messages)["input_ids"].shape[1]


def alone(engine: Engine, asked: dict[str, list[Message]]) -> list[tuple[int, ...]]:
    return [reply(engine, messages)[0].token_ids for messages in asked.values()]


def test_alone_or_in_a_batch_the_tokens_are_the_same(pair, images):
    engine, _ = pair
    asked = conversations(images)
    together = reply(engine, *asked.values())
    engine.pool.forget()
    assert alone(engine, asked) == [finished.token_ids for finished in together]


@pytest.mark.parametrize("chunk", [7, 16])
def test_chunks_that_cut_images_change_nothing(chunk, pair, images, monkeypatch):
    engine, _ = pair
    asked = conversations(images)
    engine.pool.forget()
    whole = reply(engine, *asked.values())
    engine.pool.forget()
    monkeypatch.setattr(engine.scheduler, "chunk_tokens", chunk)
    cuts = []
    launch = engine.runner.launch

    def spy(batch):
        for part in batch.prefill:
            end = part.start + part.count
            cuts.extend(placed for placed in part.sequence.images if placed.start < end < placed.end)
        return launch(batch)

    monkeypatch.setattr(engine.runner, "launch", spy)
    chunked = reply(engine, *asked.values())
    assert len(cuts) > 10
    assert [finished.token_ids for finished in chunked] == [finished.token_ids for finished in whole]


def test_preemption_computes_images_again(pair, images, monkeypatch):
    engine, _ = pair
    asked = conversations(images)
    whole = reply(engine, *asked.values())
    pool = PagePool(1 + 16)
    monkeypatch.setattr(engine, "pool", pool)
    monkeypatch.setattr(engine.scheduler, "pool", pool)
    preempted = []
    original = engine.scheduler._preempt
    monkeypatch.setattr(
        engine.scheduler, "_preempt", lambda victim: (preempted.append(victim), original(victim))[1]
    )
    squeezed = reply(engine, *asked.values())
    monkeypatch.undo()
    engine.pool.forget()  # what it knew was written over
    assert any(victim.images for victim in preempted)
    assert [finished.token_ids for finished in squeezed] == [finished.token_ids for finished in whole]


@pytest.fixture
def counted(pair, monkeypatch) -> list[int]:
    """Gets an entry for every image that the tower is run on."""
    engine, _ = pair
    calls: list[int] = []
    encode = engine.runner.model.encode_images

    def spy(pixels):
        calls.append(len(pixels))
        return encode(pixels)

    monkeypatch.setattr(engine.runner.model, "encode_images", spy)
    features_of(engine)._kept.clear()
    engine.pool.forget()
    return calls


def test_the_next_turn_of_an_image_chat_computes_only_what_is_new(pair, images, counted, monkeypatch):
    engine, oracle = pair
    first = [Message("user", "What is the capital of this?", images=(images[0], images[1]))]
    (answer,) = reply(engine, first)
    assert len(counted) == 2
    text = answer.text.replace("�", "")  # what is no character would be encoded in another way
    second = [*first, Message("assistant", text), Message("user", "Why is that so?")]
    prompt = engine.tokenizer.encode_chat(second)
    known = [*engine.tokenizer.encode_chat(first), *answer.token_ids]
    shared = next(at for at, (one, other) in enumerate(zip(prompt, known, strict=False)) if one != other)
    computed = []
    launch = engine.runner.launch
    monkeypatch.setattr(
        engine.runner, "launch", lambda batch: (computed.extend(batch.prefill), launch(batch))[1]
    )
    (again,) = reply(engine, second)
    cached = shared // PAGE_SIZE * PAGE_SIZE
    assert shared > 50 + 16  # beyond both images
    assert again.usage.cached_prompt_tokens == cached
    assert (computed[0].start, computed[0].count) == (cached, len(prompt) - cached)
    assert len(counted) == 2  # nothing new for the tower
    assert again.token_ids == oracle.greedy(second)


def test_a_swapped_image_is_no_hit_and_gives_another_reply(pair, images, counted):
    engine, oracle = pair
    question = "What is the capital of France? What is this?"
    asked = [[Message("system", SYSTEM), Message("user", question, images=(image,))] for image in images[:2]]
    prompts = [engine.tokenizer.encode_chat(messages) for messages in asked]
    assert prompts[0] == prompts[1]
    (first,), (other,) = reply(engine, asked[0]), reply(engine, asked[1])
    # The system prompt is shared, up to the block in which the image begins.
    start = prompts[0].index(engine.runner.model.config.vision.image_token)
    assert start > PAGE_SIZE
    assert other.usage.cached_prompt_tokens == start // PAGE_SIZE * PAGE_SIZE
    assert first.token_ids != other.token_ids
    assert [first.token_ids, other.token_ids] == [oracle.greedy(messages) for messages in asked]
    (same,) = reply(engine, asked[0])
    assert same.usage.cached_prompt_tokens > start + 25
    assert same.token_ids == first.token_ids


def test_images_swapped_among_themselves_are_no_hit(pair, images, counted):
    engine, oracle = pair
    asked = [
        [Message("user", "Compare.", images=pictures)]
        for pictures in (tuple(images[:2]), tuple(images[1::-1]))
    ]
    first, other = (reply(engine, messages)[0] for messages in asked)
    assert other.usage.cached_prompt_tokens == 0
    assert [first.token_ids, other.token_ids] == [oracle.greedy(messages) for messages in asked]


def test_an_image_is_computed_once_while_it_is_kept(pair, images, counted, monkeypatch):
    engine, _ = pair
    monkeypatch.setattr(image_features, "KEPT_IMAGES", 2)
    one, two, three, _ = images
    for image in (one, one, two, one, three, one, two):
        engine.pool.forget()
        reply(engine, [Message("user", "Hi", images=(image,))])
    assert len(counted) == 4  # one, two, three, and two again, which was used longest ago
    assert len(features_of(engine)._kept) == 2


def test_a_reply_is_continued_behind_its_images(pair, images):
    engine, oracle = pair
    messages = [Message("user", "What is this?", images=(images[0],)), Message("assistant", "It is a")]
    ids = engine.tokenizer.encode_chat(messages, continue_last=True)
    whole = oracle.inputs(messages, generation_prompt=False)["input_ids"][0].tolist()
    assert whole[: len(ids)] == ids  # less the blank that the template ends a reply with
    assert engine.tokenizer.decode(ids).endswith("It is a")


def test_the_image_token_as_text_stays_text(pair, images):
    engine, _ = pair
    vision = engine.runner.model.config.vision
    asked = [
        Message("user", "What does <image> mean? <image>", images=(images[0],)),
        Message("assistant", "<image>"),
    ]
    ids = engine.tokenizer.encode_chat(asked)
    assert ids.count(vision.image_token) == vision.tokens
    assert "What does < image> mean? < image>" in engine.tokenizer.decode(ids)
    begun = engine.tokenizer.encode_chat(asked, continue_last=True)
    assert begun.count(vision.image_token) == vision.tokens
    reply(engine, asked, [Message("user", "<image>")])


def test_a_template_that_leaves_an_image_out_is_told(pair, images):
    engine, _ = pair
    vision = engine.runner.model.config.vision
    ids = engine.tokenizer.encode_chat([Message("user", "Hi", images=(images[0],))])
    with pytest.raises(UserError, match="shows 1 of 2 images"):
        place_images(ids, images[:2], vision)
    assert [place.end - place.start for place in place_images(ids, images[:1], vision)] == [25]


def test_a_prompt_that_does_not_fit_because_of_its_images(pair, images):
    engine, _ = pair
    many = tuple(images) * 25
    with pytest.raises(UserError, match=r"The conversation has 2\d\d\d tokens"):
        reply(engine, [Message("user", "Hi", images=many)])


def test_a_text_model_refuses_images_kindly(tiny_model, images):
    engine = load(tiny_model("LlamaForCausalLM").checkpoint)
    assert not engine.info.sees_images
    for call in (engine.count_tokens, lambda messages: reply(engine, messages)):
        with pytest.raises(UserError, match="tiny reads text only: leave the image out, or choose a model"):
            call([Message("user", "Hi", images=(images[0],))])


# Templates


def again(source: Path, tmp_path: Path) -> Engine:
    *_, done = convert(str(source), tmp_path / "models", tmp_path / "downloads", name="again")
    assert isinstance(done, Done)
    return Engine.load(done.checkpoint, OPTIONS)


@pytest.mark.parametrize("kept", ["json", "none", "string"])
def test_templates_wherever_they_are(kept, make_llava, tmp_path, images):
    source = make_llava(tmp_path / "source")
    oracle = Oracle(source)
    template = source / "chat_template.jinja"
    text = template.read_text()
    template.unlink()
    if kept == "json":  # as processors were saved before
        (source / "chat_template.json").write_text(json.dumps({"chat_template": text}))
    elif kept == "string":  # a tokenizer's own, which knows nothing of parts
        path = source / "tokenizer_config.json"
        plain = (
            "{% for m in messages %}{{ m['role'].upper() + ': ' + m['content'] + ' ' }}{% endfor %}ASSISTANT:"
        )
        path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": plain}))
    engine = again(source, tmp_path)
    for name, messages in conversations(images).items():
        if not (kept == "string" and name == "two"):  # which has a system message
            ids = oracle.inputs(messages)["input_ids"][0].tolist()
            assert engine.tokenizer.encode_chat(messages) == ids, name


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("config.json", {"image_token_index": 399}, "does not know the image token 399"),
        ("config.json", {"image_token_index": 300}, "does not know the image token 300"),
        ("chat_template.json", {}, "The chat template of again cannot be read"),
    ],
)
def test_files_that_do_not_belong_together(file, content, words, make_llava, tmp_path):
    source = make_llava(tmp_path / "source")
    (source / "chat_template.jinja").unlink()
    path = source / file
    known = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(known | content))
    with pytest.raises(CheckpointError, match=words):
        again(source, tmp_path)


# Memory


def test_the_memory_plan_counts_the_tower(tiny_llava, monkeypatch):
    config = tiny_llava().checkpoint.config
    text_only = ModelConfig.from_dict(
        json.loads((tiny_llava().source / "config.json").read_text())["text_config"]
        | {"architectures": ["LlamaForCausalLM"]}
    )
    cpu = torch.device("cpu")
    plans = [plan_memory(one, torch.float32, cpu) for one in (config, text_only)]
    tower = LlavaForConditionalGeneration.from_pretrained(tiny_llava().source).model
    parameters = sum(
        tensor.numel()
        for name, tensor in [
            *tower.vision_tower.named_parameters(),
            *tower.multi_modal_projector.named_parameters(),
        ]
        # What comes after the features is not converted.
        if not name.startswith(("encoder.layers.2.", "post_layernorm."))
    )
    assert plans[0].weight_bytes - plans[1].weight_bytes == 4 * parameters
    kept = 4 * 25 * 64 * image_features.KEPT_IMAGES
    assert plans[0].workspace_bytes - plans[1].workspace_bytes > kept
