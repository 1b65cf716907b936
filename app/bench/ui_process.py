"""The process that `bench ui` starts in a pseudo-terminal: the app as it is, and an engine for the purpose.

python -m lite_llama.app.bench.ui_process HOME [MODEL] - HOME is an empty directory, which gets a file
record.jsonl with the measurements, an object a line. MODEL says in JSON which model runs (a Model below);
without it replies are played from a script.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TextIO

from textual import work

from ...engine.events import (
    Event,
    Failed,
    Finished,
    Loaded,
    ModelInfo,
    PrefillProgress,
    Queued,
    TextDelta,
    Usage,
)
from ...engine.no_tokenizer import NoTokenizer
from ...engine.request import GenerationRequest, Message, SamplingParams
from ...engine.thread import SWITCH_INTERVAL_S, EngineThread, LoadOptions, Sink, settle
from ...models.checkpoint import Checkpoint
from ...models.errors import UserError
from .. import tui
from ..paths import Paths
from .subject import Subject
from .ui_replies import END, REPLIES, tokens, turn

BEAT_S = 0.005
LATE_S = 0.01
"""A beat of the event loop that comes so late is recorded."""
HEADLESS_RUNS = 3
RECORD = "record.jsonl"
QUESTION = "What do you know?"
PROMPT_TOKENS = 128
_WORDS = (
    "so the llama walks over a green hill and looks at **many** other `animals` there, then it goes on\n\n"
)


class Record:
    """Writes what was measured, a line each, from any thread."""

    def __init__(self, file: TextIO) -> None:
        self._file, self._lock = file, threading.Lock()

    def write(self, **values: Any) -> None:
        with self._lock:
            self._file.write(json.dumps(values) + "\n")
            self._file.flush()


async def beat(record: Record) -> None:
    """Wake up every BEAT_S and record when that comes late: for so long, nothing else had its turn.

    How much of it this thread was computing is recorded too; the rest it waited for others.
    """
    while True:
        before, busy = time.monotonic(), time.thread_time()
        await asyncio.sleep(BEAT_S)
        now = time.monotonic()
        if now - before > LATE_S:
            record.write(late_at=now, late_s=now - before - BEAT_S, busy_s=time.thread_time() - busy)


class Scripted(EngineThread):
    """Plays the replies of ui_replies.py at a steady rate, never mind how fast they are taken.

    A question is `<rate> <times> <reply>`, or `turn <number>` for one of many, which comes at once.
    """

    def __init__(self) -> None:
        # The real constructor is not run: it would start the engine's thread.
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        self._stop = threading.Event()
        self._ids = 0

    @property
    def model(self) -> ModelInfo:
        return ModelInfo("scripted", "none", 0, "cpu", "CPU", "none", 1 << 20, 1 << 16, 0, 0, "none", {})

    @property
    def figures(self) -> None:
        """It has no KV cache."""

    def load(self, options: LoadOptions, sink: Sink) -> None:
        settle()
        sink(Loaded(self.model))

    def count_tokens(self, messages: Sequence[Message]) -> int:
        return sum(len(message.content) // 4 for message in messages)

    def submit(self, request: GenerationRequest, sink: Sink) -> int:
        self._ids += 1
        match request.messages[-1].content.split(" ", 2):
            case ["turn", number]:
                pieces, each_s = tokens(turn(int(number))), 0.0
            case [rate, times, name]:
                pieces, each_s = tokens(REPLIES[name] * int(times) + END), 1 / float(rate)
            case other:
                raise ValueError(f"the script has no answer to {other}")
        prompt = self.count_tokens(request.messages)
        threading.Thread(
            target=self._play, args=(self._ids, pieces, each_s, prompt, sink), daemon=True
        ).start()
        return self._ids

    def cancel(self, request_id: int) -> None:
        self._stop.set()

    def close(self) -> None:
        self._stop.set()

    def _play(self, request: int, pieces: list[str], each_s: float, prompt: int, sink: Sink) -> None:
        start = time.monotonic()
        sink(Queued(request, prompt))
        sink(PrefillProgress(request, prompt, prompt))
        for number, piece in enumerate(pieces, start=1):
            due = start + number * each_s
            if (wait := due - time.monotonic()) > 0 and self._stop.wait(wait):
                break
            now = time.monotonic()
            sink(TextDelta(request, piece, number, now, number / (now - start)))
        total = time.monotonic() - start
        usage = Usage(prompt, 0, len(pieces), each_s, len(pieces) / total, total, 0)
        sink(Finished(request, "stop", "".join(pieces), (), usage))


class Gibberish(NoTokenizer):
    """Random weights make random tokens; here they are words, so that there is something to show."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self._vocabulary = vocabulary
        self._words = [f" {word}" for word in _WORDS.split(" ")]

    def encode_chat(
        self, messages: Sequence[Message], *, thinking: bool | None = None, continue_last: bool = False
    ) -> list[int]:
        return random.Random(len(messages)).choices(range(self._vocabulary), k=PROMPT_TOKENS)

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(self._words[token % len(self._words)] for token in ids)


class Live(EngineThread):
    """The engine itself with a model that is there already, measured without the app and within it."""

    def __init__(self, subject: Subject, new_tokens: int, record: Record) -> None:
        super().__init__()
        self._new_tokens, self._record = new_tokens, record
        self._engine = subject.load()
        if subject.checkpoint is None:
            self._engine.tokenizer = Gibberish(subject.config.vocab_size)
        self._engine.tokenizer.eos_ids = frozenset()
        settle()

    def load(self, options: LoadOptions, sink: Sink) -> None:
        assert self.model
        sink(Loaded(self.model))

    def submit(self, request: GenerationRequest, sink: Sink) -> int:
        def watched(event: Event) -> None:
            if isinstance(event, Finished):
                self._record.write(
                    in_app=event.usage.decode_tokens_per_s, tokens=event.usage.completion_tokens
                )
            sink(event)

        return super().submit(request, watched)

    def run_headless(self) -> None:
        """The same question with nobody to show the reply to. Raises UserError when it fails."""
        params = SamplingParams(max_new_tokens=self._new_tokens)
        request = GenerationRequest((Message("user", QUESTION),), params)
        for _ in range(HEADLESS_RUNS + 1):  # the first one warms up
            events: SimpleQueue[Event] = SimpleQueue()
            super().submit(request, events.put)
            while not isinstance(event := events.get(), Finished):
                if isinstance(event, Failed):
                    raise UserError(event.message)
            self._record.write(headless=event.usage.decode_tokens_per_s)


class BenchApp(tui.LiteLlamaApp):
    """The app, which takes the model of its engine whatever lies in the models' directory."""

    CSS_PATH = Path(tui.__file__).with_name("app.tcss")

    @work
    async def _find_model(self) -> None:
        await self.controller.load_model("model")


@dataclass(frozen=True)
class Model:
    """Which model runs: a shape, or the directory of a converted one."""

    shape: str | None
    directory: str | None
    device: str
    dtype: str
    new_tokens: int

    @property
    def subject(self) -> Subject:
        if self.shape:
            return Subject.of_shape(self.shape, self.device, self.dtype)
        return Subject.of_checkpoint(Checkpoint.open(Path(self.directory or "")), self.device, self.dtype)


def main(home: str, model: str | None = None) -> None:
    """Run until the app is left; a UserError becomes one line on stderr and exit code 1."""
    root = Path(home)
    with (root / RECORD).open("w", encoding="utf-8") as file:
        record = Record(file)
        try:
            _run(Paths(data=root, config=root), record, Model(**json.loads(model)) if model else None)
        except UserError as error:
            sys.exit(f"error: {error}")


def _run(paths: Paths, record: Record, model: Model | None) -> None:
    tui.recognise_alt_enter()
    if model is None:
        engine: EngineThread = Scripted()
    else:
        paths.settings.write_text(f"max_gen_len = {model.new_tokens}\n", encoding="utf-8")
        engine = live = Live(model.subject, model.new_tokens, record)
        live.run_headless()
        assert live.model
        record.write(info=asdict(live.model))
    app = BenchApp(paths, create_engine=lambda: engine)

    async def with_beat() -> None:
        beats = asyncio.create_task(beat(record))
        await app.run_async()
        beats.cancel()

    asyncio.run(with_beat())
    engine.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
