"""How a conversion's events look on a terminal and in a log."""

from __future__ import annotations

import io
import time
from types import SimpleNamespace

import pytest
from rich.console import Console

from lite_llama.app import progress
from lite_llama.converter.events import Done, Notice, Progress
from lite_llama.models.checkpoint import Checkpoint


@pytest.fixture
def done(add_model) -> Done:
    return Done(Checkpoint.open(add_model("tiny")), 1.5)


def events(done: Done, pause: float):
    for event in script(done):
        time.sleep(pause)
        yield event


def script(done: Done):
    yield Progress("download", 0, 0, "some/model")
    yield Progress("download", 40_000_000, 80_000_000, "model.safetensors")
    yield Notice("The first source failed.\nTaking \x1b[31mthe [bold]second.")
    yield Progress("convert", 50_000_000, 100_000_000, "model.layers.0.mlp.gate_up_proj.weight")
    yield Progress("convert", 100_000_000, 100_000_000, "lm_head.weight")
    yield Progress("finish", 0, 0, "tiny")
    yield done


def show(done: Done, *, terminal: bool, pause: float = 0) -> str:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=120)
    assert progress.show(events(done, pause), console) is done
    return console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]


def test_figures():
    assert progress._figures(0, None, None) == ""
    assert progress._figures(5_000_000, None, 1e6) == "5 MB"
    assert progress._figures(40e6, 100e6, None) == "40 MB of 100 MB"
    assert progress._figures(40e6, 100e6, 4e6) == "40 MB of 100 MB, 4 MB/s, 15 s left"
    assert progress._figures(100e6, 100e6, 4e6) == "100 MB of 100 MB"


def test_the_bar(done, monkeypatch):
    # Slow enough for the bar, which is drawn ten times a second, to show each event.
    monkeypatch.setattr(progress._Figures, "max_refresh", None)
    shown = show(done, terminal=True, pause=0.15)
    for words in ("Downloading", "Converting", "50 MB of 100 MB", "lm_head.weight"):
        assert words in shown
    assert "Taking [31mthe [bold]second." in shown


def test_lines_without_a_terminal(done, monkeypatch):
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    assert show(done, terminal=False).splitlines() == [
        "Downloading: 40 MB of 80 MB, 4 MB/s, 10 s left",
        "The first source failed. Taking [31mthe [bold]second.",
        "Converting: 100 MB of 100 MB",
    ]


def test_a_quick_conversion_says_nothing_on_the_way(done):
    (notice,) = show(done, terminal=False).splitlines()
    assert notice.startswith("The first source failed.")
