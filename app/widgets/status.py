"""The lines that tell what goes on: which model, how fast, how full the context is."""

from __future__ import annotations

from rich.cells import cell_len
from textual.content import Content
from textual.widgets import Static

from ...engine.events import UNKNOWN_CONTEXT, ModelInfo, Usage
from ..remote.estimate import Estimate
from ..text import format_tokens, one_line

NEARLY_FULL = 0.8


def bar(fraction: float, cells: int, style: str) -> Content:
    """A bar of which `fraction` is filled."""
    filled = round(max(0.0, min(1.0, fraction)) * cells)
    return Content.assemble(("━" * filled, style), ("━" * (cells - filled), "$border-blurred"))


class Header(Static):
    """The app's name, the conversation's title, and the model with what it runs on."""

    def __init__(self) -> None:
        super().__init__(id="header", markup=False)
        self._title = ""
        self._model: ModelInfo | None = None

    def show_title(self, title: str) -> None:
        self._title = one_line(title)
        self._draw()

    def show_model(self, info: ModelInfo | None) -> None:
        self._model = info
        self._draw()

    def on_resize(self) -> None:
        self._draw()

    def _draw(self) -> None:
        """The model is on the right; the title takes what is left between."""
        width, brand = self.content_size.width, "lite-llama"
        model = ""
        if info := self._model:
            parts = [part for part in (info.name, info.device_name, info.dtype) if part]
            while len(parts) > 1 and cell_len(" · ".join(parts)) > width - len(brand) - 4:
                parts.pop()
            model = " · ".join(parts)
        room = width - len(brand) - cell_len(model) - 4
        title = Content(self._title).truncate(max(0, room), ellipsis=True) if room > 8 else Content("")
        gap = " " * max(1, width - len(brand) - 2 - title.cell_length - cell_len(model))
        self.update(
            Content.assemble((brand, "bold $text-primary"), "  ", (title.plain, "$text-muted"), gap, model)
        )


class Telemetry(Static):
    """What the engine is doing, in its own figures."""

    def __init__(self) -> None:
        super().__init__(id="telemetry", markup=False)

    def show(self, text: str, style: str = "") -> None:
        self.update(Content.assemble((one_line(text), style)))

    def show_loading(self, name: str, text: str, done: int, total: int) -> None:
        parts: list[Content | str] = [f"Loading {one_line(name)}  "]
        if total:
            parts += [bar(done / total, 12, "$primary"), f" {done / total:4.0%}  "]
        self.update(Content.assemble(*parts, (one_line(text), "$text-muted")))

    def show_prefill(self, done: int, total: int) -> None:
        self.update(
            Content.assemble(
                "Reading the prompt  ",
                bar(done / max(1, total), 12, "$primary"),
                f" {done:,} / {total:,} tokens",
            )
        )

    def show_decode(self, tokens: int, tokens_per_s: float) -> None:
        rate = f"{tokens_per_s:.1f} tok/s" if tokens_per_s else "…"
        self.update(Content.assemble((rate, "bold $text-primary"), f" · {format_tokens(tokens)}"))

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
        self.show(" · ".join(parts))


class ContextMeter(Static):
    """Tokens of the context in use, the draft included."""

    def __init__(self) -> None:
        super().__init__(id="context", markup=False)

    def show(self, used: int, limit: int) -> None:
        share = used / limit if limit else 0.0
        text, colour = "", "$secondary"
        if share >= 1:
            text, colour = "$text-error", "$error"
        elif share >= NEARLY_FULL:
            text, colour = "$text-warning", "$warning"
        about = "~" if isinstance(used, Estimate) else ""
        if limit >= UNKNOWN_CONTEXT:
            self.update(f"{about}{format_tokens(used)}")
        else:
            self.update(Content.assemble(bar(share, 8, colour), (f" {about}{used:,} / {limit:,}", text)))


class ContextLabel(Static):
    """Names the meter; where there is little room it only comes to warn."""

    def __init__(self) -> None:
        super().__init__(id="context-label", markup=False)

    def show(self, used: int, limit: int) -> None:
        full = used >= NEARLY_FULL * limit
        self.set_class(full, "-full")
        text = "context full " if used >= limit else "context nearly full " if full else "context "
        self.update(Content.assemble((text, "$text-warning" if full else "")))
