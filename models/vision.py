"""LLaVA-1.5's image encoder (Liu et al. 2023, arXiv:2310.03744): pixels to rows of the decoder's embeddings.

A vision transformer of CLIP's (Radford et al. 2021, arXiv:2103.00020) turns an image of S x S pixels into one
feature for each patch of P x P pixels, and a projector of two linear layers turns each feature into what the
decoder takes for the embedding of a token. Below, N images have T = (S / P)^2 + 1 tokens in the tower, of
which the first is the class token, and C is the tower's width. Parameters are named as in models/weights.py.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels import Operators, product
from .config import VisionConfig
from .linear import Embedding, Module


def quick_gelu(x: Tensor) -> Tensor:
    """CLIP's approximation of GELU."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATION: dict[str, Callable[[Tensor], Tensor]] = {"quick_gelu": quick_gelu, "gelu": F.gelu}


class Affine(Module):
    """y = x W^T (+ b) over the last dimension of x; weight [outputs, inputs]."""

    def __init__(self, inputs: int, outputs: int, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(outputs), requires_grad=False) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return product(x.flatten(0, -2), self.weight, self.bias).view(*x.shape[:-1], -1)


class Embeddings(Module):
    """Patches as tokens, after a class token, each with its position added."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.patch_size = config.patch_size
        self.class_embedding = nn.Parameter(torch.empty(config.hidden_size), requires_grad=False)
        self.patch_embedding = Affine(3 * config.patch_size**2, config.hidden_size, bias=False)
        self.position_embedding = Embedding(config.num_patches + 1, config.hidden_size)

    def forward(self, pixels: Tensor) -> Tensor:
        """pixels [N, 3, S, S] -> [N, T, C]."""
        images, size = pixels.shape[0], self.patch_size
        rows = pixels.shape[-1] // size
        # What does not fill a patch is left out, as by the convolution that this stands for.
        patches = pixels[..., : rows * size, : rows * size].reshape(images, 3, rows, size, rows, size)
        patches = patches.permute(0, 2, 4, 1, 3, 5).reshape(images, rows * rows, -1)
        first = self.class_embedding.expand(images, 1, -1)
        return torch.cat((first, self.patch_embedding(patches)), 1) + self.position_embedding.weight


class Attention(Module):
    """Every token attends to all tokens of its image."""

    def __init__(self, config: VisionConfig, ops: Operators) -> None:
        super().__init__()
        self.ops = ops
        self.num_heads = config.num_heads
        self.qkv_proj = Affine(config.hidden_size, 3 * config.hidden_size)
        self.out_proj = Affine(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """[N, T, C] -> [N, T, C]."""
        images, tokens, width = x.shape
        head_dim = width // self.num_heads
        qkv = self.qkv_proj(x).view(images, tokens, 3, self.num_heads, head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        attended = self.ops.image_attention(q, k, v, head_dim**-0.5)
        return self.out_proj(attended.transpose(1, 2).reshape(x.shape))


class Mlp(Module):
    """Two linear layers with the tower's activation between them."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.activation = ACTIVATION[config.activation]
        self.fc1 = Affine(config.hidden_size, config.intermediate_size)
        self.fc2 = Affine(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(x)))


class Layer(Module):
    """Attention and feed-forward network, each behind a norm and added to the residual stream."""

    def __init__(self, config: VisionConfig, ops: Operators) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.self_attn = Attention(config, ops)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.mlp = Mlp(config)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class VisionTower(Module):
    """CLIP's vision transformer, up to the last layer whose features are wanted."""

    def __init__(self, config: VisionConfig, ops: Operators) -> None:
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.pre_layrnorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        layers = [Layer(config, ops) for _ in range(config.num_layers)]
        self.encoder = nn.ModuleDict({"layers": nn.ModuleList(layers)})
        self._layers = layers

    def forward(self, pixels: Tensor) -> Tensor:
        """pixels [N, 3, S, S] -> the features of the wanted layers side by side, [N, tokens, L * C]."""
        wanted = self.config.feature_layers
        state = self.pre_layrnorm(self.embeddings(pixels))
        kept = {0: state}
        for index, layer in enumerate(self._layers, start=1):
            state = layer(state)
            if index in wanted:
                kept[index] = state
        features = torch.cat([kept[index] for index in wanted], -1)
        return features if self.config.with_class_token else features[:, 1:]


class Projector(Module):
    """Features of the tower to embeddings of the decoder."""

    def __init__(self, config: VisionConfig, text_size: int) -> None:
        super().__init__()
        self.activation = ACTIVATION[config.projector_activation]
        features = config.hidden_size * len(config.feature_layers)
        self.linear_1 = Affine(features, text_size, config.projector_bias)
        self.linear_2 = Affine(text_size, text_size, config.projector_bias)

    def forward(self, features: Tensor) -> Tensor:
        """[N, tokens, L * C] -> [N, tokens, text_size]."""
        return self.linear_2(self.activation(self.linear_1(features)))
