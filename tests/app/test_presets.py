"""Presets: which there are, `/preset`, and the settings of this chat from the settings screen."""

from __future__ import annotations

import tomllib

import pytest
from textual.widgets import Input, Select

from lite_llama.app import presets
from lite_llama.app.screens.chat import ChatScreen
from lite_llama.app.screens.settings import SettingsScreen
from lite_llama.app.settings import Settings, SettingsStore

FILE = """\
temperature = 0.5

[presets.brief]  # for the impatient
max_gen_len = 50
system_prompt = "Be brief."
"""


@pytest.mark.parametrize("name", presets.BUILT_IN)
def test_ours_can_be_used(name: str):
    settings = Settings(presets={name: dict(presets.BUILT_IN[name])})
    assert presets.problems(settings) == []


def test_the_users_go_before_ours_and_wrong_ones_are_told():
    wrong = {"a": 3, "b": {"top_k": -1}, "c": {"device": "cpu"}}
    settings = Settings(presets={"precise": {"temperature": 0.1}, **wrong})
    known = presets.known(settings)
    assert set(known) == {"precise", "creative"}
    assert known["precise"] == {"temperature": 0.1}
    problems = presets.problems(settings)
    assert [text.split()[2] for text in problems] == ["a", "b", "c"]
    assert "top_k that is not a whole number, at least 0" in problems[1]


async def test_a_preset_counts_for_this_chat_and_is_taken_back(chat, engine):
    async with chat(settings=FILE) as c:
        await c.send("/preset brief")
        await c.send("/preset precise")
        await c.ask("Hi")
        request = engine.requests[-1]
        assert (request.messages[0].content, request.params.temperature) == ("Be brief.", 0.2)
        assert request.params.max_new_tokens == 1024  # not of the preset before
        await c.send("/preset default")
        await c.ask("Hi")
        assert engine.requests[-1].messages[0].role == "user"
        assert engine.requests[-1].params.temperature == 0.5
        await c.send("/preset nonsense")
        await c.until(lambda: "The presets are precise, creative, brief, default" in " ".join(c.notices()))


async def test_a_chats_settings_are_saved_as_a_preset(chat, paths):
    async with chat(settings=FILE) as c:
        await c.send("/set top_k 7")
        await c.send("/preset save mine")
        await c.until(lambda: "mine" in SettingsStore(paths.settings).load().presets)
        await c.send("/preset save")
        await c.until(lambda: "one word" in c.notices()[-1])
    text = paths.settings.read_text(encoding="utf-8")
    assert "# for the impatient" in text
    assert tomllib.loads(text)["presets"]["mine"] == {"temperature": 0.5, "top_k": 7}
    assert tomllib.loads(text)["presets"]["brief"]["max_gen_len"] == 50


async def test_the_settings_screen_changes_this_chat_alone(chat, engine, paths):
    async with chat(settings=FILE) as c:
        await c.send("/set top_k 7")
        await c.pilot.press("f2")
        await c.screen(SettingsScreen)
        await c.pilot.press("ctrl+t")
        assert c.app.screen.query_one("#chat-top_k Input", Input).value == "7"
        c.app.screen.query_one("#preset", Select).value = "brief"
        await c.pilot.pause()
        await c.pilot.press("ctrl+s")
        await c.screen(ChatScreen)
        await c.ask("Hi")
        params = engine.requests[-1].params
        assert (params.top_k, params.max_new_tokens, params.temperature) == (0, 50, 0.5)
        assert engine.requests[-1].messages[0].content == "Be brief."
        await c.send("/new")
        await c.until(lambda: c.shown() == [])
        await c.ask("Hi")
        assert engine.requests[-1].params.max_new_tokens == 1024
    assert paths.settings.read_text(encoding="utf-8") == FILE.replace("0.5\n", '0.5\nmodel = "tiny"\n', 1)


async def test_another_general_prompt_leaves_that_of_a_chat_alone(chat, engine):
    async with chat(settings=FILE) as c:
        await c.send("/system Be a pirate.")
        await c.pilot.press("f2")
        await c.screen(SettingsScreen)
        c.app.screen.query_one("#field-system_prompt").value = "Be kind."  # type: ignore[attr-defined]
        await c.pilot.press("ctrl+s")
        await c.screen(ChatScreen)
        await c.ask("Hi")
        assert engine.requests[-1].messages[0].content == "Be a pirate."
