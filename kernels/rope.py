"""Rotary position embedding (Su et al. 2021, arXiv:2104.09864), after a per-head RMSNorm (Qwen3) if given."""

from typing import NamedTuple

import torch
from torch import Tensor

from . import rmsnorm
from ._triton import tl, triton


def reference(
    q: Tensor,
    k: Tensor,
    positions: Tensor,
    cos: Tensor,
    sin: Tensor,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    eps: float = 1e-6,
) -> tuple[Tensor, Tensor]:
    """q [T, Hq, D], k [T, Hk, D], positions [T], cos and sin [max_position, D/2] fp32 -> rotated q, k.

    Dimension i of a head turns with i + D/2, in fp32; weights [D] ask for the norm before.
    """
    if q_norm is not None:
        q = rmsnorm.reference(q, q_norm, eps)
    if k_norm is not None:
        k = rmsnorm.reference(k, k_norm, eps)
    turned_by = angles(positions, cos, sin)
    return turn(q, turned_by), turn(k, turned_by)


class Angles(NamedTuple):
    """By what the heads of T tokens are turned, for all D dimensions, in fp32."""

    cos: Tensor
    """[T, 1, D]: of a dimension's own value."""
    sin: Tensor
    """[T, 1, D]: of that half a head away, with its sign."""


def angles(positions: Tensor, cos: Tensor, sin: Tensor) -> Angles:
    """Of tokens at positions [T]; cos, sin [max_position, D/2]."""
    cos, sin = cos.index_select(0, positions)[:, None], sin.index_select(0, positions)[:, None]
    return Angles(torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1))


def turn(x: Tensor, angles: Angles) -> Tensor:
    """x [T, N, D] turned, in x's dtype."""
    wide = x.float()
    turned = wide * angles.cos
    return turned.addcmul_(wide.roll(x.shape[-1] // 2, -1), angles.sin).to(x.dtype)


@triton.jit
def _rotate_heads(
    x_ptr, out_ptr, weight_ptr, cos, sin, eps, stride_head,
    HEADS: tl.constexpr, HEADS_PAD: tl.constexpr, HALF: tl.constexpr, HALF_PAD: tl.constexpr,
    NORM: tl.constexpr,
):  # fmt: skip
    """All heads of one token: x [HEADS, 2 * HALF] (head stride stride_head) to out, contiguous.

    cos, sin: [HALF_PAD] in fp32.
    """
    head = tl.arange(0, HEADS_PAD)[:, None]
    column = tl.arange(0, HALF_PAD)
    in_head = column < HALF
    inside = (head < HEADS) & in_head[None, :]
    source = x_ptr + head * stride_head + column[None, :]
    first = tl.load(source, inside, other=0.0)
    second = tl.load(source + HALF, inside, other=0.0)
    if NORM:
        first32, second32 = first.to(tl.float32), second.to(tl.float32)
        squares = tl.sum(first32 * first32 + second32 * second32, 1)
        scale = tl.rsqrt(squares / (2 * HALF) + eps)[:, None]
        weight = tl.load(weight_ptr + column, in_head, other=0.0)
        first = (first32 * scale).to(first.dtype) * weight[None, :]
        weight = tl.load(weight_ptr + HALF + column, in_head, other=0.0)
        second = (second32 * scale).to(second.dtype) * weight[None, :]
    first32, second32 = first.to(tl.float32), second.to(tl.float32)
    cos, sin = cos[None, :], sin[None, :]
    out = out_ptr + head * (2 * HALF) + column[None, :]
    tl.store(out, (first32 * cos - second32 * sin).to(first.dtype), inside)
    tl.store(out + HALF, (second32 * cos + first32 * sin).to(first.dtype), inside)


@triton.jit
def _rope_kernel(
    q_ptr, k_ptr, positions_ptr, cos_ptr, sin_ptr, q_norm_ptr, k_norm_ptr, q_out_ptr, k_out_ptr,
    q_stride_token, q_stride_head, k_stride_token, k_stride_head, eps,
    Q_HEADS: tl.constexpr, Q_HEADS_PAD: tl.constexpr, K_HEADS: tl.constexpr, K_HEADS_PAD: tl.constexpr,
    HALF: tl.constexpr, HALF_PAD: tl.constexpr, Q_NORM: tl.constexpr, K_NORM: tl.constexpr,
):  # fmt: skip
    """One program: all heads of one token's q [T, Hq, D] and k [T, Hk, D] into contiguous outputs.

    positions [T]; cos, sin [max_position, D/2], contiguous; weights [D]; HALF = D/2.
    """
    token = tl.program_id(0).to(tl.int64)
    position = tl.load(positions_ptr + token)
    column = tl.arange(0, HALF_PAD)
    cos = tl.load(cos_ptr + position * HALF + column, column < HALF, other=0.0)
    sin = tl.load(sin_ptr + position * HALF + column, column < HALF, other=0.0)
    _rotate_heads(
        q_ptr + token * q_stride_token, q_out_ptr + token * (Q_HEADS * 2 * HALF), q_norm_ptr,
        cos, sin, eps, q_stride_head, Q_HEADS, Q_HEADS_PAD, HALF, HALF_PAD, Q_NORM,
    )  # fmt: skip
    _rotate_heads(
        k_ptr + token * k_stride_token, k_out_ptr + token * (K_HEADS * 2 * HALF), k_norm_ptr,
        cos, sin, eps, k_stride_head, K_HEADS, K_HEADS_PAD, HALF, HALF_PAD, K_NORM,
    )  # fmt: skip


def triton_rope(
    q: Tensor,
    k: Tensor,
    positions: Tensor,
    cos: Tensor,
    sin: Tensor,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    eps: float = 1e-6,
) -> tuple[Tensor, Tensor]:
    """As `reference`; q and k may be strided views whose last dimension is contiguous."""
    tokens, q_heads, head_dim = q.shape
    k_heads = k.shape[1]
    q_out, k_out = q.new_empty(q.shape), k.new_empty(k.shape)
    _rope_kernel[(tokens,)](
        q, k, positions, cos, sin, q_norm, k_norm, q_out, k_out,
        q.stride(0), q.stride(1), k.stride(0), k.stride(1), eps,
        Q_HEADS=q_heads, Q_HEADS_PAD=triton.next_power_of_2(q_heads),
        K_HEADS=k_heads, K_HEADS_PAD=triton.next_power_of_2(k_heads),
        HALF=head_dim // 2, HALF_PAD=triton.next_power_of_2(head_dim // 2),
        Q_NORM=q_norm is not None, K_NORM=k_norm is not None,
    )  # fmt: skip
    return q_out, k_out
