"""The lines that tell which model runs and how full its context is."""

from __future__ import annotations

from rich.cells import cell_len
from textual.content import Content
from textual.widgets import Static

from ...engine.events import UNKNOWN_CONTEXT, ModelInfo
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
            parts = [one_line(part) for part in (info.name, info.device_name, info.dtype) if part]
            while len(parts) > 1 and cell_len(" · ".join(parts)) > width - len(brand) - 4:
                parts.pop()
            model = " · ".join(parts)
        room = width - len(brand) - cell_len(model) - 4
        title = Content(self._title).truncate(max(0, room), ellipsis=True) if room > 8 else Content("")
        gap = " " * max(1, width - len(brand) - 2 - title.cell_length - cell_len(model))
        self.update(
            Content.assemble((brand, "bold $text-primary"), "  ", (title.plain, "$text-muted"), gap, model)
        )


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
