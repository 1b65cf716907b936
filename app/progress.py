"""A conversion's progress on stderr: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterable

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, Task, TaskID, TextColumn
from rich.progress import Progress as Bars
from rich.table import Column
from rich.text import Text

from ..converter.events import ConvertEvent, Done, Notice, Progress
from ..models.units import format_bytes
from .text import format_seconds, one_line

LINE_EVERY_S = 5.0
_PHASES = {"download": "Downloading", "convert": "Converting", "finish": "Finishing"}


def show(events: Iterable[ConvertEvent], console: Console) -> Done:
    """Show the conversion until it is done; what the iterator raises passes through."""
    return _bar(events, console) if console.is_terminal else _lines(events, console)


def _figures(done: float, total: float | None, speed: float | None) -> str:
    """Size, speed and time left, as far as they are known: 40 MB of 80 MB, 4 MB/s, 10 s left."""
    if not total:
        return format_bytes(done) if done else ""
    text = f"{format_bytes(done)} of {format_bytes(total)}"
    if speed and done < total:
        text += f", {format_bytes(speed)}/s, {format_seconds((total - done) / speed)} left"
    return text


class _Figures(ProgressColumn):
    max_refresh = 0.5  # seconds; numbers that change more often cannot be read

    def render(self, task: Task) -> Text:
        return Text(_figures(task.completed, task.total, task.speed), no_wrap=True)


def _bar(events: Iterable[ConvertEvent], console: Console) -> Done:
    item = Column(no_wrap=True, overflow="ellipsis", ratio=1)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        _Figures(),
        TextColumn("{task.fields[item]}", markup=False, style="dim", table_column=item),
    )
    tasks: dict[str, TaskID] = {}
    with Bars(*columns, console=console, transient=True, expand=True) as bars:
        for event in events:
            if isinstance(event, Done):
                return event
            if isinstance(event, Notice):
                bars.console.print(Text(one_line(event.text)))
                continue
            if event.phase not in tasks:
                for earlier in tasks.values():
                    bars.update(earlier, visible=False)
                # What is there already, as in a download taken up again, must not count as speed.
                tasks[event.phase] = bars.add_task(
                    _PHASES[event.phase], completed=event.done, total=None, item=""
                )
            bars.update(
                tasks[event.phase],
                completed=event.done,
                total=event.total or None,
                item=one_line(event.item),
            )
    raise AssertionError("the conversion ended without Done")


def _lines(events: Iterable[ConvertEvent], console: Console) -> Done:
    told: tuple[float, Progress] | None = None  # when and what the last line said, or the phase began with
    for event in events:
        if isinstance(event, Done):
            return event
        if isinstance(event, Notice):
            console.print(Text(one_line(event.text)), soft_wrap=True)
            continue
        now = time.monotonic()
        if told is None or told[1].phase != event.phase:
            told = (now, event)
        elif now - told[0] >= LINE_EVERY_S:
            speed = (event.done - told[1].done) / (now - told[0])
            line = f"{_PHASES[event.phase]}: {_figures(event.done, event.total, speed)}"
            console.print(Text(line), soft_wrap=True)
            told = (now, event)
    raise AssertionError("the conversion ended without Done")
