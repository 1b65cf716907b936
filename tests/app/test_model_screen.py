"""The model switcher, driven by keys."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from textual.widgets import Input, OptionList, Static

from lite_llama.app.paths import Paths
from lite_llama.app.screens.models import ConfirmScreen, ModelChoice, ModelScreen

Make = Callable[..., Path]


@pytest.fixture
def models(paths: Paths, make_model: Make) -> Paths:
    for name in ("beta", "Alpha", "gamma"):
        make_model(name)
    return paths


def listed(app: Any) -> list[str]:
    options = app.screen.query_one("#models", OptionList)
    return [str(option.prompt) for option in options.options] if options.display else []


def note(app: Any) -> str:
    label = app.screen.query_one("#note", Static)
    return str(label.render()) if label.display else ""


def notices(app: Any) -> list[str]:
    return [notification.message for notification in app._notifications]


async def test_lists_the_models_with_their_figures(host: Any, models: Paths):
    app = host(ModelScreen(models, "beta"))
    async with app.run_test() as pilot:
        await pilot.pause()
        alpha, beta, gamma = listed(app)
        assert alpha.split() == [
            *("Alpha", "Llama", "·", "135M", "parameters", "·", "bfloat16", "·", "4.28", "kB", "·"),
            *("context", "2,048"),
        ]
        assert "● beta  in use" in beta
        assert "gamma" in gamma
        assert "in use" not in alpha + gamma


async def test_enter_loads_the_highlighted_one(host: Any, models: Paths):
    app = host(ModelScreen(models, "beta"))
    async with app.run_test() as pilot:
        await pilot.press("down", "enter")
    assert app.results == [ModelChoice("load", "gamma")]


async def test_escape_leaves(host: Any, models: Paths):
    app = host(ModelScreen(models, None))
    async with app.run_test() as pilot:
        await pilot.press("escape")
    assert app.results == [None]


@pytest.mark.parametrize("current", [None, "beta"])
async def test_a_adds(host: Any, models: Paths, current: str | None):
    app = host(ModelScreen(models, current))
    async with app.run_test() as pilot:
        await pilot.press("a")
    assert app.results == [ModelChoice("add", None)]


async def test_without_models_it_says_what_to_do(host: Any, paths: Paths):
    app = host(ModelScreen(paths, None))
    async with app.run_test() as pilot:
        await pilot.pause()
        assert note(app) == "There is no model yet: press a to add one."
        await pilot.press("enter", "d", "a")
    assert app.results == [ModelChoice("add")]


async def test_typing_filters(host: Any, models: Paths):
    app = host(ModelScreen(models, "beta"))
    async with app.run_test() as pilot:
        await pilot.press("slash", *"135m A")
        assert len(listed(app)) == 3
        await pilot.press(*"lp")
        [alpha] = listed(app)
        assert "Alpha" in alpha
        await pilot.press("x")
        assert listed(app) == []
        assert note(app) == "No model matches '135m Alpx'."
        await pilot.press("enter")  # there is nothing to load
        assert app.results == []
        app.screen.query_one("#filter", Input).value = "a"
        await pilot.pause()
        await pilot.press("up", "down", "down", "enter")  # from beta, the one in use
    assert app.results == [ModelChoice("load", "gamma")]


async def test_delete_asks_first(host: Any, models: Paths):
    app = host(ModelScreen(models, "beta"))
    async with app.run_test() as pilot:
        await pilot.press("down", "d")
        assert isinstance(app.screen, ConfirmScreen)
        question = str(app.screen.query_one("#question Static", Static).render())
        assert question == "Delete the model gamma? It frees 4.28 kB."
        await pilot.press("n")
        assert isinstance(app.screen, ModelScreen)
        assert (models.models / "gamma").is_dir()
        await pilot.press("d", "escape", "d", "enter")  # escape says no, and so does a careless enter
        assert (models.models / "gamma").is_dir()
    assert app.results == []


async def test_delete_removes(host: Any, models: Paths, until: Any):
    app = host(ModelScreen(models, "beta"))
    async with app.run_test() as pilot:
        await pilot.press("down", "d", "y")
        await until(pilot, lambda: app.results)
    assert app.results == [ModelChoice("removed", "gamma")]
    assert not (models.models / "gamma").exists()
    assert (models.models / "beta").is_dir()


async def test_delete_of_what_vanished_says_so(host: Any, models: Paths, until: Any):
    app = host(ModelScreen(models, "beta"))
    async with app.run_test() as pilot:
        (models.models / "gamma").rename(models.models / "elsewhere")
        await pilot.press("down", "d", "y")
        await until(pilot, lambda: notices(app))
        [message] = notices(app)
        assert "gamma" in message
    assert app.results == []


async def test_the_model_in_use_is_not_deleted(host: Any, models: Paths, until: Any):
    app = host(ModelScreen(models, "beta"))
    async with app.run_test() as pilot:
        await pilot.press("d")
        await until(pilot, lambda: notices(app))
        assert notices(app) == ["beta is in use: load another model before you delete it."]
        assert isinstance(app.screen, ModelScreen)
    assert (models.models / "beta").is_dir()


async def test_damaged_model_is_explained_and_can_only_be_deleted(host: Any, models: Paths, until: Any):
    (models.models / "Alpha" / "model.safetensors").write_bytes(b"short")
    app = host(ModelScreen(models, "beta"))
    async with app.run_test() as pilot:
        await pilot.press("home")
        assert "damaged" in listed(app)[0]
        assert note(app).startswith("Alpha/model.safetensors has 5 bytes instead of 4096")
        await pilot.press("enter")
        await until(pilot, lambda: notices(app))
        assert app.results == []
        await pilot.press("down")
        assert note(app) == ""
        await pilot.press("up", "d", "y")
        await until(pilot, lambda: app.results)
    assert app.results == [ModelChoice("removed", "Alpha")]


async def highlight_damaged(pilot: Any) -> None:
    await pilot.press("home")


@pytest.mark.parametrize(
    ("size", "theme"),
    [((80, 24), "lite-llama-light"), ((160, 48), "lite-llama-dark")],
    ids=["80x24-light", "160x48-dark"],
)
def test_looks_right(
    host: Any, snap_compare: Callable[..., bool], models: Paths, size: tuple[int, int], theme: str
):
    (models.models / "Alpha" / "model.safetensors").write_bytes(b"short")
    app = host(ModelScreen(models, "beta"), theme=theme)
    assert snap_compare(app, terminal_size=size, run_before=highlight_damaged)
