"""True pictures, in kitty's way or as sixels, if textual-image is installed and the terminal shows them."""

from __future__ import annotations

from functools import cache
from typing import Any


@cache
def graphics_widget() -> Any:
    """textual-image's widget, None where half blocks have to do.

    The first call asks the terminal, which is only possible before the app runs.
    """
    try:
        from textual_image.renderable import (  # pyright: ignore[reportMissingImports] - an extra
            Image,
            SixelImage,
            TGPImage,
        )
        from textual_image.widget import Image as Widget  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None
    return Widget if issubclass(Image, SixelImage | TGPImage) else None
