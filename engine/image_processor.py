"""Images as a model takes them: resized, cut and normalised by the rule of its checkpoint.

The rule is that of transformers' CLIPImageProcessor and LlavaImageProcessor, with Pillow's arithmetic.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..models.checkpoint import read_json
from ..models.config import VisionConfig
from ..models.errors import CheckpointError, UnsupportedModelError

if TYPE_CHECKING:
    from PIL.Image import Image as Pixels

    from .images import Image

_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)
"""CLIP's, for checkpoints that leave them out."""


@dataclass(frozen=True)
class ImageProcessor:
    """Sizes are in pixels, (width, height) for those of both edges."""

    pad_to_square: bool
    """Whether the shorter edge is first extended to the longer one's length, in the mean colour."""
    shortest_edge: int | None
    """Resize so that the shorter edge has this length; the longer one follows."""
    resize: tuple[int, int] | None
    """Resize to this, whatever the shape; None: neither, or by `shortest_edge`."""
    resample: int
    """Pillow's filter: 2 is bilinear, 3 bicubic."""
    crop: tuple[int, int] | None
    """Cut this out of the middle; what lies beyond the image is black."""
    scale: float
    """What a pixel's 0 ... 255 are multiplied with."""
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def from_checkpoint(cls, path: Path, vision: VisionConfig) -> ImageProcessor:
        """Read `processor_config.json` or `preprocessor_config.json` of a model's directory.

        A checkpoint with neither gets CLIP's rule at the size of its tower. Raises CheckpointError when the
        file makes no sense or images would not come out in the tower's size, and UnsupportedModelError for
        other rules than CLIP's.
        """
        raw = read_json(path / "processor_config.json").get("image_processor") or read_json(
            path / "preprocessor_config.json"
        )
        kind = str(
            raw.get("image_processor_type") or raw.get("feature_extractor_type") or "CLIPImageProcessor"
        )
        if not kind.startswith(("CLIP", "LlavaImageProcessor")):
            raise UnsupportedModelError(f"Images prepared by {kind!r} are not supported, only as CLIP's are.")
        try:
            processor = cls._from_dict(raw, vision.image_size, pads=kind.startswith("Llava"))
            sizes = {processor.size_of(shape) for shape in ((40, 30), (30, 40), (3000, 2000))}
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"The image processor's config of {path.name} is incomplete or wrong ({error}): "
                "convert the model again from a complete checkpoint."
            ) from None
        if sizes != {(vision.image_size, vision.image_size)}:
            raise CheckpointError(
                f"The image processor's config of {path.name} does not make images of {vision.image_size} x "
                f"{vision.image_size} pixels, as the model takes: get the one that belongs to it."
            )
        return processor

    @classmethod
    def _from_dict(cls, raw: Mapping[str, Any], default_size: int, *, pads: bool) -> ImageProcessor:
        size = raw.get("size") or {"shortest_edge": default_size}
        size = {"shortest_edge": size} if isinstance(size, int) else size
        crop = raw.get("crop_size") or default_size
        crop = {"width": crop, "height": crop} if isinstance(crop, int) else crop
        resizes, by_edge = raw.get("do_resize", True), "shortest_edge" in size
        normalizes = raw.get("do_normalize", True)
        return cls(
            pad_to_square=pads and bool(raw.get("do_pad")),
            shortest_edge=int(size["shortest_edge"]) if resizes and by_edge else None,
            resize=(int(size["width"]), int(size["height"])) if resizes and not by_edge else None,
            resample=int(raw.get("resample", 3)),
            crop=(int(crop["width"]), int(crop["height"])) if raw.get("do_center_crop", True) else None,
            scale=float(raw.get("rescale_factor", 1 / 255)) if raw.get("do_rescale", True) else 1.0,
            mean=tuple(raw.get("image_mean") or _MEAN) if normalizes else (0.0, 0.0, 0.0),
            std=tuple(raw.get("image_std") or _STD) if normalizes else (1.0, 1.0, 1.0),
        )

    def size_of(self, size: tuple[int, int]) -> tuple[int, int]:
        """The size in which an image of `size` comes out."""
        if self.pad_to_square:
            size = (max(size), max(size))
        return self.crop or self._resized(size)

    def prepare(self, image: Image) -> Tensor:
        """The content of an image file -> [3, height, width] fp32."""
        return self(image.pixels())

    def __call__(self, image: Pixels) -> Tensor:
        """An 8-bit RGB image -> [3, height, width] fp32."""
        from PIL import Image as pillow

        if self.pad_to_square and image.width != image.height:
            edge = max(image.size)
            square = pillow.new("RGB", (edge, edge), tuple(int(value * 255) for value in self.mean))
            square.paste(image, ((edge - image.width) // 2, (edge - image.height) // 2))
            image = square
        if (size := self._resized(image.size)) != image.size:
            image = image.resize(size, self.resample)
        if self.crop:
            left, top = (image.width - self.crop[0]) // 2, (image.height - self.crop[1]) // 2
            image = image.crop((left, top, left + self.crop[0], top + self.crop[1]))
        values = np.asarray(image, dtype=np.float32) * np.float32(self.scale)
        values = (values - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        return torch.from_numpy(np.ascontiguousarray(values.transpose(2, 0, 1)))

    def _resized(self, size: tuple[int, int]) -> tuple[int, int]:
        if self.shortest_edge is None:
            return self.resize or size
        width, height = size
        # Rounded as transformers does: down, and after the division.
        if width <= height:
            return self.shortest_edge, int(self.shortest_edge * height / width)
        return int(self.shortest_edge * width / height), self.shortest_edge


def raw_pixels(image: Image) -> Tensor:
    """In place of a processor, for models of random weights: content that is RGB bytes -> [3, H, W] fp32."""
    width, height = image.size
    values = torch.frombuffer(bytearray(image.content), dtype=torch.uint8).view(height, width, 3)
    return values.permute(2, 0, 1).float().div_(127.5).sub_(1)
