"""The scheduler alone, against a device that is a dictionary. No tensors, no model."""

from __future__ import annotations

import random
from collections import Counter, deque

import pytest

from lite_llama.engine.kv_cache import PagePool, pages_for
from lite_llama.engine.reply import ReplyText
from lite_llama.engine.request import SamplingParams
from lite_llama.engine.scheduler import Batch, Scheduler
from lite_llama.engine.sequence import Sequence
from lite_llama.kernels import PAGE_SIZE


def make_sequence(request_id: int, prompt: int | list[int], total: int) -> Sequence:
    """A request whose prompt is given, or is so many tokens that no other request's begin with."""
    tokens = [1000 * request_id + at for at in range(prompt)] if isinstance(prompt, int) else prompt
    return Sequence(
        request_id=request_id,
        tokens=tokens,
        prompt_len=len(tokens),
        params=SamplingParams(),
        seed=0,
        max_tokens=total,
        reply=ReplyText(lambda ids: ""),
        sink=lambda event: None,
        submitted=0.0,
    )


def make_scheduler(
    pages: int = 100, chunk: int = 32, step: int = 40, max_sequences: int = 8, **switches: bool
) -> Scheduler:
    pool = PagePool(1 + pages)
    return Scheduler(pool, chunk_tokens=chunk, step_tokens=step, max_sequences=max_sequences, **switches)


def finish(scheduler: Scheduler, batch: Batch) -> None:
    """Do what the engine does with the tokens of a step, each of which is a 7."""
    for sequence in batch.drawing:
        if scheduler.accept(sequence, 7) and len(sequence.tokens) >= sequence.max_tokens:
            scheduler.remove(sequence)


def work(batch: Batch | None) -> list[tuple[int, int, int]]:
    """(request, first position, tokens) of all that a batch computes."""
    if batch is None:
        return []
    decodes = [(sequence.request_id, sequence.computed - 1, 1) for sequence in batch.decode]
    return decodes + [(chunk.sequence.request_id, chunk.start, chunk.count) for chunk in batch.prefill]


def run_step(scheduler: Scheduler) -> list[tuple[int, int, int]]:
    batch = scheduler.schedule()
    seen = work(batch)
    if batch:
        finish(scheduler, batch)
    return seen


def test_decodes_go_first_and_chunks_fill_the_step():
    scheduler = make_scheduler()
    scheduler.add(make_sequence(1, prompt=10, total=20))
    assert run_step(scheduler) == [(1, 0, 10)]
    scheduler.add(make_sequence(2, prompt=70, total=80))
    scheduler.add(make_sequence(3, prompt=5, total=10))
    assert run_step(scheduler) == [(1, 10, 1), (2, 0, 32)]
    assert run_step(scheduler) == [(1, 11, 1), (2, 32, 32), (2, 64, 6)]
    assert run_step(scheduler) == [(1, 12, 1), (2, 70, 1), (3, 0, 5)]
    assert run_step(scheduler) == [(1, 13, 1), (2, 71, 1), (3, 5, 1)]


def test_a_step_has_one_chunk_even_where_the_decodes_leave_no_room():
    scheduler = make_scheduler(step=33)
    for request_id in (1, 2):
        scheduler.add(make_sequence(request_id, prompt=4, total=20))
    run_step(scheduler)
    scheduler.add(make_sequence(3, prompt=40, total=50))
    assert run_step(scheduler) == [(1, 4, 1), (2, 4, 1), (3, 0, 32)]


def test_requests_beyond_the_slots_wait():
    scheduler = make_scheduler(max_sequences=2)
    for request_id in (1, 2, 3):
        scheduler.add(make_sequence(request_id, prompt=12, total=14))
    assert run_step(scheduler) == [(1, 0, 12), (2, 0, 12)]
    assert run_step(scheduler) == [(1, 12, 1), (2, 12, 1)]
    assert run_step(scheduler) == [(3, 0, 12)]


def test_steps_can_be_scheduled_before_the_tokens_are_known_but_not_past_the_end():
    scheduler = make_scheduler()
    sequence = make_sequence(1, prompt=10, total=13)
    scheduler.add(sequence)
    batches = []
    for expected in [(1, 0, 10)], [(1, 10, 1)], [(1, 11, 1)]:
        batches.append(scheduler.schedule())
        assert work(batches[-1]) == expected
    assert scheduler.schedule() is None
    assert (sequence.in_flight, sequence.length, sequence.computed) == (3, 13, 12)
    for batch in batches:
        finish(scheduler, batch)
    assert sequence.finished
    assert sequence.in_flight == 0
    assert scheduler.pool.used == 0


def test_the_youngest_gives_way_and_starts_over_from_what_is_cached():
    scheduler = make_scheduler(pages=4, chunk=64, step=128)
    old, young = make_sequence(1, prompt=31, total=45), make_sequence(2, prompt=30, total=40)
    for sequence in (old, young, make_sequence(3, prompt=50, total=52)):
        scheduler.add(sequence)
    assert run_step(scheduler) == [(1, 0, 31), (2, 0, 30)]
    assert run_step(scheduler) == [(1, 31, 1), (2, 30, 1)]
    # The old one now needs a third page and there is none: the young one's are given back, and its last
    # page, which holds no full block, is taken.
    assert run_step(scheduler) == [(1, 32, 1)]
    assert (young.computed, young.pages, young.slot) == (0, [], -1)
    rest = [item for _ in range(40) for item in run_step(scheduler)]
    assert (2, 16, 16) in rest
    requests = [request_id for request_id, *_ in rest]
    assert requests == sorted(requests)  # who was preempted is still before those who never ran
    assert requests[-1] == 3
    assert len(old.tokens) == 45
    assert len(young.tokens) == 40
    assert young.preemptions == 1
    assert young.cached == 0
    assert scheduler.pool.used == 0


def test_preempted_with_a_token_in_flight_it_waits_for_it():
    scheduler = make_scheduler(pages=4, chunk=64, step=128)
    old, young = make_sequence(1, prompt=32, total=50), make_sequence(2, prompt=15, total=40)
    scheduler.add(old)
    scheduler.add(young)
    batches = []
    for expected in [(1, 0, 32), (2, 0, 15)], [(1, 32, 1), (2, 15, 1)], [(1, 33, 1)]:
        batches.append(scheduler.schedule())  # 3 pages and 1; the third step finds no second one
        assert work(batches[-1]) == expected
    assert young.in_flight == 2
    scheduler.remove(old)  # there is room again, but nobody knows what to begin from
    finish(scheduler, batches[0])
    assert scheduler.schedule() is None
    finish(scheduler, batches[1])
    assert young.tokens[15:] == [7, 7]
    assert run_step(scheduler) == [(2, 0, 17)]
    finish(scheduler, batches[2])
    assert old.in_flight == 0
    assert len(old.tokens) == 32


def test_static_allocation_takes_all_pages_at_admission():
    scheduler = make_scheduler(pages=5, dynamic_kv=False)
    first, second = make_sequence(1, prompt=10, total=60), make_sequence(2, prompt=10, total=20)
    scheduler.add(first)
    scheduler.add(second)
    assert run_step(scheduler) == [(1, 0, 10)]
    assert len(first.pages) == 4
    while first in scheduler.running:
        assert [request_id for request_id, *_ in run_step(scheduler)] == [1]
    assert run_step(scheduler) == [(2, 0, 10)]


def test_reserve_gives_pages_or_changes_nothing():
    scheduler = make_scheduler(pages=4)
    sequence = make_sequence(1, prompt=10, total=60)
    scheduler.add(sequence)
    run_step(scheduler)
    assert scheduler.reserve(sequence, 40)
    assert len(sequence.pages) == 3
    assert not scheduler.reserve(sequence, 65)
    assert len(sequence.pages) == 3


def test_where_a_prompt_is_cut_does_not_depend_on_the_load():
    rng = random.Random(3)
    lengths = [rng.randint(1, 200) for _ in range(30)]
    alone = {}
    for number, length in enumerate(lengths):
        scheduler = make_scheduler()
        scheduler.add(make_sequence(number, length, length + 1))
        alone[number] = [item for _ in range(10) for item in run_step(scheduler)]
    together: dict[int, list] = {number: [] for number in alone}
    scheduler = make_scheduler(pages=1000, max_sequences=30)
    for number, length in enumerate(lengths):
        scheduler.add(make_sequence(number, length, length + rng.randint(1, 60)))
    while scheduler.sequences:
        for request_id, start, count in run_step(scheduler):
            if start < lengths[request_id]:
                together[request_id].append((request_id, start, count))
    assert together == alone


class Device:
    """Knows what every sequence's reply is going to be, and checks that its pages hold what they should.

    The "keys and values" of a position are a hash of all tokens up to it. Batches are computed at launch,
    one after the other as on a GPU's stream, from the device's own copy of the newest tokens.
    """

    def __init__(self) -> None:
        self.memory: dict[int, int] = {}
        self.newest: dict[int, int] = {}  # by slot
        self.replies: dict[int, list[int]] = {}  # by request: prompt and reply
        self.states: dict[int, list[int]] = {}

    def prepare(self, sequence: Sequence) -> None:
        """Work out the reply: each token is a hash of those before it and of the request's seed."""
        tokens, states = list(sequence.tokens), []
        for at in range(sequence.max_tokens):
            states.append(hash((states[-1] if states else 0, tokens[at])))
            if at + 1 == len(tokens):
                tokens.append(hash((states[-1], sequence.seed)) % 5)
        self.replies[sequence.request_id], self.states[sequence.request_id] = tokens, states

    def launch(self, batch: Batch) -> list[int]:
        drawn = []
        for sequence in batch.decode:
            start = sequence.computed - 1
            drawn.append(self._compute(sequence, start, [self.newest[sequence.slot]]))
            self.newest[sequence.slot] = drawn[-1]
        for chunk in batch.prefill:
            tokens = chunk.sequence.tokens[chunk.start : chunk.start + chunk.count]
            assert len(tokens) == chunk.count
            token = self._compute(chunk.sequence, chunk.start, tokens)
            if chunk.is_last:
                drawn.append(token)
                self.newest[chunk.sequence.slot] = token
        assert len(drawn) == len(batch.drawing)
        return drawn

    def _compute(self, sequence: Sequence, start: int, tokens: list[int]) -> int:
        reply, states = self.replies[sequence.request_id], self.states[sequence.request_id]
        end = start + len(tokens)
        assert tokens == reply[start:end]
        places = [sequence.pages[at // PAGE_SIZE] * PAGE_SIZE + at % PAGE_SIZE for at in range(end)]
        assert [self.memory.get(place) for place in places[:start]] == states[:start]
        self.memory.update(zip(places[start:], states[start:end], strict=True))
        return reply[end]


def check(scheduler: Scheduler, pool: PagePool) -> None:
    """What holds at any moment."""
    held = Counter(page for sequence in scheduler.running for page in sequence.pages)
    assert pool.free + pool.cached + pool.used == pool.total
    assert pool.used == len(held)
    assert 0 not in held
    slots = [sequence.slot for sequence in scheduler.running]
    assert len(set(slots)) == len(slots)
    assert all(0 <= slot < 6 for slot in slots)
    for sequence in scheduler.running:
        assert len(sequence.pages) >= pages_for(sequence.computed)
        private = sequence.pages[sequence.registered :]
        assert all(held[page] == 1 for page in private)
        if sequence.is_decoding:
            assert sequence.computed == sequence.length - 1
    for sequence in scheduler.waiting:
        assert (sequence.pages, sequence.slot, sequence.computed) == ([], -1, 0)


@pytest.mark.parametrize("steps_ahead", [0, 1, 2])
@pytest.mark.parametrize("prefix_cache", [True, False])
def test_random_load(steps_ahead, prefix_cache):
    """Adds, cancels, ends and preemptions at random moments, with steps in flight and few pages."""
    seed = random.randrange(10**6)
    print("seed", seed)
    rng = random.Random(seed)
    scheduler = make_scheduler(20, chunk=48, step=64, max_sequences=6, prefix_cache=prefix_cache)
    pool, device = scheduler.pool, Device()
    texts = [[rng.randrange(5) for _ in range(200)] for _ in range(4)]  # what prompts have in common
    todo, preempted, cached = [], 0, 0
    for request_id in range(150):
        prompt = rng.choice(texts)[: rng.randint(0, 100)] + [rng.randrange(5)] * rng.randint(1, 40)
        sequence = make_sequence(request_id, prompt, len(prompt) + rng.randint(1, 100))
        sequence.seed = rng.randrange(2)
        device.prepare(sequence)
        todo.append(sequence)
    ends = {  # where the "model" ends its turn, which the scheduler does not know
        sequence: rng.randint(sequence.prompt_len + 1, sequence.max_tokens + 50) for sequence in todo
    }
    cancelled: set[Sequence] = set()
    pending: deque[tuple[Batch, list[int]]] = deque()
    while todo or scheduler.sequences or pending:
        if todo and rng.random() < 0.1:
            scheduler.add(todo.pop())
        if scheduler.sequences and rng.random() < 0.01:
            victim = rng.choice(scheduler.sequences)
            cancelled.add(victim)
            scheduler.remove(victim)
        batch = scheduler.schedule()
        if batch:
            size = len(batch.decode) + sum(chunk.count for chunk in batch.prefill)
            assert size <= scheduler.step_tokens
            for chunk in batch.prefill:
                end = chunk.start + chunk.count
                assert end == chunk.sequence.prefill_len if chunk.is_last else end % 48 == 0
            pending.append((batch, device.launch(batch)))
        check(scheduler, pool)
        if pending and (batch is None or len(pending) > steps_ahead):
            batch, tokens = pending.popleft()
            for sequence, token in zip(batch.drawing, tokens, strict=True):
                if scheduler.accept(sequence, token) and len(sequence.tokens) >= min(
                    ends[sequence], sequence.max_tokens
                ):
                    scheduler.remove(sequence)
            check(scheduler, pool)
    for sequence, end in ends.items():
        assert sequence.in_flight == 0
        if sequence not in cancelled:
            assert sequence.tokens == device.replies[sequence.request_id][: min(end, sequence.max_tokens)]
        preempted += sequence.preemptions
        cached += sequence.cached
    assert pool.used == 0
    assert preempted
    assert bool(cached) is prefix_cache
    assert bool(pool.cached) is prefix_cache
