"""The garbage collector, which stops the whole app while it looks through all objects."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Sequence

from textual.strip import Strip

THRESHOLDS = 5000, 5, 100
"""Objects after which the young ones are looked through, how often that comes before the middle ones, and how
often these before all.

Every change of the screen leaves some hundred objects of Textual's that only the collector frees. With
Python's own thresholds (700, 10, 10) they are not dead yet when they are looked through, become old, and make
collections of all come every second, which take 50 to 100 ms with a long reply on the screen. So young ones
may be more, and old ones are looked through by `tidy`.
"""
_textuals = Strip.divide


def spare() -> None:
    """Let full collections come seldom, and find less.

    Textual 8.2 keeps a drawn line that is not divided in the line's own cache, as its only part. Just the
    collector can free it then, and a reply that streams brings hundreds of lines a second.
    """
    gc.set_threshold(*THRESHOLDS)
    Strip.divide = _divide


def tidy() -> None:
    """A full collection, unless there is little to find. It takes a tenth of a second: when nobody waits."""
    if gc.get_count()[2]:
        gc.collect()


def _divide(self: Strip, cuts: Iterable[int]) -> Sequence[Strip]:
    return [self] if cuts == [self.cell_length] else _textuals(self, cuts)
