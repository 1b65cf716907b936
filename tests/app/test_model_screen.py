"""The model switcher, driven by keys."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from textual import events
from textual.widgets import Button, Input, OptionList, Static

from lite_llama.app.library import remember_speed
from lite_llama.app.paths import Paths
from lite_llama.app.remote.endpoint import Endpoint, Endpoints
from lite_llama.app.screens import models as module
from lite_llama.app.screens.models import ConfirmScreen, ModelChoice, ModelScreen, NameScreen
from lite_llama.app.settings import Settings
from lite_llama.converter import Local, Part
from lite_llama.engine.events import ModelInfo
from lite_llama.models.checkpoint import WEIGHTS, Checkpoint

Make = Callable[..., Path]


@pytest.fixture
def models(paths: Paths, make_model: Make) -> Paths:
    for name in ("beta", "Alpha", "gamma"):
        make_model(name)
    return paths


@pytest.fixture(autouse=True)
def memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU with 2 GB of free memory."""
    monkeypatch.setattr("lite_llama.engine.memory.available_memory", lambda _: 2 * 10**9)


@pytest.fixture
def screen(paths: Paths, engine: Any) -> Callable[..., ModelScreen]:
    """`screen("beta")` is the manager while the model beta is in use."""

    def make(current: str | None, **settings: Any) -> ModelScreen:
        loaded: ModelInfo | None = engine._info(current) if current else None
        return ModelScreen(paths, Settings(device="cpu", **settings), loaded)

    return make


def listed(app: Any) -> list[str]:
    options = app.screen.query_one("#models", OptionList)
    return [str(option.prompt) for option in options.options]


def note(app: Any) -> str:
    label = app.screen.query_one("#note", Static)
    return str(label.render()) if label.display else ""


def notices(app: Any) -> list[str]:
    return [notification.message for notification in app._notifications]


async def test_lists_the_models_with_their_figures(host: Any, screen: Any, models: Paths, until: Any):
    app = host(screen("beta"))
    async with app.run_test() as pilot:
        await until(pilot, lambda: "fits" in listed(app)[0])
        alpha, beta, gamma = listed(app)
        assert alpha.split() == [
            *("Alpha", "fits", "Llama", "·", "135M", "·", "bfloat16", "·", "4.28", "kB", "·"),
            *("context", "2,048"),
        ]
        assert "● beta  in use" in beta
        assert "gamma" in gamma
        assert "in use" not in alpha + gamma


async def test_enter_loads_the_highlighted_one(host: Any, screen: Any, models: Paths):
    app = host(screen("beta"))
    async with app.run_test() as pilot:
        await pilot.press("down", "enter")
    assert app.results == [ModelChoice("load", "gamma")]


async def test_escape_leaves(host: Any, screen: Any, models: Paths):
    app = host(screen(None))
    async with app.run_test() as pilot:
        await pilot.press("escape")
    assert app.results == [None]


@pytest.mark.parametrize("current", [None, "beta"])
async def test_a_adds(host: Any, screen: Any, models: Paths, current: str | None):
    app = host(screen(current))
    async with app.run_test() as pilot:
        await pilot.press("a")
    assert app.results == [ModelChoice("add", None)]


async def test_without_models_it_says_what_to_do(host: Any, screen: Any, paths: Paths):
    app = host(screen(None))
    async with app.run_test() as pilot:
        await pilot.pause()
        assert note(app) == "There is no model yet: press a to add one."
        await pilot.press("enter", "d", "a")
    assert app.results == [ModelChoice("add")]


async def test_the_buttons_stay_in_view_whatever_the_list_is(
    host: Any, screen: Any, make_model: Make, until: Any
):
    for number in range(30):
        make_model(f"m{number:02}")
    app = host(screen(None))
    async with app.run_test(size=(80, 24)) as pilot:
        await pilot.press("end")
        assert app.screen.query_one("#models").region.bottom <= app.screen.query_one("#buttons").region.y
        assert await pilot.click("#add")
    assert app.results == [ModelChoice("add")]


async def test_letters_typed_fast_after_the_slash_filter(host: Any, screen: Any, models: Paths):
    """All of them are on their way when the first one is looked at; none deletes or adds a model."""
    app = host(screen("beta"))
    async with app.run_test() as pilot:
        for character in "/gamma da":
            app.post_message(events.Key("slash" if character == "/" else character, character))
        await pilot.pause()
        assert app.screen.query_one("#filter", Input).value == "gamma da"
        assert listed(app) == []
        await pilot.press("backspace", "backspace")
        [gamma] = listed(app)
        assert "gamma" in gamma
        await pilot.press("enter")
    assert app.results == [ModelChoice("load", "gamma")]


async def test_enter_loads_what_was_filtered_however_fast(host: Any, screen: Any, models: Paths):
    app = host(screen("beta"))
    async with app.run_test() as pilot:
        for key in ("slash", *"gam", "enter"):
            app.post_message(events.Key(key, "/" if key == "slash" else key if len(key) == 1 else None))
        await pilot.pause()
    assert app.results == [ModelChoice("load", "gamma")]


async def test_typing_filters(host: Any, screen: Any, models: Paths):
    app = host(screen("beta"))
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


async def test_delete_asks_first(host: Any, screen: Any, models: Paths):
    app = host(screen("beta"))
    async with app.run_test() as pilot:
        await pilot.press("down", "d")
        assert isinstance(app.screen, ConfirmScreen)
        question = str(app.screen.query_one("#question Static", Static).render())
        assert question == "Delete the model gamma? It frees 4.28 kB."
        await pilot.press("n")
        assert isinstance(app.screen, ModelScreen)
        assert (models.models / "gamma").is_dir()
        await pilot.press("d", "escape", "d", "enter")  # escape says no, and so does a careless enter
        assert isinstance(app.screen, ModelScreen)
        await pilot.press("d", "y")
        question = str(app.screen.query_one("#question Static", Static).render())
        assert question == "This cannot be undone. Delete gamma for good?"
        await pilot.press("n")
        assert (models.models / "gamma").is_dir()
    assert app.results == []


@pytest.mark.parametrize("key", ["d", "delete", "mouse"])
async def test_asked_twice_it_is_deleted(host: Any, screen: Any, models: Paths, until: Any, key: str):
    app = host(screen("beta"))
    async with app.run_test() as pilot:
        await pilot.press("down")
        if key == "mouse":
            await pilot.click("#delete")
            await pilot.click("#yes")
            await pilot.click("#yes")
        else:
            await pilot.press(key, "y", "y")
        await until(pilot, lambda: app.results)
    assert app.results == [ModelChoice("delete", "gamma")]


async def test_the_model_in_use_is_deleted_with_a_warning(host: Any, screen: Any, models: Paths, until: Any):
    app = host(screen("beta"))
    async with app.run_test() as pilot:
        await pilot.press("d")
        question = str(app.screen.query_one("#question Static", Static).render())
        assert question.endswith("It frees 4.28 kB. It is in use and unloaded first.")


async def test_rename(host: Any, screen: Any, models: Paths, until: Any):
    app = host(screen("beta"))
    async with app.run_test() as pilot:
        await pilot.press("down", "r")
        assert isinstance(app.screen, NameScreen)
        field, said = app.screen.query_one(Input), app.screen.query_one(Static)
        assert field.value == "gamma"
        for name, why in (
            ("beta", "There is already a model called beta."),
            ("a/b", "cannot be a model's name"),
        ):
            field.value = name
            await pilot.press("enter")
            assert why in str(said.render())
        field.value = "delta"
        await pilot.press("enter")
        await until(pilot, lambda: app.results)
    assert app.results == [ModelChoice("rename", "gamma", "delta")]


async def test_verify(host: Any, screen: Any, models: Paths, until: Any):
    app = host(screen("beta"))
    async with app.run_test() as pilot:
        await pilot.press("v")
        await until(pilot, lambda: note(app) == "beta: all 2 files are sound.")
        (models.models / "beta" / WEIGHTS).write_bytes(b"\1" * 4096)
        await pilot.click("#verify")
        await until(pilot, lambda: note(app).startswith("beta/model.safetensors is damaged"))


async def test_verifying_tells_how_far_it_is_and_can_be_stopped(
    host: Any, screen: Any, models: Paths, until: Any, monkeypatch: pytest.MonkeyPatch
):
    reads = 0

    def slow(self: Checkpoint, *, force: bool, progress: Callable[[int], None]) -> None:
        nonlocal reads
        while True:  # ends by what `progress` raises
            time.sleep(0.01)
            progress(self.size // 2 if not reads else 0)
            reads += 1

    monkeypatch.setattr(Checkpoint, "verify", slow)
    app = host(screen("beta"))
    async with app.run_test() as pilot:
        await pilot.press("v")
        await until(pilot, lambda: "Verifying beta" in note(app) and "50%" in note(app))
        await pilot.press("down", "escape")
        await until(pilot, lambda: note(app) == "beta was not verified to the end.")
        assert app.results == []
        before = reads
        await pilot.pause(0.1)
        assert reads == before
        await pilot.press("v")
        await until(pilot, lambda: reads > before)
        await pilot.press("q", "escape", "escape")  # nothing may run on when the screen is left
        await until(pilot, lambda: app.results)
    assert app.results == [None]


async def test_what_fits_and_how_fast_it_was(
    host: Any, screen: Any, models: Paths, until: Any, monkeypatch: pytest.MonkeyPatch
):
    remember_speed(models.models / "gamma", 41.96)
    monkeypatch.setattr("lite_llama.engine.memory.available_memory", lambda _: 10**5)
    app = host(screen(None))
    async with app.run_test() as pilot:
        await until(pilot, lambda: "does not fit" in listed(app)[2])
        assert "gamma  does not fit  42.0 tok/s" in listed(app)[2]
        await pilot.press("down")
        assert note(app).startswith("The model needs ")
    app = host(screen("beta"))
    async with app.run_test() as pilot:  # the one in use makes room
        await until(pilot, lambda: "fits" in listed(app)[2])


@pytest.fixture
def shelf(models: Paths, monkeypatch: pytest.MonkeyPatch) -> tuple[Part, Local]:
    """A stopped conversion, and a checkpoint that is not converted yet (beside one that is)."""
    part = Part("Qwen3-4B", "Qwen/Qwen3-4B", "bfloat16", "f1", 3_600_000_000, 8_000_000_000, "")
    new = Local("/data/llama-3.2-1b", "llama-3.2-1b", "Llama", 2_470_000_000)
    old = Local("demo", "demo", "Llama", 1)
    monkeypatch.setattr(module, "parts", lambda _: [part])
    monkeypatch.setattr(module, "find_local", lambda directories: [old, new])
    return part, new


async def test_what_can_be_converted_is_listed(
    host: Any, screen: Any, shelf: tuple[Part, Local], models: Paths, until: Any
):
    part, local = shelf
    app = host(screen("beta"))
    async with app.run_test() as pilot:
        await until(pilot, lambda: len(listed(app)) == 5)
        assert "Qwen3-4B  stopped at 45%: Enter goes on" in listed(app)[3]
        assert "llama-3.2-1b  not converted yet" in listed(app)[4]
        await pilot.press("end", "r", "v", "d")
        assert len(notices(app)) == 3
        assert str(app.screen.query_one("#load", Button).label) == "Convert ↵"
        await pilot.press("enter")
    assert app.results == [ModelChoice("convert", source=local)]
    app = host(screen("beta"))
    async with app.run_test() as pilot:
        await until(pilot, lambda: len(listed(app)) == 5)
        await pilot.press("end", "up", "enter")
    assert app.results == [ModelChoice("convert", source=part)]


async def test_a_stopped_conversion_can_be_discarded(
    host: Any,
    screen: Any,
    shelf: tuple[Part, Local],
    models: Paths,
    until: Any,
    monkeypatch: pytest.MonkeyPatch,
):
    discarded = []
    monkeypatch.setattr(module, "discard_part", lambda *which: discarded.append(which))
    app = host(screen("beta"))
    async with app.run_test() as pilot:
        await until(pilot, lambda: len(listed(app)) == 5)
        await pilot.press("end", "up", "d", "y")
        await until(pilot, lambda: len(listed(app)) == 4)
    assert discarded == [(models.models, shelf[0])]


async def test_damaged_model_is_explained_and_can_only_be_deleted(
    host: Any, screen: Any, models: Paths, until: Any
):
    (models.models / "Alpha" / "model.safetensors").write_bytes(b"short")
    app = host(screen("beta"))
    async with app.run_test() as pilot:
        await pilot.press("home")
        assert "damaged" in listed(app)[0]
        assert note(app).startswith("Alpha/model.safetensors has 5 bytes instead of 4096")
        await pilot.press("enter")
        await until(pilot, lambda: notices(app))
        assert app.results == []
        await pilot.press("down")
        assert note(app) == ""
        await pilot.press("up", "d", "y", "y")
        await until(pilot, lambda: app.results)
    assert app.results == [ModelChoice("delete", "Alpha")]


async def test_an_endpoint_goes_before_a_damaged_model_of_its_name(
    host: Any, screen: Any, make_model: Make, paths: Paths, until: Any
):
    (make_model("cluster") / WEIGHTS).unlink()
    Endpoints(paths.endpoints).save(Endpoint("cluster", "http://127.0.0.1:1/v1", "served"))
    app = host(screen(None))
    async with app.run_test() as pilot:
        await until(pilot, lambda: len(listed(app)) == 1)
        assert "served · 127.0.0.1:1" in listed(app)[0]
        await pilot.press("enter")
    assert app.results == [ModelChoice("load", "cluster")]


async def test_parts_of_one_source_under_two_names_are_two(
    host: Any, screen: Any, until: Any, monkeypatch: pytest.MonkeyPatch
):
    stopped = [Part(name, "some/repo", "bfloat16", "f" * 64, 50, 100, "0" * 64) for name in ("one", "two")]
    discarded: list[Part] = []
    monkeypatch.setattr(module, "parts", lambda _: stopped)
    monkeypatch.setattr(module, "discard_part", lambda _, part: discarded.append(part))
    app = host(screen(None))
    async with app.run_test() as pilot:
        await until(pilot, lambda: len(listed(app)) == 2)
        await pilot.press("home", "d")
        await until(pilot, lambda: isinstance(app.screen, ConfirmScreen))
        await pilot.press("y")
        await until(pilot, lambda: discarded == stopped[:1])


@pytest.mark.parametrize("theme", ["lite-llama-dark", "lite-llama-light"])
@pytest.mark.parametrize("size", [(80, 24), (160, 48)], ids=["80x24", "160x48"])
@pytest.mark.parametrize("state", ["damaged", "convert", "delete", "rename"])
def test_looks_right(
    host: Any,
    screen: Any,
    snap_compare: Callable[..., bool],
    make_model: Make,
    models: Paths,
    shelf: tuple[Part, Local],
    until: Any,
    state: str,
    size: tuple[int, int],
    theme: str,
):
    (models.models / "Alpha" / WEIGHTS).write_bytes(b"short")
    remember_speed(make_model("llava-1.5-7b"), 41.96)
    remember_speed(models.models / "beta", 187.2)
    app = host(screen("beta"), theme=theme)

    async def come_there(pilot: Any) -> None:
        await until(pilot, lambda: len(listed(app)) == 6 and "fits" in listed(app)[2])
        keys = {"convert": ["end"], "delete": ["home", "d"], "rename": ["home", "down", "r"]}
        await pilot.press(*keys.get(state, ["home"]))
        await pilot.pause()

    assert snap_compare(app, terminal_size=size, run_before=come_there)
