"""Decides which tokens of which sequences the next step computes. Host only: no tensors here."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from ..kernels import PAGE_SIZE
from .kv_cache import PagePool, extend_digests
from .sequence import Sequence


@dataclass(frozen=True)
class Chunk:
    """Tokens start ... start + count - 1 of one sequence's prefill."""

    sequence: Sequence
    start: int
    count: int
    is_last: bool
    """Whether the chunk ends the prefill, so that its logits give the sequence's next token."""


@dataclass(frozen=True)
class Batch:
    """The work of one step: one token of each decoding sequence, then prefill chunks, in this order.

    A chunk may read what an earlier one of the same batch writes (a shared prefix, or the same sequence).
    The sequences are marked as if the work were done: at launch a decode is about the token at position
    `computed - 1`, and the token that a sequence draws will be at position `computed`.
    """

    decode: tuple[Sequence, ...]
    prefill: tuple[Chunk, ...]

    @property
    def drawing(self) -> tuple[Sequence, ...]:
        """The sequences that get a token, in the order of the step's tokens."""
        return *self.decode, *(chunk.sequence for chunk in self.prefill if chunk.is_last)


class Scheduler:
    """First come, first served: continuous batching (Yu et al. 2022, Orca) with chunked prefill.

    A step computes one token of every decoding sequence and fills the rest of its token budget with prompt
    chunks (Agrawal et al. 2023, arXiv:2308.16369), so that a long prompt neither silences the others nor
    delays a cancel. A chunk ends at a multiple of `chunk_tokens` in its sequence or at its end, never where
    the budget does: what a forward pass computes of a prompt must not depend on what else runs.

    Pages are taken as a sequence grows. When there are none left, the youngest sequence gives its pages
    back and starts over later from all its tokens (recompute), less what the prefix cache still has.

    `schedule` may be called again before the tokens of earlier steps are known; `accept` brings them.
    """

    def __init__(
        self,
        pool: PagePool,
        *,
        chunk_tokens: int,
        step_tokens: int,
        max_sequences: int,
        dynamic_kv: bool = True,
        prefix_cache: bool = True,
    ) -> None:
        """step_tokens: budget of a step (one chunk is taken in any case); the others as in EngineOptions."""
        self.pool = pool
        self.chunk_tokens = chunk_tokens
        self.step_tokens = step_tokens
        self.dynamic_kv = dynamic_kv
        self.prefix_cache = prefix_cache
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self._slots = list(range(max_sequences - 1, -1, -1))

    @property
    def sequences(self) -> list[Sequence]:
        """All unfinished sequences, oldest first."""
        return [*self.running, *self.waiting]

    def add(self, sequence: Sequence) -> None:
        self.waiting.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Forget a finished, cancelled or failed sequence and free what it holds.

        Its pages may go to another at once, even while a step of it is in flight: whatever uses them next
        is launched later.
        """
        sequence.finished = True
        if sequence.slot >= 0:
            self._release(sequence)
        else:
            self.waiting.remove(sequence)

    def schedule(self) -> Batch | None:
        """The next step's work, its pages taken and its sequences marked; None when there is nothing."""
        decode = self._decodes()
        prefill = self._chunks(self.step_tokens - len(decode))
        return Batch(tuple(decode), tuple(prefill)) if decode or prefill else None

    def accept(self, sequence: Sequence, token: int) -> bool:
        """Take in a token that was in flight; False if the sequence has finished and it is of no use."""
        sequence.in_flight -= 1
        if sequence.finished:
            return False
        sequence.tokens.append(token)
        self._register(sequence)
        return True

    def accept_verified(self, sequence: Sequence, token: int) -> None:
        """Take in a running sequence's next token, drawn by a pass that computed the token before it."""
        sequence.computed += 1
        sequence.tokens.append(token)
        self._register(sequence)

    def reserve(self, sequence: Sequence, tokens: int) -> bool:
        """Give a running sequence pages for `tokens` tokens in all; False, changing nothing, if too few."""
        return self.pool.grow(sequence.pages, tokens)

    def _decodes(self) -> list[Sequence]:
        decodes = []
        for sequence in list(self.running):
            if not sequence.is_decoding or sequence.length >= sequence.max_tokens:
                continue  # (one that was preempted for an older one just now does not decode either)
            if sequence.length > len(sequence.pages) * PAGE_SIZE and not self._make_room(sequence):
                continue
            sequence.computed += 1
            sequence.in_flight += 1
            decodes.append(sequence)
        return decodes

    def _make_room(self, sequence: Sequence) -> bool:
        """Find a page for the next token, if need be one of the youngest sequence's; False if it is that."""
        while not self.pool.grow(sequence.pages, sequence.length):
            victim = self.running[-1]
            self._preempt(victim)
            if victim is sequence:
                return False
        return True

    def _chunks(self, budget: int) -> list[Chunk]:
        chunks: list[Chunk] = []
        for sequence in self._prefilling():
            while not sequence.is_decoding:
                start = sequence.computed
                end = min(start - start % self.chunk_tokens + self.chunk_tokens, sequence.prefill_len)
                if chunks and end - start > budget:
                    return chunks
                budget -= end - start
                is_last = end == sequence.prefill_len
                chunks.append(Chunk(sequence, start, end - start, is_last))
                sequence.computed = end
                sequence.in_flight += is_last
                self._register(sequence)
        return chunks

    def _prefilling(self) -> Iterator[Sequence]:
        """Running sequences with prefill left, then waiting ones as they are admitted."""
        yield from [sequence for sequence in self.running if not sequence.is_decoding]
        while self.waiting and self._admit(self.waiting[0]):
            self.running.append(self.waiting.popleft())
            yield self.running[-1]

    def _admit(self, sequence: Sequence) -> bool:
        """Give a sequence a slot and pages for all its tokens and one more, if there are that many.

        One that was preempted has to wait for its token in flight, which its prefill begins from.
        """
        if not self._slots or sequence.in_flight:
            return False
        shared: list[int] = []
        if self.prefix_cache:
            extend_digests(sequence.digests, sequence.tokens, sequence.salts)
            shared = self.pool.find(sequence.digests[: sequence.logits_from // PAGE_SIZE])
        room = len(sequence.tokens) + 1 if self.dynamic_kv else sequence.max_tokens
        if (pages := self.pool.admit(shared, room)) is None:
            return False
        sequence.slot = self._slots.pop()
        sequence.pages = pages
        sequence.prefill_len = len(sequence.tokens)
        sequence.registered = len(shared)
        sequence.computed = len(shared) * PAGE_SIZE
        if sequence.preemptions == 0:
            sequence.cached = sequence.computed
        return True

    def _preempt(self, victim: Sequence) -> None:
        self._release(victim)
        victim.preemptions += 1
        self.waiting.appendleft(victim)

    def _release(self, sequence: Sequence) -> None:
        """Take a running sequence's pages and slot."""
        self.running.remove(sequence)
        self.pool.give_back(sequence.pages)
        self._slots.append(sequence.slot)
        sequence.slot = -1
        sequence.computed = 0

    def _register(self, sequence: Sequence) -> None:
        """Offer to the prefix cache the blocks that are computed (or about to be) and known on the host."""
        full = min(sequence.computed, len(sequence.tokens)) // PAGE_SIZE
        if full <= sequence.registered or not self.prefix_cache:
            return
        extend_digests(sequence.digests, sequence.tokens, sequence.salts)
        for block in range(sequence.registered, full):
            self.pool.register(sequence.digests[block], sequence.pages[block])
        sequence.registered = full
