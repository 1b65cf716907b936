"""Dark or light as the terminal says: asked over a pseudo-terminal, told while the app runs, or silent."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import termios

import pytest
from textual import events
from textual._xterm_parser import XTermParser
from textual.widgets import TextArea

from lite_llama.app import terminal
from lite_llama.app.bench.terminal import Terminal
from lite_llama.app.screens.settings import SettingsScreen
from lite_llama.app.settings import Settings, SettingsStore
from lite_llama.app.theme import DARK, LIGHT, THEMES, theme_for

QUESTION = "\x1b]11;?\x1b\\\x1b[c"
ATTRIBUTES = "\x1b[?62;22c"  # what every terminal answers to the second question


def asked(answer: str, **environment: str) -> str:
    """What a process says of a terminal that answers so."""
    ours, theirs = pty.openpty()
    before = termios.tcgetattr(theirs)
    child = subprocess.Popen(
        [sys.executable, "-c", "from lite_llama.app import terminal; print(terminal.is_dark())"],
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=theirs,
        env={k: v for k, v in os.environ.items() if k != "COLORFGBG"} | environment,
    )
    try:
        question = b""
        while len(question) < len(QUESTION):
            question += os.read(ours, 100)
        assert question.decode() == QUESTION
        os.write(ours, answer.encode())
        said = child.communicate(timeout=20)[0].decode().strip()
        assert termios.tcgetattr(theirs) == before
        return said
    finally:
        child.kill()
        os.close(ours)
        os.close(theirs)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("\x1b]11;rgb:1414/1717/1c1c\x1b\\" + ATTRIBUTES, "True"),
        ("\x1b]11;rgb:fb/f9/f5\x07" + ATTRIBUTES, "False"),
        ("\x1b]11;rgba:ffff/ffff/ffff/ffff\x1b\\" + ATTRIBUTES, "False"),
        (ATTRIBUTES, "None"),
        ("", "None"),
    ],
    ids=["dark", "light", "with alpha", "does not know", "is silent"],
)
def test_the_terminal_is_asked(answer: str, said: str):
    assert asked(answer) == said


def test_a_terminal_that_does_not_know_is_not_waited_for():
    assert asked(ATTRIBUTES, COLORFGBG="0;15") == "False"


@pytest.mark.parametrize(
    ("value", "dark"),
    [("15;0", True), ("0;15", False), ("0;7", False), ("15;default;8", True), ("default;default", None)],
)
def test_colorfgbg_stands_in(monkeypatch: pytest.MonkeyPatch, value: str, dark: bool | None):
    monkeypatch.setattr(terminal, "_ask", lambda: b"")
    assert terminal.is_dark({"COLORFGBG": value}) is dark
    assert terminal.is_dark({}) is None


def test_textual_reads_the_notifications():
    terminal.understand_notifications()
    read = XTermParser().feed("\x1b[?997;2na\x1b[?997;1n")
    assert [event.key for event in read if isinstance(event, events.Key)] == [
        "terminal-is-light",
        "a",
        "terminal-is-dark",
    ]


@pytest.mark.parametrize(
    ("settings", "dark", "name"),
    [
        (Settings(), True, DARK.name),
        (Settings(), False, LIGHT.name),
        (Settings(light_theme="gone"), False, LIGHT.name),
        (Settings(theme=LIGHT.name), True, LIGHT.name),
        (Settings(theme="gone"), True, DARK.name),
    ],
)
def test_which_theme_the_settings_mean(settings: Settings, dark: bool, name: str):
    assert theme_for(settings, {theme.name: theme for theme in THEMES}, dark=dark) == name


async def test_the_app_turns_with_the_terminal(chat, paths):
    async with chat(settings='dark_theme = "nord"\n') as c:
        assert c.app.theme == "nord"
        c.app.post_message(events.Key("terminal-is-light", None))
        await c.until(lambda: c.app.theme == LIGHT.name)
        c.app.post_message(events.Key("terminal-is-dark", None))
        await c.until(lambda: c.app.theme == "nord")
        await c.pilot.press("ctrl+t")  # the user's own choice stays
        await c.until(lambda: SettingsStore(paths.settings).load().theme == LIGHT.name)
        c.app.post_message(events.Key("terminal-is-dark", None))
        await c.pilot.pause()
        assert c.app.theme == LIGHT.name
        assert c.prompt.text == ""


async def test_reduced_motion_keeps_everything_still(chat):
    async with chat(settings='motion = "reduced"\n') as c:
        assert c.app.animation_level == "none"
        await c.pilot.press("f2")
        await c.screen(SettingsScreen)
        await c.pilot.pause()
        assert not c.app.focused.cursor_blink
        c.app.screen.query_one("#field-motion").value = "full"  # type: ignore[attr-defined]
        await c.pilot.pause()
        await c.pilot.press("ctrl+s")
        await c.until(lambda: c.app.animation_level != "none")
        assert c.app.screen.query_one("#prompt", TextArea).cursor_blink


async def test_the_cursor_stands_still_from_the_start(make_app):
    app = make_app(settings='motion = "reduced"\n')
    async with app.run_test() as pilot:
        await pilot.pause()
        assert not app.screen.query_one("#prompt", TextArea).cursor_blink


@pytest.mark.parametrize("term", ["screen", "xterm-256color", "nocolor"])
def test_the_app_comes_up_without_true_colour(paths, make_model, term: str):
    """In a real terminal of few colours: the prompt is drawn, and Ctrl+Q leaves it as it was."""
    environment = {k: v for k, v in os.environ.items() if k not in ("COLORTERM", "NO_COLOR", "COLORFGBG")}
    environment |= {"LITE_LLAMA_HOME": str(paths.data), "TERM": "xterm" if term == "nocolor" else term}
    environment |= {"NO_COLOR": "1"} if term == "nocolor" else {}
    make_model("tiny")
    with Terminal([sys.executable, "-m", "lite_llama"], environment, 80, 24) as program:
        program.wait_for("Message", 60)
        program.type("\x11")
        assert program.wait(60) == 0
        drawn = bytes(program.output)
    colours = set(re.findall(rb"\x1b\[[\d;]*?(38;2|38;5|3[0-7])[;m]", drawn))
    if term != "nocolor":
        assert b"38;2" not in colours
        assert (b"38;5" in colours) == (term == "xterm-256color")
        assert colours
    assert b"\x1b[?2031l" in drawn
    assert b"\x1b[?1049l" in drawn
