"""A conversion's progress on stderr: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterable

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.text import Text

from ..converter.events import ConvertEvent, Done, Notice
from ..converter.events import Progress as Step
from .text import format_bytes, one_line

LINE_EVERY_S = 5.0
_PHASES = {"download": "Downloading", "convert": "Converting", "finish": "Checking"}


def show(events: Iterable[ConvertEvent], console: Console) -> Done:
    """Show the conversion until it is done; what the iterator raises passes through."""
    return _bar(events, console) if console.is_terminal else _lines(events, console)


def _bar(events: Iterable[ConvertEvent], console: Console) -> Done:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[item]}", markup=False, style="dim"),
    )
    tasks: dict[str, TaskID] = {}
    with Progress(*columns, console=console, transient=True) as progress:
        for event in events:
            if isinstance(event, Done):
                return event
            if isinstance(event, Notice):
                progress.console.print(Text(one_line(event.text)))
                continue
            if event.phase not in tasks:
                for earlier in tasks.values():
                    progress.update(earlier, visible=False)
                # What is there already, as in a download taken up again, must not count as speed.
                tasks[event.phase] = progress.add_task(
                    _PHASES[event.phase], completed=event.done, total=event.total or None, item=""
                )
            progress.update(
                tasks[event.phase],
                completed=event.done,
                total=event.total or None,
                item=one_line(event.item),
            )
    raise AssertionError("the conversion ended without Done")


def _lines(events: Iterable[ConvertEvent], console: Console) -> Done:
    told: tuple[float, Step] | None = None  # when and what the last line said, or the phase began with
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
            speed = format_bytes((event.done - told[1].done) / (now - told[0]))
            total = f" of {format_bytes(event.total)}" if event.total else ""
            line = f"{_PHASES[event.phase]}: {format_bytes(event.done)}{total}, {speed}/s"
            console.print(Text(line), soft_wrap=True)
            told = (now, event)
    raise AssertionError("the conversion ended without Done")
