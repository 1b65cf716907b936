"""The prefix cache: which pages are kept, found and taken, and that replies do not change with it."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch

from lite_llama.engine.engine import Engine
from lite_llama.engine.events import Finished, PrefillProgress
from lite_llama.engine.kv_cache import NO_SALTS, PagePool, extend_digests
from lite_llama.engine.options import EngineOptions
from lite_llama.engine.request import GenerationRequest, SamplingParams
from lite_llama.kernels import PAGE_SIZE, sampling
from lite_llama.models.checkpoint import Checkpoint

GREEDY = SamplingParams(temperature=0, max_new_tokens=24)
WITH = EngineOptions(device="cpu", dtype="float32")
WITHOUT = replace(WITH, prefix_cache=False)


def chain(*blocks: str, salts: Mapping[int, bytes] = NO_SALTS) -> list[bytes]:
    """Digests of a sequence whose blocks are one letter, PAGE_SIZE times."""
    digests: list[bytes] = []
    extend_digests(digests, [ord(block) for block in blocks for _ in range(PAGE_SIZE)], salts)
    return digests


def fill(pool: PagePool, *blocks: str) -> list[int]:
    """The pages of a new sequence, all of them registered."""
    pages = pool.admit([], len(blocks) * PAGE_SIZE)
    assert pages
    for digest, page in zip(chain(*blocks), pages, strict=True):
        pool.register(digest, page)
    return pages


def counts(pool: PagePool) -> tuple[int, int, int]:
    return pool.free, pool.cached, pool.used


def test_a_digest_stands_for_all_tokens_up_to_its_block():
    assert chain("a", "b")[0] == chain("a", "c")[0]
    assert len({*chain("a", "b"), *chain("b", "b"), *chain("a", "b", salts={0: b"image"})}) == 6
    plain, salted = chain("a", "b", "c"), chain("a", "b", "c", salts={1: b"image"})
    assert [one == other for one, other in zip(plain, salted, strict=True)] == [True, False, False]
    digests, tokens = [], list(range(100))
    for length in (0, 15, 16, 40, 100):
        extend_digests(digests, tokens[:length])
        assert len(digests) == length // PAGE_SIZE
    at_once: list[bytes] = []
    extend_digests(at_once, tokens)
    assert digests == at_once


def test_pages_are_free_used_or_cached_and_shared_by_reference():
    pool = PagePool(1 + 6)
    first = fill(pool, "a", "b")
    assert counts(pool) == (4, 0, 2)
    found = pool.find(chain("a", "b", "c"))
    assert found == first
    second = pool.admit(found, 3 * PAGE_SIZE)
    assert second
    assert second[:2] == first
    assert counts(pool) == (3, 0, 3)
    pool.give_back(first)
    assert counts(pool) == (3, 0, 3)
    pool.give_back(second)
    assert counts(pool) == (4, 2, 0)
    pool.forget()
    assert counts(pool) == (6, 0, 0)
    assert pool.find(chain("a")) == []


def test_a_block_that_two_sequences_computed_is_kept_once():
    pool = PagePool(1 + 6)
    first, second = fill(pool, "a"), fill(pool, "a")
    assert pool.find(chain("a")) == first
    pool.give_back(first)
    pool.give_back(second)
    assert counts(pool) == (5, 1, 0)


def test_free_pages_are_taken_first_then_the_longest_unused_tails_before_heads():
    pool = PagePool(1 + 6)
    old, new = fill(pool, "a", "b"), fill(pool, "c", "d")
    pool.give_back(old)
    pool.give_back(new)
    owned: list[int] = []
    assert pool.grow(owned, 2 * PAGE_SIZE)
    assert counts(pool) == (0, 4, 2)
    lengths = []
    for size in range(3, 7):
        assert pool.grow(owned, size * PAGE_SIZE)
        lengths.append((len(pool.find(chain("a", "b"))), len(pool.find(chain("c", "d")))))
    assert lengths == [(1, 2), (0, 2), (0, 1), (0, 0)]
    assert not pool.grow(owned, 7 * PAGE_SIZE)
    assert counts(pool) == (0, 0, 6)


def test_a_sequence_that_does_not_fit_beside_its_own_prefix_takes_nothing():
    pool = PagePool(1 + 4)
    pool.give_back(fill(pool, "a", "b"))
    other = fill(pool, "c")
    shared = pool.find(chain("a", "b"))
    assert pool.admit(shared, 4 * PAGE_SIZE) is None  # the two cached pages cannot be had twice
    assert counts(pool) == (1, 2, 1)
    assert pool.admit(shared, 3 * PAGE_SIZE)
    pool.give_back(other)
    assert counts(pool) == (0, 1, 3)


@pytest.fixture(scope="module", params=["LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"])
def engines(request, tiny_model):
    """The same model with and without the cache."""
    return load_pair(tiny_model(request.param).checkpoint)


def load_pair(checkpoint: Checkpoint) -> tuple[Engine, Engine]:
    pair = Engine.load(checkpoint, WITH), Engine.load(checkpoint, WITHOUT)
    for engine in pair:
        engine.tokenizer.eos_ids = frozenset()
    return pair


def random_tokens(rng: random.Random, count: int) -> list[int]:
    return [rng.randrange(3, 384) for _ in range(count)]


def test_replies_are_the_same_with_and_without(engines, run):
    cached, plain = engines
    rng = random.Random(1)
    stem = random_tokens(rng, 90)
    prompts = [stem[:cut] + random_tokens(rng, 5) for cut in (90, 16, 17, 64, 31, 80)]
    expected = run(plain, prompts, GREEDY)
    first, replies = run(cached, prompts, GREEDY), run(cached, prompts, GREEDY)
    for some in (first, replies):
        assert [reply.token_ids for reply in some] == [reply.token_ids for reply in expected]
    assert [reply.usage.cached_prompt_tokens for reply in replies] == [80, 16, 16, 64, 32, 80]
    assert all(reply.usage.cached_prompt_tokens == 0 for reply in expected)
    assert plain.pool.free == plain.pool.total


def test_a_prompt_that_is_cached_whole_still_computes_a_token(engines, run):
    cached, plain = engines
    prompt = random_tokens(random.Random(2), 4 * PAGE_SIZE)
    (expected,) = run(plain, [prompt], GREEDY)
    run(cached, [prompt], GREEDY)
    (reply,) = run(cached, [prompt], GREEDY)
    assert reply.usage.cached_prompt_tokens == 3 * PAGE_SIZE
    assert reply.token_ids == expected.token_ids


@pytest.mark.parametrize("ahead", [False, True])
def test_the_next_turn_computes_only_what_is_new(engines, run, run_ahead, ahead, monkeypatch):
    cached, plain = engines
    if ahead:
        run_ahead(cached)
    cached.pool.forget()
    rng = random.Random(3)
    first = random_tokens(rng, 100)
    (reply,) = run(cached, [first], GREEDY)
    # The last token of a reply was drawn but never computed: 100 + 23 are in the cache, 112 in full blocks.
    second = [*first, *reply.token_ids, *random_tokens(rng, 10)]
    (expected,) = run(plain, [second], GREEDY)
    computed = []
    launch = cached.runner.launch
    monkeypatch.setattr(cached.runner, "launch", spy(launch, lambda batch: computed.extend(batch.prefill)))
    (again,) = run(cached, [second], GREEDY)
    assert again.token_ids == expected.token_ids
    assert again.usage.cached_prompt_tokens == 112
    assert (computed[0].start, computed[0].count) == (112, len(second) - 112)
    done = [event.done for event in run.events if isinstance(event, PrefillProgress)]
    assert done == [len(second)]


def spy(function, tell):
    def call(first, *args, **kwargs):
        tell(first)
        return function(first, *args, **kwargs)

    return call


def test_forks_share_pages_while_they_run(engines):
    cached, _ = engines
    stem = random_tokens(random.Random(4), 70)
    request = GenerationRequest((), GREEDY)
    events = []
    for number in range(3):
        cached.submit_tokens(number, [*stem, number], request, events.append, time.monotonic())
    cached.step()
    pages = [sequence.pages for sequence in cached.scheduler.running]
    assert pages[0][:4] == pages[1][:4] == pages[2][:4]
    assert len({page for own in pages for page in own}) == 4 + 3 * (len(pages[0]) - 4)
    while cached.busy:
        cached.step()
    cached_tokens = [event.usage.cached_prompt_tokens for event in events if isinstance(event, Finished)]
    assert cached_tokens == [0, 64, 64]


@torch.inference_mode()
def close_race(engine: Engine, prefill_logits, tokens: list[int], pair, params: SamplingParams) -> bool:
    """Whether rounding may decide which token of a pair is drawn after `tokens`."""
    (logits,) = prefill_logits(engine, [tokens])
    scores = logits[-1].double()
    if params.temperature > 0:
        quads = torch.arange(-(-len(scores) // 4))
        words = sampling.token_words(torch.tensor([params.seed]), torch.tensor([len(tokens)]), quads)
        scores = scores / params.temperature + sampling.gumbel(words).flatten()[: len(scores)]
    return bool((scores[pair[0]] - scores[pair[1]]).abs() < 1e-3)


def test_soak(tiny_model, run_ahead, prefill_logits, monkeypatch):
    """Random requests at random moments, few pages, cancels: every reply is that of its prompt alone."""
    seed = random.randrange(10**6)
    print("seed", seed)
    rng = random.Random(seed)
    busy, alone = load_pair(tiny_model("Qwen3ForCausalLM").checkpoint)
    run_ahead(busy)
    pool = busy.pool = busy.scheduler.pool = PagePool(1 + 25)
    busy.scheduler.chunk_tokens, busy.scheduler.step_tokens = 64, 128
    stems = [random_tokens(rng, 100) for _ in range(3)]
    requests, events = {}, {}
    for number in range(200):
        prompt = rng.choice(stems)[: rng.randint(0, 100)] + random_tokens(rng, rng.randint(1, 40))
        params = SamplingParams(
            temperature=rng.choice([0, 1.0]),
            top_p=1.0,  # so that `close_race` knows all candidates
            seed=rng.getrandbits(40),
            max_new_tokens=rng.randint(1, 12),
        )
        requests[number], events[number] = (prompt, GenerationRequest((), params)), []
    todo, preempted = list(requests), []
    monkeypatch.setattr(busy.scheduler, "_preempt", spy(busy.scheduler._preempt, preempted.append))
    while todo or busy.busy:
        if todo and rng.random() < 0.7:
            number = todo.pop()
            prompt, request = requests[number]
            busy.submit_tokens(number, list(prompt), request, events[number].append, time.monotonic())
        if rng.random() < 0.03:
            busy.cancel(rng.randrange(200))
        busy.step()
        assert pool.free + pool.cached + pool.used == pool.total
    assert pool.used == 0
    assert preempted
    for number, (prompt, request) in requests.items():
        last = events[number][-1]
        assert isinstance(last, Finished)
        own: list = []
        alone.submit_tokens(number, list(prompt), request, own.append, time.monotonic())
        while alone.busy:
            alone.step()
        expected = own[-1].token_ids[: len(last.token_ids)]
        assert last.reason == "cancelled" or len(last.token_ids) == request.params.max_new_tokens
        for at, pair in enumerate(zip(last.token_ids, expected, strict=True)):
            if pair[0] != pair[1]:
                tokens = [*prompt, *expected[:at]]
                assert close_race(alone, prefill_logits, tokens, pair, request.params), (number, at)
                break
