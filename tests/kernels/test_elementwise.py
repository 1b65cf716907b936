"""SwiGLU, GELU, product and softmax."""

import pytest
import torch


@pytest.mark.parametrize("size", [1, 64, 1536, 4864])
def test_swiglu(column, size):
    gate_up = column.randn(5, 2 * size) * 4
    gate, up = gate_up.cpu().double().split(size, -1)
    column.check(column.ops.swiglu(gate_up), gate / (1 + (-gate).exp()) * up)


def test_swiglu_saturates(column):
    """Large gates: exp overflows on the negative side, where silu is 0, and is not seen on the positive."""
    gate_up = torch.tensor(
        [[-200.0, -1000.0, 200.0, 2.0, 3.0, 0.5]], dtype=column.dtype, device=column.device
    )
    assert column.ops.swiglu(gate_up).tolist() == [[0.0, 0.0, 100.0]]


@pytest.mark.parametrize("shape_of", [(5, 576), (3, 7, 1000)])
def test_gelu(column, shape_of):
    x = column.randn(*shape_of) * 2
    exact = x.cpu().double()
    column.check(column.ops.gelu(x), exact * torch.special.ndtr(exact))
    column.check(column.ops.quick_gelu(x), exact / (1 + (-1.702 * exact).exp()))


def test_gelu_saturates(column):
    """Large values: exp overflows on the negative side, where both are 0, and is not seen on the positive."""
    x = torch.tensor([-1000.0, -200.0, 0.0, 200.0, 1000.0], dtype=column.dtype, device=column.device)
    assert column.ops.gelu(x).tolist() == [0, 0, 0, 200, 1000]
    assert column.ops.quick_gelu(x).tolist() == [0, 0, 0, 200, 1000]


def test_gelu_of_views(column):
    x = column.randn(60, 400).T
    column.check(column.ops.quick_gelu(x), x.double() / (1 + (-1.702 * x.double()).exp()))


def test_quick_gelu_rounds_where_transformers_does(column):
    """Each step is rounded: bit for bit, but for the last bits of the exponential, which fp32 shows."""
    from transformers.activations import ACT2FN

    x = column.randn(64, 576) * 2
    same = column.ops.quick_gelu(x) == ACT2FN["quick_gelu"](x)
    assert same.double().mean().item() > 0.99 or column.dtype == torch.float32


@pytest.mark.parametrize("shape_of", [(1,), (5, 576), (3, 7, 1000)])
def test_mul(column, shape_of):
    a, b = column.randn(*shape_of), column.randn(*shape_of)
    assert torch.equal(column.ops.mul(a, b), a * b)


def test_mul_of_views(column):
    a, b = column.randn(6, 40).T, column.randn(40, 12)[:, ::2]
    assert torch.equal(column.ops.mul(a, b), a * b)


@pytest.mark.parametrize("size", [1, 33, 4096, 10007])
def test_softmax(column, size):
    x = column.randn(5, size) * 8
    column.check(column.ops.softmax(x), x.cpu().double().softmax(-1))


def test_softmax_with_masked_entries(column):
    """-inf in whole blocks and at the start of a row takes no weight; a row of nothing else is NaN."""
    x = column.randn(3, 10007)
    x[0, :9000] = -torch.inf
    x[1, 3:] = -torch.inf
    x[2] = -torch.inf
    out = column.ops.softmax(x)
    column.check(out[:2], x[:2].cpu().double().softmax(-1))
    assert out[2].isnan().all()


def test_no_rows(column):
    x = column.randn(0, 64)
    assert column.ops.swiglu(x).shape == (0, 32)
    assert column.ops.gelu(x).shape == column.ops.quick_gelu(x).shape == (0, 64)
    assert column.ops.mul(x, x).shape == (0, 64)
    assert column.ops.softmax(x).shape == (0, 64)
