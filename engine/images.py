"""Image files: what is taken for one, and its pixels.

A file is looked at from its header on, before memory is spent on it, and decoded once to see that it is
sound. What a message carries is the file's content, so that it does not matter what becomes of the file.
Pillow is imported where it is needed: text alone runs without it.
"""

from __future__ import annotations

import io
import stat
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING

from ..models.errors import UserError
from ..models.units import format_bytes

if TYPE_CHECKING:
    from PIL.Image import Image as Pixels

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
"""Pillow's names of the formats that are read; to it, some cameras' JPEGs become MPO."""
FORMATS_IN_WORDS = "PNG, JPEG, WebP, GIF, BMP or TIFF"
MAX_BYTES = 256 << 20
MAX_PIXELS = 64_000_000
MAX_RATIO = 100
"""Length to width: a model sees a square, and to make one of a thread, its width grows to the square's."""

_one_at_a_time = threading.Lock()
"""Python's warning filters belong to the process, and the app reads images beside the engine's thread."""


@dataclass(frozen=True)
class Image:
    """The content of a sound image file; two of equal content are equal. Made by `image_of`."""

    name: str = field(compare=False)
    """The file's, for messages to the user."""
    content: bytes = field(repr=False)
    size: tuple[int, int] = field(compare=False)
    """Width and height in pixels, as the image is to be seen."""
    note: str = field(default="", compare=False)
    """A sentence on what a model is not shown of it; mostly empty."""
    digest: bytes = field(init=False, repr=False, compare=False)
    """A hash of the content, 16 bytes."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "digest", blake2b(self.content, digest_size=16).digest())

    def pixels(self) -> Pixels:
        """Decode: 8-bit RGB, turned as its EXIF data says, on white where it is transparent."""
        with _opened(self.name, self.content) as image:
            return _as_rgb(image, self.name)


@dataclass(frozen=True)
class PlacedImage:
    """An image whose embeddings take the places start ... end - 1 of a prompt's tokens."""

    image: Image
    start: int
    end: int


def read_image(path: Path) -> Image:
    """Read and check an image file. Raises UserError saying what is wrong with it."""
    return image_of(path.name, _read(path))


def image_of(name: str, content: bytes) -> Image:
    """Check the content of an image file. Raises UserError saying what is wrong with it."""
    if not content:
        raise UserError(f"{name} is empty: choose another image.")
    with _opened(name, content) as image:
        rgb = _as_rgb(image, name)
        frames, kind = getattr(image, "n_frames", 1), image.format
    note = ""
    if frames > 1 and kind == "TIFF":
        note = f"{name} has {frames} pages: the model sees the first one."
    elif frames > 1 and kind != "MPO":  # a camera's other pictures in there are previews
        note = f"{name} is animated: the model sees the first of its {frames} frames."
    return Image(name, content, rgb.size, note)


def _read(path: Path) -> bytes:
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise UserError(f"{path} is a directory: name an image file in it.")
        if not stat.S_ISREG(status.st_mode):
            raise UserError(f"{path} is no file: name an image file.")
        if status.st_size > MAX_BYTES:
            raise UserError(
                f"{path} has {format_bytes(status.st_size)}, and {format_bytes(MAX_BYTES)} are the most "
                f"for an image: make it smaller first."
            )
        return path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"There is no image file {path}: check the path.") from None
    except PermissionError:
        raise UserError(
            f"You may not read {path}: change its permissions, or choose another image."
        ) from None
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        raise UserError(f"{path} cannot be read ({error}): choose another image.") from None


@contextmanager
def _opened(name: str, content: bytes) -> Iterator[Pixels]:
    """The image, its header read and judged; whatever a parser fails with inside becomes a UserError."""
    from PIL import Image as pillow
    from PIL import UnidentifiedImageError

    pillow.init()  # without it, `formats` has to be of those few that are known at once
    most = MAX_PIXELS // 1_000_000
    too_large = f"{name} has too many pixels, and {most} million are the most: make it smaller first."
    try:
        with _one_at_a_time, warnings.catch_warnings():
            # Pillow's own limits are wider than ours, but they are applied before we know the size.
            warnings.simplefilter("error", pillow.DecompressionBombWarning)
            warnings.filterwarnings("ignore", category=UserWarning)  # oddities that do no harm
            with pillow.open(io.BytesIO(content), formats=FORMATS) as image:
                width, height = image.size
                if width * height > MAX_PIXELS:
                    raise UserError(too_large)
                if max(width, height) > MAX_RATIO * min(width, height):
                    raise UserError(
                        f"{name} is {width} x {height} pixels, too long and thin to be seen: cut a part out."
                    )
                yield image
    except UserError:
        raise
    except UnidentifiedImageError:
        raise UserError(_unknown(name, content)) from None
    except (pillow.DecompressionBombError, pillow.DecompressionBombWarning):
        raise UserError(too_large) from None
    # Pillow raises whatever the parser of the format at hand does, SyntaxError and struct.error included.
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{name} is damaged ({reason}): get the file again.") from None


def _unknown(name: str, content: bytes) -> str:
    """What to say of a file that is in none of the formats."""
    if b"<svg" in content[:4096].lower():
        return f"{name} is an SVG drawing, which has no pixels: export it as PNG."
    if content[4:12] in (b"ftypheic", b"ftypheix", b"ftypmif1", b"ftypavif"):
        return f"{name} is a HEIC or AVIF image, which is not read: save it as JPEG or PNG."
    return f"{name} is no image that can be read: choose a {FORMATS_IN_WORDS} file."


def _as_rgb(image: Pixels, name: str) -> Pixels:
    """As transformers prepares images, but that it saturates all 16-bit grey levels above 255."""
    from PIL import Image as pillow
    from PIL import ImageOps

    image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise UserError(f"{name} has floating-point pixels, which are not read: save it as PNG.")
    if image.mode.startswith("I"):
        import numpy as np

        image = pillow.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        layer = image.convert("RGBA")
        white = pillow.new("RGBA", layer.size, (255, 255, 255, 255))
        return pillow.alpha_composite(white, layer).convert("RGB")
    return image.convert("RGB")
