"""What the decoder sees of images: rows of embeddings, computed once for each image and kept for a while."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from ..models.config import ModelConfig
from ..models.decoder import Decoder
from .graphs import capture
from .images import Image, PlacedImage

PrepareImage = Callable[[Image], Tensor]
"""Gives an image's pixels [3, S, S] in fp32, as the model's image encoder takes them."""

KEPT_IMAGES = 16
"""Images whose embeddings are kept. Of LLaVA-1.5-7B in 16 bits, one takes 4.7 MB."""


class Encoder:
    """A model's image encoder, for one image at a time: what is computed of it depends on no other.

    An image of some hundred tokens keeps a GPU busy for less time than the host takes to launch its two
    hundred kernels: there they are recorded at the first image, and replayed as one.
    """

    def __init__(self, model: Decoder, *, cuda_graph: bool) -> None:
        self._model = model
        self._captures = cuda_graph and model.embed_tokens.weight.is_cuda
        self._graph: torch.cuda.CUDAGraph | None = None

    @torch.inference_mode()
    def __call__(self, pixels: Tensor) -> Tensor:
        """[3, S, S] on the model's device and in its dtype -> embeddings [tokens, H]."""
        if not self._captures:
            return self._model.encode_images(pixels[None])[0]
        if self._graph is None:
            self._pixels = pixels[None].clone()
            self._graph = capture(self._launch)
        self._pixels.copy_(pixels)
        self._graph.replay()
        return self._embeddings[0].clone()

    def _launch(self) -> None:
        self._embeddings = self._model.encode_images(self._pixels)


class ImageFeatures:
    """Embeddings of images on the model's device, found again by the content of the image's file.

    An image that was dropped in the meantime is computed again: nobody depends on what is kept.
    """

    def __init__(self, model: Decoder, prepare: PrepareImage, *, cuda_graph: bool = False) -> None:
        self._weight = model.embed_tokens.weight
        self._prepare = prepare
        self.encode = Encoder(model, cuda_graph=cuda_graph)
        self._kept: OrderedDict[bytes, Tensor] = OrderedDict()  # the one used last at the end

    def __call__(self, image: Image) -> Tensor:
        """[tokens of an image, H] in the model's dtype."""
        features = self._kept.pop(image.digest, None)
        if features is None:
            pixels = self._prepare(image).to(self._weight.device).to(self._weight.dtype)
            features = self.encode(pixels)
        self._kept[image.digest] = features
        if len(self._kept) > KEPT_IMAGES:
            self._kept.popitem(last=False)
        return features

    def between(self, images: Iterable[PlacedImage], start: int, end: int) -> tuple[list[int], Tensor] | None:
        """Rows and embeddings [rows, H] for the tokens start ... end - 1 that belong to images, if any do.

        Rows are counted from `start`. An image may have begun before and may go on after.
        """
        rows: list[int] = []
        parts: list[Tensor] = []
        for placed in images:
            first, last = max(placed.start, start), min(placed.end, end)
            if first < last:
                rows.extend(range(first - start, last - start))
                parts.append(self(placed.image)[first - placed.start : last - placed.start])
        return (rows, torch.cat(parts)) if parts else None


def feature_bytes(config: ModelConfig, dtype: torch.dtype) -> int:
    """Bytes that the embeddings of images and the work on one of them may take; 0 for a text-only model."""
    vision = config.vision
    if not vision:
        return 0
    kept = KEPT_IMAGES * vision.tokens * config.hidden_size
    tokens, width = vision.num_patches + 1, vision.hidden_size
    per_token = (6 + len(vision.feature_layers)) * width + 2 * vision.intermediate_size
    scores = vision.num_heads * tokens  # where PyTorch's attention writes them out
    return (kept + tokens * (per_token + scores)) * dtype.itemsize
