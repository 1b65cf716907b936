"""Slash commands: the list over the prompt that completes them, and what is no command."""

from __future__ import annotations

import pytest
from textual import events
from textual.widgets import Input

from lite_llama.app.actions import ACTIONS, commands_like, no_command
from lite_llama.app.screens.chat import ChatScreen
from lite_llama.app.screens.conversations import ConversationsScreen
from lite_llama.app.screens.help import HelpScreen
from lite_llama.app.screens.models import ModelScreen
from lite_llama.app.screens.settings import SettingsScreen
from lite_llama.app.widgets.commands import CommandList


def lines(c):
    """What the list shows, each line's runs of spaces as one."""
    found = c.app.screen.query_one(CommandList)
    if not found.display:
        return []
    return [" ".join(str(found.get_option_at_index(i).prompt).split()) for i in range(found.option_count)]


async def test_a_slash_lists_all_commands_and_letters_narrow_them(chat):
    async with chat() as c:
        assert lines(c) == []
        await c.pilot.press("slash")
        await c.until(lambda: len(lines(c)) == sum(bool(action.command) for action in ACTIONS))
        assert lines(c)[0] == "/help Help: keys and commands F1"
        await c.pilot.press(*"se")
        await c.until(
            lambda: (
                lines(c)
                == [
                    "/settings Settings: sampling, prompt, device F2",
                    "/search [WORDS] Search: in all chats F8",
                    "/set NAME VALUE Set for this chat: such as temperature 0.2",
                ]
            )
        )
        await c.pilot.press("t")
        await c.until(lambda: lines(c)[0].startswith("/set NAME"))  # the one that it is comes first
        await c.pilot.press(*["backspace"] * 4)
        await c.until(lambda: lines(c) == [])


async def test_enter_runs_what_is_chosen_and_the_focus_stays(chat, engine):
    async with chat() as c:
        await c.pilot.press("slash", "s", "enter")
        await c.screen(SettingsScreen)
        await c.pilot.press("escape")
        await c.until(lambda: c.prompt.has_focus)
        assert c.prompt.text == ""
        await c.pilot.press("slash", "down", "up", "up", "down", "enter")
        await c.screen(HelpScreen)
        assert engine.requests == []


async def test_keys_typed_faster_than_the_list_comes_complete_all_the_same(chat):
    async with chat() as c:
        for key in ("slash", *"ret", "down", "tab"):
            c.app.post_message(events.Key(key, "/" if key == "slash" else key if len(key) == 1 else None))
        await c.until(lambda: c.prompt.text == "/retry")
        assert c.prompt.has_focus


async def test_names_of_settings_are_completed_and_a_value_is_waited_for(chat):
    async with chat() as c:
        await c.pilot.press("slash", *"set", "tab")
        await c.until(lambda: "/set top_p VALUE a number, above 0 and at most 1" in lines(c))
        await c.pilot.press(*"te", "enter")
        assert c.prompt.text == "/set temperature "
        await c.pilot.press(*"0.3")
        await c.until(lambda: lines(c) == [])
        await c.pilot.press("enter")
        await c.until(lambda: c.app.controller.own_settings == {"temperature": 0.3})
        await c.pilot.press("slash", *"set temp")
        await c.until(lambda: lines(c) == ["/set temperature VALUE a number from 0 to 2, here 0.3"])


@pytest.mark.parametrize("size", [(20, 5), (40, 12), (60, 19), (160, 48)])
async def test_the_list_leaves_room_for_the_prompt(chat, size):
    async with chat(size=size) as c:
        await c.pilot.press("slash", "up")
        await c.until(lambda: lines(c))
        found = c.app.screen.query_one(CommandList)
        await c.until(lambda: found.size.height == (8 if size[1] >= 20 else 3))
        assert c.prompt.region.height >= 1
        assert found.region.bottom <= c.prompt.region.y
        assert c.prompt.region.bottom <= size[1]
        assert found.virtual_size.height == found.option_count  # a line each


async def test_presets_are_completed(chat):
    async with chat(settings="[presets.mine]\nmin_p = 0.4\n") as c:
        await c.pilot.press("slash", *"pre", "enter")
        assert c.prompt.text == "/preset "
        await c.until(
            lambda: (
                lines(c)
                == [
                    "/preset precise temperature 0.2, top_p 0.9",
                    "/preset creative temperature 1.1, top_p 1.0, min_p 0.05",
                    "/preset mine min_p 0.4",
                    "/preset default as in the settings",
                    "/preset save NAME what this chat has, as a preset",
                ]
            )
        )
        await c.pilot.press("m", "enter")
        await c.until(lambda: c.app.controller.own_settings == {"min_p": 0.4})
        assert c.prompt.text == ""


async def test_models_are_completed_and_loaded(chat, engine, make_model):
    make_model("Other-1B")
    async with chat(settings='model = "tiny"\n') as c:
        await c.pilot.press("slash", *"mod", "tab")
        assert c.prompt.text == "/model "
        await c.until(lambda: [line.split()[1] for line in lines(c)] == ["Other-1B", "tiny"])
        await c.pilot.press("o", "enter")
        await c.until(lambda: c.app.controller.loader.name == "Other-1B")
        assert c.prompt.text == ""
        assert [load.path.name for load in engine.loads] == ["tiny", "Other-1B"]
        await c.send("/model nowhere")
        await c.screen(ModelScreen)
        assert "There is no model nowhere: these are those that there are." in c.notices()


async def test_words_to_search_for_may_follow(chat):
    async with chat() as c:
        await c.ask("The llama")
        await c.send("/new")
        await c.ask("The horse")
        await c.send("/search horse")
        await c.screen(ConversationsScreen)
        assert c.app.screen.query_one("#search", Input).value == "horse"
        await c.pilot.press("backspace", "enter")
        await c.screen(ChatScreen)
        assert c.shown()[0] == "The horse"


async def test_a_line_that_is_clicked_runs_or_waits(chat):
    async with chat() as c:
        await c.pilot.press("slash", *"set")
        await c.until(lambda: len(lines(c)) == 2)
        await c.pilot.click(CommandList, offset=(5, 0))
        await c.until(lambda: c.prompt.text == "/set ")
        c.prompt.text = "/he"
        await c.until(lambda: len(lines(c)) == 1)
        await c.pilot.click(CommandList, offset=(5, 0))
        await c.screen(HelpScreen)
        await c.pilot.press("escape")
        await c.until(lambda: c.prompt.has_focus)


async def test_arrows_and_tab_are_the_prompts_where_nothing_fits(chat, engine):
    async with chat() as c:
        await c.ask("/tmp is full: what now?")
        assert engine.requests[-1].messages[-1].content == "/tmp is full: what now?"
        await c.pilot.press("up")
        assert c.prompt.text == "/tmp is full: what now?"
        await c.pilot.press("down")
        assert c.prompt.text == ""


async def test_what_is_mistyped_is_not_sent_and_stays(chat, engine):
    async with chat() as c:
        await c.send("/serch llamas")
        await c.until(lambda: c.notices() == [no_command("/serch llamas")])
        assert c.prompt.text == "/serch llamas"
        assert engine.requests == []
        c.prompt.text = ""
        await c.ask(" /serch llamas")
        assert engine.requests[-1].messages[-1].content.strip() == "/serch llamas"


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("/xyzzy", "There is no command /xyzzy: /help lists them."),
        ("/modle", "There is no command /modle: did you mean /model?"),
        ("/new idea", "/new takes nothing after it."),
    ],
)
def test_what_looks_like_a_command_and_is_none(text, what):
    assert no_command(text) == f"{what} With a space before it, it is sent as a message."


@pytest.mark.parametrize(
    "text",
    [
        "/new",
        "/set",
        "/set top_k 7",
        " /xyzzy",
        "/etc/hosts",
        "/tmp is full",
        "/a\nb",
        "/",
        "// no",
        "/5",
        "",
        "new",
    ],
)
def test_commands_and_messages_are_not_complained_about(text):
    assert no_command(text) == ""


def test_nothing_is_completed_without_a_slash():
    assert commands_like("") == commands_like("new") == commands_like("/new ") == []
