"""Drawing the next token: repetition penalty, temperature, top-k, top-p, min-p and the Gumbel-max trick.

The noise of a token is a function of (seed, position, token id) alone: Philox 4x32-10 (Salmon et al. 2011,
doi:10.1145/2063384.2063405), keyed by the seed, whose counter is (token id // 4, position, 0) and whose four
outputs serve four neighbouring tokens. So what a request draws does not depend on the rest of the batch.

The kernels neither sort nor wait for the host. All filters keep the largest logits, and the best score
(logit / temperature + noise) among ANY tokens that include the kept ones is the draw if its token is kept.
So the best of all tokens is a candidate, and the number and the mass of the tokens with larger logits tell
whether it is kept; a candidate that is not gives way to the best of the tokens above it. Three launches:

1. `_candidate_kernel`: each chunk's best score, largest logit and mass;
2. `_above_kernel`: per chunk, the tokens above the row's candidate: count, mass and best score;
3. `_decide_kernel`: one program per row accepts the candidate, or goes on alone. It reads only the blocks of
   32 tokens whose maximum says that they matter, so that the rare further rounds are short. Top-p after
   top-k needs the mass of the k largest, so there it searches for the k-th largest logit.

Sums run in an order that depends on the row alone: its draw is bitwise the same in every batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from . import gemv
from ._triton import target, tl, triton
from .pdl import await_previous, start_dependents

RECENT = 8
"""Positions of a sequence whose tokens the host still finds in SamplingState.drawn."""

CHUNKS_EACH = 8
"""Chunks that one program looks through for the tokens above a candidate, where there are many rows."""

_WORD = 0xFFFFFFFF
_ROUND_A, _ROUND_B = 0xD2511F53, 0xCD9E8D57
_KEY_A, _KEY_B = 0x9E3779B9, 0xBB67AE85
# The noise lies between gumbel(0) and gumbel(2^32 - 1), so a token this far below the largest never wins.
_NOISE_RANGE = math.log(24 * math.log(2)) + 24 * math.log(2) + 0.01


@dataclass(frozen=True)
class SamplingState:
    """How each sequence draws and what it drew: one row per slot, on the device that samples.

    S slots: one per running sequence and a last one, left greedy, for the padded rows of a batch.
    temperature [S] fp32, 0: greedy; top_k [S] int32, 0: off; top_p [S] fp32, 1: off; min_p [S] fp32, 0: off;
    repetition_penalty [S] fp32, 1: off; seed [S] int64; token [S] int64: the token drawn last; seen [S, V]
    uint8: 1 for every token of the prompt or the reply, read only where there is a penalty.

    drawn [RECENT, S] int64 is in the host's memory: drawn[p % RECENT, s] is the token that slot s drew for
    its position p. A copy between two steps would keep the device waiting; this is written by the kernel.
    """

    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor
    repetition_penalty: Tensor
    seed: Tensor
    token: Tensor
    seen: Tensor
    drawn: Tensor

    @classmethod
    def allocate(cls, slots: int, vocabulary: int, device: torch.device) -> SamplingState:
        """Greedy slots with every filter off, no token drawn or seen."""

        def column(value: float, dtype: torch.dtype) -> Tensor:
            return torch.full((slots,), value, dtype=dtype, device=device)

        return cls(
            temperature=column(0, torch.float32),
            top_k=column(0, torch.int32),
            top_p=column(1, torch.float32),
            min_p=column(0, torch.float32),
            repetition_penalty=column(1, torch.float32),
            seed=column(0, torch.int64),
            token=column(0, torch.int64),
            seen=torch.zeros(slots, vocabulary, dtype=torch.uint8, device=device),
            drawn=torch.zeros(RECENT, slots, dtype=torch.int64, pin_memory=device.type == "cuda"),
        )


def reference(logits: Tensor, slots: Tensor, positions: Tensor, state: SamplingState) -> Tensor:
    """Draw one token per row: logits [B, V] fp32 -> ids [B] int64, also written to the rows' slots.

    slots [B] int32: the row of `state`; positions [B] int64: of the token that the logits follow, so the
    token drawn is at position + 1. The repetition penalty divides positive and multiplies negative logits
    of seen tokens (Keskar et al. 2019, arXiv:1909.05858). Temperature 0 is argmax, the lowest id of equal
    ones. Else: logits / temperature; top-k; top-p over what is left; min-p relative to the largest
    probability, equal logits sharing their fate; then Gumbel-max. `state.token` and `state.drawn` get the
    ids and `state.seen` marks them; the logits stay as they are.
    """
    slots = slots.long()
    penalty, temperature = state.repetition_penalty[slots], state.temperature[slots]
    if bool((penalty != 1).any()):
        logits = _penalised(logits, state.seen[slots] != 0, penalty[:, None])
    ids = logits.argmax(-1)
    sampled = (temperature > 0).nonzero().squeeze(1)
    if len(sampled):
        ids[sampled] = _gumbel_argmax(
            logits[sampled], state, slots[sampled], positions[sampled] + 1, ids[sampled]
        )
    state.token[slots] = ids
    state.seen[slots, ids] = 1
    place = ((positions + 1) % RECENT).to(state.drawn.device), slots.to(state.drawn.device)
    state.drawn[place] = ids.to(state.drawn.device)
    return ids


def _penalised(logits: Tensor, seen: Tensor, penalty: Tensor) -> Tensor:
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def _gumbel_argmax(
    logits: Tensor, state: SamplingState, slots: Tensor, positions: Tensor, argmax: Tensor
) -> Tensor:
    """The draws of rows with a temperature: logits [B, V] -> [B].

    Noise is made only for the quads of neighbouring tokens in which some row has a token that can win.
    """
    temperature = state.temperature[slots]
    lowest = logits.gather(1, argmax[:, None]).squeeze(1) - _NOISE_RANGE * temperature
    filters = torch.stack([state.top_k[slots], state.top_p[slots], state.min_p[slots]], 1)
    for row, (top_k, top_p, min_p) in enumerate(filters.tolist()):
        if top_k > 0 or top_p < 1 or min_p > 0:
            kept = threshold(logits[row], temperature[row], int(top_k), top_p, min_p)
            lowest[row] = torch.maximum(lowest[row], kept)
    quads = F.pad(logits, (0, -logits.shape[1] % 4), value=-math.inf).view(len(logits), -1, 4)
    used = (~(quads.amax(2) < lowest[:, None])).any(0).nonzero().squeeze(1)  # NaN is not below
    quads = quads.index_select(1, used)
    noise = gumbel(token_words(state.seed[slots], positions, used))
    scores = quads / temperature[:, None, None] + noise
    scores = scores.masked_fill(quads < lowest[:, None, None], -math.inf)
    best = scores.flatten(1).argmax(-1)
    return used[best // 4] * 4 + best % 4


def threshold(logits: Tensor, temperature: Tensor, top_k: int, top_p: float, min_p: float) -> Tensor:
    """The smallest of the logits [V] that top-k, top-p and min-p leave in; temperature: a scalar tensor.

    All three keep the largest logits, so one threshold says it all, and equal logits share their fate.
    It looks at the largest few, and at more of them until it has seen one dropped.
    """
    vocabulary = len(logits)
    limited = 0 < top_k < vocabulary
    largest = logits.max() / temperature

    def weights(logits: Tensor) -> Tensor:
        """Probabilities relative to the largest."""
        return (logits / temperature - largest).exp()

    total = weights(logits).sum(dtype=torch.float64)  # of what top-k leaves, which may be all
    count = 2 * top_k if limited else 256
    while True:
        # topk of a large part is slower than a sort.
        partial = count <= vocabulary // 16
        ordered = logits.topk(count).values if partial else logits.sort(descending=True).values
        weight = weights(ordered)
        within_k = ordered >= ordered[top_k - 1] if limited else torch.ones_like(ordered, dtype=torch.bool)
        kept = within_k & (weight >= min_p)
        if limited:
            total = weight[within_k].sum(dtype=torch.float64)
        if top_p < 1:  # else rounding could make it bite
            kept &= weight.cumsum(0, dtype=torch.float64) - weight < top_p * total
        if not partial or not (within_k if limited else kept).all():
            return ordered[kept.sum() - 1]
        count *= 8


def philox(seed: Tensor, c0: Tensor, c1: Tensor, c2: Tensor, c3: Tensor) -> Tensor:
    """Philox 4x32-10: 64-bit keys and counters of four words -> four words in [0, 2^32), [..., 4].

    All are int64 tensors that broadcast. The 64-bit products wrap around as signed numbers; masking makes
    their halves right again.
    """
    c0, c1, c2, c3 = torch.broadcast_tensors(c0, c1, c2, c3)
    # Two words at a time: where few tokens are drawn from, the number of operations is what costs.
    even, odd = torch.stack([c0, c2]), torch.stack([c1, c3])

    def pair(values: list[int]) -> Tensor:
        return torch.tensor(values, device=seed.device).view(2, *[1] * c0.ndim)

    multipliers, steps = pair([_ROUND_A, _ROUND_B]), pair([_KEY_A, _KEY_B])
    key = torch.stack([seed, seed >> 32]).view(2, *[1] * (c0.ndim - seed.ndim), *seed.shape) & _WORD
    for _ in range(10):
        product = (even * multipliers).flip(0)
        even, odd = (product >> 32 ^ odd ^ key) & _WORD, product & _WORD
        key = key + steps & _WORD
    return torch.stack([even[0], odd[0], even[1], odd[1]], -1)


def token_words(seed: Tensor, position: Tensor, quad: Tensor) -> Tensor:
    """The random words of the tokens 4 * quad ... 4 * quad + 3 for each row: [B, N, 4].

    seed, position [B] int64; quad [N] int64.
    """
    low, high = position[:, None] & _WORD, position[:, None] >> 32 & _WORD
    return philox(seed[:, None], quad, low, high, torch.zeros_like(low))


def gumbel(words: Tensor) -> Tensor:
    """Words in [0, 2^32) to Gumbel noise -log(-log(u)), fp32.

    u takes 23 bits and a half: exact in fp32, above 0 and below 1 on every device.
    """
    u = ((words >> 9).float() + 0.5) * 2.0**-23
    return -(-u.log()).log()


_RECENT = triton.language.constexpr(RECENT)
# Tokens per block, whose largest logit is kept. Philox quads must not straddle blocks.
_BLOCK_SIZE = 32
_BLOCK = triton.language.constexpr(_BLOCK_SIZE)
# A search tries so many pivots at once.
_PIVOTS = triton.language.constexpr(8)
# _key(-inf)
_LOWEST = triton.language.constexpr(-0x7F800000)


class _Inputs(NamedTuple):
    """logits [B, V] (rows logits_stride apart), slots [B] int32, positions [B] int64; SamplingState's."""

    logits: Tensor
    slots: Tensor
    positions: Tensor
    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor
    repetition_penalty: Tensor
    seed: Tensor
    token: Tensor
    seen: Tensor
    drawn: Tensor


class _Scratch(NamedTuple):
    """What one launch leaves for the next. [B, chunks], but for the last two, which are [B, blocks].

    Of each chunk's best token: score, token, logit. Of a chunk's tokens: the largest logit and the sum of
    weights exp((logit - largest) / temperature). Of those above the row's candidate: count, mass (the sum of
    weights relative to the row's largest logit), and next_*, the best of them that min-p keeps. Of a block:
    its largest logit. live: the ids of the row's blocks that still matter.
    """

    score: Tensor
    token: Tensor
    logit: Tensor
    largest: Tensor
    total: Tensor
    above_count: Tensor
    above_mass: Tensor
    next_score: Tensor
    next_token: Tensor
    next_logit: Tensor
    block_largest: Tensor
    live: Tensor


@triton.jit
def _asks(inputs, slot, vocabulary):
    """Whether the slot draws and some filter can drop a token."""
    top_k = tl.load(inputs.top_k + slot)
    filters = (top_k > 0) & (top_k < vocabulary)
    filters |= (tl.load(inputs.top_p + slot) < 1) | (tl.load(inputs.min_p + slot) > 0)
    return filters & (tl.load(inputs.temperature + slot) > 0)


@triton.jit
def _source(inputs, row, slot, logits_stride, vocabulary):
    """Where `_logits` finds a row: its logits, its seen tokens, the penalty, the vocabulary."""
    penalty = tl.load(inputs.repetition_penalty + slot)
    return inputs.logits + row * logits_stride, inputs.seen + slot * vocabulary, penalty, vocabulary


@triton.jit
def _logits(source, blocks):
    """The penalised logits of the tokens of blocks [N] -> [N, _BLOCK]; -inf beyond the vocabulary."""
    logits_ptr, seen_ptr, penalty, vocabulary = source
    tokens = _tokens(blocks)
    inside = tokens < vocabulary
    logits = tl.load(logits_ptr + tokens, inside, other=-float("inf"))
    if penalty != 1:
        seen = tl.load(seen_ptr + tokens, inside, other=0) != 0
        penalised = tl.where(logits > 0, _divided(logits, penalty), logits * penalty)
        logits = tl.where(seen, penalised, logits)
    return logits


@triton.jit
def _tokens(blocks):
    """The token ids of blocks [N] -> [N, _BLOCK]."""
    return blocks[:, None] * _BLOCK + tl.arange(0, _BLOCK)[None, :]


@triton.jit
def _divided(values, divisor):
    """As IEEE division rounds, which a GPU's own division need not."""
    return tl.div_rn(values, tl.zeros_like(values) + divisor)


@triton.jit
def _weights(logits, largest, temperature):
    """exp((logit - largest) / temperature), the probability relative to the largest."""
    return tl.exp(_divided(logits, temperature) - tl.div_rn(largest, temperature))


@triton.jit
def block_words(seed, position, blocks):
    """The random words of the tokens of blocks [N] -> [N, _BLOCK] uint32; seed, position: int64 scalars."""
    quads = (blocks[:, None] * (_BLOCK // 4) + tl.arange(0, _BLOCK // 4)[None, :]).to(tl.uint32)
    zero = tl.zeros_like(quads)
    low, high = zero + position.to(tl.uint32), zero + (position >> 32).to(tl.uint32)
    r0, r1, r2, r3 = tl.philox(seed, quads, low, high, zero)
    return tl.interleave(tl.interleave(r0, r2), tl.interleave(r1, r3))


@triton.jit
def _scores(inputs, row, slot, logits, blocks, temperature):
    """logit / temperature + Gumbel noise; logits [N, _BLOCK] of blocks [N]."""
    position = tl.load(inputs.positions + row) + 1
    words = block_words(tl.load(inputs.seed + slot), position, blocks)
    u = ((words >> 9).to(tl.float32) + 0.5) * (1.0 / 8388608)
    return _divided(logits, temperature) - tl.log(-tl.log(u))


@triton.jit
def _best(scores, tokens, logits, vocabulary):
    """The best score, its token (the lowest of equals) and that token's logit.

    Where scores are NaN no comparison holds: the token is the last of the vocabulary then.
    """
    score = tl.max(tl.ravel(scores), 0)
    token = tl.min(tl.ravel(tl.where(scores == score, tokens, vocabulary - 1)), 0)
    token = tl.minimum(token, vocabulary - 1)
    logit = tl.max(tl.ravel(tl.where(tokens == token, logits, -float("inf"))), 0)
    return score, token, logit


@triton.jit
def _column(ptr, row, chunks, other, CHUNKS_PAD: tl.constexpr):
    """One of the scratch's [B, chunks] tensors: its row, filled up with `other` -> [CHUNKS_PAD]."""
    chunk = tl.arange(0, CHUNKS_PAD)
    return tl.load(ptr + row * chunks + chunk, chunk < chunks, other=other)


@triton.jit
def _best_chunk(score_ptr, token_ptr, logit_ptr, row, chunks, vocabulary, CHUNKS_PAD: tl.constexpr):
    """(token, logit) of the row's best token, from its chunks' best."""
    scores = _column(score_ptr, row, chunks, -float("inf"), CHUNKS_PAD)
    tokens = _column(token_ptr, row, chunks, 0, CHUNKS_PAD)
    logits = _column(logit_ptr, row, chunks, -float("inf"), CHUNKS_PAD)
    _, token, logit = _best(scores, tokens, logits, vocabulary)
    return token, logit


@triton.jit
def _candidate_kernel(inputs, scratch, logits_stride, vocabulary, CHUNK: tl.constexpr, PDL: tl.constexpr):
    """One program (row, chunk of CHUNK blocks): its best token, and for rows that filter its weights.

    Greedy rows score their plain logits.
    """
    start_dependents(PDL)
    row, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    slot = tl.load(inputs.slots + row).to(tl.int64)
    await_previous(PDL)
    blocks = chunk * CHUNK + tl.arange(0, CHUNK)
    logits = _logits(_source(inputs, row, slot, logits_stride, vocabulary), blocks)
    temperature = tl.load(inputs.temperature + slot)
    scores = logits
    if temperature > 0:
        scores = _scores(inputs, row, slot, logits, blocks, temperature)
    score, token, logit = _best(scores, _tokens(blocks), logits, vocabulary)
    at = row * tl.num_programs(1) + chunk
    tl.store(scratch.score + at, score)
    tl.store(scratch.token + at, token)
    if _asks(inputs, slot, vocabulary):
        block_largest = tl.max(logits, 1)
        count = tl.cdiv(vocabulary, _BLOCK)
        tl.store(scratch.block_largest + row * count + blocks, block_largest, blocks < count)
        largest = tl.max(block_largest, 0)
        tl.store(scratch.logit + at, logit)
        tl.store(scratch.largest + at, largest)
        # A chunk of -inf alone has no largest to subtract: -inf - -inf would be NaN.
        finite = tl.where(largest == -float("inf"), 0.0, largest)
        tl.store(scratch.total + at, tl.sum(tl.ravel(_weights(logits, finite, temperature)), 0))


@triton.jit
def _above_kernel(
    inputs, scratch, logits_stride, vocabulary, chunks,
    CHUNK: tl.constexpr, CHUNKS_PAD: tl.constexpr, EACH: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One program (row, EACH chunks): the tokens above the row's candidate. CHUNKS_PAD >= chunks.

    Most rows ask nothing, and to start programs that have nothing to do takes long where they are many.
    """
    start_dependents(PDL)
    row, first = tl.program_id(0).to(tl.int64), tl.program_id(1) * EACH
    slot = tl.load(inputs.slots + row).to(tl.int64)
    await_previous(PDL)
    if _asks(inputs, slot, vocabulary):
        _, candidate = _best_chunk(
            scratch.score, scratch.token, scratch.logit, row, chunks, vocabulary, CHUNKS_PAD
        )
        largest = tl.max(_column(scratch.largest, row, chunks, -float("inf"), CHUNKS_PAD), 0)
        temperature, min_p = tl.load(inputs.temperature + slot), tl.load(inputs.min_p + slot)
        for chunk in range(first, tl.minimum(first + EACH, chunks)):
            at = row * chunks + chunk
            if tl.load(scratch.largest + at) > candidate:
                blocks = chunk * CHUNK + tl.arange(0, CHUNK)
                logits = _logits(_source(inputs, row, slot, logits_stride, vocabulary), blocks)
                above = logits > candidate
                weights = tl.where(above, _weights(logits, largest, temperature), 0.0)
                tl.store(scratch.above_count + at, tl.sum(tl.ravel(above.to(tl.int32)), 0))
                tl.store(scratch.above_mass + at, tl.sum(tl.ravel(weights), 0))
                scores = _scores(inputs, row, slot, logits, blocks, temperature)
                scores = tl.where(above & (weights >= min_p), scores, -float("inf"))
                score, token, logit = _best(scores, _tokens(blocks), logits, vocabulary)
                tl.store(scratch.next_score + at, score)
                tl.store(scratch.next_token + at, token)
                tl.store(scratch.next_logit + at, logit)
            else:
                tl.store(scratch.above_count + at, 0)
                tl.store(scratch.above_mass + at, 0.0)
                tl.store(scratch.next_score + at, -float("inf"))
                tl.store(scratch.next_token + at, 0)
                tl.store(scratch.next_logit + at, -float("inf"))


@triton.jit
def _key(value):
    """fp32 -> int64 in the same order, neighbours to neighbours, both zeros to 0."""
    bits = value.to(tl.int32, bitcast=True)
    magnitude = (bits & 0x7FFFFFFF).to(tl.int64)
    return tl.where(bits < 0, -magnitude, magnitude)


@triton.jit
def _value(key):
    """The inverse of `_key`."""
    magnitude = tl.abs(key).to(tl.int32).to(tl.float32, bitcast=True)
    return tl.where(key < 0, -magnitude, magnitude)


@triton.jit
def _live_blocks(live_ptr, live, start, nowhere, TILE: tl.constexpr):
    """live[start : start + TILE], filled up with `nowhere`, a block beyond the row; None lists all blocks."""
    at = start + tl.arange(0, TILE)
    if live_ptr is None:
        return tl.where(at < live, at, nowhere)
    else:
        return tl.load(live_ptr + at, at < live, other=nowhere)


@triton.jit
def _raised(source, live_ptr, live, pivot, largest, k, enough, TILE: tl.constexpr):
    """The highest pivot found that has k values above it (but not below the `pivot` given).

    It stops where k to `enough` values are above; with ties there may be more. Values: the row `source` in
    the first `live` blocks of the list; largest: the largest.
    """
    low, high = _key(pivot), _key(largest)  # at least k are above the low end, fewer above the high one
    count = enough + 1
    nowhere = tl.cdiv(source[3], _BLOCK)
    while (high - low > 1) & (count > enough):
        keys = low + (high - low) * (1 + tl.arange(0, _PIVOTS)) // (_PIVOTS + 1)
        pivots = _value(keys)
        counts = tl.zeros([_PIVOTS], tl.int32)
        for start in range(0, live, TILE):
            values = tl.ravel(_logits(source, _live_blocks(live_ptr, live, start, nowhere, TILE)))
            counts += tl.sum((values[:, None] > pivots[None, :]).to(tl.int32), 0)
        reached = counts >= k
        low = tl.max(tl.where(reached, keys, low), 0)
        high = tl.min(tl.where(reached, high, keys), 0)
        count = tl.min(tl.where(reached, counts, count), 0)
    return _value(low)


@triton.jit
def _above(source, live_ptr, live, pivot, largest, temperature, TILE: tl.constexpr):
    """Count and mass of the tokens of the live blocks whose logits are above `pivot`."""
    nowhere = tl.cdiv(source[3], _BLOCK)
    counts = tl.zeros([TILE, _BLOCK], tl.int32)
    masses = tl.zeros([TILE, _BLOCK], tl.float32)
    for start in range(0, live, TILE):
        logits = _logits(source, _live_blocks(live_ptr, live, start, nowhere, TILE))
        above = logits > pivot
        counts += above.to(tl.int32)
        masses += tl.where(above, _weights(logits, largest, temperature), 0.0)
    return tl.sum(tl.ravel(counts), 0), tl.sum(tl.ravel(masses), 0)


@triton.jit
def _best_above(
    inputs, source, row, slot, live_ptr, live, pivot, largest, temperature, min_p, TILE: tl.constexpr
):
    """(token, logit) of the best token of the live blocks above `pivot` that min-p keeps."""
    nowhere = tl.cdiv(source[3], _BLOCK)
    best = tl.full([TILE, _BLOCK], -float("inf"), tl.float32)
    best_tokens = tl.zeros([TILE, _BLOCK], tl.int32)
    best_logits = best
    for start in range(0, live, TILE):
        blocks = _live_blocks(live_ptr, live, start, nowhere, TILE)
        logits = _logits(source, blocks)
        kept = (logits > pivot) & (_weights(logits, largest, temperature) >= min_p)
        scores = tl.where(kept, _scores(inputs, row, slot, logits, blocks, temperature), -float("inf"))
        better = scores > best
        best = tl.where(better, scores, best)
        best_tokens = tl.where(better, _tokens(blocks), best_tokens)
        best_logits = tl.where(better, logits, best_logits)
    _, token, logit = _best(best, best_tokens, best_logits, source[3])
    return token, logit


@triton.jit
def _list_live(scratch, row, block_count, pivot, TILE: tl.constexpr):
    """Write the row's blocks that have a logit above `pivot` to its live list, in order -> how many."""
    live = 0
    offset = row * block_count
    for start in range(0, block_count, TILE * _BLOCK):
        block = start + tl.arange(0, TILE * _BLOCK)
        maxima = tl.load(scratch.block_largest + offset + block, block < block_count, other=-float("inf"))
        matters = (maxima > pivot).to(tl.int32)
        tl.store(scratch.live + offset + live + tl.cumsum(matters, 0) - 1, block, matters != 0)
        live += tl.sum(matters, 0)
    tl.debug_barrier()  # other threads of this program read what was written
    return live


@triton.jit
def _decide_kernel(
    inputs, scratch, out_ptr, slot_count, logits_stride, vocabulary, chunks,
    TILE: tl.constexpr, CHUNKS_PAD: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One program: one row's token, to out [B] int64 and to its slot, one of slot_count.

    It reads TILE blocks at a time.
    """
    start_dependents(PDL)
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(inputs.slots + row).to(tl.int64)
    await_previous(PDL)
    token, logit = _best_chunk(
        scratch.score, scratch.token, scratch.logit, row, chunks, vocabulary, CHUNKS_PAD
    )
    if _asks(inputs, slot, vocabulary):
        temperature, min_p = tl.load(inputs.temperature + slot), tl.load(inputs.min_p + slot)
        top_p, top_k = tl.load(inputs.top_p + slot), tl.load(inputs.top_k + slot)
        limited = (top_k > 0) & (top_k < vocabulary)
        top_k = tl.where(limited, top_k, vocabulary)
        maxima = _column(scratch.largest, row, chunks, -float("inf"), CHUNKS_PAD)
        largest = tl.max(maxima, 0)
        # A chunk of -inf alone has the total 0, which must not meet exp(-inf - -inf).
        rescale = _weights(tl.where(maxima == -float("inf"), largest, maxima), largest, temperature)
        total = tl.sum(_column(scratch.total, row, chunks, 0.0, CHUNKS_PAD) * rescale, 0)
        allowed = tl.where(top_p < 1, top_p * total, float("inf"))  # off: rounding must not make it bite
        count = tl.sum(_column(scratch.above_count, row, chunks, 0, CHUNKS_PAD), 0)
        mass = tl.sum(_column(scratch.above_mass, row, chunks, 0.0, CHUNKS_PAD), 0)
        weight = tl.exp(tl.div_rn(logit, temperature) - tl.div_rn(largest, temperature))
        kept = (count == 0) | ((count < top_k) & (mass < allowed) & (weight >= min_p))
        if (kept == 0) | (limited & (top_p < 1) & (count > 0)):
            source = _source(inputs, row, slot, logits_stride, vocabulary)
            block_count = tl.cdiv(vocabulary, _BLOCK)
            # Above the pivot is all that can be kept and, with top-k, all of the k largest.
            pivot = tl.where(limited & (count < top_k), -float("inf"), logit)
            if limited:
                # A pivot that the maxima of k chunks, or k blocks, are above is below the k largest logits.
                least = tl.min(tl.where(tl.arange(0, CHUNKS_PAD) < chunks, maxima, float("inf")), 0)
                below = _value(tl.maximum(_key(least) - 1, _LOWEST))
                pivot = tl.where(chunks >= top_k, tl.maximum(pivot, below), pivot)
                blocks = scratch.block_largest + row * block_count, source[1], 1.0, block_count
                enough = tl.maximum(2 * top_k, TILE)
                pivot = _raised(
                    blocks, None, tl.cdiv(block_count, _BLOCK), pivot, largest, top_k, enough, TILE
                )
            live = _list_live(scratch, row, block_count, pivot, TILE)
            live_ptr = scratch.live + row * block_count
            if limited:
                pivot = _raised(source, live_ptr, live, pivot, largest, top_k, top_k, TILE)
                if top_p < 1:
                    _, total = _above(source, live_ptr, live, pivot, largest, temperature, TILE)
                    allowed = top_p * total
                    kept = kept & (mass < allowed)
            # The best above a candidate within the top k is known; one outside gives way to the best within.
            known = count < top_k
            pivot = tl.where(known, logit, pivot)
            next_token, next_logit = _best_chunk(
                scratch.next_score,
                scratch.next_token,
                scratch.next_logit,
                row,
                chunks,
                vocabulary,
                CHUNKS_PAD,
            )
            while kept == 0:
                if known == 0:
                    next_token, next_logit = _best_above(
                        inputs, source, row, slot, live_ptr, live, pivot, largest, temperature, min_p, TILE
                    )
                count, mass = _above(source, live_ptr, live, next_logit, largest, temperature, TILE)
                # With NaN or infinite logits there may be no next one: the loop must end.
                kept = (count == 0) | (mass < allowed) | ((next_logit > pivot) == 0)
                token, pivot, known = next_token, next_logit, False
    tl.store(out_ptr + row, token.to(tl.int64))
    tl.store(inputs.token + slot, token.to(tl.int64))
    tl.store(inputs.seen + slot * vocabulary + token, 1)
    position = tl.load(inputs.positions + row) + 1
    tl.store(inputs.drawn + position % _RECENT * slot_count + slot, token.to(tl.int64))


def triton_sample(
    logits: Tensor, slots: Tensor, positions: Tensor, state: SamplingState, chunk: int = 1024
) -> Tensor:
    """As `reference`, with the same noise bits.

    `chunk`, a power of two of at least 32, is how many tokens one program takes. No call here waits for the
    device, so that a CUDA graph can hold them.
    """
    rows, vocabulary = logits.shape
    device = logits.device
    chunks, blocks = triton.cdiv(vocabulary, chunk), triton.cdiv(vocabulary, _BLOCK_SIZE)

    def per(columns: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(rows, columns, dtype=dtype, device=device)

    scratch = _Scratch(
        score=per(chunks, torch.float32),
        token=per(chunks, torch.int32),
        logit=per(chunks, torch.float32),
        largest=per(chunks, torch.float32),
        total=per(chunks, torch.float32),
        above_count=per(chunks, torch.int32),
        above_mass=per(chunks, torch.float32),
        next_score=per(chunks, torch.float32),
        next_token=per(chunks, torch.int32),
        next_logit=per(chunks, torch.float32),
        block_largest=per(blocks, torch.float32),
        live=per(blocks, torch.int32),
    )
    inputs = _Inputs(
        logits=logits,
        slots=slots,
        positions=positions,
        temperature=state.temperature,
        top_k=state.top_k,
        top_p=state.top_p,
        min_p=state.min_p,
        repetition_penalty=state.repetition_penalty,
        seed=state.seed,
        token=state.token,
        seen=state.seen,
        drawn=state.drawn,
    )
    out = torch.empty(rows, dtype=torch.int64, device=device)
    shape = logits.stride(0), vocabulary
    size = chunk // _BLOCK_SIZE
    padded = triton.next_power_of_2(chunks)
    where = target(device)
    few, many = where.warps(128), where.warps(512)
    chain = where.chain(early=False)
    _candidate_kernel[(rows, chunks)](inputs, scratch, *shape, CHUNK=size, num_warps=few, **chain)
    each = 1 if rows <= gemv.MAX_ROWS else CHUNKS_EACH
    _above_kernel[(rows, triton.cdiv(chunks, each))](
        inputs, scratch, *shape, chunks, CHUNK=size, CHUNKS_PAD=padded, EACH=each, num_warps=few, **chain
    )
    _decide_kernel[(rows,)](
        inputs,
        scratch,
        out,
        len(state.token),
        *shape,
        chunks,
        TILE=4 * size,
        CHUNKS_PAD=padded,
        num_warps=many,
        **chain,
    )
    return out
