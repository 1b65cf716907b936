"""Faults: whatever fails under the chat is said in a sentence, and what was written is still there.

Some are injected into the real engine with a tiny model, some made in real processes in a pseudo-terminal.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import shutil
import signal
import sqlite3
import subprocess
import termios
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from app_chat import Chat
from terminal_chat import TerminalChat

from lite_llama.app.database import Database
from lite_llama.app.tui import LiteLlamaApp
from lite_llama.converter import Done, convert
from lite_llama.engine.engine import Engine

# The engine


@pytest.fixture(scope="module")
def tiny(make_checkpoint, tmp_path_factory):
    """A model of random weights, converted, that goes on and on."""
    directory = tmp_path_factory.mktemp("tiny")
    source = make_checkpoint("LlamaForCausalLM", directory / "source")
    *_, done = convert(str(source), directory / "models", directory / "downloads", name="tiny")
    assert isinstance(done, Done)
    return done.checkpoint.path


@pytest.fixture
def real(tiny, paths):
    """`async with real() as c:` runs the app until the model is loaded."""

    @contextlib.asynccontextmanager
    async def run():
        shutil.copytree(tiny, paths.models / "tiny", dirs_exist_ok=True)
        # With this seed a reply is long enough for `fail_step`.
        paths.settings.write_text('max_gen_len = 120\ndevice = "cpu"\nseed = 2\n')
        app = LiteLlamaApp(paths)
        try:
            async with app.run_test() as pilot:
                chat = Chat(app, pilot)
                await chat.until(lambda: chat.controller.loader.model)
                yield chat
        finally:
            if app.controller.loader.engine is not None:
                app.controller.loader.engine.close()

    return run


@pytest.fixture
def fail_step(monkeypatch):
    """`fail_step(error)`: the thirtieth step of the engine from now on raises it."""
    whole, armed = Engine.step, {}

    def step(self):
        if armed:
            armed["steps"] -= 1
            if armed["steps"] == 0:
                error = armed["error"]
                armed.clear()
                raise error
        whole(self)

    def fail(error):
        armed.update(steps=30, error=error)

    monkeypatch.setattr(Engine, "step", step)
    return fail


def stored(paths):
    """Text and status of the messages on the disk."""
    with sqlite3.connect(paths.database) as database:
        return database.execute("SELECT content, status FROM messages ORDER BY position").fetchall()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("a kernel failed"), "a kernel failed"),
        (torch.cuda.OutOfMemoryError("out of memory"), "The GPU ran out of memory"),
    ],
)
async def test_a_step_that_fails_ends_the_reply_and_the_next_one_works(real, fail_step, paths, error, said):
    async with real() as c:
        fail_step(error)
        reply = await c.ask("Hi")
        assert (reply.status, said in reply.note) == ("error", True)
        assert reply.text
        assert stored(paths)[-1] == (reply.text, "error")
        assert c.controller.can_continue
        assert (await c.ask("Again")).status in ("complete", "length")


async def test_an_engine_thread_that_would_end_says_so_and_takes_the_model_again(real, fail_step, paths):
    async with real() as c:
        fail_step(SystemExit("as a library may call it"))
        reply = await c.ask("Hi")
        assert (reply.status, "load it again" in reply.note) == ("error", True)
        assert reply.text
        assert stored(paths)[-1] == (reply.text, "error")
        assert c.controller.loader.model is None
        await c.send("Again")
        await c.until(lambda: "No model is loaded" in " ".join(c.notices()))
        await c.controller.load_model("tiny")
        await c.until(lambda: c.controller.loader.model)
        assert (await c.ask("Once more")).status in ("complete", "length")


async def test_what_fails_while_a_failure_is_cleaned_up_is_survived(real, fail_step, monkeypatch):
    def broken(self, message):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    async with real() as c:
        monkeypatch.setattr(Engine, "fail_all", broken)
        fail_step(RuntimeError("CUDA error"))
        reply = await c.ask("Hi")
        assert (reply.status, "load it again" in reply.note) == ("error", True)


async def test_a_model_deleted_under_a_chat_answers_to_its_end_and_is_missed_at_the_next_load(real, paths):
    async with real() as c:
        await c.send("Hi")
        await c.until(lambda: c.controller.last_reply and c.controller.last_reply.text)
        shutil.rmtree(paths.models / "tiny")
        await c.until(lambda: not c.controller.replying)
        assert c.controller.last_reply.status in ("complete", "length")
        assert (await c.ask("Again")).status in ("complete", "length")
        await c.controller.load_model("tiny")
        await c.until(lambda: not c.controller.loader.loading)
        await c.until(lambda: "tiny" in " ".join(c.notices()))
        assert c.controller.loader.model is None
        assert stored(paths)[-1][1] in ("complete", "length")


# The disk


@pytest.fixture
def small_disk(paths):
    """The home is a file system of 2 MB, where this process may mount one."""
    paths.data.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(paths.data)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    yield paths.data
    subprocess.run(["umount", "--lazy", str(paths.data)], check=True)


async def check_full(paths, chat, engine, fill, free):
    """A chat over a disk that becomes full and has room again."""
    async with chat() as c:
        await c.ask("before")
        fill()
        engine.reply("word" * 4_000)
        await c.ask("too much")
        assert c.app.controller.last_reply.status == "complete"
        assert any("The conversation is not saved." in notice for notice in c.notices())
        free()
        await c.send("after")
        await c.until(lambda: len(c.app.controller.conversation.turns) == 6)
        await c.replied()
    texts = [text for text, _ in stored(paths)]
    assert texts == ["before", "Fine.", "too much", "word" * 4_000, "after", "Fine."]


async def test_a_full_disk_is_said_and_all_is_saved_when_there_is_room(small_disk, chat, engine, paths):
    filler = small_disk / "filler"

    def fill():
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))

    await check_full(paths, chat, engine, fill, filler.unlink)


async def test_a_file_that_may_not_grow_is_said_and_all_is_saved_when_it_may(chat, engine, paths):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill():
        sizes = [path.stat().st_size for path in paths.data.glob("conversations.db*")]
        resource.setrlimit(resource.RLIMIT_FSIZE, (max(sizes) + 4096, before[1]))

    def free():
        resource.setrlimit(resource.RLIMIT_FSIZE, before)

    try:
        await check_full(paths, chat, engine, fill, free)
    finally:
        free()


# The database


async def test_a_database_that_another_program_keeps_locked_is_said_and_the_chat_goes_on(
    chat, paths, monkeypatch
):
    await (await Database.open(paths.database)).close()
    monkeypatch.setattr(Database.open.__func__, "__kwdefaults__", {"busy_timeout_s": 0.05})
    with contextlib.closing(sqlite3.connect(paths.database, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        async with chat() as c:
            assert any("another program holds it locked" in notice for notice in c.notices())
            await c.ask("Hi")
            assert c.shown() == ["Hi", "Fine."]
    assert stored(paths) == []


async def test_a_damaged_database_is_kept_aside_and_a_new_one_started(chat, paths):
    paths.data.mkdir()
    paths.database.write_bytes(b"no database" * 1000)
    async with chat() as c:
        assert any("was damaged and is now conversations.db.damaged-1" in notice for notice in c.notices())
        await c.ask("Hi")
    assert paths.database.with_name("conversations.db.damaged-1").read_bytes() == b"no database" * 1000
    assert stored(paths) == [("Hi", "complete"), ("Fine.", "complete")]


# The terminal


async def test_a_terminal_made_tiny_in_the_middle_of_a_reply_and_large_again(chat, engine):
    engine.reply(*(f"word{number} " for number in range(60)), delay=0.02)
    async with chat() as c:
        await c.send("Hi")
        await c.until(lambda: "word3" in c.shown()[-1])
        await c.pilot.resize_terminal(20, 5)
        await c.until(lambda: "word20" in c.shown()[-1])
        assert c.prompt.region.height > 0
        await c.pilot.press("o", "k")
        await c.pilot.resize_terminal(80, 24)
        await c.replied()
        await c.pilot.pause()
        assert c.prompt.text == "ok"
        assert "word59" in c.shown()[-1]
        assert c.app.screen.region.size == (80, 24)


@pytest.fixture
def terminal():
    chats = TerminalChat()
    yield chats
    chats.close()


@pytest.mark.parametrize("how", ["SIGTERM", "SIGHUP", "closed window"])
def test_a_process_that_is_ended_saves_and_leaves_the_terminal_as_it_was(terminal, home, paths, how):
    before = terminal.settings()
    terminal.start(home, "app", words=2000, delay=0.02)
    terminal.wait_for("Ready")
    terminal.type("Hi\r")
    terminal.wait_for("-0-9")
    terminal.resize(20, 5)
    terminal.wait_for("-0-19")
    terminal.resize(80, 24)
    terminal.wait_for("-0-39")
    if how == "closed window":  # the shell alone is told, and this one does not tell its jobs
        terminal.hang_up()
    else:
        terminal.send_signal(signal.SIGTERM if how == "SIGTERM" else signal.SIGHUP)
    assert terminal.wait() == 128 + (signal.SIGTERM if how == "SIGTERM" else signal.SIGHUP)
    (question, _), (reply, status) = stored(paths)
    assert (question, status) == ("Hi", "stopped")
    streamed = [line.split()[1] for line in (home / "streamed").read_text().splitlines()]
    assert reply.split() == streamed[: len(reply.split())]
    assert len(streamed) - len(reply.split()) <= 1
    if how != "closed window":
        assert terminal.settings() == before
        for off in ("\x1b[?1049l", "\x1b[?25h", "\x1b[?1000l"):  # the other screen, the cursor, the mouse
            assert off in terminal.output.decode()


def test_no_chat_outlives_its_test(home):
    terminal = TerminalChat()
    terminal.start(home, "app")
    pid = terminal.pid
    terminal.pid = 0  # a test that fails may not know it
    terminal.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


# The editor


@pytest.fixture
def editor(tmp_path, monkeypatch):
    """An $EDITOR that stays open until the file that this is exists, and adds a word; before `terminal`."""
    script, go = tmp_path / "editor", tmp_path / "close the editor"
    script.write_text(
        "#!/bin/sh\necho 'The editor is open'\n"
        f"while [ ! -e '{go}' ]; do sleep 0.02; done\nprintf ' edited' >> \"$1\"\n"
    )
    script.chmod(0o755)
    monkeypatch.delenv("VISUAL", raising=False)
    monkeypatch.setenv("EDITOR", str(script))
    yield go
    go.touch()


F5 = "\x1b[15~"


def open_editor(terminal, home, words):
    terminal.start(home, "app", words=words, delay=0.02)
    terminal.wait_for("Ready")
    terminal.type("Hi\r")
    terminal.wait_for("-0-9")
    terminal.type(F5)
    terminal.wait_for("The editor is open")


def test_a_reply_goes_on_behind_the_editor_and_is_whole_after_it(editor, terminal, home, paths):
    open_editor(terminal, home, words=100)
    end = time.monotonic() + 20
    while stored(paths)[1][1] == "streaming":
        assert time.monotonic() < end, "the reply does not end while the editor is open"
        time.sleep(0.05)
    reply, status = stored(paths)[1]
    assert status == "complete"
    assert reply.split() == [line.split()[1] for line in (home / "streamed").read_text().splitlines()]
    assert len(reply.split()) == 100
    assert terminal.output.endswith(b"The editor is open\r\n")  # nothing is drawn over it
    editor.touch()
    terminal.wait_for("The editor is open", "-0-99", " edited")
    terminal.send_signal(signal.SIGTERM)
    assert terminal.wait() == 128 + signal.SIGTERM


def test_a_kill_while_the_editor_is_open_loses_at_most_the_last_second(editor, terminal, home, paths):
    open_editor(terminal, home, words=2000)
    time.sleep(3)
    killed = time.monotonic()
    terminal.send_signal(signal.SIGKILL)
    assert terminal.wait() == -signal.SIGKILL
    words = set(stored(paths)[1][0].split())
    lines = map(str.split, (home / "streamed").read_text().splitlines())
    streamed = [word for when, word in lines if float(when) < killed - LOST_S]
    assert len(streamed) > 50
    assert [word for word in streamed if word not in words] == []


def test_sigterm_waits_for_the_editor(editor, terminal, home, paths):
    before = terminal.settings()
    open_editor(terminal, home, words=2000)
    terminal.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    assert terminal.output.endswith(b"The editor is open\r\n")
    editor.touch()
    assert terminal.wait() == 128 + signal.SIGTERM
    assert stored(paths)[1][1] == "stopped"
    assert terminal.settings() == before


def test_the_app_is_back_after_an_editor_that_failed(home, monkeypatch):
    monkeypatch.delenv("VISUAL", raising=False)
    monkeypatch.setenv("EDITOR", "false")
    terminal = TerminalChat()
    try:
        terminal.start(home, "app")
        terminal.wait_for("Ready")
        terminal.type(F5)
        terminal.wait_for("ended with code 1")
        terminal.type("Hi\r")
        terminal.wait_for("-0-2")
    finally:
        terminal.close()


# kill -9

LIVES = 10
HOMES = 5
LOST_S = 1.0


class Witness:
    """One home whose chats are killed, and what was seen to happen in it."""

    def __init__(self, home, seed):
        self.home = home
        self.random = random.Random(seed)
        self.sent: list[tuple[float, str]] = []
        self.kills: list[float] = []
        self.lost: list[str] = []

    def live(self, terminal, number):
        """Start the chat, write in it, kill it at a random moment."""
        mode = "plain" if number % 5 == 4 else "app"
        terminal.start(self.home, mode, words=40, delay=0.02)
        terminal.wait_for("You: " if mode == "plain" else "Ready", seconds=40)
        if number:
            self.check()
        end = time.monotonic() + self.random.uniform(0.1, 2.5)
        asked = 0
        while time.monotonic() < end:
            if mode == "app" or asked == 0:  # a line that the plain chat has not read yet is not sent
                question = f"question-{number}-{asked}"
                terminal.type(f"{question}\r")
                self.sent.append((time.monotonic(), question))
                asked += 1
            time.sleep(max(0.0, min(self.random.uniform(0.1, 1.5), end - time.monotonic())))
        self.kills.append(time.monotonic())
        terminal.send_signal(signal.SIGKILL)
        assert terminal.wait() == -signal.SIGKILL

    def check(self):
        """What the next start finds of all that was there LOST_S before the kills."""
        with contextlib.closing(sqlite3.connect(self.home / "conversations.db")) as database:
            assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            rows = database.execute("SELECT content FROM messages").fetchall()
            queues = database.execute("SELECT queue FROM conversations").fetchall()
            cut_off = database.execute("SELECT count(*) FROM messages WHERE status = 'streaming'").fetchone()
        assert cut_off == (0,)
        words = " ".join(text for (text,) in rows).split()
        words += [message["text"] for (queue,) in queues for message in json.loads(queue)]
        lines = (self.home / "streamed").read_text().splitlines()
        streamed = [(float(when), word) for when, word in map(str.split, lines)]
        there = set(words)
        for when, what in (*self.sent, *streamed):
            kill = next((kill for kill in self.kills if kill > when), None)
            if kill is not None and when < kill - LOST_S and what not in there:
                self.lost.append(f"{what}, {kill - when:.2f} s before the kill")


def test_a_kill_keeps_what_was_not_sent(terminal, home, paths):
    terminal.start(home, "app")
    terminal.wait_for("Ready", seconds=40)
    terminal.type("half-a-question")
    time.sleep(LOST_S + 0.5)
    terminal.send_signal(signal.SIGKILL)
    terminal.wait()
    terminal.start(home, "app")
    terminal.wait_for("half-a-question", seconds=40)
    terminal.wait_for("Ready", seconds=40)
    terminal.type("\x11")
    assert terminal.wait() == 0
    assert json.loads(paths.draft.read_text(encoding="utf-8"))["text"] == "half-a-question"


def test_fifty_kills_lose_nothing_but_the_last_second(tmp_path, make_model, paths):
    make_model("tiny")

    def lives(seed):
        witness = Witness(tmp_path / f"home-{seed}", seed)
        shutil.copytree(paths.data, witness.home)
        terminal = TerminalChat()
        try:
            for number in range(LIVES):
                witness.live(terminal, number)
            for mode, ready, end in (("app", "Ready", "\x11"), ("plain", "You: ", "\x04")):
                terminal.start(witness.home, mode)
                terminal.wait_for(ready, seconds=40)
                witness.check()
                terminal.type(end)
                assert terminal.wait() == 0
                modes = terminal.settings()
                assert modes[3] & (termios.ECHO | termios.ICANON | termios.ISIG) == (
                    termios.ECHO | termios.ICANON | termios.ISIG
                )
        finally:
            terminal.close()
        return witness

    with ThreadPoolExecutor(3) as pool:  # more would only wait for the processors
        witnesses = list(pool.map(lives, range(HOMES)))
    assert [lost for witness in witnesses for lost in witness.lost] == []
    assert sum(len(witness.kills) for witness in witnesses) == LIVES * HOMES
    assert sum(len(witness.sent) for witness in witnesses) > LIVES * HOMES
