"""Replies, thinking, names and pastes that try to command the terminal: shown, and nothing else."""

import os
import re
import sys
from dataclasses import replace

import pytest
from rich.segment import Segment
from textual.color import Color

from lite_llama.app.bench.terminal import Terminal
from lite_llama.app.bench.ui_replies import END
from lite_llama.app.guard import Guard
from lite_llama.app.text import inert, is_inert_line, one_line
from lite_llama.app.widgets.markdown import ReplyMarkdown
from lite_llama.app.widgets.status import Header

SEQUENCES = {
    "colour": "\x1b[31;47;9m",
    "clear": "\x1b[2J\x1b[3J",
    "cursor": "\x1b[99;1H",
    "alternate screen": "\x1b[?1049l",
    "title": "\x1b]0;EVIL\x07",
    "link": "\x1b]8;;http://evil.example\x1b\\",
    "clipboard": "\x1b]52;c;ZXZpbA==\x07",
    "device control": "\x1bP1$r0m\x1b\\",
    "report": "\x1b[6n\x1b[c",
    "reset": "\x1bc",
    "C1": "\x9b31m\x9d0;EVIL\x9c\x90",
    "bell, backspace, carriage return": "\x07\x08\r\x7f\x00",
    "bidi": "\u202eevil\u202c\u2066\u2069\u200f",
    "invisible": "\u200b\ufeff\u2060\U000e0041\U000e007f",
}
MARKUP = "[bold red]no[/] [@click=app.quit]quit[/] [link=file:///etc/passwd]x[/] <b onclick=x>html</b>"
LINKS = "[a](javascript:alert(1)) [b](file:///etc/passwd) [bank.com](http://evil.example) ![i](http://x.y/z)"
EVIL = "".join(f"{name}: {sequence}after\n\n" for name, sequence in SEQUENCES.items())
REPLY = f"""\
{EVIL}
`{EVIL.splitlines()[0]}` **{SEQUENCES["title"]}bold**

```{SEQUENCES["clipboard"]}
{EVIL}```

| {SEQUENCES["link"]}head | b |
|---|---|
| {SEQUENCES["clear"]} | {SEQUENCES["C1"]} |

- {SEQUENCES["report"]}item

{MARKUP}

{LINKS}

{"x" * 100_000}

שלום עולם مرحبا

"""
PRINTER = """
import sys
from pathlib import Path
from lite_llama.app.cli import ReplyPrinter
text = Path(sys.argv[1]).read_text(encoding="utf-8")
printer = ReplyPrinter()
printer.think(text)
for character in text:
    printer.answer(character)
printer.close()
"""
ALLOWED = re.compile(rb"\x1b\[[0-9;]*[mH]|\x1b\[\?(?:25|2026)[hl]")
"""Colours, cursor positions, the cursor hidden, one frame at a time: how Textual draws."""
CHILD = """
import sys
from pathlib import Path
from lite_llama.app.bench import ui_process
ui_process.REPLIES["hostile"] = Path(sys.argv[2]).read_text(encoding="utf-8", errors="surrogatepass")
ui_process.main(sys.argv[1])
"""


def acts(output: bytes) -> list[bytes]:
    """What a terminal would do on reading it, but for drawing."""
    rest = ALLOWED.sub(b"", output)
    return re.findall(rb"[\x00-\x09\x0b\x0c\x0e-\x1f\x7f].{0,12}|\xc2[\x80-\x9f].{0,12}", rest) + [
        character.encode()
        for character in rest.decode()
        if character not in "\r\n" and not is_inert_line(character)
    ]


@pytest.mark.parametrize("name", SEQUENCES)
def test_no_sequence_survives(name):
    assert is_inert_line(one_line(SEQUENCES[name]))
    assert acts(inert(SEQUENCES[name]).encode()) == []
    drawn = name in ("colour", "cursor")  # Textual uses these itself, though not with these numbers
    assert bool(acts(SEQUENCES[name].encode())) != drawn


def test_what_people_write_survives():
    text = "שלום مرحبا नमस्ते 👩‍👩‍👧 é e\u0301 می‌خواهم\n\tindented"
    assert inert(text) == text


def test_the_guard_lets_no_line_through_that_acts():
    lines = [[Segment(f"a{sequence}b"), Segment("\n\t"), Segment("fine")] for sequence in SEQUENCES.values()]
    for line in lines:
        guarded = Guard().apply(line, Color(0, 0, 0))
        assert all(is_inert_line(segment.text) for segment in guarded)
        assert guarded[2] == line[2]


def test_the_guard_leaves_blanks_where_they_are():
    line = [Segment("    if x:\u200b  # indented  "), Segment("│ a \x1b  │   b │"), Segment("a\tb")]
    guarded = [segment.text for segment in Guard().apply(line, Color(0, 0, 0))]
    assert guarded == ["    if x:  # indented  ", "│ a   │   b │", "a b"]


def test_in_a_real_terminal_only_drawing_is_written(tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    (tmp_path / "reply").write_text(REPLY, encoding="utf-8")
    command = [sys.executable, "-c", CHILD, str(home), str(tmp_path / "reply")]
    environment = os.environ | {"TERM": "xterm-256color"}
    with Terminal(command, environment, 100, 30) as terminal:
        terminal.wait_for("Ready", 60)
        start = len(terminal.output)
        terminal.type("1500 1 hostile\r")
        terminal.wait_for(END, 60, start)
        mark = len(terminal.output)
        for _ in range(100):  # all of it has to be seen, from the end to the beginning
            terminal.type("\x1b[5~")
            terminal.pump(0.05)
        terminal.type("\x1b[1;5H")
        terminal.wait_for("colour: ", 10, mark)
        pasted = len(terminal.output)
        terminal.type(f"\x1b[200~{SEQUENCES['C1']}{SEQUENCES['bidi']}pasted\x1b]0;EVIL\x07 text\x1b[201~")
        terminal.wait_for("pasted", 10, pasted)
        terminal.pump(0.3)
        output = bytes(terminal.output[start:])
    assert acts(output) == []
    assert not [name for name, sequence in SEQUENCES.items() if sequence.encode() in output]
    assert "שלום".encode() in output
    assert b"[@click=app.quit]" in output


async def test_names_titles_thinking_and_errors_are_inert_too(make_app, engine, until):
    engine.reply("fine", thinking=[EVIL])
    engine.reply(EVIL, error=EVIL)
    app = make_app()
    async with app.run_test(size=(100, 40)) as pilot:
        await until(pilot, lambda: app.controller.loader.model)
        app.query_one(Header).show_model(replace(engine.model, name=EVIL, device_name=EVIL))
        for _ in range(2):
            await app.controller.send(EVIL)
            await until(pilot, lambda: not app.controller.replying)
            await pilot.press("shift+tab", "enter")
            await pilot.pause()
            for strip in app.screen._compositor.render_strips():
                assert is_inert_line(strip.text)
        app.notify(EVIL, markup=False)
        await app.controller.rename_conversation(app.controller.conversation.id, EVIL)
        await pilot.press("ctrl+o")
        await pilot.pause(0.2)
        for strip in app.screen._compositor.render_strips():
            assert is_inert_line(strip.text)
        assert app.title == "lite-llama"


async def test_markup_of_a_reply_is_text_and_its_actions_do_not_run(make_app, engine, until):
    engine.reply(f"{MARKUP}\n\n{LINKS}")
    app = make_app()
    async with app.run_test(size=(140, 30)) as pilot:
        await until(pilot, lambda: app.controller.loader.model)
        await app.controller.send(MARKUP)
        await until(pilot, lambda: not app.controller.replying)
        await pilot.pause()
        lines = [strip.text for strip in app.screen._compositor.render_strips()]
        assert sum(MARKUP in line for line in lines) == 2
        reply = app.query_one(ReplyMarkdown)
        actions = set()
        for y in range(len(reply.lines(reply.size.width))):
            for segment in reply.render_line(y):
                if segment.style and "@click" in segment.style.meta:
                    actions.add(segment.style.meta["@click"])
                assert segment.style is None or segment.style.link is None
        assert actions == {"link('http://evil.example')", "link('http://x.y/z')"}


def test_ask_writes_no_sequence_to_a_terminal(tmp_path):
    reply = tmp_path / "reply"
    reply.write_text(EVIL, encoding="utf-8")
    with Terminal([sys.executable, "-c", PRINTER, str(reply)], os.environ, 100, 30) as terminal:
        assert terminal.wait(30) == 0
        output = bytes(terminal.output)
    assert acts(output.replace(b"\x1b[2m", b"").replace(b"\x1b[0m", b"")) == []
    assert output.count(b"bidi: evilafter") == 2  # thought and said
