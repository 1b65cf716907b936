"""The sampler: its noise, its filters, its draws, its state.

Draws are compared with fp64. Where a token lies on the very edge of a filter (within 1e-6 of it), rounding
may decide, and either fate is accepted; so it is where two scores are equal to fp32's last digits.
"""

import math
from functools import partial
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from lite_llama.kernels import sampling
from lite_llama.kernels._triton import tl, triton

# Salmon et al.'s test vectors of Philox 4x32-10: counter, key, output.
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]
LARGE_POSITION = 3 * 2**32 + 5
EDGE = 1e-6


class Row(NamedTuple):
    """One row's parameters; `position` is that of the token drawn."""

    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 1
    position: int = 9


FILTERS = [
    {},
    {"top_k": 1},
    {"top_k": 7},
    {"top_k": 250},
    {"top_p": 0.9},
    {"top_p": 0.2},
    {"top_p": 1e-6},
    {"min_p": 0.05},
    {"top_k": 20, "top_p": 0.95},
    {"top_k": 200, "top_p": 0.4},
    {"top_k": 50, "top_p": 0.8, "min_p": 0.02},
    {"top_k": 10**6, "top_p": 0.99, "min_p": 0.3},
]
LOGITS = {
    "random": lambda column, *shape: column.randn(*shape) * 3,
    "flat": lambda column, *shape: column.randn(*shape) * 0.1,
    "peaked": lambda column, *shape: column.randn(*shape).mul(2).exp(),
    "tied": lambda column, *shape: column.randint(-2, 3, *shape).float(),
}


def sampler(column):
    """The column's `sample`; interpreted, in chunks so small that a small vocabulary has several."""
    if column.ops.name == "reference":
        return sampling.reference
    return (
        partial(sampling.triton_sample, chunk=64) if column.device.type == "cpu" else sampling.triton_sample
    )


def state_of(rows: list[Row], vocabulary: int, device: torch.device) -> sampling.SamplingState:
    """Row i in slot i, and the dummy slot."""
    state = sampling.SamplingState.allocate(len(rows) + 1, vocabulary, device)
    for slot, row in enumerate(rows):
        for name, value in row._asdict().items():
            if name != "position":
                getattr(state, name)[slot] = value
    return state


def draw(column, logits: Tensor, rows: list[Row], state: sampling.SamplingState | None = None) -> list[int]:
    """The tokens drawn from logits [B, V] for `rows`, which are those of the slots 0 ... B - 1."""
    state = state or state_of(rows, logits.shape[1], column.device)
    slots = torch.arange(len(rows), dtype=torch.int32, device=column.device)
    positions = torch.tensor([row.position - 1 for row in rows], device=column.device)
    return sampler(column)(logits, slots, positions, state).tolist()


def words_of(seed: int, position: int, vocabulary: int, device: torch.device | str = "cpu") -> Tensor:
    quads = torch.arange(-(-vocabulary // 4), device=device)
    words = sampling.token_words(quads.new_tensor([seed]), quads.new_tensor([position]), quads)
    return words.flatten()[:vocabulary]


def scores_of(logits: Tensor, row: Row) -> Tensor:
    """logit / temperature, which fp32 rounds, plus the noise; fp64."""
    u = ((words_of(row.seed, row.position, len(logits), logits.device) >> 9).double() + 0.5) / 2**23
    return (logits / logits.new_tensor(row.temperature)).double() - (-u.log()).log()


def kept(logits: Tensor, row: Row, edge: float) -> Tensor:
    """Which of the logits [V] the filters leave in, each of them widened by the share `edge`."""
    top_p, min_p = torch.tensor(row.top_p).item(), torch.tensor(row.min_p).item()  # rounded to fp32
    scaled = (logits / logits.new_tensor(row.temperature)).double()
    weight = (scaled - scaled.max()).exp()
    ordered, order = logits.sort(descending=True)
    count_above = torch.searchsorted(-ordered, -logits)
    mass_above = torch.cat([weight.new_zeros(1), weight[order].cumsum(0)])[count_above]
    within_k = count_above < (row.top_k or len(logits))
    within_p = mass_above < top_p * (1 + edge) * weight[within_k].sum()
    return within_k & (within_p | (top_p == 1)) & (weight >= min_p * (1 - edge))


def assert_drawn(token: int, logits: Tensor, row: Row) -> None:
    """`token` is the draw from logits [V] fp32."""
    if row.temperature == 0:
        assert token == (logits == logits.max()).nonzero()[0]
        return
    assert kept(logits, row, EDGE)[token], row
    scores = scores_of(logits, row)
    assert scores[kept(logits, row, -EDGE)].max() - scores[token] < 1e-4, row


@pytest.mark.parametrize(("counter", "key", "output"), KNOWN_ANSWERS)
def test_philox_known_answers(counter, key, output):
    words = [torch.tensor(int(word, 16)) for word in counter.split()]
    low, high = (int(word, 16) for word in key.split())
    seed = int.from_bytes((high << 32 | low).to_bytes(8), signed=True)
    assert [f"{word:08x}" for word in sampling.philox(torch.tensor(seed), *words).tolist()] == output.split()


@triton.jit
def _words_kernel(out_ptr, seed_ptr, position_ptr, first_block, BLOCKS: tl.constexpr):
    blocks = first_block + tl.arange(0, BLOCKS)
    words = sampling.block_words(tl.load(seed_ptr), tl.load(position_ptr), blocks)
    tl.store(out_ptr + tl.arange(0, BLOCKS * 32), tl.ravel(words).to(tl.int64))


@pytest.mark.parametrize("position", [0, 1, 2047, LARGE_POSITION])
@pytest.mark.parametrize("first_block", [0, 4736])
def test_triton_makes_the_same_words(fp32, position, first_block):
    if fp32.ops.name != "triton":
        pytest.skip("compares Triton with the reference")
    seed = fp32.randint(0, 2**63 - 1, 1)
    out = torch.empty(1024, dtype=torch.int64, device=fp32.device)
    _words_kernel[(1,)](out, seed, torch.tensor([position], device=fp32.device), first_block, BLOCKS=32)
    start = first_block * 32
    assert torch.equal(out.cpu(), words_of(seed.item(), position, start + 1024)[start:])


def test_noise_is_finite_at_both_ends():
    noise = sampling.gumbel(torch.tensor([0, 2**32 - 1]))
    # u = 2^-24 and 1 - 2^-24
    assert noise.tolist() == pytest.approx([-math.log(24 * math.log(2)), 24 * math.log(2)], rel=1e-5)


@pytest.mark.parametrize("kind", LOGITS)
def test_draws_are_those_of_the_noise(fp32, kind):
    """Every filter, over logits that make few or many rounds, at large seeds and positions."""
    vocabularies, temperatures = [5, 384, 4099], [0.3, 0.8, 1.7]
    if fp32.device.type == "cuda":
        vocabularies = [5, 384, 32000, 49152, 128256, 151936]
    elif fp32.ops.name == "triton":
        vocabularies, temperatures = [270], [0.8]
    for vocabulary in vocabularies:
        rows = [
            Row(temperature, **filters, seed=int(fp32.randint(0, 2**63 - 1, 1)), position=position)
            for filters in FILTERS
            for temperature, position in zip(temperatures, (17, LARGE_POSITION, 2**32), strict=False)
        ]
        logits = LOGITS[kind](fp32, len(rows), vocabulary)
        for token, row, values in zip(draw(fp32, logits, rows), rows, logits, strict=True):
            assert_drawn(token, values, row)


@pytest.mark.parametrize(
    "filters",
    [
        {"top_k": 40, "top_p": 0.5},
        {"top_k": 12, "top_p": 0.4},
        {"top_p": 0.3, "min_p": 0.2},
        {"min_p": 0.6},
        {"top_k": 30, "top_p": 0.9, "min_p": 0.4},
    ],
)
def test_draws_that_take_several_rounds(fp32, filters):
    """Filters of which each drops much of what the others leave, at many seeds."""
    vocabulary, draws = (49152, 64) if fp32.device.type == "cuda" else (60, 8)
    rows = [Row(**filters, seed=seed) for seed in fp32.randint(0, 2**63 - 1, draws).tolist()]
    logits = fp32.randn(draws, vocabulary) * 0.7
    for token, row, values in zip(draw(fp32, logits, rows), rows, logits, strict=True):
        assert_drawn(token, values, row)


def test_greedy_takes_the_lowest_of_equal_logits(fp32):
    logits = torch.zeros(3, 330, device=fp32.device)
    logits[0, [329, 200, 64]] = 1
    logits[1, [300, 63, 64]] = 1
    rows = [Row(temperature=0, top_k=50, top_p=0.5, min_p=0.5)] * 3
    assert draw(fp32, logits, rows) == [64, 63, 0]


def test_seen_tokens_are_penalised_before_all_else(fp32):
    rows = [
        Row(repetition_penalty=1.3, temperature=0),
        Row(repetition_penalty=0.5, top_p=0.7),
        Row(repetition_penalty=3, top_k=3),
    ]
    logits = fp32.randn(3, 200) * 4
    state = state_of(rows, 200, fp32.device)
    largest = logits.topk(4).indices
    seen = torch.zeros(3, 200, dtype=torch.bool, device=fp32.device).scatter_(1, largest, True)
    seen |= fp32.randn(3, 200) > 0.5
    state.seen[:3] = seen
    state.seen[3] = 1  # another slot's
    drawn = draw(fp32, logits, rows, state)
    penalty = state.repetition_penalty[:3, None]
    penalised = torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)
    for token, row, values in zip(drawn, rows, penalised, strict=True):
        assert_drawn(token, values, row)


def test_what_is_drawn_is_kept_in_the_slot(fp32):
    """Rows may come in any order, padded rows share the last slot, and no other slot changes."""
    rows = [Row(seed=slot) for slot in range(5)]
    state = state_of(rows, 100, fp32.device)
    state.token.fill_(-1)
    state.drawn.fill_(-1)
    logits = fp32.randn(4, 100)
    before = logits.clone()
    slots = torch.tensor([3, 1, 5, 5], dtype=torch.int32, device=fp32.device)
    positions = torch.tensor([8, 8, 8, 8], device=fp32.device)
    drawn = sampler(fp32)(logits, slots, positions, state)
    assert drawn.dtype == torch.int64
    assert torch.equal(logits, before)
    assert_drawn(int(drawn[0]), logits[0], rows[3])
    assert_drawn(int(drawn[1]), logits[1], rows[1])
    assert state.token.tolist() == [-1, drawn[1], -1, drawn[0], -1, state.token[5]]
    assert state.token[5] in drawn[2:]
    if fp32.device.type == "cuda":
        torch.cuda.synchronize()
    recent = {(1, 3): drawn[:1], (1, 1): drawn[1:2], (1, 5): drawn[2:]}  # position 9, on the host
    for place in (state.drawn != -1).nonzero().tolist():
        assert state.drawn[tuple(place)] in recent.pop(tuple(place)).cpu()
    assert not recent
    marked = {tuple(pair) for pair in state.seen.nonzero().tolist()}
    assert marked == set(zip(slots.tolist(), drawn.tolist(), strict=True))


def test_a_row_does_not_depend_on_the_batch(fp32):
    few = fp32.ops.name == "triton" and fp32.device.type == "cpu"
    filters = FILTERS[2::4] if few else FILTERS * 4
    rows = [Row(**filters, seed=seed, position=40 + seed) for seed, filters in enumerate(filters)]
    logits = fp32.randn(len(rows), 300 if few else 49152) * 2
    alone = [draw(fp32, logits[i : i + 1], [row])[0] for i, row in enumerate(rows)]
    assert draw(fp32, logits, rows) == alone


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter's, for NaN
@pytest.mark.parametrize("filters", [{}, {"top_k": 3, "top_p": 0.9}, {"top_p": 0.5, "min_p": 0.1}])
def test_no_logits_lead_out_of_the_vocabulary(fp32, filters):
    """NaN and infinities: what is drawn means nothing, but the next step must be able to look it up."""
    logits = fp32.randn(4, 150)
    logits[0] = torch.nan
    logits[1, 10:140] = torch.nan
    logits[2, 5:9] = torch.inf
    logits[3, 1:] = -torch.inf
    rows = [Row(**filters)] * 4
    drawn = draw(fp32, logits, rows)
    assert all(0 <= token < 150 for token in drawn)
    assert drawn[3] == 0


@pytest.mark.parametrize("vary", ["position", "seed"])
@pytest.mark.parametrize("filters", [{}, {"top_k": 9, "top_p": 0.9, "min_p": 0.03}])
def test_draws_follow_the_distribution(fp32, vary, filters):
    """Chi-square of many draws that differ in the position, or the seed, alone."""
    if fp32.ops.name == "triton" and fp32.device.type == "cpu":
        pytest.skip("too many draws for the interpreter")
    draws, vocabulary = 200_000 if fp32.device.type == "cuda" or not filters else 10_000, 21
    logits = fp32.randn(vocabulary)
    start = int(fp32.randint(0, 2**40, 1))
    row = Row(**filters, seed=start, position=start)
    state = state_of([row], vocabulary, fp32.device)
    rows = torch.arange(draws, device=fp32.device)
    slots, positions = torch.zeros_like(rows), start + rows
    if vary == "seed":
        one, state = state, sampling.SamplingState.allocate(draws, vocabulary, fp32.device)
        for name in ("temperature", "top_k", "top_p", "min_p"):
            getattr(state, name).copy_(getattr(one, name)[0])
        state.seed.copy_(positions)
        slots, positions = rows, torch.full_like(rows, start)
    drawn = sampler(fp32)(logits.expand(draws, -1).contiguous(), slots.int(), positions, state)
    counts, logits = drawn.bincount(minlength=vocabulary).cpu(), logits.cpu()
    possible = kept(logits, row, 0)
    assert counts[~possible].sum() == 0
    expected = (logits[possible].double() / row.temperature).softmax(0) * draws
    chi_square = ((counts[possible] - expected).square() / expected).sum().item()
    freedom = int(possible.sum()) - 1
    # Wilson and Hilferty's approximation of the quantile that a fair sampler passes once in 10^9 runs.
    limit = freedom * (1 - 2 / (9 * freedom) + 6 * math.sqrt(2 / (9 * freedom))) ** 3
    assert chi_square < limit


def test_a_graph_draws_as_the_launches_do(fp32):
    """Capture fails where a call waits for the device."""
    if fp32.device.type != "cuda":
        pytest.skip("needs a GPU")
    rows = [Row(**filters, seed=seed) for seed, filters in enumerate(FILTERS)]
    state = state_of(rows, 128256, fp32.device)
    slots = torch.arange(len(rows), dtype=torch.int32, device=fp32.device)
    logits, positions = fp32.randn(len(rows), 128256), torch.zeros_like(slots).long()
    sampling.triton_sample(logits, slots, positions, state)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        drawn = sampling.triton_sample(logits, slots, positions, state)
    for position in range(3):
        logits.copy_(fp32.randn(*logits.shape) * 3)
        positions.fill_(position)
        graph.replay()
        assert torch.equal(drawn, sampling.triton_sample(logits, slots, positions, state))
