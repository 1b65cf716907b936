"""The plain chat: as a script through pipes, in a real pseudo-terminal, and with the demo model."""

from __future__ import annotations

import io
import os
import re
import signal
import sqlite3
import subprocess
import sys

import pytest
from PIL import Image as pillow
from terminal_chat import TerminalChat

from lite_llama.app import plain
from lite_llama.app.bench.terminal import Terminal
from lite_llama.app.library import last_speed
from lite_llama.converter import Cancelled, Done, Progress
from lite_llama.models.checkpoint import Checkpoint
from lite_llama.models.errors import UserError


@pytest.fixture
def script(engine, paths, make_model, monkeypatch, capsys):
    """`script("line", ...)`: the chat reads these lines and ends; returns what it printed."""

    def run(*lines, code=0, model="tiny"):
        if model and not (paths.models / model).exists():
            make_model(model)
        content = "".join(f"{line}\n" for line in lines).encode("utf-8", "surrogateescape")
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
        assert plain.run(paths, None, lambda: engine) == code
        return capsys.readouterr().out

    return run


def test_a_script_is_answered_line_by_line(script, engine):
    engine.reply("Hel", "lo", delay=0.02)
    engine.reply("Line one\nline two")
    assert script("Hi", "", "Two lines").splitlines()[1:] == [
        "You: Hi",
        "The model tiny is loaded.",
        "Model: Hello",
        "You: ",
        "You: Two lines",
        "Model: Line one",
        "line two",
    ]
    assert [message.content for message in engine.requests[1].messages] == ["Hi", "Hello", "Two lines"]


def test_the_models_speed_is_remembered(script, engine, paths):
    engine.reply("Hel", "lo")
    script("Hi")
    assert last_speed(paths.models / "tiny") == 20.0


def test_backslashes_and_quotes_join_lines(script, engine):
    script("one\\", "two", '"""three', "four", 'five"""', "six\\")
    assert [request.messages[-1].content for request in engine.requests] == [
        "one\ntwo",
        "three\nfour\nfive",
        "six\n",
    ]


def test_states_are_words_and_a_failure_is_the_exit_code(script, engine):
    engine.reply("answer", thinking=("hm", "hm"), delay=0.15)
    engine.reply("cut", reason="length")
    engine.reply("part", error="The engine failed: try again.")
    printed = script("think", "long", "fail", code=1)
    assert "Thinking…\nModel: answer\n" in printed
    assert printed.count("Thinking…") == 1
    assert "Model: cut\n[cut off] The reply reached its limit of 1 tokens.\n" in printed
    assert "Model: part\n[failed] The engine failed: try again.\n" in printed


def test_hostile_text_is_inert(script, engine):
    engine.reply("\x1b[2Jred\x1b]0;title\x07 \x9b31m\r", "tail\x00")
    printed = script("\x1b[31mhi")
    assert "Model: [2Jred]0;title 31mtail\n" in printed
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", printed)


def test_what_is_no_text_is_passed_over(script, engine):
    printed = script("\udcff\udcfe", "Hi", code=1)
    assert "The line is not UTF-8 text: it was passed over.\n" in printed
    assert len(engine.requests) == 1


def test_a_refused_message_is_said(script, engine):
    engine.reply("never", refuse="The prompt is too long: shorten it.")
    printed = script("Hi", "Again", code=1)
    assert "The prompt is too long: shorten it.\nThe message was not sent.\nYou: Again\n" in printed
    assert printed.endswith("Model: Fine.\n")


def test_a_full_context_is_said_and_shortened_when_asked_for(script, engine):
    engine.max_context = 40
    long = "word " * 14
    engine.reply(long)
    engine.reply("never", refuse="The prompt is too long.")
    printed = script("first", f"second {long}", "/shorten", "third", "/shorten", code=1)
    assert "This needs 42 tokens, and the model reads 40: /shorten has it read less" in printed
    assert "The model reads less of this chat from here on" in printed
    assert [message.content for message in engine.requests[-1].messages] == ["third"]
    assert "There is nothing that would have to be left out.\n" in printed


def test_retry_continue_and_edit_work_on_the_tree(script, engine, paths):
    engine.reply("first")
    engine.reply("second", reason="length")
    engine.reply(" and more")
    engine.reply("to the edited")
    printed = script("Hi", "/retry", "/continue", "/edit 1", "Hello", "/continue", code=1)
    assert "Model: second\n[cut off]" in printed
    assert "Model:  and more\n" in printed
    assert "Message 1: Hello\nModel: to the edited\n" in printed
    assert "There is no reply that was cut off.\n" in printed
    with sqlite3.connect(paths.database) as database:
        texts = {row[0] for row in database.execute("SELECT content FROM messages")}
    assert texts == {"Hi", "first", "second and more", "Hello", "to the edited"}


def test_what_is_mistyped_is_not_sent(script, engine):
    printed = script("/serch llama", " /serch llama", code=1)
    assert "There is no command /serch: did you mean /search?" in printed
    assert [request.messages[-1].content for request in engine.requests] == [" /serch llama"]


def test_chats_are_listed_searched_and_opened(script, engine):
    engine.reply("Paris.")
    script("The capital of France?")
    engine.reply("A llama.")
    printed = script("Which animal?", "/open", "/open 2", "/search llama", "/open 1", "/open 7", code=1)
    assert "1. Which animal?, " in printed
    assert "2. The capital of France?, " in printed
    assert "Chat: The capital of France?\nYou: The capital of France?\nModel: Paris.\n" in printed
    assert "1. Which animal?: A llama.\n" in printed
    assert printed.count("Chat: Which animal?\n") == 1
    assert "7 is not in the list: name a number from 1 to 1.\n" in printed


def test_export_import_settings_and_system_prompt(script, engine, tmp_path):
    file = tmp_path / "talk.md"
    printed = script(
        "/system Be a pirate.", "/set temperature 0.2", "Hi", f"/export {file}", "/new", f"/import {file}"
    )
    assert "In this chat: temperature 0.2.\n" in printed
    assert engine.requests[0].messages[0].content == "Be a pirate."
    assert engine.requests[0].params.temperature == 0.2
    assert f"Imported from {file}.\n" in printed
    assert "Fine." in file.read_text()


def test_models_are_listed_and_loaded_by_number(script, engine, make_model):
    make_model("another")
    printed = script("Hi", "/model", "/model 2", "Again", "/model 3", code=1)
    assert "1. another: Llama, " in printed
    assert [load.path.name for load in engine.loads] == ["another", "tiny"]
    assert "The model tiny is loaded.\nThis chat was with another: /own loads it.\nYou: Again\n" in printed
    assert "3 is not in the list" in printed


def test_an_image_goes_with_the_next_message(script, engine, tmp_path):
    file = tmp_path / "a picture.png"
    pillow.new("RGB", (8, 8)).save(file)
    printed = script(f"/image {file}", "What is it?", "/image", "/image gone.png", code=1, model="llava")
    assert "Your next message has: a picture.png.\n" in printed
    assert [image.name for image in engine.requests[0].messages[0].images] == ["a picture.png"]
    assert "Your next message has: no image.\n" in printed


def test_images_for_a_blind_model_stay_until_they_are_taken_away(script, engine, tmp_path):
    file = tmp_path / "p.png"
    pillow.new("RGB", (8, 8)).save(file)
    printed = script(f"'{file}'", "See?", "/image", "/image none", "Hi", code=1)
    assert "tiny reads text only" in printed
    assert printed.count("Your next message has: p.png.\n") == 2
    assert [len(request.messages[-1].images) for request in engine.requests] == [0]


def test_every_command_of_the_app_is_done_or_refused_in_a_sentence(script, engine):
    from lite_llama.app.actions import ACTIONS

    commands = {action.command for action in ACTIONS if action.command} - {"/quit"}
    printed = script(*sorted(commands), "/help", code=1)
    assert engine.requests == []
    assert "/theme is for the full-screen app: lite-llama-tui opens that.\n" in printed
    assert "/open [NUMBER]: Open chat" in printed


def test_quit_ends_a_script(script, engine):
    script("/quit", "Hi")
    assert engine.requests == []


def test_without_a_model_a_script_is_told_how_to_get_one(script):
    with pytest.raises(UserError, match="convert demo"):
        script("Hi", model=None)


def test_a_model_that_does_not_load_is_said(script, engine):
    engine.load_error = "The weights are damaged: convert the model again."
    printed = script("Hi", code=1)
    assert "tiny is not loaded. The weights are damaged: convert the model again.\n" in printed
    assert "The message was not sent.\n" in printed


# In a terminal


@pytest.fixture(scope="module")
def terminal():
    chats = TerminalChat()
    yield chats
    chats.close()


@pytest.fixture
def typed(terminal, home):
    """The plain chat at its first prompt; it is ended after the test."""
    before = terminal.settings()[:4]
    terminal.start(home, "plain", words=200, delay=0.02)
    terminal.wait_for("Ctrl-D quits.", "You: ")
    yield terminal
    if terminal.pid:
        terminal.send_signal(signal.SIGKILL)
        terminal.wait()
    else:
        assert terminal.settings()[:4] == before


def last_reply(home):
    with sqlite3.connect(home / "conversations.db") as database:
        query = "SELECT content, status FROM messages WHERE role = 'assistant' ORDER BY created DESC"
        return database.execute(query).fetchone()


def test_ctrl_c_stops_the_reply_and_ctrl_d_quits(typed, home):
    typed.type("Hi\r")
    typed.wait_for("Model: ", "-5 ")
    typed.type("\x03")
    typed.wait_for("[stopped]", "You: ")
    typed.type("/continue\r")
    typed.wait_for("[stopped]", "Model: ", "-5 ")
    typed.type("\x03")
    typed.wait_for("[stopped]", "[stopped]", "You: ")
    typed.type("\x04")
    assert typed.wait() == 0
    text, status = last_reply(home)
    assert status == "stopped"
    assert text.split()[0].endswith("-0-0")
    assert "\x1b[" not in re.sub(r"\x1b\[\?2004[hl]", "", typed.output.decode())  # bracketed paste alone


def test_ctrl_c_drops_a_line_and_quits_at_the_second_empty_one(typed):
    typed.type("half a line")
    typed.wait_for("half a line")
    typed.type("\x03")
    typed.wait_for("Press Ctrl-C again", "You: ")
    typed.type("another")
    typed.wait_for("another")
    typed.type("\x03")
    typed.wait_for("another", "Press Ctrl-C again", "You: ")
    typed.type("\x03")
    assert typed.wait() == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("when", ["typing", "replying"])
def test_a_signal_saves_and_ends(typed, home, number, when):
    typed.type("Hi\r")
    typed.wait_for("Model: ", "-5 ")
    if when == "typing":
        typed.type("\x03")
        typed.wait_for("[stopped]", "You: ")
        typed.type("half a line")
        typed.wait_for("half a line")
    typed.send_signal(number)
    assert typed.wait() == 128 + number
    assert last_reply(home)[1] == "stopped"
    assert last_reply(home)[0].count("-0-") > 5


def test_after_a_kill_at_the_prompt_the_next_one_echoes(typed, home):
    typed.type("half a line")
    typed.wait_for("half a line")
    typed.send_signal(signal.SIGKILL)
    assert typed.wait() == -signal.SIGKILL
    typed.start(home, "plain")
    typed.wait_for("You: ")
    typed.type("Hi\r")
    typed.wait_for("You: Hi", "Model: ", "-2 ", "You: ")
    typed.type("\x04")
    assert typed.wait() == 0


def test_the_up_key_brings_back_what_was_sent_in_earlier_runs(typed, home):
    typed.type("An earlier question\r")
    typed.wait_for("Model: ")
    typed.type("\x03")
    typed.wait_for("[stopped]", "You: ")
    typed.type("\x04")
    typed.wait()
    typed.start(home, "plain")
    typed.wait_for("You: ")
    typed.type("\x1b[A")
    typed.wait_for("You: ", "An earlier question")
    typed.type("\r")
    typed.wait_for("Model: ", "-2 ", "You: ")
    typed.type("/quit\r")
    assert typed.wait() == 0


PROMPT_FIRST = """
import sys
from pathlib import Path
from lite_llama.app import plain
from lite_llama.app.paths import Paths

def engine():
    print(f"ENGINE torch={'torch' in sys.modules}", flush=True)
    raise RuntimeError

home = Path(sys.argv[1])
sys.exit(plain.run(Paths(home, home), None, engine))
"""


def test_the_prompt_is_there_before_torch(home):
    command = [sys.executable, "-c", PROMPT_FIRST, str(home)]
    with Terminal(command, os.environ, 80, 24) as terminal:
        terminal.wait_for("ENGINE torch=", 60)
        terminal.wait_for("\n", 60, terminal.output.find(b"ENGINE torch="))
        assert re.search(rb"You: .*ENGINE torch=False", terminal.output, re.DOTALL)
        terminal.type("\x04")
        assert terminal.wait(20) == 0


def test_the_demo_model_answers_in_a_pipe(demo_model, paths):
    paths.models.mkdir(parents=True)
    (paths.models / "demo").symlink_to(demo_model)
    paths.settings.write_text('temperature = 0.0\nmax_gen_len = 40\ndevice = "cpu"\n')
    command = [sys.executable, "-m", "lite_llama", "chat", "--plain"]
    environment = os.environ | {"LITE_LLAMA_HOME": str(paths.data)}
    question = "What is the capital of France?\n/retry\n"
    done = subprocess.run(
        command, input=question, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("Model: ") == 2
    assert "Paris" in done.stdout


# Without a model, at a keyboard


@pytest.fixture
def keyboard(engine, paths, monkeypatch, capsys):
    """`keyboard("line", ...)`: the same as `script` for somebody who sits at a terminal without readline."""

    def run(*lines):
        typed = iter(lines)

        def read():
            try:
                return next(typed)
            except StopIteration:
                raise EOFError from None

        monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
        monkeypatch.setattr("builtins.input", read)
        assert plain.run(paths, None, lambda: engine) == 0
        return capsys.readouterr().out

    return run


def test_the_demo_model_is_offered_converted_and_loaded(keyboard, engine, paths, make_model, monkeypatch):
    def convert(source, models, downloads, cancel):
        assert (source, models) == ("demo", paths.models)
        yield Progress("download", 1, 2, "model.gguf")
        yield Done(Checkpoint.open(make_model("demo")), 1.0)

    monkeypatch.setattr("lite_llama.converter.convert", convert)
    printed = keyboard("y", "Hi")
    assert "There is no converted model yet." in printed
    assert "The demo model is converted.\nThe model demo is being loaded" in printed
    assert printed.endswith("Model: Fine.\nYou: \n")


@pytest.mark.parametrize("answer", ["n", ""])
def test_who_wants_no_model_is_told_how_to_get_one_later(keyboard, engine, answer):
    printed = keyboard(answer, "Hi", "/model", "Hi")
    assert "No model is loaded: choose one with /model.\nThe message was not sent.\n" in printed
    assert "run lite-llama-tui convert demo" in printed
    assert engine.requests == []


def test_a_conversion_that_is_stopped_leaves_the_chat_open(keyboard, monkeypatch):
    def convert(*_, cancel, **__):
        signal.raise_signal(signal.SIGINT)
        assert cancel.is_set()
        raise Cancelled
        yield

    monkeypatch.setattr("lite_llama.converter.convert", convert)
    assert "Stopped: what was downloaded is kept for the next try.\n" in keyboard("y", "/help")
