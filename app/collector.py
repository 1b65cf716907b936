"""The garbage collector, which stops the whole app while it looks through all objects."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Sequence

from textual.strip import Strip

FULL_EVERY = 25
"""So many collections of younger objects come before one of all; Python's own number is 10.

A long reply and what Textual remembers are 100,000 objects, which take 40 ms. With a higher number that is
less often, but turns that were removed pile up: at 50 one collection of many turns takes 170 ms.
"""
_textuals = Strip.divide


def spare() -> None:
    """Let full collections come less often, and find less.

    Textual 8.2 keeps a drawn line that is not divided in the line's own cache, as its only part. Just the
    collector can free it then, and a reply that streams brings hundreds of lines a second.
    """
    young, middle, _ = gc.get_threshold()
    gc.set_threshold(young, middle, FULL_EVERY)
    Strip.divide = _divide


def _divide(self: Strip, cuts: Iterable[int]) -> Sequence[Strip]:
    return [self] if cuts == [self.cell_length] else _textuals(self, cuts)
