"""The settings screen, driven by keys."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from textual.widgets import Input, Select, Static, TextArea

from lite_llama.app.screens.settings import SettingsField, SettingsScreen
from lite_llama.app.settings import Settings, form

CUSTOM = Settings(temperature=0.3, seed=11, system_prompt="Be brief.\nBe kind.", model="kept")


def field(app: Any, name: str) -> SettingsField:
    return app.screen.query_one(f"#field-{name}", SettingsField)


def why(app: Any, name: str) -> str:
    """The sentence beneath a field, empty when none is shown."""
    label = field(app, name).query_one(".why", Static)
    return str(label.render()) if label.display else ""


async def test_shows_every_setting_with_its_value_and_help(host: Any):
    app = host(SettingsScreen(CUSTOM))
    async with app.run_test():
        for name, info in Settings.model_fields.items():
            if form(info) is None:
                assert not app.screen.query(f"#field-{name}")
                continue
            shown = Settings.model_validate({name: field(app, name).value})
            assert getattr(shown, name) == getattr(CUSTOM, name)
            assert str(field(app, name).query_one(".help", Static).render()) == info.description


async def test_kind_of_widget_follows_the_type(host: Any):
    app = host(SettingsScreen(Settings()))
    async with app.run_test():
        assert isinstance(field(app, "temperature").editor, Input)
        assert isinstance(field(app, "system_prompt").editor, TextArea)
        assert isinstance(field(app, "device").editor, Select)
        theme = field(app, "theme").editor
        assert isinstance(theme, Select)
        theme.value = "lite-llama-light"  # raises unless it is among the choices


async def test_save_without_a_change_gives_the_same_settings(host: Any):
    app = host(SettingsScreen(CUSTOM))
    async with app.run_test() as pilot:
        await pilot.press("ctrl+s")
    assert app.results == [CUSTOM]


async def test_save_gives_the_new_values(host: Any):
    app = host(SettingsScreen(CUSTOM))
    async with app.run_test() as pilot:
        await pilot.press("home", "ctrl+k", *"1.25")
        field(app, "seed").editor.focus()
        await pilot.press("home", "ctrl+k")
        field(app, "system_prompt").editor.focus()
        await pilot.press("down", "end", "enter", *"Now.")
        field(app, "device").editor.focus()
        await pilot.press("enter", "down", "enter", "ctrl+s")
    [saved] = app.results
    assert saved == Settings(
        temperature=1.25, seed=None, system_prompt="Be brief.\nBe kind.\nNow.", device="cpu", model="kept"
    )


@pytest.mark.parametrize("key", ["escape", "cancel"])
async def test_cancel_gives_nothing(host: Any, key: str):
    app = host(SettingsScreen(CUSTOM))
    async with app.run_test(size=(80, 24)) as pilot:
        await pilot.press("end", "1")
        await (pilot.press("escape") if key == "escape" else pilot.click("#cancel"))
    assert app.results == [None]


WRONG = [
    ("temperature", "2.5", "This must be a number from 0 to 2."),
    ("temperature", "", "This must be a number from 0 to 2."),
    ("top_p", "0", "This must be a number, above 0 and at most 1."),
    ("top_k", "1.5", "This must be a whole number, at least 0."),
    ("max_gen_len", "0", "This must be a whole number, at least 1."),
    ("seed", "abc", "This must be a whole number from 0 to 9223372036854775807, or empty."),
    ("repetition_penalty", "nan", "This must be a number from 0.1 to 10."),
]


async def test_wrong_value_is_explained_and_not_saved(host: Any):
    app = host(SettingsScreen(Settings(seed=1)))
    async with app.run_test(size=(80, 24)) as pilot:
        for name, entered, sentence in WRONG:
            field(app, name).value = entered
            field(app, "theme").editor.focus()
            await pilot.press("ctrl+s")
            assert why(app, name) == sentence
            assert app.results == []
            assert app.focused is field(app, name).editor
            await pilot.press("home", "ctrl+k", "1")  # put right
            assert why(app, name) == ""
        await pilot.press("ctrl+s")
    assert app.results == [
        Settings(temperature=1, top_p=1, top_k=1, repetition_penalty=1, max_gen_len=1, seed=1)
    ]


async def test_defaults_are_filled_in_but_not_saved(host: Any):
    app = host(SettingsScreen(CUSTOM))
    async with app.run_test() as pilot:
        await pilot.press("ctrl+r")
        assert app.results == []
        await pilot.press("ctrl+s")
    assert app.results == [Settings(model="kept")]


async def test_theme_is_shown_while_chosen_and_taken_back_on_cancel(host: Any):
    app = host(SettingsScreen(Settings()))
    async with app.run_test() as pilot:
        field(app, "theme").value = "lite-llama-light"
        await pilot.pause()
        assert app.theme == "lite-llama-light"
        await pilot.press("escape")
        assert app.theme == "lite-llama-dark"
    assert app.results == [None]


async def test_unknown_theme_shows_as_the_one_in_use(host: Any):
    app = host(SettingsScreen(Settings(theme="gone")), theme="lite-llama-light")
    async with app.run_test() as pilot:
        await pilot.pause()
        assert field(app, "theme").value == app.theme == "lite-llama-light"


async def test_arrow_keys_go_from_field_to_field(host: Any):
    app = host(SettingsScreen(Settings()))
    async with app.run_test(size=(80, 24)) as pilot:
        await pilot.press("down", "down")
        assert app.focused is field(app, "top_k").editor
        await pilot.press("up")
        assert app.focused is field(app, "top_p").editor


async def wrong_temperature(pilot: Any) -> None:
    await pilot.press("end", "9", "9", "ctrl+s")


@pytest.mark.parametrize(
    ("size", "theme", "before"),
    [((80, 24), "lite-llama-dark", wrong_temperature), ((160, 48), "lite-llama-light", None)],
    ids=["80x24-dark-wrong", "160x48-light"],
)
def test_looks_right(
    host: Any, snap_compare: Callable[..., bool], size: tuple[int, int], theme: str, before: Any
):
    app = host(SettingsScreen(Settings(theme=theme)), theme=theme)
    assert snap_compare(app, terminal_size=size, run_before=before)
