"""Finds the fastest tiles on this GPU by trying each where it will run, between its neighbours."""

from __future__ import annotations

from collections.abc import Callable

from . import tiles
from .tiles import Options

Measure = Callable[[], list[float]]
"""Runs what is to be fast, its kernels launched anew, and returns the seconds of each case that counts."""


def tune(measure: Measure, tell: Callable[[str], None] = lambda _: None) -> dict[str, Options]:
    """The best options of each kernel that `measure` launches, as entries of the table of tiles.

    One kernel after the other, with the best options found for those before it: the ones whose cases take
    the least time, each over the least that any candidate took for it. `tell` gets a line about each.
    Raises RuntimeError where nothing of a kernel can be launched.
    """
    with tiles.asked() as asked:
        measure()
    found: dict[str, Options] = {}
    for key, candidates in asked.items():
        times: list[tuple[Options, list[float]]] = []
        for options in candidates():
            tiles.update({key: options})
            try:
                times.append((options, measure()))
            except Exception as error:  # too large for this GPU, or one that its compiler refuses
                tell(f"{key}: {options} cannot run ({type(error).__name__})")
        if not times:
            raise RuntimeError(f"No tile of {key} can run on this GPU.")
        least = [min(case) for case in zip(*(seconds for _, seconds in times), strict=True)]
        best, seconds = min(
            times, key=lambda entry: sum(taken / low for taken, low in zip(entry[1], least, strict=True))
        )
        found[key] = best
        tiles.update(found)
        tell(f"{key}: {best}, {' '.join(f'{1e6 * taken:.1f}' for taken in seconds)} us")
    return found
