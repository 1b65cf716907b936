"""Drawing the next token: temperature, top-k, top-p, min-p, and the Gumbel-max trick.

The noise of a token is a function of (seed, position, token id) alone: Philox 4x32-10 (Salmon et al. 2011,
doi:10.1145/2063384.2063405), keyed by the seed, whose counter is (token id // 4, position, 0) and whose four
outputs serve four neighbouring tokens. So what a request draws does not depend on the rest of the batch.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ._triton import tl, triton

_WORD = 0xFFFFFFFF
_ROUND_A, _ROUND_B = 0xD2511F53, 0xCD9E8D57
_KEY_A, _KEY_B = 0x9E3779B9, 0xBB67AE85


def reference(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    seed: Tensor,
    position: Tensor,
) -> Tensor:
    """logits [B, V] fp32, parameters [B] -> token ids [B] int64; temperature 0 is argmax.

    Noise is made only for the quads of neighbouring tokens in which some row has a candidate.
    """
    greedy = temperature == 0
    argmax = logits.argmax(-1)
    if bool(greedy.all()):
        return argmax
    lowest = candidate_threshold(logits, temperature, top_k, top_p, min_p)
    dropped = (logits < lowest[:, None]) | greedy[:, None]
    quads = F.pad(logits.masked_fill(dropped, -math.inf), (0, -logits.shape[1] % 4), value=-math.inf)
    quads = quads.view(len(logits), -1, 4)
    used = (quads != -math.inf).any(2).any(0).nonzero().squeeze(1)
    noise = gumbel(token_words(seed, position, used))
    scores = quads[:, used] / _divisor(temperature)[:, None, None] + noise
    best = scores.flatten(1).argmax(-1)
    return torch.where(greedy, argmax, used[best // 4] * 4 + best % 4)


def candidate_threshold(
    logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor
) -> Tensor:
    """The smallest logit of each row that top-k, top-p and min-p leave in, [B]; -inf if no row asks.

    All three keep the largest logits, so one threshold says it all, and equal logits share their fate.
    Asking costs a GPU one synchronisation; rows that ask cost a sort.
    """
    asks = (top_k > 0) | (top_p < 1) | (min_p > 0)
    if not bool((asks & (temperature > 0)).any()):
        return torch.full_like(temperature, -math.inf)
    ordered = logits.sort(-1, descending=True).values
    vocabulary = logits.shape[1]
    k = torch.where(top_k > 0, top_k, vocabulary).clamp(max=vocabulary).long()
    within_k = ordered >= ordered.gather(1, k[:, None] - 1)
    scaled = ordered / _divisor(temperature)[:, None]
    probability = scaled.masked_fill(~within_k, -math.inf).softmax(-1)
    mass_before = probability.cumsum(-1) - probability
    # Rounding must not make top-p bite where it is off.
    mass_allowed = torch.where(top_p < 1, top_p, math.inf)
    kept = within_k & (mass_before < mass_allowed[:, None])
    kept &= probability >= min_p[:, None] * probability[:, :1]
    return ordered.gather(1, kept.sum(-1, keepdim=True) - 1).squeeze(1)


def _divisor(temperature: Tensor) -> Tensor:
    """The temperature, or 1 where it is 0: those rows are greedy and their scores unused."""
    return torch.where(temperature > 0, temperature, 1.0)


def philox(seed: Tensor, c0: Tensor, c1: Tensor, c2: Tensor, c3: Tensor) -> Tensor:
    """Philox 4x32-10: 64-bit keys and counters of four words -> four words in [0, 2^32), [..., 4].

    All are int64 tensors that broadcast. The 64-bit products wrap around as signed numbers; masking makes
    their halves right again.
    """
    k0, k1 = seed & _WORD, seed >> 32 & _WORD
    for _ in range(10):
        a, b = c0 * _ROUND_A, c2 * _ROUND_B
        c0, c1 = (b >> 32 & _WORD) ^ c1 ^ k0, b & _WORD
        c2, c3 = (a >> 32 & _WORD) ^ c3 ^ k1, a & _WORD
        k0, k1 = k0 + _KEY_A & _WORD, k1 + _KEY_B & _WORD
    return torch.stack(torch.broadcast_tensors(c0, c1, c2, c3), -1)


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


@triton.jit
def block_words(seed, position, start, COUNT: tl.constexpr):
    """The random words of the tokens start : start + COUNT (multiples of 4), [COUNT] uint32."""
    quad = (start // 4 + tl.arange(0, COUNT // 4)).to(tl.uint32)
    zero = tl.zeros_like(quad)
    low, high = zero + position.to(tl.uint32), zero + (position >> 32).to(tl.uint32)
    r0, r1, r2, r3 = tl.philox(seed, quad, low, high, zero)
    return tl.interleave(tl.interleave(r0, r2), tl.interleave(r1, r3))


@triton.jit
def _block_kernel(
    logits_ptr, temperature_ptr, lowest_ptr, seed_ptr, position_ptr, best_ptr, best_id_ptr,
    vocabulary, logits_stride, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program (row, block): the best score among BLOCK tokens of one row, and whose it is.

    logits [B, V] with row stride logits_stride; temperature, lowest (fp32), seed, position (int64) [B];
    best (fp32) and best_id (int32) [B, blocks]. Greedy rows score their plain logits.
    """
    row, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    token = block * BLOCK + tl.arange(0, BLOCK)
    logits = tl.load(logits_ptr + row * logits_stride + token, token < vocabulary, other=-float("inf"))
    temperature = tl.load(temperature_ptr + row)
    score = logits
    if temperature > 0:
        words = block_words(tl.load(seed_ptr + row), tl.load(position_ptr + row), block * BLOCK, BLOCK)
        u = ((words >> 9).to(tl.float32) + 0.5) * (1.0 / 8388608)
        noise = -tl.log(-tl.log(u))
        score = tl.div_rn(logits, tl.zeros_like(logits) + temperature) + noise
        score = tl.where(logits >= tl.load(lowest_ptr + row), score, -float("inf"))
    best, index = tl.max(score, 0, return_indices=True)
    result = row * tl.num_programs(1) + block
    tl.store(best_ptr + result, best)
    tl.store(best_id_ptr + result, block * BLOCK + index)


@triton.jit
def _row_kernel(best_ptr, best_id_ptr, out_ptr, vocabulary, blocks, BLOCKS_PAD: tl.constexpr):
    """One program: one row's best block [B, blocks] -> its token id, out [B] int64. BLOCKS_PAD >= blocks."""
    row = tl.program_id(0).to(tl.int64)
    block = tl.arange(0, BLOCKS_PAD)
    best = tl.load(best_ptr + row * blocks + block, block < blocks, other=-float("inf"))
    winner = tl.minimum(tl.argmax(best, 0), blocks - 1)
    token = tl.load(best_id_ptr + row * blocks + winner)
    # Where logits are NaN no comparison holds: the id must still be one of the vocabulary.
    tl.store(out_ptr + row, tl.minimum(token, vocabulary - 1).to(tl.int64))


def triton_sample(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    seed: Tensor,
    position: Tensor,
) -> Tensor:
    """As `reference`, with the same noise bits; the threshold is still found with PyTorch."""
    rows, vocabulary = logits.shape
    lowest = candidate_threshold(logits, temperature, top_k, top_p, min_p)
    size = 1024
    blocks = triton.cdiv(vocabulary, size)
    best = logits.new_empty(rows, blocks)
    best_id = logits.new_empty((rows, blocks), dtype=torch.int32)
    out = logits.new_empty(rows, dtype=torch.int64)
    _block_kernel[(rows, blocks)](
        logits, temperature, lowest, seed, position, best, best_id, vocabulary, logits.stride(0), BLOCK=size
    )
    _row_kernel[(rows,)](best, best_id, out, vocabulary, blocks, BLOCKS_PAD=triton.next_power_of_2(blocks))
    return out
