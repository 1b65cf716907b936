"""Attention among the patches of an image, against the formula in fp64."""

from __future__ import annotations

import pytest
import torch

from lite_llama.kernels import select


@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize(("tokens", "head_dim"), [(26, 16), (577, 64)])
def test_every_patch_sees_all_of_its_image(tokens, head_dim, dtype, error):
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(2, tokens, 3, 4, head_dim, generator=generator).to(dtype)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)  # strided views, as the vision tower has them
    scale = head_dim**-0.5
    out = select(torch.device("cpu")).image_attention(q, k, v, scale)
    weights = (q.double() @ k.double().transpose(-1, -2) * scale).softmax(-1)
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), weights @ v.double(), rtol=0, atol=error)
