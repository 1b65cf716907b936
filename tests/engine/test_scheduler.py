"""The scheduler alone: pages, chunks, turns, preemption. No tensors, no model."""

from __future__ import annotations

import random

from lite_llama.engine.detokenizer import Detokenizer
from lite_llama.engine.kv_cache import PagePool
from lite_llama.engine.request import SamplingParams
from lite_llama.engine.scheduler import Scheduler
from lite_llama.engine.sequence import Sequence
from lite_llama.kernels import PAGE_SIZE


def make_sequence(request_id: int, prompt: int, total: int) -> Sequence:
    return Sequence(
        request_id=request_id,
        tokens=list(range(prompt)),
        prompt_len=prompt,
        params=SamplingParams(),
        seed=0,
        max_tokens=total,
        detokenizer=Detokenizer(lambda ids: ""),
        sink=lambda event: None,
        submitted=0.0,
    )


def run_step(scheduler: Scheduler) -> list[tuple[int, int, int]]:
    """Do what the engine does with a step, drawing token 7 each time; returns (request, start, count)."""
    batch = scheduler.schedule()
    if batch is None:
        return []
    used: set[int] = set()
    for chunk in batch.chunks:
        pages = chunk.sequence.pages
        assert len(pages) * PAGE_SIZE >= chunk.start + chunk.count
        assert used.isdisjoint(pages)
        assert 0 not in pages
        used |= set(pages)
        assert chunk.start == chunk.sequence.computed
        if batch.is_decode:
            assert chunk.count == 1
            assert chunk.is_last
    seen = [(chunk.sequence.request_id, chunk.start, chunk.count) for chunk in batch.chunks]
    for chunk in batch.chunks:
        chunk.sequence.computed += chunk.count
        if chunk.sequence.computed == len(chunk.sequence.tokens):
            chunk.sequence.tokens.append(7)
            if len(chunk.sequence.tokens) >= chunk.sequence.max_tokens:
                scheduler.remove(chunk.sequence)
    return seen


def test_prompts_are_cut_into_chunks_and_decodes_take_turns():
    scheduler = Scheduler(PagePool(100), step_tokens=32, max_sequences=8)
    scheduler.add(make_sequence(1, prompt=10, total=20))
    assert run_step(scheduler) == [(1, 0, 10)]
    scheduler.add(make_sequence(2, prompt=70, total=80))
    assert run_step(scheduler) == [(1, 10, 1)]
    assert run_step(scheduler) == [(2, 0, 32)]
    assert run_step(scheduler) == [(1, 11, 1)]
    assert run_step(scheduler) == [(2, 32, 32)]
    assert run_step(scheduler) == [(1, 12, 1)]
    assert run_step(scheduler) == [(2, 64, 6)]
    assert run_step(scheduler) == [(1, 13, 1), (2, 70, 1)]


def test_several_prompts_share_a_step():
    scheduler = Scheduler(PagePool(100), step_tokens=32, max_sequences=2)
    for request_id in (1, 2, 3):
        scheduler.add(make_sequence(request_id, prompt=12, total=14))
    assert run_step(scheduler) == [(1, 0, 12), (2, 0, 12)]
    assert run_step(scheduler) == [(1, 12, 1), (2, 12, 1)]
    assert run_step(scheduler) == [(3, 0, 12)]


def test_the_youngest_gives_way_and_starts_over():
    scheduler = Scheduler(PagePool(1 + 4), step_tokens=64, max_sequences=8)
    old, young = make_sequence(1, prompt=31, total=50), make_sequence(2, prompt=30, total=40)
    scheduler.add(old)
    scheduler.add(young)
    assert run_step(scheduler) == [(1, 0, 31), (2, 0, 30)]
    assert run_step(scheduler) == [(1, 31, 1), (2, 30, 1)]
    # The old one now needs a third page and there is none: the young one's are taken.
    assert run_step(scheduler) == [(1, 32, 1)]
    assert young.computed == 0
    assert young.pages == []
    steps = [run_step(scheduler) for _ in range(40)]
    assert (2, 0, 32) in [item for step in steps for item in step]
    assert len(old.tokens) == 50
    assert len(young.tokens) == 40
    assert scheduler.pool.free == scheduler.pool.total


def test_random_load_finishes_and_loses_no_page():
    seed = random.randrange(10**6)
    rng = random.Random(seed)
    pool = PagePool(1 + 20)
    scheduler = Scheduler(pool, step_tokens=48, max_sequences=6)
    sequences = []
    for request_id in range(60):
        prompt = rng.randint(1, 150)
        sequences.append(make_sequence(request_id, prompt, prompt + rng.randint(1, 150)))
    todo, cancelled = list(sequences), set()
    for _ in range(200_000):
        if todo and rng.random() < 0.1:
            scheduler.add(todo.pop())
        if scheduler.sequences and rng.random() < 0.005:
            victim = rng.choice(scheduler.sequences)
            cancelled.add(victim.request_id)
            scheduler.remove(victim)
        run_step(scheduler)
        if not todo and not scheduler.sequences:
            break
    assert not scheduler.sequences, seed
    assert pool.free == pool.total, seed
    for sequence in sequences:
        if sequence.request_id not in cancelled:
            assert len(sequence.tokens) == sequence.max_tokens, seed
