"""The last look at what is written to the terminal."""

from __future__ import annotations

from rich.segment import Segment
from textual.color import Color
from textual.filter import LineFilter

from .text import inert_line, is_inert_line


class Guard(LineFilter):
    """Takes out of every line what a terminal would act on, whatever widget it comes from.

    Text that is known to be foreign is made inert where it comes in, so that it is laid out right. This is
    for the place that somebody forgot, in our widgets or in Textual's.
    """

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:
        if all(is_inert_line(text) for text, _, _ in segments):
            return segments
        return [
            segment if is_inert_line(segment.text) else Segment(inert_line(segment.text), segment.style)
            for segment in segments
        ]
