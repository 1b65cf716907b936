"""The app through its keys, with a scripted engine."""

import asyncio
import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys

import pytest
from textual import events
from textual._xterm_parser import XTermParser
from textual.widgets import Input, Static

from lite_llama.app.actions import ACTIONS
from lite_llama.app.conversation import Conversation, Turn
from lite_llama.app.database import Database
from lite_llama.app.log import INTERNAL_ERROR
from lite_llama.app.screens.chat import ChatScreen
from lite_llama.app.screens.conversations import ConversationsScreen
from lite_llama.app.screens.help import HelpScreen
from lite_llama.app.screens.models import ModelScreen
from lite_llama.app.screens.settings import SettingsScreen
from lite_llama.app.screens.wizard import WizardScreen
from lite_llama.app.settings import SettingsStore
from lite_llama.app.theme import DARK, LIGHT
from lite_llama.app.tui import LiteLlamaApp, recognise_alt_enter
from lite_llama.app.widgets.markdown import ReplyMarkdown
from lite_llama.app.widgets.prompt import NEW_LINE_KEYS, PromptInput
from lite_llama.app.widgets.thinking import ThinkingBlock, ThinkingTitle
from lite_llama.app.widgets.transcript import MOST_TURNS, SHOWN_TURNS, Transcript


async def test_a_question_is_answered(chat, engine):
    engine.reply("Some ", "**bold** ", "words", delay=0.06)
    async with chat() as c:
        await c.ask("Hi")
        assert c.shown() == ["Hi", "Some **bold** words"]
        assert c.prompt.text == ""
        assert c.text_of("#telemetry") == "3 tokens · 20.0 tok/s · first token 0.25 s"
        assert "tiny · CPU, 2 threads · bfloat16" in c.text_of("#header")
        assert "lite-llama  Hi" in c.text_of("#header")
        await c.until(lambda: "12 / 2,048" in c.text_of("#context"))


async def test_the_engines_speed_is_shown_while_it_writes(chat, engine):
    engine.reply("a", "b", "c", hold_after=2)
    async with chat() as c:
        await c.send("Hi")
        await c.until(lambda: c.text_of("#telemetry") == "20.0 tok/s · 2 tokens")
        assert "7 / 2,048" in c.text_of("#context")
        engine.release()
        await c.replied()
        assert c.shown()[-1] == "abc"


async def test_the_reading_of_the_prompt_is_shown(chat, engine):
    engine.reply("a", hold_after=0)
    async with chat() as c:
        await c.send("Hi")
        await c.until(lambda: c.text_of("#telemetry").startswith("Reading the prompt"))
        await c.until(lambda: c.text_of("#telemetry").endswith(" 5 / 5 tokens"))
        engine.release()
        await c.replied()


async def test_escape_keeps_the_part_and_ctrl_g_goes_on(chat, engine):
    engine.reply("One, ", "two", hold_after=1)
    async with chat() as c:
        await c.send("Count")
        await c.until(lambda: c.shown()[-1:] == ["One, "])
        await c.pilot.press("escape")
        await c.replied()
        assert c.shown() == ["Count", "One, "]
        assert c.text_of(".outcome") == "Stopped   Continue Ctrl+G   Try again Ctrl+R"
        engine.reply("three.")
        await c.pilot.press("ctrl+g")
        await c.until(lambda: c.shown()[-1] == "One, three.")
        await c.replied()
        assert not c.app.screen.query(".outcome").last().display


async def test_an_error_is_shown_on_the_reply_and_ctrl_r_tries_again(chat, engine):
    engine.reply(error="The GPU [bold]fell[/bold] over.")
    async with chat() as c:
        await c.ask("Hi")
        assert c.text_of(".outcome") == "The GPU [bold]fell[/bold] over.\nTry again Ctrl+R"
        engine.reply("Better")
        await c.pilot.press("ctrl+r")
        await c.until(lambda: c.shown() == ["Hi", "Better"])


async def test_a_refused_prompt_is_back_in_the_input(chat, engine):
    engine.reply(refuse="The prompt has 9,000 tokens and the context 2,048: shorten it.")
    async with chat() as c:
        await c.send("Much too long")
        await c.until(lambda: c.prompt.text == "Much too long")
        assert c.shown() == []
        assert "The prompt has 9,000 tokens and the context 2,048: shorten it." in c.notices()
        assert c.app.screen.query("#hint")


async def test_the_context_meter_warns(chat, engine):
    engine.max_context = 20
    async with chat() as c:
        c.prompt.text = "x " * 12
        await c.until(lambda: "16 / 20" in c.text_of("#context"))
        assert c.text_of("#context-label") == "context nearly full "
        c.prompt.text = "x " * 16
        await c.until(lambda: c.text_of("#context-label") == "context full ")


async def test_the_prompt_takes_several_lines(chat, engine):
    async with chat() as c:
        await c.pilot.press("a", "alt+enter", "b", "ctrl+j", "c", "shift+enter", "d")
        assert c.prompt.text == "a\nb\nc\nd"
        assert c.prompt.size.height == 4
        c.prompt.post_message(events.Paste("\r\ne\rf"))
        await c.until(lambda: c.prompt.text == "a\nb\nc\nd\ne\nf")
        await c.pilot.press("enter")
        await c.until(lambda: c.shown() == ["a\nb\nc\nd\ne\nf", "Fine."])


@pytest.mark.parametrize("sent", ["\x1b\r", "\x1b[13;3u", "\x1b[13;2u", "\n"])
def test_new_line_keys_are_known_however_terminals_send_them(sent):
    recognise_alt_enter()
    keys = [event.key for event in XTermParser().feed(sent + "a") if isinstance(event, events.Key)]
    assert keys[0] in NEW_LINE_KEYS
    assert keys[1:] == ["a"]


async def test_keys_that_come_fast_stay_in_order(chat):
    async with chat() as c:
        for key in ("x", "backspace", "b", "left", "a", "right", "alt+enter", "b", "enter", "c"):
            c.prompt.post_message(events.Key(key, key if len(key) == 1 else None))
        await c.until(lambda: c.shown() == ["ab\nb", "Fine."])
        assert c.prompt.text == "c"


async def test_up_brings_earlier_messages_back(chat):
    async with chat() as c:
        for text in ("first", "second\nline"):
            await c.ask(text)
        await c.pilot.press("up")
        assert c.prompt.text == "second\nline"
        await c.pilot.press("up", "up")
        assert c.prompt.text == "first"
        await c.pilot.press("down")
        assert c.prompt.text == "second\nline"
        await c.pilot.press("down")
        assert c.prompt.text == ""


async def test_nothing_is_sent_from_an_empty_prompt(chat, engine):
    async with chat() as c:
        await c.send("  \n ")
        await c.ask("one")
        assert len(engine.requests) == 1


def queue(c):
    widget = c.app.screen.query_one("#queue", Static)
    return str(widget.render()).split("\n") if widget.display else []


async def test_messages_wait_for_the_reply_and_can_be_taken_back(chat, engine):
    engine.reply("a", "b", hold_after=1)
    async with chat() as c:
        await c.send("one")
        await c.until(lambda: c.shown()[-1:] == ["a"])
        for text in ("two", "three", "four", "five"):
            await c.send(text)
        await c.until(lambda: queue(c)[-1:] == ["and 1 more"])
        assert queue(c)[1] == "edit  remove  two"
        await c.pilot.press("up")
        await c.until(lambda: c.prompt.text == "five")
        c.prompt.text = ""
        await c.pilot.click("#queue", offset=(10, 2))  # remove three
        await c.until(lambda: [line.split()[-1] for line in queue(c)[1:]] == ["two", "four"])
        await c.pilot.press("escape")
        await c.until(lambda: "Paused" in queue(c)[0])
        await c.pilot.press("enter")
        await c.until(lambda: c.shown() == ["one", "a", "two", "Fine.", "four", "Fine."])
        assert queue(c) == []


async def test_up_brings_messages_of_earlier_runs_back(chat, paths):
    database = await Database.open(paths.database)
    for number, text in enumerate(("first", "again", "second", "again")):
        turn = Turn("user", text, created=float(number))
        await database.save(one := Conversation(title="t", turns=[turn]), one.turns)
    await database.close()
    async with chat() as c:
        await c.pilot.press("up")
        assert c.prompt.text == "again"
        await c.pilot.press("up", "up", "up")
        assert c.prompt.text == "first"


async def test_the_prompt_is_edited_in_the_editor(chat, monkeypatch, tmp_path):
    script = tmp_path / "my editor"
    script.write_text("#!/bin/sh\nprintf ' and\\nmore\\n' >> \"$1\"\n")
    script.chmod(0o755)
    monkeypatch.delenv("VISUAL", raising=False)
    monkeypatch.setenv("EDITOR", f"'{script}'")
    async with chat() as c:
        monkeypatch.setattr(c.app, "suspend", contextlib.nullcontext)
        c.prompt.text = "some"
        await c.pilot.press("f5")
        await c.until(lambda: c.prompt.text == "some and\nmore")
        monkeypatch.setenv("EDITOR", "false")
        await c.send("/editor")
        await c.until(c.notices)
        assert c.notices() == ["The editor false ended with code 1: the message is as it was."]
        monkeypatch.setenv("EDITOR", "no-such-editor")
        await c.send("/editor")
        await c.until(lambda: "The editor no-such-editor failed" in c.notices()[-1])
        assert c.notices()[-1].endswith("set EDITOR to another.")


async def test_a_message_refused_while_the_editor_is_open_is_not_lost(chat, engine, monkeypatch, tmp_path):
    script, go = tmp_path / "editor", tmp_path / "go"
    script.write_text(f"#!/bin/sh\nwhile [ ! -e '{go}' ]; do sleep 0.02; done; echo edited > \"$1\"\n")
    script.chmod(0o755)
    monkeypatch.delenv("VISUAL", raising=False)
    monkeypatch.setenv("EDITOR", str(script))
    engine.reply("a", "b", hold_after=1)
    engine.reply(refuse="Too long.")
    async with chat() as c:
        monkeypatch.setattr(c.app, "suspend", contextlib.nullcontext)
        await c.send("one")
        await c.until(lambda: c.shown()[-1:] == ["a"])
        await c.send("two")
        c.prompt.text = "three"
        await c.pilot.press("f5")
        await c.until(lambda: c.prompt.text == "")
        engine.release()
        await c.until(lambda: c.prompt.text == "two")
        go.touch()
        await c.until(lambda: c.prompt.text == "edited\ntwo")


async def test_hostile_text_has_no_power(chat, engine):
    evil = "\x1b[31mred\x1b[0m \x1b]0;title\x07 [bold]no[/bold] [@click=app.quit]x[/] \x9b2J\x00 <b>html</b>"
    tame = "[31mred[0m ]0;title [bold]no[/bold] [@click=app.quit]x[/] 2J <b>html</b>"
    engine.reply(evil)
    async with chat() as c:
        await c.ask(evil)
        assert c.shown() == [tame, tame]
        screen = "\n".join(strip.text for strip in c.app.screen._compositor.render_strips())
        for part in ("[31mred", "[bold]no[/bold]", "<b>html</b>"):
            assert screen.count(part) >= 2
        assert "\x1b" not in screen


async def test_single_newlines_of_a_reply_are_kept(chat, engine):
    engine.reply("Roses are red\nViolets are blue")
    async with chat() as c:
        await c.ask("A poem")
        lines = [strip.text.strip() for strip in c.app.screen._compositor.render_strips()]
        assert lines.index("Violets are blue") == lines.index("Roses are red") + 1


async def test_the_transcript_follows_until_the_user_scrolls_away(chat, engine):
    lines = [f"line {number}\n\n" for number in range(60)]
    engine.reply(*lines, hold_after=30)
    async with chat() as c:
        transcript = c.app.screen.query_one(Transcript)
        await c.send("Go")
        await c.until(lambda: transcript.max_scroll_y > 20)
        assert transcript.scroll_y == transcript.max_scroll_y
        await c.pilot.press("pageup")
        await c.until(lambda: transcript.scroll_y < transcript.max_scroll_y)
        where = transcript.scroll_y
        engine.release()
        await c.replied()
        await c.pilot.pause()
        assert transcript.scroll_y == where
        await c.pilot.press("ctrl+end")
        await c.until(lambda: transcript.scroll_y == transcript.max_scroll_y)
        await c.ask("More")
        await c.until(lambda: transcript.scroll_y == transcript.max_scroll_y)


# Thinking


def title_of_thinking(c):
    """Empty as long as there is none."""
    return c.text_of("ThinkingTitle") if c.app.screen.query(ThinkingTitle) else ""


def thoughts(c):
    """The text of the open blocks."""
    return [str(text.render()) for text in c.app.screen.query(".thoughts").results(Static) if text.display]


async def test_thinking_is_one_line_until_it_is_opened(chat, engine):
    engine.reply("Yes", ".", thinking=["\nHm, ", "[b]well[/b]\x1b[2J", "."], hold_after=2)
    async with chat() as c:
        await c.send("Hi")
        await c.until(lambda: title_of_thinking(c) == "▸ Thinking… 1.0 s · 2 tokens")
        assert c.text_of("#telemetry") == "20.0 tok/s · 2 tokens"
        assert not c.app.screen.query(".outcome").last().display
        engine.release()
        await c.replied()
        assert title_of_thinking(c) == "▸ Thought for 1.5 s · 3 tokens"
        assert c.shown() == ["Hi", "Yes."]
        assert thoughts(c) == []

        await c.pilot.click("ThinkingTitle")
        await c.until(lambda: thoughts(c) == ["Hm, [b]well[/b][2J."])
        assert title_of_thinking(c) == "▾ Thought for 1.5 s · 3 tokens"
        assert c.app.focused is c.prompt  # one goes on typing
        await c.pilot.click("ThinkingTitle")
        await c.until(lambda: thoughts(c) == [])


async def test_thinking_is_reached_by_keys(chat, engine):
    async with chat() as c:
        for answer in ("One.", "Two."):
            engine.reply(answer, thinking=[f"about {answer}"])
            await c.ask("Hi")
        await c.pilot.press("shift+tab", "enter")
        await c.until(lambda: thoughts(c) == ["about Two."])
        await c.pilot.press("shift+tab", "space")
        await c.until(lambda: thoughts(c) == ["about One.", "about Two."])
        await c.pilot.press("enter", "tab", "tab")
        await c.until(lambda: thoughts(c) == ["about Two."])
        assert c.app.focused is c.prompt


async def test_without_thinking_there_is_no_block(chat, engine):
    async with chat() as c:
        await c.ask("Hi")
        assert not c.app.screen.query(ThinkingBlock)
        await c.pilot.press("shift+tab")
        assert not isinstance(c.app.focused, ThinkingTitle)


async def test_an_open_block_follows_the_thinking(chat, engine):
    engine.reply("Yes.", thinking=["Hm", ", well", "."], hold_after=1)
    async with chat() as c:
        await c.send("Hi")
        await c.until(lambda: "1 token" in title_of_thinking(c))
        await c.pilot.click("ThinkingTitle")
        await c.until(lambda: thoughts(c) == ["Hm"])
        engine.release()
        await c.replied()
        assert thoughts(c) == ["Hm, well."]


async def test_a_block_opened_above_a_long_answer_stays_in_view(chat, engine):
    engine.reply("Yes.", thinking=[f"thought {number}\n" for number in range(60)])
    async with chat() as c:
        await c.ask("Hi")
        before = c.app.screen.query_one(ThinkingTitle).region
        await c.pilot.press("shift+tab", "enter")
        await c.until(lambda: c.app.screen.query_one(Transcript).max_scroll_y > 0)
        await c.pilot.pause()
        title = c.app.screen.query_one(ThinkingTitle)
        assert c.app.screen.query_one(Transcript).region.contains_region(title.region)
        assert title.region.width == before.width
        engine.reply("More.")
        await c.pilot.press("tab")
        await c.ask("And?")
        transcript = c.app.screen.query_one(Transcript)
        await c.until(lambda: transcript.scroll_y == transcript.max_scroll_y)


async def test_stopped_thinking_goes_on_with_ctrl_g_and_starts_over_with_ctrl_r(chat, engine):
    engine.reply("never", thinking=["Hm", "never"], hold_after=1)
    async with chat() as c:
        await c.send("Hi")
        await c.until(lambda: "1 token" in title_of_thinking(c))
        await c.pilot.press("escape")
        await c.replied()
        assert title_of_thinking(c) == "▸ Thought for 0.5 s · 1 token"
        assert c.text_of(".outcome") == "Stopped   Continue Ctrl+G   Try again Ctrl+R"
        engine.reply("Yes.", thinking=[", well."])
        await c.pilot.press("ctrl+g")
        await c.until(lambda: c.shown()[-1] == "Yes.")
        await c.replied()
        assert title_of_thinking(c) == "▸ Thought for 1.0 s · 2 tokens"
        engine.reply("No.")
        await c.pilot.press("ctrl+r")
        await c.until(lambda: c.shown()[-1] == "No.")
        assert not c.app.screen.query(ThinkingBlock)


async def test_a_reopened_conversation_has_its_thinking(chat, engine):
    engine.reply("Yes.", thinking=["Hm", "."])
    async with chat() as c:
        await c.ask("Hi")
        conversation = c.app.controller.conversation.id
        await c.pilot.press("ctrl+n")
        await c.until(lambda: c.shown() == [])
        await c.app.controller.open_conversation(conversation)
        await c.until(lambda: c.shown() == ["Hi", "Yes."])
        assert title_of_thinking(c) == "▸ Thought for 1.0 s · 2 tokens"
        await c.pilot.press("shift+tab", "enter")
        await c.until(lambda: thoughts(c) == ["Hm."])


# Images


async def test_a_path_that_is_no_image_is_a_message_and_no_command(chat, engine):
    async with chat() as c:
        await c.ask("/help/notes.txt")
        assert engine.requests[0].messages[-1].content == "/help/notes.txt"
        assert c.notices() == []
        assert isinstance(c.app.screen, ChatScreen)


# Dialogs, commands, themes


async def test_dialogs_open_by_key_and_by_command(chat):
    dialogs = {
        "f1": ("/help", HelpScreen),
        "f2": ("/settings", SettingsScreen),
        "f3": ("/model", ModelScreen),
        "ctrl+o": ("/open", ConversationsScreen),
    }
    async with chat() as c:
        for key, (command, screen) in dialogs.items():
            await c.pilot.press(key)
            await c.screen(screen)
            await c.pilot.press("escape")
            await c.screen(ChatScreen)
            await c.send(command)
            await c.screen(screen)
            await c.pilot.press("escape")
            await c.screen(ChatScreen)
            assert c.prompt.text == ""
            assert c.app.focused is c.prompt


async def test_help_tells_every_action(chat):
    async with chat(size=(100, 60)) as c:
        await c.pilot.press("f1")
        await c.screen(HelpScreen)
        text = "\n".join(str(widget.render()) for widget in c.app.screen.query(Static))
        for action in ACTIONS:
            assert action.title in text
            assert action.command in text


async def test_every_action_exists(chat):
    async with chat() as c:
        for action in ACTIONS:
            owner = c.app if action.name.startswith("app.") else c.app.screen
            assert callable(getattr(owner, f"action_{action.name.removeprefix('app.').partition('(')[0]}"))


async def test_the_palette_runs_an_action(chat):
    async with chat() as c:
        await c.ask("Hi")
        await c.pilot.press("ctrl+p", *"new chat")
        await c.pilot.pause(0.3)
        await c.pilot.press("enter")
        await c.until(lambda: c.shown() == [])


async def test_ctrl_t_switches_the_theme_and_remembers_it(chat, paths):
    async with chat() as c:
        assert c.app.theme == DARK.name
        await c.pilot.press("ctrl+t")
        await c.until(lambda: SettingsStore(paths.settings).load().theme == LIGHT.name)
        assert c.app.theme == LIGHT.name
        await c.pilot.press("ctrl+t")
        await c.until(lambda: c.app.theme == DARK.name)
        c.app.theme = "nord"  # as Textual's own palette does
        await c.pilot.press("ctrl+q")
        await c.until(lambda: c.app._exit)
    assert SettingsStore(paths.settings).load().theme == "nord"


async def test_settings_are_used_and_saved(chat, engine, paths):
    async with chat(settings="# mine\ntemperature = 0.5\n") as c:
        await c.pilot.press("f2")
        await c.screen(SettingsScreen)
        field = c.app.screen.query_one("#field-temperature Input", Input)
        field.value = "0.25"
        await c.pilot.press("ctrl+s")
        await c.screen(ChatScreen)
        await c.ask("Hi")
        assert engine.requests[-1].params.temperature == 0.25
    assert SettingsStore(paths.settings).load().temperature == 0.25
    assert "# mine" in paths.settings.read_text()


async def test_wrong_settings_are_told(chat):
    async with chat(settings="temperature = 99\n") as c:
        assert any("temperature" in notice for notice in c.notices())


# Conversations


async def test_a_long_conversation_shows_its_end_first(chat, paths):
    turns = [
        Turn(role, f"{role} {number}") for number in range(SHOWN_TURNS) for role in ("user", "assistant")
    ]
    database = await Database.open(paths.database)
    saved = Conversation(title="long", turns=turns)
    await database.save(saved, turns)
    await database.close()
    async with chat() as c:
        await c.app.controller.open_conversation(saved.id)
        await c.until(lambda: len(c.shown()) == SHOWN_TURNS)
        assert c.shown()[-1] == f"assistant {SHOWN_TURNS - 1}"
        assert c.text_of("#earlier") == f"Show earlier turns ({SHOWN_TURNS} more)"
        await c.app.screen.run_action("show_earlier")
        await c.until(lambda: len(c.shown()) == 2 * SHOWN_TURNS)
        assert c.shown()[0] == "user 0"
        assert not c.app.screen.query("#earlier")


async def test_a_conversation_that_grows_long_keeps_its_end_on_the_screen(chat, engine):
    async with chat() as c:
        for number in range(MOST_TURNS // 2 + 1):
            engine.reply(f"answer {number}")
            await c.ask(f"question {number}")
        assert c.shown()[-1] == f"answer {MOST_TURNS // 2}"
        assert len(c.shown()) <= SHOWN_TURNS + 1
        hidden = MOST_TURNS + 2 - len(c.shown())
        assert c.text_of("#earlier") == f"Show earlier turns ({hidden} more)"
        await c.app.screen.run_action("show_earlier")
        await c.until(lambda: len(c.shown()) > SHOWN_TURNS + 1)
        shown = c.shown()
        assert (
            shown
            == [f"{who} {number}" for number in range(MOST_TURNS // 2 + 1) for who in ("question", "answer")][
                -len(shown) :
            ]
        )


async def test_turns_far_out_of_view_keep_no_drawn_lines(chat, engine):
    async with chat() as c:
        for _ in range(4):
            engine.reply("line\n\n" * 40)
            await c.ask("Hi")
        replies = list(c.app.screen.query(ReplyMarkdown))
        assert [bool(reply._drawn) for reply in replies] == [False, False, True, True]
        c.app.screen.query_one(Transcript).scroll_home(animate=False)
        await c.until(lambda: replies[0]._drawn)


async def test_after_a_crash_the_partial_reply_is_there(chat, engine, paths):
    database = await Database.open(paths.database)
    crashed = Conversation(title="t", turns=[Turn("user", "q"), Turn("assistant", "half", "streaming")])
    await database.save(crashed, crashed.turns)
    await database.close()
    engine.reply(" and whole")
    async with chat(wait=False) as c:
        await c.until(lambda: c.shown() == ["q", "half"])
        assert c.text_of(".outcome").startswith("Stopped   Continue")
        assert any("cut off" in notice for notice in c.notices())
        await c.until(lambda: c.app.controller.loader.model)
        await c.pilot.press("ctrl+g")
        await c.until(lambda: c.shown() == ["q", "half and whole"])


async def test_a_damaged_database_is_told(chat, paths):
    paths.database.parent.mkdir(parents=True)
    paths.database.write_bytes(b"garbage " * 1000)
    async with chat() as c:
        assert any("damaged" in notice for notice in c.notices())
        await c.ask("Hi")
        assert c.shown() == ["Hi", "Fine."]


# Models


async def test_the_model_used_last_is_loaded(chat, engine, make_model, paths):
    make_model("alpha")
    async with chat(settings='model = "tiny"\n', wait=False) as c:
        await c.until(lambda: c.app.controller.loader.model)
        assert engine.loads[0].path == paths.models / "tiny"


async def test_loading_is_shown_and_typing_possible(chat, engine):
    engine.load_hold.clear()
    async with chat(wait=False) as c:
        await c.until(lambda: "Loading tiny" in c.text_of("#telemetry") and "50%" in c.text_of("#telemetry"))
        await c.send("Early")
        await c.until(lambda: c.shown() == ["Early", ""])
        engine.load_hold.set()
        await c.until(lambda: c.shown() == ["Early", "Fine."])


async def test_a_failed_load_is_told_and_another_model_can_be_chosen(chat, engine, make_model):
    make_model("alpha")
    engine.load_error = "alpha does not fit: 3 GB needed, 1 GB free."
    async with chat(wait=False) as c:
        await c.screen(ModelScreen)
        assert engine.load_error in c.notices()
        engine.load_error = None
        await c.pilot.press("down", "enter")
        await c.until(lambda: c.app.controller.loader.model)
        await c.screen(ChatScreen)
        await c.until(lambda: "tiny" in c.text_of("#header"))
        assert engine.loads[-1].path.name == "tiny"


async def test_without_a_model_the_wizard_opens(chat, engine, make_model):
    async with chat(model=None, wait=False) as c:
        await c.screen(WizardScreen)
        engine.use("demo")
        c.app.screen.dismiss("demo")
        await c.screen(ChatScreen)
        await c.until(lambda: c.text_of("#telemetry") == "Ready")
        await c.ask("Hi")
        assert c.shown() == ["Hi", "Fine."]


async def test_leaving_the_wizard_leaves_a_chat_that_says_what_is_missing(chat, engine):
    async with chat(model=None, wait=False) as c:
        await c.screen(WizardScreen)
        c.app.screen.dismiss(None)
        await c.screen(ChatScreen)
        await c.until(lambda: "No model is loaded" in c.text_of("#telemetry"))
        await c.send("Hi")
        await c.until(lambda: c.prompt.text == "Hi")
        assert engine.requests == []


async def test_an_engine_that_does_not_start_is_told(paths, engine, make_model, until, caplog):
    def broken():
        raise OSError("libcuda.so is missing")

    app = LiteLlamaApp(paths, create_engine=broken)
    async with app.run_test() as pilot:
        await until(pilot, lambda: INTERNAL_ERROR in [n.message for n in app._notifications])
        assert isinstance(app.screen, ChatScreen)
    assert "libcuda.so is missing" in caplog.text


# Sizes and the end


@pytest.mark.parametrize("size", [(20, 5), (40, 10), (160, 48)])
async def test_it_works_at_every_size(chat, engine, size):
    engine.reply("# Title\n\n", "```python\nprint()\n```\n\n", "| a | b |\n|---|---|\n| 1 | 2 |\n")
    async with chat(size=size) as c:
        await c.ask("Hi there")
        assert c.prompt.region.height >= 1
        assert c.prompt.region.bottom <= size[1]
        for key in ("f1", "ctrl+o"):
            await c.pilot.press(key)
            await c.pilot.press("escape")
        engine.reply("Half", hold_after=1)
        for text in ("Sent", "One", "Two", "Three", "Four"):
            await c.send(text)
        await c.until(lambda: "Queued: 4" in c.text_of("#queue"))
        assert c.prompt.region.height >= 1
        assert c.prompt.region.bottom <= size[1]
        await c.pilot.resize_terminal(30, 8)
        await c.pilot.resize_terminal(100, 30)
        await c.until(lambda: c.app.screen.query_one("#header").display)


async def test_ctrl_q_while_answering_saves_the_part(chat, engine, paths):
    engine.reply("half", "never", hold_after=1)
    async with chat() as c:
        await c.send("Hi")
        await c.until(lambda: c.shown()[-1:] == ["half"])
        await c.pilot.press("ctrl+q")
        await c.until(lambda: not c.app.is_running or c.app._exit)
    assert c.app.return_code == 0
    with sqlite3.connect(paths.database) as database:
        rows = database.execute("SELECT content, status FROM messages ORDER BY position").fetchall()
    assert rows == [("Hi", "complete"), ("half", "stopped")]


async def test_sigterm_saves_the_part(chat, engine, paths):
    engine.reply("half", "never", hold_after=1)
    async with chat() as c:
        await c.send("Hi")
        await c.until(lambda: c.shown()[-1:] == ["half"])
        os.kill(os.getpid(), signal.SIGTERM)
        await c.until(lambda: c.app._exit)
    assert c.app.return_code == 128 + signal.SIGTERM
    with sqlite3.connect(paths.database) as database:
        assert database.execute("SELECT status FROM messages WHERE role = 'assistant'").fetchall() == [
            ("stopped",)
        ]


async def test_the_screen_is_up_before_the_engine(paths, engine, make_model, until):
    make_model("tiny")
    started = asyncio.Event()
    loop = asyncio.get_running_loop()

    def slow():
        loop.call_soon_threadsafe(started.set)
        engine.load_hold.wait(5)  # as long as importing torch takes
        return engine

    engine.load_hold.clear()
    app = LiteLlamaApp(paths, create_engine=slow)
    async with app.run_test() as pilot:
        await asyncio.wait_for(started.wait(), 5)
        assert app.query_one("#hint").is_attached
        await pilot.press("h", "i")
        assert app.query_one(PromptInput).text == "hi"
        engine.load_hold.set()
        await until(pilot, lambda: app.controller.loader.model)


def test_the_app_is_there_without_torch():
    code = (
        "import sys, lite_llama.app.tui; print(sorted({'torch', 'transformers', 'gguf'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def unsent(paths) -> str | None:
    """What is kept of the prompt."""
    return json.loads(paths.draft.read_text(encoding="utf-8"))["text"] if paths.draft.exists() else None


async def test_what_was_not_sent_is_there_at_the_next_start(chat, paths):
    async with chat() as c:
        c.prompt.text = "A question\nof two lines"
        await c.until(paths.draft.exists)
        assert unsent(paths) == "A question\nof two lines"
    async with chat() as c:
        assert c.prompt.text == "A question\nof two lines"
        await c.pilot.press("enter")
        await c.replied()
        await c.until(lambda: not paths.draft.exists())
    async with chat() as c:
        assert c.prompt.text == ""


async def test_each_instance_keeps_what_was_not_sent(chat, paths):
    async with chat() as c:
        c.prompt.text = "First"
        async with chat() as other:
            assert other.prompt.text == ""
            other.prompt.text = "Second"
        await c.until(lambda: unsent(paths) == "First")
        async with chat() as other:
            assert other.prompt.text == "Second"
        c.prompt.text = ""
    async with chat() as c:  # of whichever instance it was
        assert c.prompt.text == "Second"
        async with chat() as other:
            assert other.prompt.text == ""


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff", b"[]", b'{"text": 1, "images": []}', b'{"text": "a"}', b'{"text": "a", "images": [{}]}'],
)
async def test_a_draft_that_is_none_is_passed_over(chat, paths, content):
    paths.draft.parent.mkdir(parents=True, exist_ok=True)
    paths.draft.write_bytes(content)
    async with chat() as c:
        assert c.prompt.text == ""
        c.prompt.text = "A question"
        await c.until(lambda: b"A question" in paths.draft.read_bytes())


async def test_what_is_typed_and_what_is_edited_are_both_there_at_the_next_start(chat, paths):
    async with chat() as c:
        await c.ask("first")
        c.prompt.text = "a draft"
        await c.pilot.press("alt+up", "up", "e")
        await c.until(lambda: c.prompt.text == "first")
        await c.until(lambda: unsent(paths) == "a draft")
        await c.pilot.press(*" one")
    async with chat() as c:
        assert c.prompt.text == "a draft\n\nfirst one"


async def test_garbage_is_collected_when_nobody_waits(chat, engine, monkeypatch):
    """Not before the user did anything, not while a reply comes, and once the app is left alone."""
    tidied = []
    monkeypatch.setattr("lite_llama.app.tui.QUIET_S", 0.1)
    monkeypatch.setattr("lite_llama.app.collector.tidy", lambda: tidied.append(1))
    engine.reply("a", "b", hold_after=1)
    async with chat() as c:
        await asyncio.sleep(0.3)
        assert not tidied
        await c.send("Hi")
        await c.until(lambda: c.shown()[-1] == "a")
        tidied.clear()
        await asyncio.sleep(0.3)
        assert not tidied
        engine.release()
        await c.replied()
        await c.until(lambda: tidied)
