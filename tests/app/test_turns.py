"""Turns through the keys: select, edit, switch branches, copy."""

import pytest
from textual.geometry import Offset
from textual.widgets import OptionList

from lite_llama.app import clipboard
from lite_llama.app.screens.code_blocks import CodeBlocksScreen
from lite_llama.app.widgets.markdown import ReplyMarkdown
from lite_llama.app.widgets.transcript import SHOWN_TURNS, Transcript
from lite_llama.engine.events import Usage


@pytest.fixture
def copied(monkeypatch):
    """What the system's clipboard was given."""
    texts = []
    monkeypatch.setattr(clipboard, "copy", texts.append)
    return texts


def selected(c):
    turn = c.app.screen.query_one(Transcript).selected
    return turn and turn.text


def labels(c):
    return [str(label.render()) for label in c.app.screen.query(".branch") if label.display]


async def two_exchanges(c, engine):
    for question, answer in (("first", "one"), ("second", "two")):
        engine.reply(answer)
        await c.ask(question)


async def test_turns_are_selected_one_after_the_other(chat, engine):
    async with chat() as c:
        await two_exchanges(c, engine)
        assert selected(c) is None
        await c.pilot.press("alt+up")
        assert selected(c) == "two"
        await c.pilot.press("up", "alt+up", "k")
        assert selected(c) == "first"
        await c.pilot.press("up")
        assert selected(c) == "first"
        await c.pilot.press("down", "j", "alt+down")
        assert selected(c) == "two"
        await c.pilot.press("down")
        assert selected(c) is None
        assert c.app.focused is c.prompt
        await c.pilot.press("alt+up", "escape")
        assert selected(c) is None
        await c.pilot.press("alt+up", "tab", "x")
        assert selected(c) is None
        assert c.prompt.text == "x"


async def test_selecting_goes_on_into_earlier_turns(chat, engine):
    async with chat() as c:
        for number in range(SHOWN_TURNS // 2 + 1):
            await c.ask(f"question {number}")
        await c.app.controller.open_conversation(c.app.controller.conversation.id)
        await c.until(lambda: len(c.shown()) == SHOWN_TURNS)
        await c.pilot.press(*["alt+up"] * (SHOWN_TURNS + 2))
        await c.until(lambda: selected(c) == "question 0")


async def test_an_edited_message_is_another_branch(chat, engine):
    async with chat() as c:
        await two_exchanges(c, engine)
        c.prompt.text = "a draft"
        await c.pilot.press("alt+up", "up", "e")
        assert c.prompt.text == "second"
        assert "Edit the message" in str(c.prompt.border_title)
        engine.reply("three")
        await c.pilot.press(*" thought", "enter")
        await c.until(lambda: c.shown() == ["first", "one", "second thought", "three"])
        await c.replied()
        assert c.prompt.text == "a draft"
        assert not c.prompt.border_title
        assert labels(c) == ["‹ 2/2 ›"]
        await c.pilot.press("alt+up", "up", "left")
        await c.until(lambda: c.shown() == ["first", "one", "second", "two"])
        await c.until(lambda: labels(c) == ["‹ 1/2 ›"])
        assert selected(c) == "second"
        await c.pilot.press("right")
        await c.until(lambda: c.shown()[-1] == "three")


async def test_escape_gives_an_edit_up(chat, engine):
    async with chat() as c:
        await two_exchanges(c, engine)
        c.prompt.text = "draft"
        await c.app.screen.run_action("edit_turn")
        assert c.prompt.text == "second"
        await c.pilot.press("escape")
        assert c.prompt.text == "draft"
        await c.pilot.press("enter")
        await c.until(lambda: c.shown() == ["first", "one", "second", "two", "draft", "Fine."])


async def test_a_refused_edit_is_back_in_the_prompt_as_an_edit(chat, engine):
    async with chat() as c:
        await two_exchanges(c, engine)
        engine.reply(refuse="Too long.")
        await c.send("/edit")
        await c.pilot.press("x", "enter")
        await c.until(lambda: "Too long." in c.notices())
        await c.until(lambda: c.prompt.text == "secondx")
        assert c.shown() == ["first", "one", "second", "two"]
        assert c.prompt.border_title
        engine.reply("better")
        await c.pilot.press("enter")
        await c.until(lambda: c.shown() == ["first", "one", "secondx", "better"])


async def test_a_retry_stands_beside_the_reply_and_a_click_goes_back(chat, engine):
    async with chat() as c:
        await two_exchanges(c, engine)
        engine.reply("three")
        await c.pilot.press("ctrl+r")
        await c.until(lambda: c.shown()[-1] == "three")
        await c.replied()
        await c.until(lambda: labels(c) == ["‹ 2/2 ›"])
        label = next(label for label in c.app.screen.query(".branch") if label.display)
        await c.pilot.click(label, offset=Offset(label.styles.padding.left, 0))
        await c.until(lambda: c.shown()[-1] == "two")
        assert c.app.focused is c.prompt


async def test_from_a_selected_turn_on_it_is_answered_anew(chat, engine):
    async with chat() as c:
        await two_exchanges(c, engine)
        engine.reply("three")
        await c.pilot.press("alt+up", "up", "up", "r")
        await c.until(lambda: c.shown() == ["first", "three"])
        assert len(engine.requests[-1].messages) == 1


async def test_a_fork_says_what_the_prefix_cache_saved(chat, engine, monkeypatch):
    def usage(prompt, cached, *rest):
        return Usage(prompt, prompt - 5, *rest)

    monkeypatch.setitem(type(engine)._play.__globals__, "Usage", usage)
    async with chat() as c:
        await two_exchanges(c, engine)
        assert labels(c) == []
        assert c.text_of("#telemetry").endswith("first token 0.25 s · 10 reused")
        await c.pilot.press("ctrl+r")
        await c.until(lambda: labels(c) == ["‹ 2/2 ›   10 of 15 prompt tokens reused"])


async def test_a_turn_is_copied(chat, engine, copied):
    engine.reply("**one**\x1b[2J")
    async with chat() as c:
        await c.ask("first")
        await c.send("/copy")
        await c.until(lambda: copied == ["**one**[2J"])
        assert c.app.clipboard == "**one**[2J"
        await c.pilot.press("alt+up", "up", "c")
        await c.until(lambda: copied[1:] == ["first"])


async def test_one_code_block_is_copied(chat, engine, copied):
    engine.reply("```python\nx = 1\n```\n\nor\n\n- in a list:\n\n  ```\n  y = 2\n  z = 3\n  ```\n")
    async with chat() as c:
        await c.ask("code")
        await c.pilot.press("alt+up", "b")
        await c.screen(CodeBlocksScreen)
        assert c.app.screen.query_one(OptionList).option_count == 2
        await c.pilot.press("up", "enter")
        await c.until(lambda: copied == ["x = 1\n"])
        await c.pilot.press("escape")
        await c.send("/code")
        await c.screen(CodeBlocksScreen)
        await c.pilot.press("enter")
        await c.until(lambda: copied[1:] == ["y = 2\nz = 3\n"])
        await c.pilot.press("alt+up", "up", "b")
        await c.until(lambda: "There is no code block in it." in c.notices())


async def test_text_is_selected_with_the_mouse_and_copied(chat, engine, copied):
    engine.reply("Llamas hum.")
    async with chat() as c:
        await c.ask("What do they do?")
        reply = c.app.screen.query_one(ReplyMarkdown)
        first, last = Offset(3, 0), Offset(8, 0)  # after the margin
        await c.pilot.mouse_down(reply, offset=first)
        await c.pilot.hover(reply, offset=last)
        await c.pilot.mouse_up(reply, offset=last)
        await c.pilot.pause()
        assert c.app.screen.get_selected_text() == "Llamas"
        await c.pilot.press("ctrl+c")
        await c.until(lambda: copied == ["Llamas"])
