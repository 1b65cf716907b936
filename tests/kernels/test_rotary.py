"""Rotary embedding with and without the per-head norm, on views cut from a fused q, k, v row."""

import pytest
import torch
from torch import Tensor

EPS = 1e-6
MAX_POSITION = 300


def tables(column, head_dim: int) -> tuple[Tensor, Tensor]:
    """cos and sin of random angles, [MAX_POSITION, head_dim / 2] fp32."""
    angles = torch.rand(MAX_POSITION, head_dim // 2, generator=column.generator, device=column.device) * 6.28
    return angles.cos().to(column.device), angles.sin().to(column.device)


def exact_rope(x: Tensor, positions: Tensor, cos: Tensor, sin: Tensor, weight: Tensor | None) -> Tensor:
    """The rotation as a product of complex numbers."""
    x, positions = x.cpu().double(), positions.cpu()
    if weight is not None:
        x = x / (x.square().mean(-1, keepdim=True) + EPS).sqrt() * weight.cpu().double()
    half = x.shape[-1] // 2
    turn = torch.complex(cos.cpu()[positions].double(), sin.cpu()[positions].double())[:, None]
    turned = torch.complex(x[..., :half], x[..., half:]) * turn
    return torch.cat((turned.real, turned.imag), -1)


@pytest.mark.parametrize("norm", ["plain", "norm"])
def test_rope(column, shape, norm):
    q_heads, k_heads, head_dim = shape
    fused = column.randn(9, (q_heads + 2 * k_heads) * head_dim)
    q, k, _ = (part.unflatten(1, (-1, head_dim)) for part in fused.split(
        (q_heads * head_dim, k_heads * head_dim, k_heads * head_dim), 1
    ))  # fmt: skip
    positions = column.randint(0, MAX_POSITION, 9)
    positions[0], positions[1] = 0, MAX_POSITION - 1
    cos, sin = tables(column, head_dim)
    weights = (column.randn(head_dim), column.randn(head_dim)) if norm == "norm" else (None, None)
    before = fused.clone()
    outputs = column.ops.rope(q, k, positions, cos, sin, *weights, eps=EPS)
    for x, out, weight in zip((q, k), outputs, weights, strict=True):
        assert out.is_contiguous()
        column.check(out, exact_rope(x, positions, cos, sin, weight))
    assert torch.equal(fused, before)


def test_no_tokens(column):
    cos, sin = tables(column, 64)
    q, k = column.ops.rope(column.randn(0, 4, 64), column.randn(0, 2, 64), column.randint(0, 9, 0), cos, sin)
    assert (q.shape, k.shape) == ((0, 4, 64), (0, 2, 64))


def test_pairs_dimensions_as_transformers_does(column):
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    q, k = column.randn(6, 4, 64), column.randn(6, 2, 64)
    positions = column.randint(0, MAX_POSITION, 6)
    cos, sin = tables(column, 64)
    wide_cos, wide_sin = (t[positions].repeat(1, 2)[None].cpu().double() for t in (cos, sin))
    expected = apply_rotary_pos_emb(
        q.transpose(0, 1)[None].cpu().double(), k.transpose(0, 1)[None].cpu().double(), wide_cos, wide_sin
    )
    for out, exact in zip(column.ops.rope(q, k, positions, cos, sin), expected, strict=True):
        column.check(out, exact[0].transpose(0, 1))
