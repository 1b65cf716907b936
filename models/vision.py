"""LLaVA-1.5's image encoder (Liu et al. 2023, arXiv:2310.03744): pixels to rows of the decoder's embeddings.

A vision transformer of CLIP's (Radford et al. 2021, arXiv:2103.00020) turns an image of S x S pixels into one
feature for each patch of P x P pixels, and a projector of two linear layers turns each feature into what the
decoder takes for the embedding of a token. Below, N images have T = (S / P)^2 + 1 tokens in the tower, of
which the first is the class token, and C is the tower's width. Parameters are named as in models/weights.py.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..kernels import Operators, product
from ..kernels.operators import Gelu
from .config import VisionConfig
from .linear import Embedding, Module


def activation(name: str, ops: Operators) -> Gelu:
    """The operator for an activation of config.ACTIVATIONS."""
    return {"quick_gelu": ops.quick_gelu, "gelu": ops.gelu}[name]


class LayerNorm(Module):
    """Layer normalisation of rows, with a weight and a bias [size] each."""

    def __init__(self, size: int, eps: float, ops: Operators) -> None:
        super().__init__()
        self.ops = ops
        self.weight = nn.Parameter(torch.empty(size), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(size), requires_grad=False)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """[T, size] -> [T, size]."""
        return self.ops.layernorm(x, self.weight, self.bias, self.eps)

    def after(self, added: Tensor | None, stream: Tensor) -> tuple[Tensor, Tensor]:
        """The norm of the stream with what is added to it, and that stream; all [T, size]."""
        if added is None:
            return self(stream), stream
        return self.ops.skip_layernorm(added, stream, self.weight, self.bias, self.eps)


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
        self.scale = (config.hidden_size // config.num_heads) ** -0.5
        self.qkv_proj = Affine(config.hidden_size, 3 * config.hidden_size)
        self.out_proj = Affine(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor, images: int) -> Tensor:
        """[N * T, C] -> [N * T, C] of N images."""
        qkv = self.qkv_proj(x).unflatten(0, (images, -1))
        return self.out_proj(self.ops.image_attention(qkv, self.num_heads, self.scale).flatten(0, 1))


class Mlp(Module):
    """Two linear layers with the tower's activation between them."""

    def __init__(self, config: VisionConfig, ops: Operators) -> None:
        super().__init__()
        self.activation = activation(config.activation, ops)
        self.fc1 = Affine(config.hidden_size, config.intermediate_size)
        self.fc2 = Affine(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(x)))


class Layer(Module):
    """Attention and feed-forward network, each behind a norm and added to the residual stream.

    The addition is one kernel with the norm after it, so the second one is left to the next layer.
    """

    def __init__(self, config: VisionConfig, ops: Operators) -> None:
        super().__init__()
        self.layer_norm1 = LayerNorm(config.hidden_size, config.layer_norm_eps, ops)
        self.self_attn = Attention(config, ops)
        self.layer_norm2 = LayerNorm(config.hidden_size, config.layer_norm_eps, ops)
        self.mlp = Mlp(config, ops)

    def forward(self, normed: Tensor, stream: Tensor, images: int) -> tuple[Tensor, Tensor]:
        """The stream [N * T, C] and its layer_norm1 -> what is still to be added, and the stream."""
        normed, stream = self.layer_norm2.after(self.self_attn(normed, images), stream)
        return self.mlp(normed), stream


class VisionTower(Module):
    """CLIP's vision transformer, up to the last layer whose features are wanted."""

    def __init__(self, config: VisionConfig, ops: Operators) -> None:
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.pre_layrnorm = LayerNorm(config.hidden_size, config.layer_norm_eps, ops)
        layers = [Layer(config, ops) for _ in range(config.num_layers)]
        self.encoder = nn.ModuleDict({"layers": nn.ModuleList(layers)})
        self._layers = layers

    def forward(self, pixels: Tensor) -> Tensor:
        """pixels [N, 3, S, S] -> the features of the wanted layers side by side, [N, tokens, L * C]."""
        images, wanted = len(pixels), self.config.feature_layers
        stream, added = self.pre_layrnorm(self.embeddings(pixels).flatten(0, 1)), None
        kept = {}
        for index, layer in enumerate(self._layers):
            normed, stream = layer.layer_norm1.after(added, stream)
            if index in wanted:
                kept[index] = stream
            added, stream = layer(normed, stream, images)
        kept[len(self._layers)] = stream if added is None else stream + added
        features = torch.cat([kept[index] for index in wanted], -1).unflatten(0, (images, -1))
        return features if self.config.with_class_token else features[:, 1:]


class Projector(Module):
    """Features of the tower to embeddings of the decoder."""

    def __init__(self, config: VisionConfig, text_size: int, ops: Operators) -> None:
        super().__init__()
        self.activation = activation(config.projector_activation, ops)
        features = config.hidden_size * len(config.feature_layers)
        self.linear_1 = Affine(features, text_size, config.projector_bias)
        self.linear_2 = Affine(text_size, text_size, config.projector_bias)

    def forward(self, features: Tensor) -> Tensor:
        """[N, tokens, L * C] -> [N, tokens, text_size]."""
        return self.linear_2(self.activation(self.linear_1(features)))
