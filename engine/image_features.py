"""What the decoder sees of images: rows of embeddings, computed once for each image and kept for a while."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

import torch
from torch import Tensor

from ..models.config import ModelConfig
from ..models.decoder import Decoder
from .image_processor import ImageProcessor
from .images import Image, PlacedImage

KEPT_IMAGES = 16
"""Images whose embeddings are kept. Of LLaVA-1.5-7B in 16 bits, one takes 4.7 MB."""


class ImageFeatures:
    """Embeddings of images on the model's device, found again by the content of the image's file.

    An image that was dropped in the meantime is computed again: nobody depends on what is kept.
    """

    def __init__(self, model: Decoder, processor: ImageProcessor) -> None:
        self._model = model
        self._processor = processor
        self._kept: OrderedDict[bytes, Tensor] = OrderedDict()  # the one used last at the end

    @torch.inference_mode()
    def __call__(self, image: Image) -> Tensor:
        """[tokens of an image, H] in the model's dtype."""
        features = self._kept.pop(image.digest, None)
        if features is None:
            weight = self._model.embed_tokens.weight
            pixels = self._processor(image.pixels()).to(weight.device).to(weight.dtype)
            # One at a time: what is computed of an image depends on no other.
            (features,) = self._model.encode_images(pixels[None])
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
