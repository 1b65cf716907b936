"""Attention among the patches of an image: no mask and no cache, unlike all other attention here.

There is no Triton kernel yet: on a GPU too, PyTorch's own attention runs, once for each layer and image.
"""

import torch.nn.functional as F
from torch import Tensor


def reference(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """softmax(q k^T * scale) v; q, k, v [N, H, T, D], which may be strided views -> [N, H, T, D]."""
    return F.scaled_dot_product_attention(q, k, v, scale=scale)
