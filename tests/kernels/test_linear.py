"""The linear layers fused with their neighbours, for every number of tokens that has a path of its own."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lite_llama.kernels import Hidden, gemm, linear, tiles
from lite_llama.kernels._triton import target
from lite_llama.kernels.operators import triton_operators

EPS = 1e-5
ROWS = [1, 2, 17, 64, 65]
# (hidden, intermediate): no powers of two; real ones where there is a GPU for them
SIZES = [(96, 136)]
GPU_SIZES = [
    (2048, 8192),  # Llama-3.2-1B
    (3072, 8192),  # Llama-3.2-3B
    (4096, 14336),  # Llama-3.1-8B
    (896, 4864),  # Qwen2.5-0.5B
    (1536, 8960),  # Qwen2.5-1.5B
    (2048, 11008),  # Qwen2.5-3B
    (3584, 18944),  # Qwen2.5-7B
    (1024, 3072),  # Qwen3-0.6B
    (2048, 6144),  # Qwen3-1.7B
    (2560, 9728),  # Qwen3-4B
    (4096, 12288),  # Qwen3-8B
    (576, 1536),  # SmolLM2-135M
]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Real shapes where there is a GPU for them."""
    if "size" in metafunc.fixturenames:
        gpu = [pytest.param(size, marks=pytest.mark.gpu) for size in GPU_SIZES]
        metafunc.parametrize("size", [*SIZES, *gpu], ids=lambda size: f"{size[0]}x{size[1]}")


@pytest.fixture(params=ROWS)
def rows(request, column, size) -> int:
    on_gpu = column.device.type == "cuda"
    if (size in SIZES) == on_gpu:
        pytest.skip("small sizes are for the CPU, real ones for the GPU")
    if on_gpu and column.dtype != torch.bfloat16 and size != (896, 4864):
        pytest.skip("every size in bf16, one in each dtype")
    if not on_gpu and request.param in (2, 64):
        pytest.skip("the same path as 17 tokens, slow to interpret")
    return request.param


def exact_norm(hidden: Hidden, weight: Tensor) -> Tensor:
    x = hidden.stream.double()
    return x / (x.square().mean(-1, keepdim=True) + EPS).sqrt() * weight.double()


def exact_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.linear(x.double(), weight.double(), None if bias is None else bias.double())


def weights(column, outputs: int, inputs: int) -> tuple[Tensor, Tensor | None]:
    """A weight whose products keep the inputs' size; a bias for some shapes."""
    bias = column.randn(outputs) if inputs % 1024 else None
    return column.randn(outputs, inputs) * inputs**-0.5, bias


def test_norm_linear(column, size, rows):
    hidden, _ = size
    weight, bias = weights(column, hidden + 40, hidden)
    norm, stream = column.randn(hidden), Hidden(column.randn(rows, hidden))
    out = column.ops.linear.norm_linear(stream, norm, EPS, weight, bias)
    expected = exact_linear(exact_norm(stream, norm), weight, bias)
    column.check_sum(out.sum(0), expected)


def test_linear_add_and_the_norm_after_it(column, size, rows):
    hidden, wide = size
    weight, bias = weights(column, hidden, wide)
    stream, x, norm = Hidden(column.randn(rows, hidden)), column.randn(rows, wide), column.randn(hidden)
    out = column.ops.linear.linear_add(x, weight, bias, stream, norm, EPS)
    expected = exact_linear(x, weight, bias) + stream.stream.double()
    column.check_sum(out.stream, expected)
    if out.normed is not None:
        column.check(out.normed, exact_norm(out, norm))


def test_norm_gate_up(column, size, rows):
    hidden, wide = size
    weight, bias = weights(column, 2 * wide, hidden)
    norm, stream = column.randn(hidden), Hidden(column.randn(rows, hidden))
    out = column.ops.linear.norm_gate_up(stream, norm, EPS, weight, bias)
    gate, up = exact_linear(exact_norm(stream, norm), weight, bias).chunk(2, -1)
    column.check_sum(out, F.silu(gate) * up)


def test_norm_logits(column, size, rows):
    hidden, _ = size
    weight, _ = weights(column, 203, hidden)
    norm, stream = column.randn(hidden), Hidden(column.randn(rows, hidden))
    out = column.ops.linear.norm_logits(stream, norm, EPS, weight)
    assert out.dtype == torch.float32
    column.check_sum(out, exact_linear(exact_norm(stream, norm), weight, None))


def test_a_normed_stream_is_used_as_it_is(column):
    """What the kernel before has normalised is not normalised again."""
    weight, _ = weights(column, 64, 96)
    norm, stream = column.randn(96), column.randn(5, 96)
    plain = column.ops.linear.norm_linear(Hidden(stream), norm, EPS, weight, None).sum(0)
    given = Hidden(stream, column.ops.rmsnorm(stream, norm, EPS))
    assert torch.equal(column.ops.linear.norm_linear(given, norm, EPS, weight, None).sum(0), plain)


def test_a_tokens_sums_do_not_depend_on_the_others(column):
    """Bit for bit, with any number of tokens that the kernel of few tokens takes."""
    if column.device.type == "cpu" or column.dtype == torch.float32:
        pytest.skip("a GPU's 16-bit kernels only: numpy's sums depend on the shape")
    linear = triton_operators(batch_invariant=True).linear
    sizes = (2048, 8192)
    stream, norm, wide = column.randn(64, sizes[0]), column.randn(sizes[0]), column.randn(64, sizes[1])
    qkv, _ = weights(column, 80, sizes[0])
    gate_up, _ = weights(column, 2 * 96, sizes[0])
    down, _ = weights(column, sizes[0], sizes[1])

    def results(rows: slice) -> list[Tensor]:
        part = Hidden(stream[rows])
        added = linear.linear_add(wide[rows], down, None, part, norm, EPS)
        return [
            linear.norm_linear(part, norm, EPS, qkv, None).transpose(0, 1),
            linear.norm_gate_up(part, norm, EPS, gate_up, None),
            linear.norm_logits(part, norm, EPS, qkv),
            *(tensor for tensor in added if tensor is not None),
        ]

    together = results(slice(0, 64))
    for rows in (slice(3, 4), slice(0, 2), slice(5, 21), slice(20, 60)):
        for part, whole in zip(results(rows), together, strict=True):
            assert torch.equal(part, whole[rows])


def test_tiles_of_many_tokens_take_the_same_sums(column):
    """Bit for bit those of few tokens, with every pair of tiles that was measured for this GPU."""
    if column.device.type == "cpu" or column.dtype != torch.bfloat16:
        pytest.skip("tiles are measured on GPUs, in bf16")
    start = f"{target(column.device).arch} gemm bfloat16 "
    for key in [key for key in tiles._table() if key.startswith(start) and key.endswith(" wide=1")]:
        inputs, outputs, split, _ = (int(part.partition("=")[2]) for part in key.split()[3:])
        x, weight = column.randn(64, inputs), column.randn(outputs, inputs)
        many, few = (gemm.gemm(rows, weight, split=bool(split)) for rows in (x, x[:20]))
        assert torch.equal(many[:, :20], few), key


@pytest.mark.parametrize("hardware", [False, True])
@pytest.mark.parametrize("rows", [1, linear.FEW_ROWS, linear.FEW_ROWS + 1, 40])
def test_a_cpu_without_bf16_multiplies_in_fp32_block_by_block(generator, monkeypatch, rows, hardware):
    x, weight, bias = (
        torch.randn(shape, generator=generator).bfloat16() for shape in ((rows, 96), (50, 96), (50,))
    )
    monkeypatch.setattr(linear, "cpu_has_bf16", lambda: hardware)
    monkeypatch.setattr(linear, "onednn_takes_bf16", lambda: hardware)
    monkeypatch.setattr(linear, "BLOCK", 96 * 7)  # blocks of 7 rows, and 1 in the last
    blocks = []
    original = linear._product_fp32
    monkeypatch.setattr(
        linear, "_product_fp32", lambda x, *rest: (blocks.append(x.dtype), original(x, *rest))[1]
    )
    out = linear.product(x, weight, bias)
    widened = not hardware and rows > linear.FEW_ROWS
    assert blocks == [torch.float32] * 8 * widened
    assert torch.backends.mkldnn.enabled
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.double(), exact_linear(x, weight, bias), rtol=2**-7, atol=2**-7)


@pytest.mark.parametrize("onednn", [False, True])
@pytest.mark.parametrize("rows", [1, 40])
def test_a_cpu_multiplies_in_fp32_with_and_without_onednn(generator, monkeypatch, rows, onednn):
    x, weight, bias = (torch.randn(shape, generator=generator) for shape in ((rows, 96), (50, 96), (50,)))
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: onednn)
    out, exact = linear.product(x, weight, bias), exact_linear(x, weight, bias)
    torch.testing.assert_close(out, exact.float())


@pytest.mark.parametrize(
    ("inputs", "whole"), [(520, False), (1042, False), (520, True)], ids=["streamed", "unaligned", "whole"]
)
def test_few_tokens_are_split_over_k_where_tiles_are_few(column, monkeypatch, inputs, whole):
    """One part is rounded to the dtype; several partial sums stay in fp32."""
    if column.ops.name == "reference":
        pytest.skip("Triton only")
    x, weight = column.randn(3, inputs), column.randn(70, inputs)
    if whole:
        tile = {
            "SLICE": 256,
            "BLOCK_N": 32,
            "BLOCK_K": 256,
            "STAGES": 1,
            "AHEAD": 0,
            "EARLY": 0,
            "num_warps": 4,
        }
        monkeypatch.setattr(
            gemm,
            "rule",
            lambda *_, split: tile | ({} if split else {"SLICE": 1024, "BLOCK_K": 1024, "BLOCK_N": 16}),
        )
    parts = gemm.gemm(x, weight, split=True)
    assert len(parts) > 1
    assert parts.dtype == torch.float32
    column.check_sum(parts.sum(0), exact_linear(x, weight, None))
    assert gemm.gemm(x, weight).dtype == column.dtype
