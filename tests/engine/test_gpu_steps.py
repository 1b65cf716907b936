"""What a GPU adds to the engine: graphs, several steps at once, real shapes, independence of the batch."""

from __future__ import annotations

import gc
import os
import random
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

from lite_llama.app.bench.shapes import SHAPES, shape_config
from lite_llama.engine.engine import Engine
from lite_llama.engine.events import Event, Finished
from lite_llama.engine.options import EngineOptions
from lite_llama.engine.request import GenerationRequest, SamplingParams
from lite_llama.kernels import PAGE_SIZE
from lite_llama.kernels.operators import reference_operators
from lite_llama.models.batch import DecodeBatch
from lite_llama.models.config import ModelConfig
from lite_llama.models.decoder import Decoder

pytestmark = pytest.mark.gpu

SMALL = replace(
    ModelConfig.from_dict(shape_config("Qwen3-0.6B")[1]),
    vocab_size=2000,
    hidden_size=256,
    intermediate_size=768,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=64,
    max_position=4096,
)


def small_engine(**switches) -> Engine:
    """Random weights at a size that takes a millisecond a step."""
    return Engine.random(SMALL, EngineOptions(device="cuda", dtype="bfloat16", **switches), name="small")


def random_request(rng: random.Random, longest: int) -> tuple[list[int], GenerationRequest]:
    """A prompt and how to answer it, all kinds of sampling mixed."""
    prompt = [rng.randrange(SMALL.vocab_size) for _ in range(rng.randint(1, longest))]
    params = SamplingParams(
        temperature=rng.choice([0, 0.7, 1.0]),
        top_p=rng.choice([1.0, 0.9]),
        top_k=rng.choice([0, 20]),
        min_p=rng.choice([0, 0.05]),
        repetition_penalty=rng.choice([1.0, 1.0, 1.2]),
        seed=rng.getrandbits(40),
        max_new_tokens=rng.randint(1, 48),
    )
    return prompt, GenerationRequest((), params)


def alone(engine: Engine, prompt: list[int], request: GenerationRequest) -> tuple[int, ...]:
    """The reply's tokens with nothing else running."""
    events: list[Event] = []
    engine.submit_tokens(0, list(prompt), request, events.append, time.monotonic())
    while engine.busy:
        engine.step()
    assert isinstance(events[-1], Finished)
    return events[-1].token_ids


@pytest.mark.parametrize("shape", SHAPES)
def test_one_layer_of_each_real_shape(shape):
    """Prompt and decode logits of one layer in bf16, as near to fp32 as bf16 can be."""
    config = replace(ModelConfig.from_dict(shape_config(shape)[1]), num_layers=1, vocab_size=4096)
    engine = Engine.random(
        config, EngineOptions(device="cuda", dtype="bfloat16", max_context=1024), name=shape
    )
    exact = exact_copy(engine.runner.model)
    rows, context = 5, 300
    pages = context // PAGE_SIZE + 1
    table = torch.arange(1, rows * pages + 1, device="cuda", dtype=torch.int32).view(rows, pages)
    shape_of_cache = (rows * pages + 1, PAGE_SIZE, config.num_kv_heads, config.head_dim)
    keys, values = (torch.randn(shape_of_cache, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    embedded = torch.randn(rows, config.hidden_size, device="cuda", dtype=torch.bfloat16)
    positions = torch.tensor([0, 15, 16, 130, 299], device="cuda")
    slots = torch.arange(rows, device="cuda", dtype=torch.int32)
    with torch.inference_mode():
        for count in (1, rows):
            batch = DecodeBatch(positions[:count], slots[:count], table)
            cache = [(keys.clone(), values.clone())]
            ours = engine.runner.model.decode(embedded[:count], batch, cache)
            cache32 = [(keys.float(), values.float())]
            theirs = exact.decode(embedded[:count].float(), batch, cache32)
            error = ((ours - theirs).norm(dim=-1) / theirs.norm(dim=-1)).max().item()
            print(f"{shape}: {count} rows, relative error {error:.2e}")
            assert error < 0.02


def exact_copy(model: Decoder) -> Decoder:
    """The same weights in fp32, with PyTorch's operators."""
    with torch.device("meta"):
        copy = Decoder(model.config, reference_operators())
    state = {name: tensor.float() for name, tensor in model.state_dict().items()}
    copy.load_state_dict(state, assign=True)
    copy.rope = model.rope
    return copy


def test_graphs_change_nothing():
    rng = random.Random(1)
    requests = [random_request(rng, 700) for _ in range(12)]
    replies = []
    for graphs in (True, False):
        engine = small_engine(cuda_graphs=graphs, prefix_cache=False)
        replies.append([alone(engine, *request) for request in requests])
    # Prompts are padded to a graph's size, so a library's product may round differently: most replies agree.
    same = sum(one == other for one, other in zip(*replies, strict=True))
    print(f"{same} of {len(requests)} replies are equal")
    assert same >= len(requests) - 3


def test_preparing_for_later_messages_changes_nothing():
    """Its graphs draw what the first ones do, and the memory planned for activations is enough for them."""
    engine = small_engine(prefix_cache=False)
    rng = random.Random(5)
    requests = [random_request(rng, 3000) for _ in range(6)]
    before = [alone(engine, *request) for request in requests]
    reserved = torch.cuda.memory_reserved()
    pieces = 0
    while not engine.prepared:
        engine.prepare()
        pieces += 1
    assert pieces > 10
    assert torch.cuda.memory_reserved() - reserved < 256 << 20
    assert [alone(engine, *request) for request in requests] == before


def test_no_reply_depends_on_the_batch():
    """Needles alone, and among 1 to 63 others that come and go: bitwise the same tokens."""
    rng = random.Random(2)
    engine = small_engine(batch_invariant=True, prefix_cache=False)
    needles = [random_request(rng, 300) for _ in range(8)]
    expected = [alone(engine, *needle) for needle in needles]
    for others in (1, 3, 15, 40, 63):
        events: dict[int, list[Event]] = {}
        work = [random_request(rng, 300) for _ in range(others)] + needles
        order = list(range(len(work)))
        rng.shuffle(order)
        while order or engine.busy:
            if order and rng.random() < 0.5:
                number = order.pop()
                prompt, request = work[number]
                sink = events.setdefault(number, []).append
                engine.submit_tokens(number, list(prompt), request, sink, time.monotonic())
            engine.step()
        for at, tokens in enumerate(expected):
            last = events[others + at][-1]
            assert isinstance(last, Finished)
            assert last.token_ids == tokens, (others, at)


@pytest.mark.parametrize("temperature", [0, 0.8])
def test_speculation_changes_nothing(temperature):
    """On a prompt that repeats itself, whose drafts are taken, and on one that does not."""
    rng = random.Random(3)
    phrase = [rng.randrange(SMALL.vocab_size) for _ in range(20)]
    params = SamplingParams(temperature=temperature, seed=5, max_new_tokens=200)
    engines = [small_engine(speculate=on, prefix_cache=False) for on in (True, False)]
    for prompt in (phrase * 10, random_request(rng, 200)[0]):
        one, other = (alone(engine, prompt, GenerationRequest((), params)) for engine in engines)
        assert one == other


def test_soak():
    """Many requests, cancelled at random moments: nothing leaks, memory is flat, replies are their own.

    LITE_LLAMA_SOAK sets the number of requests (10,000 for a release).
    """
    count = int(os.environ.get("LITE_LLAMA_SOAK", "500"))
    seed = int.from_bytes(os.urandom(4))
    print("seed", seed)
    rng = random.Random(seed)
    gc.collect()  # earlier tests' engines
    engine = small_engine(batch_invariant=True)
    work = {number: random_request(rng, 600) for number in range(count)}
    checked = set(rng.sample(range(count), min(count, 100)))
    events: dict[int, list[Event]] = {number: [] for number in work}
    todo = list(work)
    memory = []
    while todo or engine.busy:
        if todo and len(engine.scheduler.sequences) < 200 and rng.random() < 0.6:
            number = todo.pop()
            prompt, request = work[number]
            engine.submit_tokens(number, list(prompt), request, events[number].append, time.monotonic())
        if rng.random() < 0.05:
            engine.cancel(rng.randrange(count))
        engine.step()
        pool = engine.pool
        assert pool.free + pool.cached + pool.used == pool.total
        if len(todo) in (count // 2, count // 4, 0):
            memory.append(torch.cuda.memory_allocated())
    assert engine.pool.used == 0
    assert max(memory) - min(memory) < 1 << 20
    kept = 0
    fresh = small_engine(batch_invariant=True, prefix_cache=False)
    for number in checked:
        last = events[number][-1]
        assert isinstance(last, Finished)
        expected = alone(fresh, *work[number])[: len(last.token_ids)]
        kept += last.token_ids == expected
        if last.reason != "cancelled":
            assert len(last.token_ids) == work[number][1].params.max_new_tokens
    # Prompts are random: no prefix is shared, so every checked reply is bitwise that of its run alone.
    assert kept == len(checked)


def test_engines_of_several_threads_do_not_disturb_each_other():
    """They are made, prepare themselves and answer all at once, with the same kernels and scratch memory."""
    rng = random.Random(8)
    requests = [random_request(rng, 1500) for _ in range(8)]
    engine = small_engine(prefix_cache=False)
    expected = [alone(engine, *request) for request in requests]

    def work(_: int) -> list[tuple[int, ...]]:
        other = small_engine(prefix_cache=False)
        replies = [alone(other, *request) for request in requests]
        other.prepare_all()
        return replies + [alone(other, *request) for request in requests]

    with ThreadPoolExecutor(3) as pool:
        for replies in pool.map(work, range(3)):
            assert replies == expected + expected
