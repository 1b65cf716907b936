"""The app while replies stream: does it keep up, does it answer the keyboard, does it slow the engine down?

The app itself runs in a pseudo-terminal, with its controller and its database, and what counts is when its
output is there. Only the engine is replaced, by one that plays replies at a steady rate, unless a model is to
be measured.
"""

from __future__ import annotations

import json
import math
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...models.errors import UserError
from .report import Column, Panel, Report, Row, facts, ms, rate
from .subject import Subject
from .terminal import Terminal
from .timing import Tell, percentiles
from .ui_replies import END, REPLIES, tokens

COLUMNS, LINES = 120, 40
START_S = 300.0
"""How long a model may take to load and to be measured without the app."""
ANSWER_S = 30.0
"""How much longer than it should a reply may take, and how long the app may take to answer a key."""
SHORTEST_S = 10.0
"""Replies that would be over before are repeated: what the app needs to begin would count for too much."""
LONGEST_S = 60.0
"""Replies that take longer are left out: they say nothing that shorter ones at this rate do not."""
SETTLE_S = 1.0
"""What the app still does after the end of a reply counts too, as far as the user feels it."""
KEYS = "абвгдежзийклмнопрст"
"""What is typed: letters that no reply has, so that the one on the screen is the one that was typed."""
KEY_EVERY_S = (0.06, 0.14)
NEW_CHAT, QUIT, BACKSPACE = "\x0e", "\x11", "\x7f"
MB = 1e6


def measure(
    subject: Subject | None, *, rates: list[float], turns: int, new_tokens: int, repeats: int, tell: Tell
) -> Report:
    """Scripted replies at each of the `rates`, then a conversation of many `turns`.

    With a `subject` instead its own replies of `new_tokens` tokens, `repeats` times, within the app and
    without it. Raises UserError when the app does not start, ends, or does not show what it should.
    """
    return _measure_model(subject, new_tokens, repeats, tell) if subject else _measure_app(rates, turns, tell)


def _measure_app(rates: list[float], turns: int, tell: Tell) -> Report:
    rows: list[Row] = []
    with _app(None, tell) as app:
        for each in rates:
            for name, text in REPLIES.items():
                times = math.ceil(SHORTEST_S * each / len(tokens(text)))
                ideal = len(tokens(text * times + END)) / each
                if ideal <= LONGEST_S:
                    tell(f"{name} at {each:g} tokens/s")
                    app.new_chat()
                    typed = app.ask(f"{each:g} {times} {name}", app.shows_end, ideal)
                    rows.append(
                        {"reply": name, "times": times, "tokens_per_s": each, "ideal_s": ideal} | typed
                    )
        tell(f"A conversation of {turns} turns")
        rows.append(app.converse(turns))
    known = facts("ui", None, device=_processor(), dtype=None, terminal=f"{COLUMNS}x{LINES}")
    streamed = [row for row in rows if "echo_s" in row]
    labels = [f"{row['reply']}, {row['tokens_per_s']:g} tok/s" for row in streamed]
    panels = (
        Panel(
            "99 % of the keys echo within, ms", labels, {"": [1e3 * row["echo_s"]["p99"] for row in streamed]}
        ),
        Panel("Worst stall of the event loop, ms", labels, {"": [1e3 * row["stall_s"] for row in streamed]}),
    )
    return Report(known, rows, _COLUMNS, panels)


def _measure_model(subject: Subject, new_tokens: int, repeats: int, tell: Tell) -> Report:
    from .ui_process import QUESTION, Model

    directory = str(subject.checkpoint.path.absolute()) if subject.checkpoint else None
    shape = None if directory else subject.name
    model = Model(shape, directory, subject.device, subject.dtype, new_tokens)
    rows: list[Row] = []
    with _app(json.dumps(asdict(model)), tell) as app:
        headless = statistics.median(line["headless"] for line in app.record("headless")[1:])
        for repeat in range(1, repeats + 1):
            tell(f"Reply {repeat} of {repeats}")
            app.new_chat()
            typed = app.ask(
                QUESTION, lambda _, n=repeat: len(app.record("in_app")) == n, new_tokens / headless
            )
            line = app.record("in_app")[-1]
            if line["tokens"] != new_tokens:
                raise UserError(f"A reply got {line['tokens']} tokens instead of {new_tokens}: not counted.")
            share = {"headless_tokens_per_s": headless, "of_headless": line["in_app"] / headless}
            rows.append({"reply": f"reply {repeat}", "tokens_per_s": line["in_app"]} | share | typed)
        info = app.record("info")[0]["info"]
    known = facts(
        "ui",
        subject,
        device=info["device_name"],
        dtype=info["dtype"],
        terminal=f"{COLUMNS}x{LINES}",
        new_tokens=new_tokens,
    )
    values = [headless, statistics.median(row["tokens_per_s"] for row in rows)]
    return Report(
        known, rows, _MODEL_COLUMNS, (Panel("Decode tokens/s", ["headless", "in the app"], {"": values}),)
    )


@dataclass
class _App:
    """The app in its terminal, with the file that it records in."""

    terminal: Terminal
    file: Path
    draw: random.Random

    def record(self, key: str, since: float = 0.0) -> list[dict[str, Any]]:
        """What the app has recorded under that name; of late beats, those after the time `since`."""
        whole, _, _ = self.file.read_text(encoding="utf-8").rpartition("\n")  # the last one may be half there
        lines = [json.loads(line) for line in whole.splitlines()]
        return [line for line in lines if key in line and line.get("late_at", since) >= since]

    def new_chat(self) -> None:
        mark = len(self.terminal.output)
        self.terminal.type(NEW_CHAT)
        self.terminal.wait_for("Ask something to begin", ANSWER_S, mark)

    def shows_end(self, start: int) -> bool:
        """Whether the end of a reply that began at `start` has just come on the screen."""
        return self.terminal.brought(END, start)

    def ask(self, question: str, ended: Callable[[int], bool], ideal_s: float) -> Row:
        """Ask, and type as the reply comes until it has `ended` and the app has come to rest.

        `ended` is asked again and again, with the place in the output where the reply can begin.
        """
        terminal = self.terminal
        start = terminal.type(f"{question}\r")
        mark, finished, echoes = len(terminal.output), None, []
        typed: tuple[str, float, int] | None = None
        next_key = start + KEY_EVERY_S[1]
        while finished is None or time.monotonic() < finished + SETTLE_S or typed:
            now = terminal.pump(0.01 if typed else max(0.0, min(0.05, next_key - time.monotonic())))
            if typed and terminal.brought(typed[0], typed[2]):
                echoes.append(now - typed[1])
                terminal.type(BACKSPACE)
                typed, next_key = None, now + self.draw.uniform(*KEY_EVERY_S)
            elif typed is None and now >= next_key and (finished is None or now < finished + SETTLE_S):
                key = KEYS[len(echoes) % len(KEYS)]
                typed = (key, terminal.type(key), len(terminal.output))
            if finished is None and ended(mark):
                finished = now
            if now > start + ideal_s + ANSWER_S:
                raise UserError(
                    f"The app did not show all of the reply to {question!r} in time: not counted."
                )
        assert finished is not None
        return {
            "wall_s": finished - start,
            **self.stall(start),
            "echo_s": percentiles(echoes) | {"worst": max(echoes), "keys": len(echoes)},
            "written_bytes": len(terminal.output) - mark,
            "rss_mb": [self.rss_mb()],
        }

    def converse(self, turns: int) -> Row:
        """A long conversation, asked as fast as the app answers."""
        self.new_chat()
        start, memory = time.monotonic(), []
        for number in range(1, turns + 1):
            mark = len(self.terminal.output)
            self.terminal.type(f"turn {number}\r")
            self.terminal.wait_for(f"{END}{number}.", ANSWER_S, mark)
            memory.append(self.rss_mb())
        return {
            "reply": f"{turns} turns",
            "wall_s": time.monotonic() - start,
            **self.stall(start),
            "rss_mb": memory,
        }

    def stall(self, since: float) -> Row:
        """The longest time that the event loop took for one thing, and how much of it it was computing."""
        worst = max(self.record("late_s", since), key=lambda line: line["late_s"], default=None)
        return {
            "stall_s": worst["late_s"] if worst else 0.0,
            "stall_busy_s": worst["busy_s"] if worst else 0.0,
        }

    def rss_mb(self) -> float:
        """Resident memory of the app's process."""
        pages = int(Path(f"/proc/{self.terminal.pid}/statm").read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / MB


@contextmanager
def _app(model: str | None, tell: Tell) -> Iterator[_App]:
    """The app, ready for a question; it is left in the ordinary way afterwards."""
    tell("Starting the app")
    environment = os.environ | {"TERM": "xterm-256color", "COLORTERM": "truecolor"}
    with tempfile.TemporaryDirectory(prefix="lite-llama-ui-") as home:
        command = [sys.executable, "-m", "lite_llama.app.bench.ui_process", home, *([model] if model else [])]
        with Terminal(command, environment, COLUMNS, LINES) as terminal:
            try:
                terminal.wait_for("Ready", START_S)
            except UserError:
                said = terminal.output.decode(errors="replace").strip().splitlines() or ["it printed nothing"]
                # CUDA's errors end in a list of frames.
                named = [line for line in said if "Error: " in line or line.startswith("error: ")]
                last = (named or said)[-1].removeprefix("error: ")
                raise UserError(f"The app did not start: {last}") from None
            yield _App(terminal, Path(home) / "record.jsonl", random.Random(0))
            terminal.type(QUIT)
            terminal.wait(ANSWER_S)


def _processor() -> str:
    return f"CPU, {len(os.sched_getaffinity(0))} cores"


def _wall(row: Row) -> str:
    return f"{row['wall_s'] / row['ideal_s']:.3f}" if "ideal_s" in row else ""


def _echo(rank: str) -> Column:
    return Column(f"Echo {rank} ms", lambda row: ms(row["echo_s"][rank]) if "echo_s" in row else "")


def _memory(row: Row) -> str:
    first, last = row["rss_mb"][len(row["rss_mb"]) // 4], row["rss_mb"][-1]
    return f"{last:.0f}" if len(row["rss_mb"]) == 1 else f"{first:.0f} to {last:.0f}"


_REPLY = Column("Reply", lambda row: row["reply"])
_SPEED = Column("Tokens/s", lambda row: rate(row["tokens_per_s"]) if "tokens_per_s" in row else "")
_STALL = Column("Worst stall ms", lambda row: ms(row["stall_s"]))
_MEMORY = Column("Memory MB", _memory)
_COLUMNS = (
    _REPLY,
    _SPEED,
    Column("Wall s", lambda row: f"{row['wall_s']:.1f}"),
    Column("of ideal", _wall),
    _STALL,
    _echo("p50"),
    _echo("p99"),
    _MEMORY,
)
_MODEL_COLUMNS = (
    _REPLY,
    _SPEED,
    Column("Headless", lambda row: rate(row["headless_tokens_per_s"])),
    Column("In the app %", lambda row: f"{100 * row['of_headless']:.1f}"),
    _STALL,
    _echo("p50"),
    _echo("p99"),
    _MEMORY,
)
