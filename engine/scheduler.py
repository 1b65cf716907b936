"""Decides which tokens of which sequences the next step computes. Host only: no tensors here."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from .kv_cache import PagePool
from .sequence import Sequence


@dataclass(frozen=True)
class Chunk:
    """Tokens start ... start + count - 1 of one sequence."""

    sequence: Sequence
    start: int
    count: int

    @property
    def is_last(self) -> bool:
        """Whether the chunk reaches the sequence's last token, so that its logits give the next one."""
        return self.start + self.count == len(self.sequence.tokens)


@dataclass(frozen=True)
class Batch:
    """The work of one step: either prompt chunks or one token each (decode)."""

    chunks: tuple[Chunk, ...]
    is_decode: bool


class Scheduler:
    """First come, first served, with chunked prefill.

    Prompts are processed in chunks of at most `step_tokens` tokens a step, in turn with decode steps of
    all sequences that are past their prompt, so that a long prompt does not silence the others and a
    cancel is seen within a step. Pages are taken as a sequence grows. When there are none left, the
    youngest sequence gives its pages back and starts over later from all its tokens (recompute).
    """

    def __init__(self, pool: PagePool, *, step_tokens: int, max_sequences: int) -> None:
        self.pool = pool
        self.step_tokens = step_tokens
        self.max_sequences = max_sequences
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self._decode_turn = False

    @property
    def sequences(self) -> list[Sequence]:
        """All unfinished sequences, oldest first."""
        return [*self.running, *self.waiting]

    def add(self, sequence: Sequence) -> None:
        self.waiting.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Forget a finished, cancelled or failed sequence and free its pages."""
        self.pool.give_back(sequence.pages)
        if sequence in self.running:
            self.running.remove(sequence)
        else:
            self.waiting.remove(sequence)

    def schedule(self) -> Batch | None:
        """The next step's work, its pages already taken; None when there is nothing to do."""
        decoding = [sequence for sequence in self.running if _is_decoding(sequence)]
        if not (self._decode_turn and decoding) and (chunks := self._prefill_chunks()):
            self._decode_turn = True
            return Batch(tuple(chunks), is_decode=False)
        self._decode_turn = False
        chunks = self._decode_chunks(decoding)
        return Batch(tuple(chunks), is_decode=True) if chunks else None

    def _prefill_chunks(self) -> list[Chunk]:
        budget = self.step_tokens
        chunks = []
        for sequence in self._prefilling():
            count = min(budget, len(sequence.tokens) - sequence.computed)
            if not self.pool.grow(sequence.pages, sequence.computed + count):
                break
            chunks.append(Chunk(sequence, sequence.computed, count))
            budget -= count
            if budget == 0:
                break
        return chunks

    def _prefilling(self) -> Iterable[Sequence]:
        """Admitted sequences with prompt left, then waiting ones as they can be admitted."""
        yield from [sequence for sequence in self.running if not _is_decoding(sequence)]
        while self.waiting and len(self.running) < self.max_sequences:
            # Admit only what fits whole now: half a prompt in the cache helps nobody.
            fits = self.pool.grow(self.waiting[0].pages, len(self.waiting[0].tokens) + 1)
            if not fits:
                return
            self.running.append(self.waiting.popleft())
            yield self.running[-1]

    def _decode_chunks(self, decoding: list[Sequence]) -> list[Chunk]:
        chunks = []
        for sequence in decoding:
            if sequence not in self.running:
                continue  # preempted for an older one just now
            while not self.pool.grow(sequence.pages, len(sequence.tokens)):
                victim = self.running[-1]
                self._preempt(victim)
                if victim is sequence:
                    break
            else:
                chunks.append(Chunk(sequence, sequence.computed, 1))
        return chunks

    def _preempt(self, victim: Sequence) -> None:
        self.pool.give_back(victim.pages)
        victim.computed = 0
        self.running.remove(victim)
        self.waiting.appendleft(victim)


def _is_decoding(sequence: Sequence) -> bool:
    return sequence.completion_len > 0 and sequence.computed == len(sequence.tokens) - 1
