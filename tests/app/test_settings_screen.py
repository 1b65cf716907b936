"""The settings screen, driven by keys."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from textual.widgets import Input, Select, Static, TextArea

from lite_llama.app.screens.settings import Preferences, SettingsField, SettingsScreen
from lite_llama.app.settings import Settings, form

CUSTOM = Settings(temperature=0.3, seed=11, system_prompt="Be brief.\nBe kind.", model="kept")


def field(app: Any, name: str) -> SettingsField:
    return app.screen.query_one(f"#field-{name}", SettingsField)


def why(app: Any, name: str) -> str:
    """The sentence beneath a field, empty when none is shown."""
    label = field(app, name).query_one(".why", Static)
    return str(label.render()) if label.display else ""


async def test_shows_every_setting_with_its_value_and_help(host: Any):
    app = host(SettingsScreen(Preferences(CUSTOM)))
    async with app.run_test():
        for name, info in Settings.model_fields.items():
            if form(info) is None:
                assert not app.screen.query(f"#field-{name}")
                continue
            shown = Settings.model_validate({name: field(app, name).value})
            assert getattr(shown, name) == getattr(CUSTOM, name)
            assert str(field(app, name).query_one(".help", Static).render()).startswith(str(info.description))


async def test_kind_of_widget_follows_the_type(host: Any):
    app = host(SettingsScreen(Preferences(Settings())))
    async with app.run_test():
        assert isinstance(field(app, "temperature").editor, Input)
        assert isinstance(field(app, "system_prompt").editor, TextArea)
        assert isinstance(field(app, "device").editor, Select)
        theme = field(app, "theme").editor
        assert isinstance(theme, Select)
        theme.value = "lite-llama-light"  # raises unless it is among the choices


async def test_save_without_a_change_gives_the_same_settings(host: Any):
    app = host(SettingsScreen(Preferences(CUSTOM)))
    async with app.run_test() as pilot:
        await pilot.press("ctrl+s")
    assert app.results == [Preferences(CUSTOM)]


async def test_save_gives_the_new_values(host: Any):
    app = host(SettingsScreen(Preferences(CUSTOM)))
    async with app.run_test() as pilot:
        await pilot.press("down", "home", "ctrl+k", *"1.25")
        field(app, "seed").editor.focus()
        await pilot.press("home", "ctrl+k")
        field(app, "system_prompt").editor.focus()
        await pilot.press("down", "end", "enter", *"Now.")
        field(app, "device").editor.focus()
        await pilot.press("enter", "down", "enter", "ctrl+s")
    [saved] = app.results
    assert saved.settings == Settings(
        temperature=1.25, seed=None, system_prompt="Be brief.\nBe kind.\nNow.", device="cpu", model="kept"
    )


@pytest.mark.parametrize("key", ["escape", "cancel"])
async def test_cancel_gives_nothing(host: Any, key: str):
    app = host(SettingsScreen(Preferences(CUSTOM)))
    async with app.run_test(size=(80, 24)) as pilot:
        await pilot.press("down", "end", "1")
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
    app = host(SettingsScreen(Preferences(Settings(seed=1))))
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
        Preferences(Settings(temperature=1, top_p=1, top_k=1, repetition_penalty=1, max_gen_len=1, seed=1))
    ]


def title(app: Any, name: str) -> str:
    return str(field(app, name).query_one(".title", Static).render())


async def test_a_changed_value_is_marked_and_set_back_with_a_key(host: Any):
    app = host(SettingsScreen(Preferences(CUSTOM)))
    async with app.run_test(size=(80, 24)) as pilot:
        assert title(app, "temperature") == "● Temperature"
        assert title(app, "top_p") == "Top-p"
        told = str(field(app, "temperature").query_one(".help", Static).render())
        assert told.endswith("Default: 0.7, ^r.")
        await pilot.press("down", "ctrl+r")
        assert (field(app, "temperature").value, title(app, "temperature")) == ("0.7", "Temperature")
        await pilot.press("down", "end", "5", "ctrl+s")
    [saved] = app.results
    assert saved.settings == Settings(top_p=0.95, seed=11, system_prompt=CUSTOM.system_prompt, model="kept")
    assert saved.settings.model_fields_set == {"top_p", "seed", "system_prompt", "model"}


async def test_reset_all_takes_every_setting_away_once_saved(host: Any):
    app = host(SettingsScreen(Preferences(CUSTOM)))
    async with app.run_test(size=(80, 24)) as pilot:
        await pilot.click("#reset-all")
        assert app.results == []
        await pilot.press("ctrl+s")
    [saved] = app.results
    assert (saved.settings, saved.settings.model_fields_set) == (Settings(model="kept"), {"model"})


async def test_the_models_own_defaults_show_where_nothing_is_set(host: Any):
    app = host(SettingsScreen(Preferences(CUSTOM), {"temperature": 0.6, "top_p": 0.95, "max_new_tokens": 9}))
    async with app.run_test() as pilot:
        assert (field(app, "temperature").value, field(app, "top_p").value) == ("0.3", "0.95")
        await pilot.press("ctrl+s")
    assert app.results[0].settings.model_fields_set == CUSTOM.model_fields_set


async def test_typing_finds_settings_by_any_word_that_is_told_about_them(host: Any):
    app = host(SettingsScreen(Preferences(Settings())))

    def shown() -> list[str]:
        return [each.field for each in app.screen.query("#general SettingsField") if each.region.height]

    async with app.run_test(size=(160, 48)) as pilot:
        await pilot.press(*"likeliest tok")
        await pilot.pause()
        assert shown() == ["temperature", "top_p", "top_k", "min_p"]
        assert [label.display for label in app.screen.query(".section")][:2] == [True, False]
        await pilot.press("escape", *"GPU", "enter")
        await pilot.pause()
        assert shown() == ["device"]
        assert app.focused is field(app, "device").editor
        await pilot.press("ctrl+f", "z", "z")
        await pilot.pause()
        assert (shown(), app.screen.query_one("#nothing").display) == ([], True)
        await pilot.press("escape", "escape")
    assert app.results == [None]


async def test_a_wrong_value_out_of_sight_comes_back_into_it(host: Any):
    app = host(SettingsScreen(Preferences(Settings())))
    async with app.run_test(size=(80, 24)) as pilot:
        await pilot.press("down", "home", "9", "ctrl+t", *"seed", "ctrl+s")
        await pilot.pause()
        assert app.focused is field(app, "temperature").editor
        assert why(app, "temperature")
    assert app.results == []


def own(app: Any, name: str) -> SettingsField:
    """The field of this chat."""
    return app.screen.query_one(f"#chat-{name}", SettingsField)


async def test_this_chat_can_differ_from_all_chats(host: Any):
    app = host(SettingsScreen(Preferences(CUSTOM, {"top_k": 40, "seed": None})))
    async with app.run_test(size=(80, 24)) as pilot:
        await pilot.press("ctrl+t")
        values = {name: own(app, name).value for name in ("temperature", "top_k", "seed", "system_prompt")}
        assert values == {
            "temperature": "0.3", "top_k": "40", "seed": None, "system_prompt": CUSTOM.system_prompt
        }  # fmt: skip
        assert str(own(app, "seed").query_one(".help", Static).render()).endswith("In general: 11, ^r.")
        own(app, "top_k").editor.focus()
        await pilot.pause()
        await pilot.press("ctrl+r")
        assert own(app, "top_k").value == "0"
        own(app, "system_prompt").value = "Be a pirate."
        await pilot.press("ctrl+s")
    assert app.results == [Preferences(CUSTOM, {"seed": None, "system_prompt": "Be a pirate."})]


async def test_this_chat_follows_what_is_changed_for_all(host: Any):
    app = host(SettingsScreen(Preferences(Settings(), {"top_k": 40})))
    async with app.run_test(size=(80, 24)) as pilot:
        field(app, "top_p").value, field(app, "top_k").value = "0.5", "20"
        await pilot.press("ctrl+t")
        assert (own(app, "top_p").value, own(app, "top_k").value) == ("0.5", "40")
        own(app, "top_k").reset()
        assert own(app, "top_k").value == "20"
        await pilot.press("ctrl+s")
    assert app.results == [Preferences(Settings(top_p=0.5, top_k=20), {})]


async def test_a_preset_fills_in_its_values_and_takes_the_others_back(host: Any):
    mine = {"brief": {"max_gen_len": 50, "system_prompt": "Be brief."}}
    app = host(SettingsScreen(Preferences(Settings(presets=mine), {"top_k": 40})))
    async with app.run_test(size=(80, 24)) as pilot:
        await pilot.press("ctrl+t")
        select = app.screen.query_one("#preset", Select)
        for name in ("brief", "precise"):
            select.value = name
            await pilot.pause()
        await pilot.press("ctrl+s")
    assert app.results[0].own == {"temperature": 0.2, "system_prompt": "Be brief."}
    assert app.results[0].settings == Settings(presets=mine)


async def test_what_is_set_is_saved_as_a_preset(host: Any):
    app = host(SettingsScreen(Preferences(CUSTOM, {"top_k": 40})))
    async with app.run_test(size=(80, 24)) as pilot:
        name = app.screen.query_one("#save-preset", Input)
        name.focus()
        await pilot.press(*"two words", "enter")
        assert "one word" in next(iter(app._notifications)).message
        await pilot.press("ctrl+t")
        name.value = "mine"
        name.focus()
        await pilot.press("enter", "ctrl+s")
    assert app.results[0].settings.presets == {
        "mine": {"temperature": 0.3, "top_k": 40, "seed": 11, "system_prompt": CUSTOM.system_prompt}
    }


async def test_theme_is_shown_while_chosen_and_taken_back_on_cancel(host: Any):
    app = host(SettingsScreen(Preferences(Settings())))
    async with app.run_test() as pilot:
        field(app, "theme").value = "lite-llama-light"
        await pilot.pause()
        assert app.theme == "lite-llama-light"
        await pilot.press("escape")
        assert app.theme == "lite-llama-dark"
    assert app.results == [None]


async def test_unknown_theme_shows_as_the_one_in_use(host: Any):
    app = host(SettingsScreen(Preferences(Settings(theme="gone"))), theme="lite-llama-light")
    async with app.run_test() as pilot:
        await pilot.pause()
        assert field(app, "theme").value == app.theme == "lite-llama-light"


async def test_arrow_keys_go_from_field_to_field(host: Any):
    app = host(SettingsScreen(Preferences(Settings())))
    async with app.run_test(size=(80, 24)) as pilot:
        await pilot.press("down", "down", "down")
        assert app.focused is field(app, "top_k").editor
        await pilot.press("up")
        assert app.focused is field(app, "top_p").editor


async def wrong(pilot: Any) -> None:
    await pilot.press("down", "home", "9", "ctrl+s")


async def filtered(pilot: Any) -> None:
    await pilot.press(*"token")


async def chat(pilot: Any) -> None:
    await pilot.press("ctrl+t", "down")


DARK, LIGHT = "lite-llama-dark", "lite-llama-light"


@pytest.mark.parametrize(
    ("state", "size", "theme"),
    [
        pytest.param(wrong, (80, 24), DARK, id="wrong-80x24-dark"),
        pytest.param(wrong, (160, 48), LIGHT, id="wrong-160x48-light"),
        pytest.param(filtered, (80, 24), LIGHT, id="filtered-80x24-light"),
        pytest.param(filtered, (160, 48), DARK, id="filtered-160x48-dark"),
        pytest.param(chat, (80, 24), DARK, id="chat-80x24-dark"),
        pytest.param(chat, (160, 48), LIGHT, id="chat-160x48-light"),
    ],
)
def test_looks_right(
    host: Any, snap_compare: Callable[..., bool], state: Any, size: tuple[int, int], theme: str
):
    own = {"temperature": 0.2, "system_prompt": "You are a pirate."}
    app = host(SettingsScreen(Preferences(Settings(theme=theme, top_p=0.95), own)), theme=theme)
    assert snap_compare(app, terminal_size=size, run_before=state)
