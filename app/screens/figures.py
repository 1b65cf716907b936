"""What the engine carries now, and how fast the last replies were."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Static

from ...engine.events import EngineFigures, ModelInfo
from ...models.units import format_bytes
from ..actions import named
from ..controller import Controller
from ..database import PastReply
from ..machine import MachineLoad
from ..text import one_line

REFRESH_S = 1.0
REPLIES = 12
_HEADS = ("When", "Model", "Prompt", "Reused", "Reply", "tok/s", "First")
_MODEL_CELLS = 16

Load = Callable[[], Awaitable[tuple[MachineLoad, EngineFigures | None]]]


class FiguresScreen(ModalScreen[None]):
    """Figures that change are read again every second."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,enter", "dismiss", "Close"),
        named("app.figures").closing,
    ]

    def __init__(self, controller: Controller, load: Load) -> None:
        """`load` samples what the machine and the engine carry."""
        super().__init__()
        self._controller, self._load = controller, load

    def compose(self) -> ComposeResult:
        with VerticalScroll(id="dialog", classes="dialog") as dialog:
            dialog.border_title = "Figures"
            dialog.border_subtitle = "Esc closes"
            yield Static(id="now", markup=False)
            yield Static("Last replies", classes="heading", markup=False)
            yield Static(id="replies", markup=False)

    async def on_mount(self) -> None:
        self.set_interval(REFRESH_S, self._show_now)
        await self._show_now()
        replies = await self._controller.archive.past_replies(REPLIES)
        self.query_one("#replies", Static).update(_table(replies) if replies else "There is none yet.")

    async def _show_now(self) -> None:
        load, engine = await self._load()
        lines = [
            Content.assemble((f"{name:<10}", "$text-primary"), text)
            for name, text in _now(self._controller.loader.model, load, engine)
        ]
        self.query_one("#now", Static).update(Content("\n").join(lines))


def _now(model: ModelInfo | None, load: MachineLoad, engine: EngineFigures | None) -> list[tuple[str, str]]:
    lines = []
    if model is not None and model.device == "remote":
        lines += [("Model", one_line(model.name)), ("Runs as", one_line(model.device_name))]
    elif model is not None:
        weights = f"{format_bytes(model.weight_bytes)} · {model.dtype} · {model.operators} operators"
        lines += [("Model", one_line(model.name)), ("Weights", weights)]
    if engine is not None and model is not None:
        pages = f"{engine.pages_used:,} of {engine.pages_total:,} pages in use"
        cached = f"{engine.pages_cached:,} kept for later"
        lines.append(("KV cache", f"{pages} · {cached} · {format_bytes(model.kv_bytes)}"))
        lines.append(("Requests", f"{engine.running} running, {engine.waiting} waiting"))
    if (gpu := load.gpu) is not None:
        busy = "" if gpu.utilisation is None else f" · {gpu.utilisation:.0%} busy"
        memory = f"{format_bytes(gpu.used_bytes)} of {format_bytes(gpu.total_bytes)}"
        lines.append(("GPU", f"{one_line(gpu.name)} · {memory}{busy}"))
    lines.append(("Program", f"{load.cpu:.0%} of a processor · {format_bytes(load.rss_bytes)} of memory"))
    return lines


def _table(replies: list[PastReply]) -> Content:
    rows = [_HEADS, *(_cells(reply) for reply in replies)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADS))]
    lines = []
    for number, row in enumerate(rows):
        cells = [
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append(Content.styled("  ".join(cells), "" if number else "$text-muted"))
    return Content("\n").join(lines)


def _cells(reply: PastReply) -> tuple[str, ...]:
    usage = reply.figures
    model = one_line(reply.model)
    return (
        _when(reply.created),
        model if len(model) <= _MODEL_CELLS else f"{model[: _MODEL_CELLS - 1]}…",
        f"{usage.prompt_tokens:,}",
        f"{usage.cached_prompt_tokens:,}",
        f"{usage.completion_tokens:,}",
        f"{usage.decode_tokens_per_s:,.1f}" if usage.decode_tokens_per_s else "",
        f"{usage.ttft_s:.2f} s",
    )


def _when(created: float) -> str:
    """The time of a reply of today, else its day."""
    then, now = time.localtime(created), time.localtime(time.time())
    return time.strftime("%H:%M" if then[:3] == now[:3] else "%m-%d", then)
