"""The sampler: its noise, its filters, its draws."""

import math

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
OFF = (0, 1.0, 0.0)  # top-k, top-p, min-p
SETTINGS = [OFF, (1, 1.0, 0.0), (7, 1.0, 0.0), (0, 0.9, 0.0), (0, 1e-6, 0.0), (0, 1.0, 0.05), (50, 0.8, 0.02)]
LARGE_POSITION = 3 * 2**32 + 5


def parameters(rows: list[tuple[float, tuple[int, float, float], int, int]], device: torch.device) -> dict:
    """`sample`'s arguments beside the logits, from (temperature, (top_k, top_p, min_p), seed, position)."""

    def tensor(values: list, dtype: torch.dtype) -> Tensor:
        return torch.tensor(values, dtype=dtype, device=device)

    return {
        "temperature": tensor([row[0] for row in rows], torch.float32),
        "top_k": tensor([row[1][0] for row in rows], torch.int32),
        "top_p": tensor([row[1][1] for row in rows], torch.float32),
        "min_p": tensor([row[1][2] for row in rows], torch.float32),
        "seed": tensor([row[2] for row in rows], torch.int64),
        "position": tensor([row[3] for row in rows], torch.int64),
    }


def candidates(logits: Tensor, temperature: float, setting: tuple[int, float, float]) -> Tensor:
    """Probabilities of one row after the filters, fp64, by walking down the sorted vocabulary."""
    top_k, top_p, min_p = setting
    probability = (logits.double() / temperature).softmax(-1)
    order = sorted(range(len(logits)), key=lambda token: -logits[token].item())
    if top_k:
        order = order[:top_k]
    total, mass, kept = probability[order].sum().item(), 0.0, []
    for token in order:
        share = probability[token].item() / total
        if mass >= top_p or share < min_p * probability[order[0]].item() / total:
            break
        kept.append(token)
        mass += share
    filtered = torch.zeros_like(probability)
    filtered[kept] = probability[kept]
    return filtered / filtered.sum()


def words_of(seed: int, position: int, vocabulary: int) -> Tensor:
    quads = torch.arange(-(-vocabulary // 4))
    words = sampling.token_words(torch.tensor([seed]), torch.tensor([position]), quads)
    return words.flatten()[:vocabulary]


@pytest.mark.parametrize(("counter", "key", "output"), KNOWN_ANSWERS)
def test_philox_known_answers(counter, key, output):
    words = [torch.tensor(int(word, 16)) for word in counter.split()]
    low, high = (int(word, 16) for word in key.split())
    seed = int.from_bytes((high << 32 | low).to_bytes(8), signed=True)
    assert [f"{word:08x}" for word in sampling.philox(torch.tensor(seed), *words).tolist()] == output.split()


@triton.jit
def _words_kernel(out_ptr, seed_ptr, position_ptr, start, COUNT: tl.constexpr):
    words = sampling.block_words(tl.load(seed_ptr), tl.load(position_ptr), start, COUNT)
    tl.store(out_ptr + tl.arange(0, COUNT), words.to(tl.int64))


@pytest.mark.parametrize("position", [0, 1, 2047, LARGE_POSITION])
@pytest.mark.parametrize("start", [0, 1024, 151552])
def test_triton_makes_the_same_words(fp32, position, start):
    if fp32.ops.name != "triton":
        pytest.skip("compares Triton with the reference")
    seed = fp32.randint(0, 2**63 - 1, 1)
    out = torch.empty(1024, dtype=torch.int64, device=fp32.device)
    _words_kernel[(1,)](out, seed, torch.tensor([position], device=fp32.device), start, COUNT=1024)
    assert torch.equal(out.cpu(), words_of(seed.item(), position, start + 1024)[start:])


def test_noise_is_finite_at_both_ends():
    noise = sampling.gumbel(torch.tensor([0, 2**32 - 1]))
    assert noise.isfinite().all()
    # u = 2^-24 and 1 - 2^-24
    assert noise.tolist() == pytest.approx([-math.log(24 * math.log(2)), 24 * math.log(2)], rel=1e-5)


@pytest.mark.parametrize("vocabulary", [1, 3, 1024, 4099])
def test_draws_are_those_of_the_noise(fp32, vocabulary):
    """Against fp64: every filter and temperature, large seeds and positions, greedy rows in between."""
    if fp32.device.type == "cuda":
        vocabulary *= 37  # up to 151,663: as large as Qwen's
    rows = [
        (temperature, setting, int(fp32.randint(0, 2**63 - 1, 1)), position)
        for setting in SETTINGS
        for temperature, position in ((0.0, 3), (0.6, 17), (1.7, LARGE_POSITION))
    ]
    logits = fp32.randn(len(rows), vocabulary) * 3
    drawn = fp32.ops.sample(logits, **parameters(rows, fp32.device))
    assert drawn.dtype == torch.int64
    for row, token, (temperature, setting, seed, position) in zip(
        logits.cpu(), drawn.tolist(), rows, strict=True
    ):
        if temperature == 0:
            assert token == row.argmax()
            continue
        u = ((words_of(seed, position, vocabulary) >> 9).double() + 0.5) / 2**23
        score = candidates(row, temperature, setting).log() - (-u.log()).log()
        # fp32 may swap two scores that are equal to its last digits, and only those.
        assert score.max() - score[token] < 1e-4


def test_greedy_takes_the_lowest_of_equal_logits(fp32):
    logits = torch.zeros(3, 5000, device=fp32.device)
    logits[0, [4999, 2047, 1024]] = 1
    logits[1, [3000, 1023, 1024]] = 1
    rows = parameters([(0.0, (50, 0.5, 0.5), 1, 1)] * 3, fp32.device)
    assert fp32.ops.sample(logits, **rows).tolist() == [1024, 1023, 0]


def test_a_row_does_not_depend_on_the_batch(fp32):
    rows = [(0.8, setting, seed, 40 + seed) for seed, setting in enumerate(SETTINGS)]
    logits = fp32.randn(len(rows), 3000) * 2
    together = fp32.ops.sample(logits, **parameters(rows, fp32.device)).tolist()
    alone = [
        fp32.ops.sample(logits[i : i + 1], **parameters([row], fp32.device)).item()
        for i, row in enumerate(rows)
    ]
    assert together == alone


def test_nan_logits_still_yield_a_token_of_the_vocabulary(fp32):
    logits = torch.full((2, 1500), torch.nan, device=fp32.device)
    drawn = fp32.ops.sample(logits, **parameters([(0.0, OFF, 1, 1), (1.0, OFF, 1, 1)], fp32.device))
    assert all(0 <= token < 1500 for token in drawn.tolist())


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("temperature", [0.6, 1.7])
def test_threshold_keeps_the_candidates(generator, setting, temperature):
    logits = torch.randn(4, 300, generator=generator) * 3
    rows = parameters([(temperature, setting, 0, 0)] * 4, torch.device("cpu"))
    lowest = sampling.candidate_threshold(
        logits, rows["temperature"], rows["top_k"], rows["top_p"], rows["min_p"]
    )
    top_k, top_p, min_p = setting
    for row, threshold in zip(logits, lowest, strict=True):
        kept = row >= threshold
        # Rounding may decide about a token that lies on the very edge.
        fewest = candidates(row, temperature, (top_k, top_p * (1 - 1e-6), min_p * (1 + 1e-6))) > 0
        most = candidates(row, temperature, (top_k, top_p * (1 + 1e-6), min_p * (1 - 1e-6))) > 0
        assert not (fewest & ~kept).any()
        assert not (kept & ~most).any()


def test_equal_logits_share_their_fate():
    rows = parameters([(1.0, (2, 1.0, 0.0), 0, 0)], torch.device("cpu"))
    logits = torch.tensor([[1.0, 3.0, 2.0, 2.0, 0.0]])
    threshold = sampling.candidate_threshold(
        logits, rows["temperature"], rows["top_k"], rows["top_p"], rows["min_p"]
    )
    assert threshold.tolist() == [2.0]


@pytest.mark.parametrize("vary", ["position", "seed"])
@pytest.mark.parametrize("setting", [OFF, (9, 0.9, 0.03)])
def test_draws_follow_the_distribution(generator, vary, setting):
    """Chi-square of 200,000 draws that differ in the position, or the seed, alone."""
    draws, vocabulary, temperature = 200_000, 21, 0.8
    logits = torch.rand(vocabulary, generator=generator) * 4  # near enough that several are candidates
    rows = parameters([(temperature, setting, 0, 0)], torch.device("cpu"))
    rows = {name: value.expand(draws) for name, value in rows.items()}
    start = int(torch.randint(0, 2**40, (1,), generator=generator))
    rows["seed" if vary == "position" else "position"] = torch.full((draws,), start)
    rows[vary] = start + torch.arange(draws)
    drawn = sampling.reference(logits.expand(draws, -1).contiguous(), **rows)
    probability = candidates(logits, temperature, setting)
    counts, expected = drawn.bincount(minlength=vocabulary), probability * draws
    possible = probability > 0
    assert counts[~possible].sum() == 0
    chi_square = ((counts - expected)[possible].square() / expected[possible]).sum().item()
    freedom = int(possible.sum()) - 1
    # Wilson and Hilferty's approximation of the quantile that a fair sampler passes once in 10^9 runs.
    limit = freedom * (1 - 2 / (9 * freedom) + 6 * math.sqrt(2 / (9 * freedom))) ** 3
    assert chi_square < limit
