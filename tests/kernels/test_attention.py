"""Paged attention: writing the cache, prefill with FlashAttention 1 and 2, decoding with splits."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from lite_llama.kernels import PAGE_SIZE

# Whole prompts around the page boundaries, with an empty sequence between them.
PROMPTS = [(n, n) for n in (1, 15, 16, 0, 17, 33)]
# (new tokens, context): cached prefixes, a sequence with nothing new, and lengths beyond one tile.
CONTINUATIONS = [(1, 40), (17, 33), (0, 20), (40, 131)]
# What the interpreter has no time for.
LONG = [(31, 31), (32, 32), (1, 1000), (300, 300), (16, 32), (200, 1300)]


@dataclass
class Cache:
    """A paged cache, NaN wherever no token of the sequences lies, and its contents in plain tensors."""

    k: list[Tensor]
    v: list[Tensor]
    k_cache: Tensor
    v_cache: Tensor
    page_table: Tensor
    context_lens: Tensor


def fill_cache(column, contexts: list[int], heads: int, head_dim: int) -> Cache:
    """Random keys and values for each context, in shuffled pages; spare table entries name a page of NaN."""
    counts = [-(-context // PAGE_SIZE) for context in contexts]
    pages = column.permutation(sum(counts) + 1).tolist()
    spare = pages.pop()
    k_cache = column.randn(sum(counts) + 1, PAGE_SIZE, heads, head_dim) * torch.nan
    v_cache = k_cache.clone()
    page_table = torch.full((len(contexts), max(counts) + 3), spare, dtype=torch.int32)
    keys, values = [], []
    for sequence, context in enumerate(contexts):
        keys.append(column.randn(context, heads, head_dim))
        values.append(column.randn(context, heads, head_dim))
        for start in range(0, context, PAGE_SIZE):
            page, size = pages.pop(), min(PAGE_SIZE, context - start)
            page_table[sequence, start // PAGE_SIZE] = page
            k_cache[page, :size] = keys[-1][start : start + size]
            v_cache[page, :size] = values[-1][start : start + size]
    lengths = torch.tensor(contexts, dtype=torch.int32)
    return Cache(keys, values, k_cache, v_cache, page_table.to(column.device), lengths.to(column.device))


def exact_attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """q [L, Hq, D]: the last rows of the sequence k, v [S, Hk, D]; head by head in fp64, on their device."""
    q, k, v = q.double(), k.double(), v.double()
    out = torch.zeros_like(q)
    position = torch.arange(len(k), device=q.device)
    future = position[None, :] > position[len(k) - len(q) :, None]
    for head in range(q.shape[1]):
        kv_head = head * k.shape[1] // q.shape[1]
        scores = (q[:, head] @ k[:, kv_head].T * scale).masked_fill(future, -torch.inf)
        out[:, head] = scores.softmax(-1) @ v[:, kv_head]
    return out


@pytest.mark.parametrize("batch", [PROMPTS, CONTINUATIONS], ids=["prompts", "continuations"])
def test_prefill(column, prefill, shape, batch):
    q_heads, kv_heads, head_dim = shape
    if column.device.type == "cuda":
        batch = batch + LONG
    queries = [new for new, _ in batch]
    cache = fill_cache(column, [context for _, context in batch], kv_heads, head_dim)
    # q as the model cuts it from a fused row: strided.
    q = column.randn(sum(queries), (q_heads + 2 * kv_heads) * head_dim)[:, : q_heads * head_dim]
    q = q.unflatten(1, (q_heads, head_dim))
    starts = torch.tensor([0, *queries]).cumsum(0)
    out = column.ops.prefill_attention(
        q, cache.k_cache, cache.v_cache, cache.page_table, starts.int().to(column.device),
        cache.context_lens, max(queries), head_dim**-0.5,
    )  # fmt: skip
    exact = [
        exact_attention(rows, k, v, head_dim**-0.5)
        for rows, k, v in zip(q.split(queries), cache.k, cache.v, strict=True)
    ]
    column.check(out, torch.cat(exact))


DECODE_BATCHES = {
    "one": [300],
    "page-boundaries": [1, 15, 16, 17, 0, 31, 32, 33],
    "ragged": [0, 1, 129, 64, 0],
    "long": [2048, 3, 0, 1111, 4097],
}


@pytest.mark.parametrize("contexts", DECODE_BATCHES.values(), ids=DECODE_BATCHES.keys())
def test_decode(column, shape, contexts):
    q_heads, kv_heads, head_dim = shape
    if max(contexts) > 1000 and column.ops.name == "triton" and column.device.type == "cpu":
        pytest.skip("too long for the interpreter")
    cache = fill_cache(column, contexts, kv_heads, head_dim)
    q = column.randn(len(contexts), (q_heads + 2 * kv_heads) * head_dim)[:, : q_heads * head_dim]
    q = q.unflatten(1, (q_heads, head_dim))
    out = column.ops.decode_attention(
        q, cache.k_cache, cache.v_cache, cache.page_table, cache.context_lens, head_dim**-0.5
    )
    exact = torch.zeros_like(q, dtype=torch.float64)
    for sequence, context in enumerate(contexts):
        if context:
            row = slice(sequence, sequence + 1)
            exact[row] = exact_attention(q[row], cache.k[sequence], cache.v[sequence], head_dim**-0.5)
    column.check(out, exact)


def test_large_scores_do_not_overflow(column, prefill):
    """Scores of some hundreds: the softmax must subtract the maximum, in each of its steps."""
    cache = fill_cache(column, [80], 1, 64)
    cache.k_cache *= 20
    q = column.randn(80, 2, 64) * 20
    starts = torch.tensor([0, 80], dtype=torch.int32, device=column.device)
    paged = cache.k_cache, cache.v_cache, cache.page_table
    prefilled = column.ops.prefill_attention(q, *paged, starts, cache.context_lens, 80, 0.125)
    decoded = column.ops.decode_attention(q[-1:], *paged, cache.context_lens, 0.125)
    exact = exact_attention(q, cache.k[0] * 20, cache.v[0], 0.125)
    # The weights are nearly one-hot; rounded scores may move a near tie, so compare loosely.
    assert (prefilled - exact).abs().max() < 0.05
    assert (decoded - exact[-1:]).abs().max() < 0.05


def test_repeats_bit_for_bit(column, prefill):
    cache = fill_cache(column, [60, 7, 130], 2, 64)
    q = column.randn(45, 4, 64)
    starts = torch.tensor([0, 33, 40, 45], dtype=torch.int32, device=column.device)
    paged = cache.k_cache, cache.v_cache, cache.page_table
    prefilled, decoded = (
        [call() for _ in range(2)]
        for call in (
            lambda: column.ops.prefill_attention(q, *paged, starts, cache.context_lens, 33, 0.1),
            lambda: column.ops.decode_attention(q[:3], *paged, cache.context_lens, 0.1),
        )
    )
    assert torch.equal(*prefilled)
    assert torch.equal(*decoded)


def test_no_sequences(column, prefill):
    cache = fill_cache(column, [5], 2, 64)
    paged = cache.k_cache, cache.v_cache, cache.page_table[:0]
    q, starts = column.randn(0, 4, 64), cache.context_lens[:1] * 0
    assert column.ops.prefill_attention(q, *paged, starts, cache.context_lens[:0], 0, 0.1).shape == q.shape
    assert column.ops.decode_attention(q, *paged, cache.context_lens[:0], 0.1).shape == q.shape


def test_kv_write(column, shape):
    """Each row lands in its slot, around page boundaries, and nothing else is touched."""
    q_heads, heads, head_dim = shape
    fused = column.randn(11, (q_heads + 2 * heads) * head_dim).unflatten(1, (-1, head_dim))
    k, v = fused[:, q_heads : q_heads + heads], fused[:, q_heads + heads :]
    k_cache, v_cache = (
        column.randn(6, PAGE_SIZE, heads, head_dim),
        column.randn(6, PAGE_SIZE, heads, head_dim),
    )
    slots = torch.tensor([95, 0, 15, 16, 17, 31, 32, 33, 64, 63, 47], device=column.device)
    expected = k_cache.clone(), v_cache.clone()
    for row, slot in enumerate(slots.tolist()):
        expected[0][slot // PAGE_SIZE, slot % PAGE_SIZE] = k[row]
        expected[1][slot // PAGE_SIZE, slot % PAGE_SIZE] = v[row]
    column.ops.kv_write(k, v, k_cache, v_cache, slots)
    assert torch.equal(k_cache, expected[0])
    assert torch.equal(v_cache, expected[1])
    column.ops.kv_write(k[:0], v[:0], k_cache, v_cache, slots[:0])
    assert torch.equal(k_cache, expected[0])
