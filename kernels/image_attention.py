"""Attention among the patches of an image: FlashAttention-2 (Dao 2023, arXiv:2307.08691) with no mask and no
cache, unlike all other attention here."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ._triton import Target, target, tl, triton
from .flash_attention2 import online_softmax, padded


def reference(qkv: Tensor, heads: int, scale: float) -> Tensor:
    """qkv [N, T, 3 * H * D], q before k before v -> softmax(q k^T * scale) v of each head, [N, T, H * D]."""
    images, tokens, width = qkv.shape
    q, k, v = qkv.view(images, tokens, 3, heads, -1).permute(2, 0, 3, 1, 4)
    attended = F.scaled_dot_product_attention(q, k, v, scale=scale)
    return attended.transpose(1, 2).reshape(images, tokens, width // 3)


@triton.jit
def _attend_block(
    acc, row_sum, row_max, q, k_ptr, v_ptr, start, tokens, stride, scale,
    HEAD_DIM: tl.constexpr, DIM_PAD: tl.constexpr, BLOCK_N: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """One step of the online softmax: queries q [M, DIM_PAD] meet the keys start : start + BLOCK_N.

    acc [M, DIM_PAD], row_sum and row_max [M] are the state in fp32: the unnormalised output, the sum and
    the maximum of the scores (in units of log 2; `scale` includes the conversion). `stride` is that of
    tokens; MASKED is off where all keys are of the image.
    """
    key = start + tl.arange(0, BLOCK_N)
    dim = tl.arange(0, DIM_PAD)
    inside = (dim < HEAD_DIM)[None, :]
    if MASKED:
        inside = inside & (key < tokens)[:, None]
    offsets = key[:, None] * stride + dim[None, :]
    k = tl.load(k_ptr + offsets, inside, other=0.0)
    scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
    if MASKED:
        scores = tl.where((key < tokens)[None, :], scores, -float("inf"))
    weights, correction, row_sum, row_max = online_softmax(scores, row_sum, row_max)
    v = tl.load(v_ptr + offsets, inside, other=0.0)
    acc = tl.dot(weights.to(v.dtype), v, acc * correction[:, None], input_precision="ieee")
    return acc, row_sum, row_max


@triton.jit
def _image_attention_kernel(
    qkv_ptr, out_ptr, scale, tokens,
    HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, DIM_PAD: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """One program (block, head, image): BLOCK_M queries of one head over all keys of the image.

    qkv [N, T, 3, HEADS, HEAD_DIM] and out [N, T, HEADS, HEAD_DIM] are contiguous; T = tokens.
    """
    block, head, image = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    width: tl.constexpr = HEADS * HEAD_DIM
    row = block * BLOCK_M + tl.arange(0, BLOCK_M)
    dim = tl.arange(0, DIM_PAD)
    inside = (row < tokens)[:, None] & (dim < HEAD_DIM)[None, :]
    q_ptr = qkv_ptr + image * tokens * (3 * width) + head * HEAD_DIM
    k_ptr, v_ptr = q_ptr + width, q_ptr + 2 * width
    q = tl.load(q_ptr + row[:, None] * (3 * width) + dim[None, :], inside, other=0.0)
    acc = tl.zeros((BLOCK_M, DIM_PAD), tl.float32)
    row_sum = tl.zeros((BLOCK_M,), tl.float32)
    row_max = tl.full((BLOCK_M,), -float("inf"), tl.float32)
    whole = tokens // BLOCK_N * BLOCK_N
    for start in range(0, whole, BLOCK_N):
        acc, row_sum, row_max = _attend_block(
            acc, row_sum, row_max, q, k_ptr, v_ptr, start, tokens, 3 * width, scale,
            HEAD_DIM, DIM_PAD, BLOCK_N, False,
        )  # fmt: skip
    if whole < tokens:
        acc, row_sum, row_max = _attend_block(
            acc, row_sum, row_max, q, k_ptr, v_ptr, whole, tokens, 3 * width, scale,
            HEAD_DIM, DIM_PAD, BLOCK_N, True,
        )  # fmt: skip
    out = (acc / row_sum[:, None]).to(q.dtype)
    out_ptr += image * tokens * width + head * HEAD_DIM
    tl.store(out_ptr + row[:, None] * width + dim[None, :], out, inside)


def tile(head_dim: int, dtype: torch.dtype, target: Target) -> dict[str, int]:
    """BLOCK_M x BLOCK_N, warps and pipeline stages, which fit the smallest GPU of each kind.

    Few queries a program: one image of 577 tokens and 16 heads should give work to each of an H100's 132
    processors (160 programs of 64 queries; 80 of 128).
    """
    if dtype == torch.float32:  # full precision: no tensor cores, and twice the bytes
        block_m, block_n, threads, stages = 32, 32, 256, 1
    elif target.hip:
        block_m, block_n, threads, stages = 64, 32, 256, 1
    else:
        block_m, block_n, threads, stages = 64, 64, 128, 3 if head_dim <= 64 else 2
    return {
        "BLOCK_M": block_m,
        "BLOCK_N": block_n,
        "num_warps": target.warps(threads),
        "num_stages": stages,
    }


def triton_image_attention(qkv: Tensor, heads: int, scale: float) -> Tensor:
    """As `reference`; qkv is contiguous."""
    images, tokens, width = qkv.shape
    head_dim = width // (3 * heads)
    options = tile(head_dim, qkv.dtype, target(qkv.device))
    out = qkv.new_empty(images, tokens, width // 3)
    _image_attention_kernel[(triton.cdiv(tokens, options["BLOCK_M"]), heads, images)](
        qkv, out, scale * math.log2(math.e), tokens,
        HEADS=heads, HEAD_DIM=head_dim, DIM_PAD=padded(head_dim), **options,
    )  # fmt: skip
    return out
