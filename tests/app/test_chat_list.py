"""The list of conversations through its keys, and titles by the model."""

import pytest
from textual import events
from textual.widgets import Input, OptionList

from lite_llama.app.database import HIT_END, HIT_START, Hit
from lite_llama.app.screens.chat import ChatScreen
from lite_llama.app.screens.conversations import ConversationsScreen
from lite_llama.app.titles import title_from
from lite_llama.app.widgets.chat_list import ChatList, _snippet
from lite_llama.app.widgets.transcript import Transcript


def lines(c):
    return [each.title for each in c.app.screen.query_one(ChatList)._lines]


def says(c):
    return str(c.app.screen.query_one("#keys").render())


async def two_chats(c):
    await c.ask("first question")
    await c.pilot.press("ctrl+n")
    await c.until(lambda: c.shown() == [])
    await c.ask("second question")
    await c.pilot.press("ctrl+o")
    await c.screen(ConversationsScreen)
    await c.until(lambda: lines(c) == ["second question", "first question"])


async def test_a_conversation_is_opened(chat):
    async with chat() as c:
        await two_chats(c)
        await c.pilot.press("down", "enter")
        await c.until(lambda: c.shown() == ["first question", "Fine."])
        assert "first question" in c.text_of("#header")


async def test_rename_pin_delete_and_undo(chat):
    async with chat() as c:
        await two_chats(c)
        await c.pilot.press("down", "p")
        await c.until(lambda: lines(c) == ["first question", "second question"])
        await c.pilot.press("r")
        title = c.app.screen.query_one("#title", Input)
        assert title.value == "second question"
        title.value = "renamed"
        await c.pilot.press("enter")
        await c.until(lambda: lines(c)[1] == "renamed")
        await c.pilot.press("r", "x", "escape")
        assert lines(c)[1] == "renamed"
        await c.pilot.press("d")
        await c.until(lambda: lines(c) == ["first question"])
        assert says(c) == "Deleted: renamed   u brings it back"
        await c.pilot.press("u")
        await c.until(lambda: lines(c) == ["first question", "renamed"])
        await c.pilot.press("d", "d")
        await c.until(lambda: lines(c) == [])
        await c.pilot.press("escape")
        await c.screen(ChatScreen)
        assert c.shown() == []  # the open one was among them


async def test_search_jumps_to_the_turn_in_its_branch(chat, engine):
    async with chat() as c:
        engine.reply("about alpacas")
        await c.ask("animals")
        engine.reply("about llamas")
        await c.pilot.press("ctrl+r")
        await c.until(lambda: c.shown()[-1] == "about llamas")
        await c.replied()
        await c.pilot.press("ctrl+n")
        await c.until(lambda: c.shown() == [])
        await c.pilot.press("f8")
        await c.screen(ConversationsScreen)
        await c.pilot.press(*"alpa")
        await c.until(lambda: [type(line) for line in c.app.screen.query_one(ChatList)._lines] == [Hit])
        option = c.app.screen.query_one(OptionList).get_option_at_index(0)
        assert str(option.prompt) == "animals\nabout alpacas"
        await c.pilot.press("enter")
        await c.until(lambda: c.shown() == ["animals", "about alpacas"])
        await c.until(lambda: (turn := c.app.screen.query_one(Transcript).selected) and turn.text[-1] == "s")


async def test_the_search_looks_at_titles_and_escape_closes_the_dialog_at_once(chat):
    """Who goes on typing after Esc writes a message, and does not delete what the list has."""
    async with chat() as c:
        await two_chats(c)
        await c.pilot.press("slash", *"zzz")
        await c.until(lambda: lines(c) == [])
        assert says(c) == "Nothing is found."
        await c.pilot.press(*["backspace"] * 3, *"second")
        await c.until(lambda: lines(c) == ["second question", "second question"])  # the title, the turn
        await c.pilot.press("escape", *"dd")
        await c.until(lambda: c.prompt.text == "dd")
        await c.pilot.press("ctrl+o")
        await c.until(lambda: lines(c) == ["second question", "first question"])


async def test_letters_typed_fast_after_the_slash_are_searched_for(chat):
    """All of them are on their way when the first one is looked at; none acts on the list."""
    async with chat() as c:
        await two_chats(c)
        for character in "/drup":
            c.app.post_message(events.Key("slash" if character == "/" else character, character))
        await c.until(lambda: c.app.screen.query_one("#search", Input).value == "drup")
        await c.until(lambda: lines(c) == [])
        await c.pilot.press(*["backspace"] * 3)
        await c.until(lambda: c.app.screen.query_one("#search", Input).value == "d")
        await c.pilot.press("backspace")
        await c.until(lambda: lines(c) == ["second question", "first question"])
        assert not any(each.pinned for each in c.app.screen.query_one(ChatList)._lines)


async def test_enter_opens_what_was_searched_for_however_fast(chat):
    async with chat() as c:
        await two_chats(c)
        assert c.app.controller.conversation.title == "second question"
        for key in ("slash", *"first", "enter"):
            c.app.post_message(events.Key(key, "/" if key == "slash" else key if len(key) == 1 else None))
        await c.until(lambda: c.app.controller.conversation.title == "first question")


async def test_escape_leaves_the_sidebar_and_its_search(chat):
    async with chat(size=(120, 30)) as c:
        await c.ask("first question")
        await c.pilot.press("ctrl+b", "slash", *"zzz")
        await c.until(lambda: lines(c) == [])
        await c.pilot.press("escape", *"dd")
        await c.until(lambda: lines(c) == ["first question"])
        assert c.prompt.text == "dd"


async def test_the_sidebar_opens_beside_the_chat_where_there_is_room(chat):
    async with chat(size=(120, 30)) as c:
        await c.ask("first question")
        await c.pilot.press("ctrl+b")
        await c.until(lambda: lines(c) == ["first question"])
        await c.pilot.press("ctrl+n")
        await c.until(lambda: c.shown() == [])
        await c.pilot.press("enter")
        await c.until(lambda: c.shown() == ["first question", "Fine."])
        assert c.app.focused is c.prompt
        await c.ask("more")
        await c.pilot.press("ctrl+n")
        await c.ask("second question")
        await c.until(lambda: lines(c) == ["second question", "first question"])
        await c.pilot.press("ctrl+b")
        assert not c.app.screen.query_one(ChatList).display
        assert c.app.focused is c.prompt
        await c.pilot.resize_terminal(80, 24)
        await c.pilot.press("ctrl+b")
        await c.screen(ConversationsScreen)


def test_snippets_are_inert_and_highlighted():
    content = _snippet(f"a\n{HIT_START}b\x1b[2J{HIT_END} [bold]c[/bold]")
    assert str(content) == "a b[2J [bold]c[/bold]"
    assert [(span.start, span.end) for span in content.spans if "bold" in str(span.style)] == [(2, 6)]


async def test_the_down_key_stays_in_the_new_title(chat):
    async with chat() as c:
        await c.ask("first question")
        await c.pilot.press("ctrl+o")
        await c.screen(ConversationsScreen)
        await c.until(lambda: lines(c) == ["first question"])
        await c.pilot.press("r", "down")
        title = c.app.screen.query_one("#title", Input)
        assert title.has_focus
        title.value = "renamed"
        await c.pilot.press("enter")
        await c.until(lambda: lines(c) == ["renamed"])


async def test_the_model_writes_the_title_when_asked(chat, engine):
    async with chat() as c:
        await c.ask("What do llamas say?")
        assert len(engine.requests) == 1  # none for a title
        engine.reply('"The Humming of Llamas"')
        await c.send("/retitle")
        await c.until(lambda: c.app.controller.conversation.title == "The Humming of Llamas")
        await c.until(lambda: "The Humming" in c.text_of("#header"))
        assert engine.requests[-1].messages[0].content == "What do llamas say?"
        assert c.shown() == ["What do llamas say?", "Fine."]
        engine.reply("\n")
        await c.send("/retitle")
        await c.until(lambda: "The model wrote no title: the old one stays." in c.notices())


async def test_escape_stops_the_writing_of_a_title(chat, engine):
    async with chat() as c:
        await c.ask("What do llamas say?")
        engine.reply("On ", "and on", hold_after=1)
        await c.send("/retitle")
        await c.until(lambda: len(engine.requests) == 2)
        await c.pilot.press("escape")
        await c.until(lambda: "Stopped: the old title stays." in c.notices())
        assert c.app.controller.conversation.title == "What do llamas say?"
        engine.reply("Humming")
        await c.send("/retitle")
        await c.until(lambda: c.app.controller.conversation.title == "Humming")


@pytest.mark.parametrize(
    ("answer", "title"),
    [
        ("Title: **On Llamas**\nmore", "On Llamas"),
        ("one two three four five six seven", "one two three four five six"),
        ("", ""),
        ("\x1b[2JHi.", "[2JHi"),
    ],
)
def test_a_title_is_taken_from_the_answer(answer, title):
    assert title_from(answer) == title


async def test_a_reopened_chat_offers_its_model(chat, engine, make_model):
    make_model("other")
    async with chat(settings='model = "tiny"\n') as c:
        await c.ask("first")
        await c.app.controller.load_model("other")
        await c.until(lambda: c.app.screen.query_one("#offer").display)
        assert c.text_of("#offer") == "This chat was with tiny   use it again Ctrl+L"
        await c.pilot.press("ctrl+l")
        await c.until(lambda: c.app.controller.loader.name == "tiny" and not c.app.controller.loader.loading)
        await c.until(lambda: not c.app.screen.query_one("#offer").display)


async def test_a_chat_has_settings_of_its_own(chat, engine):
    async with chat() as c:
        await c.send("/set top-p 0.5")
        await c.until(lambda: "In this chat: top_p 0.5." in c.notices())
        await c.send("/system Speak like a pirate.")
        await c.ask("Hi")
        assert engine.requests[-1].params.top_p == 0.5
        assert engine.requests[-1].messages[0].content == "Speak like a pirate."
        await c.send("/system")
        assert c.prompt.text == "/system Speak like a pirate."
