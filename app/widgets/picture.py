"""An image in a terminal's cells: half blocks, each two pixels, one above the other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.color import Color
from rich.segment import Segment
from rich.style import Style
from textual.geometry import Size
from textual.strip import Strip
from textual.widget import Widget

if TYPE_CHECKING:
    from PIL.Image import Image as Pixels

UPPER_HALF = "▀"


def fit(pixels: Pixels, width: int, height: int) -> tuple[int, int]:
    """Columns and rows of an image that is as large as fits into `width` x `height` cells."""
    scale = min(width / pixels.width, 2 * height / pixels.height)  # a cell is twice as high as it is wide
    return max(1, round(pixels.width * scale)), max(1, round(pixels.height * scale / 2))


def half_blocks(pixels: Pixels, columns: int, rows: int) -> list[Strip]:
    """An RGB image as lines of cells."""
    from PIL.Image import Resampling

    data = pixels.resize((columns, 2 * rows), Resampling.BOX).tobytes()
    colours = [Color.from_rgb(*data[at : at + 3]) for at in range(0, len(data), 3)]
    lines = [colours[start : start + columns] for start in range(0, len(colours), columns)]
    return [
        Strip([_cell(*pair) for pair in zip(above, below, strict=True)], columns)
        for above, below in zip(lines[::2], lines[1::2], strict=True)
    ]


def _cell(above: Color, below: Color) -> Segment:
    return Segment(UPPER_HALF, Style(color=above, bgcolor=below))


class Picture(Widget):
    """An image in the middle of the widget; without one it is empty."""

    def __init__(self, pixels: Pixels | None = None) -> None:
        super().__init__()
        self._pixels = pixels
        self._is_fitted = False
        self._drawn: list[Strip] = []
        self._drawn_for: tuple[Pixels | None, Size] | None = None

    def fit(self, width: int, height: int) -> None:
        """Have the size of the image in so many cells."""
        if self._pixels is not None:
            self.styles.width, self.styles.height = fit(self._pixels, width, height)
            self._is_fitted = True

    @property
    def image(self) -> Pixels | None:
        return self._pixels

    @image.setter
    def image(self, pixels: Pixels | None) -> None:
        self._pixels = pixels
        self.refresh()

    def render_line(self, y: int) -> Strip:
        width, height = size = self.size
        if self._drawn_for != (self._pixels, size):
            self._drawn_for, self._drawn = (self._pixels, size), []
            if self._pixels is not None and width and height:
                columns, rows = size if self._is_fitted else fit(self._pixels, width, height)
                self._drawn = half_blocks(self._pixels, columns, rows)
        line = y - (height - len(self._drawn)) // 2
        if not 0 <= line < len(self._drawn):
            return Strip.blank(width, self.rich_style)
        strip = self._drawn[line]
        left = (width - strip.cell_length) // 2
        margins = [Strip.blank(cells, self.rich_style) for cells in (left, width - left - strip.cell_length)]
        return Strip.join([margins[0], strip, margins[1]])
