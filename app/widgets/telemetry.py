"""The line that tells what the engine is doing, in its own figures."""

from __future__ import annotations

from textual.content import Content
from textual.widgets import Static

from ...engine.events import EngineFigures, Usage
from ...models.units import format_bytes
from ..machine import MachineLoad
from ..pace import Pace
from ..text import format_tokens, one_line
from .status import bar

WIDE = 70
"""Cells from which on there is room for what the engine and the machine carry."""
SEPARATOR = " · "


class Telemetry(Static):
    """Shows of its figures those that fit into its lines, the most telling ones first."""

    def __init__(self) -> None:
        super().__init__(id="telemetry", markup=False)
        self._parts: list[Content] = []
        self._load: list[Content] = []

    @property
    def is_wide(self) -> bool:
        """Whether it would show the load."""
        return self.content_size.width >= WIDE

    def show(self, text: str, style: str = "") -> None:
        self._show([Content.styled(one_line(text), style)])

    def show_loading(self, name: str, text: str, done: int, total: int) -> None:
        parts: list[Content | str] = [f"Loading {one_line(name)}  "]
        if total:
            parts += [bar(done / total, 12, "$primary"), f" {done / total:4.0%}  "]
        self._show([Content.assemble(*parts, (f"{one_line(text)} · Esc cancels", "$text-muted"))])

    def show_prefill(self, done: int, total: int, tokens_per_s: float) -> None:
        progress = bar(done / max(1, total), 12, "$primary")
        parts = [Content.assemble("Reading the prompt  ", progress, f" {done:,} / {total:,} tokens")]
        if tokens_per_s:
            parts.append(Content(f"{tokens_per_s:,.0f} tok/s"))
        self._show(parts)

    def show_decode(self, tokens: int, tokens_per_s: float, pace: Pace) -> None:
        rate = f"{tokens_per_s:.1f} tok/s" if tokens_per_s else "…"
        parts = [Content.styled(rate, "bold $text-primary"), Content(format_tokens(tokens))]
        if pace.is_settled:
            parts[0] += Content.styled(f" {pace.sparkline}", "$text-secondary")
            parts.append(Content(f"p95 {1000 * pace.p95_s:.1f} ms"))
            parts.append(Content(f"first token {pace.ttft_s:.2f} s"))
        self._show(parts)

    def show_usage(self, usage: Usage) -> None:
        """The figures of a finished reply."""
        parts = [format_tokens(usage.completion_tokens)]
        if usage.decode_tokens_per_s:
            parts.append(f"{usage.decode_tokens_per_s:.1f} tok/s")
        parts.append(f"first token {usage.ttft_s:.2f} s")
        if usage.remote:
            parts.append("timed here")  # with the network, and whatever waited before us
        if usage.cached_prompt_tokens:
            parts.append(f"{usage.cached_prompt_tokens:,} reused")
        self._show([Content(part) for part in parts])

    def show_load(self, load: MachineLoad, engine: EngineFigures | None) -> None:
        """What the engine and the machine carry at this moment."""
        self._load = [Content(part) for part in load_in_words(load, engine)]
        self._draw()

    def show_also(self, text: str) -> None:
        """`text` in the place of the load, where this has several lines."""
        self._load = [Content(text)] if text else []
        self._draw()

    def _show(self, parts: list[Content]) -> None:
        self._parts = parts
        self._draw()

    def on_resize(self) -> None:
        self._draw()

    def _draw(self) -> None:
        width, height = self.content_size
        lines: list[list[Content]] = [[]]
        for part in [*self._parts, *(self._load if self.is_wide or height > 1 else [])]:
            line = lines[-1]
            if line and sum(each.cell_length + len(SEPARATOR) for each in line) + part.cell_length > width:
                if len(lines) >= height:
                    break
                lines.append([])
            lines[-1].append(part)
        self.update(Content("\n").join(Content(SEPARATOR).join(line) for line in lines))


def load_in_words(load: MachineLoad, engine: EngineFigures | None) -> list[str]:
    """KV pages in use, and the GPU or else the processor."""
    parts = []
    if engine is not None:
        parts.append(f"KV {engine.pages_used:,}/{engine.pages_total:,}")
    if (gpu := load.gpu) is not None:
        busy = "" if gpu.utilisation is None else f"{gpu.utilisation:.0%} "
        parts.append(f"GPU {busy}{format_bytes(gpu.used_bytes)} of {format_bytes(gpu.total_bytes)}")
    else:
        parts.append(f"CPU {load.cpu:.0%} {format_bytes(load.rss_bytes)}")
    return parts
