"""Attention among the tokens of images, against the formula in fp64."""

import pytest
import torch
from torch import Tensor

# (images, tokens, heads, head dim): tokens beside the edges of blocks, and CLIP's 577.
SHAPES = [(1, 1, 2, 16), (2, 31, 1, 64), (1, 64, 2, 80), (2, 65, 1, 128), (1, 130, 1, 96)]
GPU_SHAPES = [*SHAPES, (1, 577, 16, 64), (3, 577, 16, 64), (2, 257, 16, 80), (2, 1025, 3, 112)]


def exact_attention(qkv: Tensor, heads: int, scale: float) -> Tensor:
    """[N, T, 3 * H * D] -> [N, T, H * D]."""
    q, k, v = qkv.double().unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    weights = (q @ k.transpose(-1, -2) * scale).softmax(-1)
    return (weights @ v).transpose(1, 2).flatten(2)


@pytest.mark.parametrize("sizes", GPU_SHAPES, ids=str)
def test_every_token_sees_all_of_its_image(column, sizes):
    images, tokens, heads, head_dim = sizes
    if sizes not in SHAPES and column.ops.name == "triton" and column.device.type == "cpu":
        pytest.skip("too long for the interpreter")
    qkv = column.randn(images, tokens, 3 * heads * head_dim)
    out = column.ops.image_attention(qkv, heads, head_dim**-0.5)
    # Head by head, as each has a softmax of its own that could go wrong unseen beside the others.
    column.check(
        out.unflatten(-1, (heads, head_dim)),
        exact_attention(qkv, heads, head_dim**-0.5).unflatten(-1, (heads, head_dim)),
    )


def test_large_scores_do_not_overflow(column):
    """Scores of some hundreds: the softmax must subtract the maximum, in each of its steps."""
    qkv = column.randn(1, 100, 3, 64)
    qkv[:, :, :2] *= 20
    out = column.ops.image_attention(qkv.flatten(2), 1, 0.125)
    # The weights are nearly one-hot; rounded scores may move a near tie, so compare loosely.
    assert (out - exact_attention(qkv.flatten(2), 1, 0.125)).abs().max() < 0.05


def test_what_is_computed_of_an_image_depends_on_no_other(column):
    qkv = column.randn(3, 70, 3 * 2 * 64)
    together = column.ops.image_attention(qkv, 2, 0.125)
    alone = column.ops.image_attention(qkv[1:2], 2, 0.125)
    if column.ops.name == "triton":
        assert torch.equal(together[1:2], alone)
    column.check(together[1:2], alone.double())
