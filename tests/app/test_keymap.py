"""The user's keys: what is taken, what is refused and why, and that the whole app goes by them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from textual.widgets import Footer, Static
from textual.widgets._footer import FooterKey

from lite_llama.app import keymap
from lite_llama.app.actions import ACTIONS
from lite_llama.app.screens.chat import ChatScreen
from lite_llama.app.screens.figures import FiguresScreen
from lite_llama.app.screens.help import HelpScreen
from lite_llama.app.screens.images import ImagesScreen
from lite_llama.app.screens.models import ModelScreen


@pytest.fixture(autouse=True)
def own_keys() -> Iterator[None]:
    yield
    keymap.use({})


def test_our_own_keys_do_not_clash_and_leave_the_editor_alone():
    keys = [key for action in ACTIONS if action.keys for key in action.keys.split(",")]
    assert len(keys) == len(set(keys))
    assert not keymap._TAKEN.intersection(keys)
    assert len({action.id for action in ACTIONS}) == len(ACTIONS)


def test_keys_are_taken_as_people_write_them():
    assert keymap.use({"new_chat": "F11, Shift+Ctrl+N", "Help": "alt+h"}) == []
    assert keymap.for_textual() == {"new_chat": "f11,ctrl+shift+n", "help": "alt+h"}
    assert (keymap.key("new_conversation"), keymap.key("app.help")) == ("F11", "Alt+H")
    assert keymap.key("app.settings") == "F2"


@pytest.mark.parametrize(
    ("name", "keys", "sentence"),
    [
        ("fly", "f11", "keys.fly in the settings file is no action"),
        ("help", 3, "keys.help in the settings file must be one or more keys"),
        ("help", "", "keys.help in the settings file must be one or more keys"),
        ("help", "ctrl+nonsense", 'keys.help in the settings file has "ctrl+nonsense", which is no key'),
        ("help", "strg+h", 'keys.help in the settings file has "strg+h", which is no key'),
        ("help", "x", "keys.help in the settings file is x, which the message's editor needs"),
        ("help", "ctrl+k", "keys.help in the settings file is ctrl+k, which the message's editor needs"),
        ("help", "ctrl+i", "keys.help in the settings file is ctrl+i, which the message's editor needs"),
        ("help", "f2", "keys.help in the settings file is f2, the key of Settings: it is ignored."),
    ],
)
def test_what_cannot_be_taken_is_told_in_a_sentence(name: str, keys: object, sentence: str):
    problems = keymap.use({name: keys, "new_chat": "f11"})
    assert len(problems) == 1
    assert problems[0].startswith(sentence)
    assert keymap.for_textual() == {"new_chat": "f11"}


def test_two_actions_can_swap_their_keys():
    assert keymap.use({"settings": "f3", "models": "f2"}) == []
    assert (keymap.key("app.settings"), keymap.key("app.models")) == ("F3", "F2")


def test_a_refused_key_does_not_leave_two_actions_with_one():
    problems = keymap.use({"models": "f1", "help": "f2"})  # help's F2 is that of Settings
    assert len(problems) == 2
    assert keymap.for_textual() == {}


async def test_the_app_goes_by_the_users_keys(chat):
    settings = '[keys]\nmodels = "f11"\nhelp = "f10"\nquit = "ctrl+e"\nnew_chat = "alt+n"\ntry_again = "f2"\n'
    async with chat(size=(160, 48), settings=settings) as c:
        problems = [text for text in c.notices() if text.startswith("keys.")]
        assert [text.partition(" ")[0] for text in problems] == ["keys.quit", "keys.try_again"]
        shown = [key.key_display for key in c.app.screen.query_one(Footer).query(FooterKey)]
        assert {"F10", "F11", "F2", "alt+n", "^q"} <= set(shown)
        assert "F10" in str(c.app.screen.query_one("#hint", Static).render())
        await c.pilot.press("f3", "f1")
        assert isinstance(c.app.screen, ChatScreen)
        await c.pilot.press("f11")
        await c.screen(ModelScreen)
        await c.pilot.press("escape")
        await c.screen(ChatScreen)
        await c.ask("Hi")
        await c.pilot.press("alt+n")
        await c.until(lambda: c.shown() == [])
        await c.pilot.press("f10")
        await c.screen(HelpScreen)
        keys = [str(label.render()) for label in c.app.screen.query(".keys")]
        assert {"F11", "F10", "Alt+N", "F2"} <= set(keys)
        assert not {"F1", "F3", "Ctrl+N"}.intersection(keys)
        await c.pilot.press("f10")
        await c.screen(ChatScreen)


@pytest.mark.parametrize(
    ("action", "ours", "dialog"), [("images", "f4", ImagesScreen), ("figures", "f9", FiguresScreen)]
)
async def test_the_key_that_opens_a_dialog_closes_it(chat, action, ours, dialog):
    async with chat(settings=f'[keys]\n{action} = "f11"\n') as c:
        await c.pilot.press("f11")
        await c.screen(dialog)
        await c.pilot.press(ours)
        assert isinstance(c.app.screen, dialog)
        await c.pilot.press("f11")
        await c.screen(ChatScreen)


async def test_a_key_map_that_is_no_table_is_told(chat):
    async with chat(settings="keys = 3\npresets = 4\n") as c:
        told = " ".join(c.notices())
        assert "is 3 but must be a table: it is ignored." in told
        assert "is 4 but must be a table: it is ignored." in told
