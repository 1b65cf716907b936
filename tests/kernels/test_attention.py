"""Paged attention: writing the cache, prefill with FlashAttention 1 and 2, decoding in steps and in one."""

from dataclasses import dataclass
from functools import partial

import pytest
import torch
from torch import Tensor

from lite_llama.kernels import PAGE_SIZE, cpu_attention, decode_attention, flash_decoding, rope
from lite_llama.kernels.operators import Operators, triton_operators

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


def flash_decode(column):
    """Flash-Decoding in steps of its own, in the column's version."""
    if column.ops.name == "reference":
        return flash_decoding.reference
    return flash_decoding.triton_flash_decoding


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
    out = flash_decode(column)(
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
    decoded = flash_decode(column)(q[-1:], *paged, cache.context_lens, 0.125)
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
            lambda: flash_decode(column)(q[:3], *paged, cache.context_lens, 0.1),
        )
    )
    assert torch.equal(*prefilled)
    assert torch.equal(*decoded)


def test_no_sequences(column, prefill):
    cache = fill_cache(column, [5], 2, 64)
    paged = cache.k_cache, cache.v_cache, cache.page_table[:0]
    q, starts = column.randn(0, 4, 64), cache.context_lens[:1] * 0
    assert column.ops.prefill_attention(q, *paged, starts, cache.context_lens[:0], 0, 0.1).shape == q.shape
    assert flash_decode(column)(q, *paged, cache.context_lens[:0], 0.1).shape == q.shape


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


# Positions of the new token: no context, page and split boundaries, several splits.
POSITIONS = {"short": [0, 15, 16, 63], "splits": [64, 0, 130], "one": [70]}
LONG_POSITIONS = {"long": [2047, 4096, 5, 8191, 300], "longer": [20000]}


@pytest.fixture
def angles(column) -> tuple[Tensor, Tensor]:
    """Random cos and sin for the largest position and head of the tests, cut to size by the callers."""
    return column.randn(20001, 128).float(), column.randn(20001, 128).float()


def exact_heads(x: Tensor, weight: Tensor | None, cos: Tensor, sin: Tensor, eps: float) -> Tensor:
    """x [B, H, D] normalised (with a weight) and turned by cos, sin [B, D/2], in fp64."""
    x = x.double()
    if weight is not None:
        x = x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight.double()
    first, second = x.chunk(2, -1)
    cos, sin = cos.double()[:, None], sin.double()[:, None]
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)


def paged(column, positions: list[int], heads: int, head_dim: int) -> tuple[Cache, Tensor, Tensor]:
    """A cache with room for the new tokens, its page table's rows shuffled among slots, and these slots."""
    cache = fill_cache(column, [position + 1 for position in positions], heads, head_dim)
    slots = column.permutation(len(positions) + 2)[: len(positions)]
    table = torch.zeros(
        len(positions) + 2, cache.page_table.shape[1], dtype=torch.int32, device=column.device
    )
    table[slots] = cache.page_table
    return cache, table, slots.int()


@pytest.mark.parametrize(("parts", "qk_norm"), [(1, False), (3, True)])
@pytest.mark.parametrize("positions", [*POSITIONS, *LONG_POSITIONS])
def test_decode_step(column, shape, positions, parts, qk_norm, angles):
    wanted = (POSITIONS | LONG_POSITIONS)[positions]
    q_heads, kv_heads, head_dim = shape
    if column.device.type == "cpu" and positions in LONG_POSITIONS:
        pytest.skip("too long for the interpreter")
    cache, table, slots = paged(column, wanted, kv_heads, head_dim)
    cos, sin = (table[:, : head_dim // 2].contiguous() for table in angles)
    # Partial sums whose total is exact in the dtype, so that only the kernel's own rounding shows.
    total = column.randn(len(wanted), (q_heads + 2 * kv_heads) * head_dim)
    qkv = torch.stack([total.float() / 4, total.float() / 4, total.float() / 2]) if parts > 1 else total[None]
    norms = (column.randn(head_dim), column.randn(head_dim)) if qk_norm else (None, None)
    where = torch.tensor(wanted, device=column.device)
    before = cache.k_cache.clone(), cache.v_cache.clone()
    scale = 0.5 * head_dim**-0.5
    out = column.ops.decode_attention(
        qkv, where, slots, table, cos, sin, cache.k_cache, cache.v_cache, q_heads, scale, *norms
    )
    heads = total.view(len(wanted), -1, head_dim)
    q, k, v = heads.split((q_heads, kv_heads, kv_heads), 1)
    # Queries rounded as the specification says, twice with norms: a large score shows every rounding.
    rounded, _ = rope.reference(q, k, where, cos, sin, *norms, 1e-6)
    k = exact_heads(k, norms[1], cos[where], sin[where], 1e-6)
    for row, position in enumerate(wanted):
        page = table[slots[row].long(), position // PAGE_SIZE].long()
        written = cache.k_cache[page, position % PAGE_SIZE]
        column.check(written, k[row].to(column.dtype).double())
        assert torch.equal(cache.v_cache[page, position % PAGE_SIZE], v[row])
        # From here on the rounded keys and queries count: attention is checked, not rope again.
        keys = torch.cat((cache.k[row][:position], written[None]))
        values = torch.cat((cache.v[row][:position], v[row][None]))
        exact = exact_attention(rounded[row, None], keys, values, scale)
        column.check_sum(out[row].view(q_heads, head_dim), exact[0])
        for cached, old in zip((cache.k_cache, cache.v_cache), before, strict=True):
            old[page, position % PAGE_SIZE] = cached[page, position % PAGE_SIZE]
    for cached, old in zip((cache.k_cache, cache.v_cache), before, strict=True):
        assert torch.equal(cached.nan_to_num(), old.nan_to_num())  # nothing else was written


@pytest.mark.parametrize("pages", [[3, 4, 5], [5, 3, 4], [3, 4, 6]])
def test_a_cpu_reads_neighbouring_and_scattered_pages(generator, pages):
    """Whether a page table names one run of pages or others, in the first layer of a step and the next."""
    angles = torch.randn(2, 64, 8, generator=generator)
    positions, slots = torch.tensor([2 * PAGE_SIZE + 5]), torch.tensor([1], dtype=torch.int32)
    table = torch.tensor([[7, 7, 7, 7], [*pages, 0]], dtype=torch.int32)
    memo = {}
    for _ in range(2):
        caches = torch.randn(2, 8, PAGE_SIZE, 2, 16, generator=generator)
        qkv = torch.randn(1, 1, 8 * 16, generator=generator)
        results = []
        for attend in (partial(cpu_attention.decode, memo=memo), decode_attention.reference):
            k_cache, v_cache = caches.clone()
            out = attend(qkv, positions, slots, table, angles[0], angles[1], k_cache, v_cache, 4, 0.25)
            results.append((out, k_cache, v_cache))
        for ours, expected in zip(*results, strict=True):
            torch.testing.assert_close(ours, expected)


def test_decode_step_of_a_sequence_does_not_depend_on_the_batch(column, angles):
    """Bit for bit, and the scratch memory is as it was: the launch can be repeated."""
    positions = [70, 3, 15, 64] if column.device.type == "cpu" else [5000, 3, 700, 16000] + 60 * [90]
    cache, table, slots = paged(column, positions, 2, 64)
    cos, sin = (table[:, :32].contiguous() for table in angles)
    qkv = column.randn(1, len(positions), (8 + 4) * 64)
    where = torch.tensor(positions, device=column.device)

    ops = column.ops
    if invariant := ops.name == "triton":
        ops = triton_operators(batch_invariant=True)

    def attend(rows: slice, ops: Operators = ops) -> Tensor:
        return ops.decode_attention(
            qkv[:, rows].contiguous(), where[rows], slots[rows], table, cos, sin,
            cache.k_cache, cache.v_cache, 8, 0.1,
        )  # fmt: skip

    together = attend(slice(None))
    assert torch.equal(attend(slice(None)), together)
    if not invariant:
        return  # PyTorch's sums depend on the padding
    few = attend(slice(4), column.ops)
    for rows in (slice(0, 1), slice(1, 3), slice(3, 4), slice(2, 4)):
        assert torch.equal(attend(rows), together[rows])
        assert torch.equal(attend(rows, column.ops), few[rows])
    for scratch in decode_attention._scratch.values():
        assert not scratch.arrived.any()
