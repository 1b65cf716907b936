"""What a benchmark leaves behind: a JSON file for doubters, a table for the terminal, a plot."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ... import __version__
from ...models.errors import UserError

if TYPE_CHECKING:
    from rich.table import Table

    from ...engine.engine import Engine
    from .roofline import CopyBandwidth
    from .subject import Subject

Row = dict[str, Any]


@dataclass(frozen=True)
class Column:
    """A column of the table: its header, and the cell that it shows of a row."""

    header: str
    cell: Callable[[Row], str]


@dataclass(frozen=True)
class Panel:
    """One group of bars of the plot: a value per label, for each series."""

    title: str
    labels: list[str]
    series: dict[str, list[float]]


@dataclass(frozen=True)
class Report:
    """The outcome of one mode: `facts` hold for all of it, `rows` are the measurements.

    `case` tells it from other reports of the mode on the same model.
    """

    facts: dict[str, Any]
    rows: list[Row]
    columns: tuple[Column, ...]
    panels: tuple[Panel, ...]
    case: str = ""

    @property
    def title(self) -> str:
        facts = self.facts
        if facts["weights"] is None:
            return f"{facts['mode']}: {facts['model']}, {facts['device']}"
        model = f"{facts['model']} ({facts['weights']} weights){self.case and ', ' + self.case}"
        return f"{facts['mode']}: {model}, {facts['dtype']}, {facts['device']}"

    @property
    def file_name(self) -> str:
        """Without suffix: <mode>-<model>[-<case>]-<device>."""
        parts = (self.facts["mode"], self.facts["model"], self.case, self.facts["device"])
        return re.sub(r"[^a-z0-9.]+", "-", "-".join(parts).lower()).strip("-")

    def as_dict(self, command: str) -> dict[str, Any]:
        """Everything, for the JSON file; `command` is what the user ran."""
        return {"command": command, **self.facts, "results": self.rows}


NO_MODEL = "scripted replies"
"""What stands for the model where none runs."""


def facts(
    mode: str, subject: Subject | None, *, device: str, dtype: str | None, **more: Any
) -> dict[str, Any]:
    """The facts of a report: what was measured, where, when and with which versions."""
    import torch

    return {
        "mode": mode,
        "model": subject.name if subject else NO_MODEL,
        "weights": subject.weights if subject else None,
        "device": device,
        "dtype": dtype,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {
            "lite_llama": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "hip": torch.version.hip,
            "triton": _version("triton"),
            "transformers": _version("transformers"),
        },
        "threads": torch.get_num_threads(),
        **more,
    }


def engine_facts(mode: str, subject: Subject, engine: Engine, **more: Any) -> dict[str, Any]:
    """The facts of a mode that runs in one engine."""
    info = engine.info
    return facts(
        mode,
        subject,
        device=info.device_name,
        dtype=info.dtype,
        operators=info.operators,
        parameters=info.parameter_count,
        kv_pages=info.kv_pages,
        max_context=info.max_context,
        **more,
    )


def copy_facts(copy: CopyBandwidth) -> dict[str, Any]:
    """The measured copy bandwidth, for the facts."""
    return {"copy_bandwidth": copy.as_dict()}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def ms(seconds: float) -> str:
    """A duration in milliseconds for a cell."""
    return f"{1000 * seconds:,.2f}" if seconds < 0.1 else f"{1000 * seconds:,.0f}"


def rate(value: float) -> str:
    """A number per second for a cell: three figures at least."""
    return f"{value:,.1f}" if value < 1000 else f"{value:,.0f}"


FIRST_TOKEN = Column("First token ms", lambda row: ms(row["ttft_s"]))
DECODE_RATE = Column("Decode tokens/s", lambda row: rate(row["decode_tokens_per_s"]))


def _label(value: float) -> str:
    """A number beside its bar."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def table(report: Report) -> Table:
    """The report's rows as a table for rich."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for index, column in enumerate(report.columns):
        shown.add_column(column.header, justify="right" if index else "left")
    for row in report.rows:
        shown.add_row(*(Text(column.cell(row)) for column in report.columns))
    return shown


def prepare(directory: Path) -> None:
    """Make the directory of `write`, before anything is measured. Raises UserError when that fails."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{directory} cannot be made ({error.strerror}): choose another --out.") from None


def write(report: Report, directory: Path, command: str) -> list[Path]:
    """Write the JSON file and, where matplotlib is installed, the plot; returns the paths.

    Raises UserError when that fails.
    """
    path = directory / f"{report.file_name}.json"
    try:
        path.write_text(_json(report.as_dict(command)), encoding="utf-8")
        plotted = _plot(report, path.with_suffix(".png"))
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}): choose another --out.") from None
    return [path, *plotted]


def _json(value: Row) -> str:
    """Indented, with lists of plain values on one line each."""
    text = json.dumps(value, indent=2)
    lists = re.compile(r"\[\n\s+([^\[\]{}]*?)\n\s+\]")
    return lists.sub(lambda found: "[" + re.sub(r"\n\s+", " ", found[1]) + "]", text) + "\n"


def can_plot() -> bool:
    """Whether matplotlib is installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return False
    return True


def _plot(report: Report, path: Path) -> Sequence[Path]:
    """Horizontal bars, a panel above the other; nothing without matplotlib."""
    if not can_plot():
        return ()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    heights = [0.9 + 0.28 * len(panel.labels) * len(panel.series) for panel in report.panels]
    figure = Figure(figsize=(9, 0.6 + sum(heights)), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(report.title, fontsize=11)
    grid = figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights)
    for axes, panel in zip(grid[:, 0], report.panels, strict=True):
        thickness = 0.8 / len(panel.series)
        for index, (name, values) in enumerate(panel.series.items()):
            places = [row + (index - (len(panel.series) - 1) / 2) * thickness for row in range(len(values))]
            bars = axes.barh(places, values, 0.9 * thickness, label=name)
            axes.bar_label(bars, [_label(value) for value in values], padding=3, fontsize=8)
        axes.set_title(panel.title, loc="left", fontsize=9)
        axes.set_yticks(range(len(panel.labels)), panel.labels, fontsize=8)
        axes.invert_yaxis()
        axes.margins(x=0.12)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(axis="x", labelsize=8)
        if len(panel.series) > 1:
            axes.legend(fontsize=8)
    figure.savefig(path, dpi=150)
    return (path,)
