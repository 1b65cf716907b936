"""Fixtures of the app's tests: a scripted engine, a home directory, converted models that only look real."""

from __future__ import annotations

import hashlib
import json
import math
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from app_chat import Chat
from textual import on
from textual.app import App
from textual.events import DescendantFocus
from textual.screen import Screen
from textual.widgets import Input, TextArea

from lite_llama.app.machine import Machine, MachineLoad
from lite_llama.app.paths import Paths
from lite_llama.app.theme import THEMES
from lite_llama.app.tui import LiteLlamaApp
from lite_llama.engine.events import (
    Alternative,
    EngineFigures,
    Failed,
    Finished,
    FinishReason,
    Loaded,
    LoadFailed,
    LoadProgress,
    ModelInfo,
    PrefillProgress,
    Queued,
    Scored,
    TextDelta,
    Thinking,
    ThinkingDelta,
    TokenScore,
    Usage,
)
from lite_llama.engine.request import GenerationRequest, Message, ScoreRequest
from lite_llama.engine.thread import EngineThread, LoadOptions, Sink
from lite_llama.models.checkpoint import MANIFEST, FileRecord, Manifest

SHARES = (0.99, 0.95, 0.97, 0.72, 0.93, 0.31, 0.98, 0.12, 0.91, 0.02)


@dataclass(frozen=True)
class Reply:
    """What the fake engine answers to one request; see FakeEngine.reply."""

    chunks: tuple[str, ...]
    thinking: tuple[str, ...] = ()
    delay: float = 0.0
    reason: FinishReason = "stop"
    error: str | None = None
    refuse: str | None = None
    hold_after: int | None = None


class FakeEngine(EngineThread):
    """An engine that plays scripted replies, from threads of its own as the real one does.

    `engine.reply("Hel", "lo")` queues the answer to the next request (without one it answers "Fine.");
    `engine.requests`, `engine.loads` and `engine.cancelled` record what the app asked for. Figures are
    fixed: TTFT 0.25 s, 20 tokens/s, one token per chunk, half a second per chunk of thinking, seed 7. A token
    of a prompt is a word, plus four per message, plus 576 per image. A model sees images if its name begins
    with `llava`. A reply is scored as pieces of words whose probabilities are SHARES in turn; their ids are
    100, 101, ..., and those of the two alternatives 200, 201, ... and 300, 301, ...
    """

    def __init__(self, max_context: int = 2048) -> None:
        # The real constructor is not run: it would start the engine's thread.
        self.max_context = max_context
        self.load_error: str | None = None
        """The next loads fail with this message."""
        self.unloadable: dict[str, str] = {}
        """Name of a model -> the message that its loads fail with."""
        self.load_hold = threading.Event()
        """Clear it to keep loads waiting halfway."""
        self.load_hold.set()
        self.requests: list[GenerationRequest] = []
        self.scored: list[ScoreRequest] = []
        self.score_error: str | None = None
        """Scoring fails with this message."""
        self.score_hold = threading.Event()
        """Clear it to keep scoring waiting halfway."""
        self.score_hold.set()
        self.loads: list[LoadOptions] = []
        self.cancelled: list[int] = []
        self.closed = False
        self._replies: deque[Reply] = deque()
        self._model: ModelInfo | None = None
        self._cancels: dict[int, threading.Event] = {}
        self._load_cancel = threading.Event()
        self._release = threading.Event()
        self._threads: list[threading.Thread] = []

    # What the tests call

    def reply(
        self,
        *chunks: str,
        thinking: Sequence[str] = (),
        delay: float = 0.0,
        reason: FinishReason = "stop",
        error: str | None = None,
        refuse: str | None = None,
        hold_after: int | None = None,
    ) -> None:
        """Queue the answer to the next request.

        thinking: chunks that come before the others; delay: seconds before each chunk; reason: why it ends;
        error: fail with this message after the chunks; refuse: fail with this message before the first
        event, as a prompt that is too long does; hold_after: wait after that many chunks, those of the
        thinking included, until `release()` or a cancel.
        """
        self._replies.append(Reply(chunks, tuple(thinking), delay, reason, error, refuse, hold_after))

    def release(self) -> None:
        """Let a reply that holds go on."""
        self._release.set()

    def use(self, name: str) -> None:
        """Have a model loaded without a load."""
        self._model = self._info(name)

    def fail_running(self, message: str) -> None:
        """End the held reply in an error, as a crash of the engine does."""
        self._crash = message
        self._release.set()

    _crash: str | None = None

    # The contract of EngineThread

    def load(self, options: LoadOptions, sink: Sink) -> None:
        self.loads.append(options)
        self._load_cancel = threading.Event()
        self._start(self._play_load, options, sink, self._load_cancel)

    def cancel_load(self) -> None:
        self._load_cancel.set()

    def unload(self) -> None:
        self._model = None

    def submit(self, request: GenerationRequest, sink: Sink) -> int:
        self.requests.append(request)
        request_id = len(self.requests)
        self._cancels[request_id] = threading.Event()
        reply = self._replies.popleft() if self._replies else Reply(("Fine.",))
        self._start(self._play, request_id, request, reply, sink)
        return request_id

    def score(self, request: ScoreRequest, sink: Sink) -> int:
        self.scored.append(request)
        request_id = -len(self.scored)
        self._cancels[request_id] = threading.Event()
        self._start(self._play_score, request_id, request, sink)
        return request_id

    def cancel(self, request_id: int) -> None:
        self.cancelled.append(request_id)
        self._cancels[request_id].set()

    def count_tokens(self, messages: Sequence[Message]) -> int:
        if self._model is None:
            return 0
        return sum(4 + len(message.content.split()) + 576 * len(message.images) for message in messages)

    @property
    def model(self) -> ModelInfo | None:
        return self._model

    @property
    def figures(self) -> EngineFigures | None:
        return EngineFigures(5, 12, self.max_context // 16, 0, 0) if self._model else None

    def close(self) -> None:
        self.closed = True
        self._load_cancel.set()
        for cancel in self._cancels.values():
            cancel.set()
        for thread in self._threads:
            thread.join(timeout=5)

    # How it plays

    def _start(self, target: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _info(self, name: str) -> ModelInfo:
        return ModelInfo(
            name=name,
            family="Llama",
            parameter_count=134_515_008,
            device="cpu",
            device_name="CPU, 2 threads",
            dtype="bfloat16",
            max_context=self.max_context,
            kv_pages=self.max_context // 16,
            weight_bytes=269_030_016,
            kv_bytes=94_371_840,
            operators="reference",
            defaults={},
            image_tokens=576 if name.startswith("llava") else 0,
        )

    def _play_load(self, options: LoadOptions, sink: Sink, cancel: threading.Event) -> None:
        self._model = None
        sink(LoadProgress(50, 100, "Reading the weights"))
        while not self.load_hold.wait(0.005) and not cancel.is_set():
            pass
        if cancel.is_set():
            sink(LoadFailed("Loading was cancelled."))
        elif error := self.unloadable.get(options.path.name, self.load_error):
            sink(LoadFailed(error))
        else:
            self._model = self._info(options.path.name)
            sink(Loaded(self._model))

    def _play(self, request_id: int, request: GenerationRequest, reply: Reply, sink: Sink) -> None:
        cancel = self._cancels[request_id]
        prompt = self.count_tokens(request.messages)
        if reply.refuse is not None or prompt >= self.max_context:
            sink(Failed(request_id, reply.refuse or "It does not fit.", ""))
            return
        sink(Queued(request_id, prompt))
        sink(PrefillProgress(request_id, prompt // 2, prompt))
        sink(PrefillProgress(request_id, prompt, prompt))
        done = 0
        chunks, thoughts = (*reply.thinking, *reply.chunks), len(reply.thinking)
        for chunk in chunks:
            if done == reply.hold_after:
                self._hold(cancel)
            if reply.delay:
                cancel.wait(reply.delay)
            if cancel.is_set() or self._crash:
                break
            done += 1
            figures = (done, time.monotonic(), 20.0 if done > 1 else 0.0)
            if done <= thoughts:
                sink(ThinkingDelta(request_id, chunk, done, done * 0.5, *figures))
            else:
                sink(TextDelta(request_id, chunk, *figures))
        if reply.hold_after == len(chunks):
            self._hold(cancel)
        text = "".join(reply.chunks[: max(0, done - thoughts)])
        thought = min(done, thoughts)
        thinking = Thinking("".join(reply.thinking[:thought]), thought, thought * 0.5)
        error = self._crash or reply.error
        if error is not None and not cancel.is_set():
            self._crash = None
            sink(Failed(request_id, error, text, thinking))
            return
        reason = "cancelled" if cancel.is_set() else reply.reason
        usage = Usage(prompt, 0, done, 0.25, 20.0 if done > 1 else 0.0, 1.0, 7)
        sink(Finished(request_id, reason, text, tuple(range(done)), usage, thinking))

    def _play_score(self, request_id: int, request: ScoreRequest, sink: Sink) -> None:
        if self.score_error is not None:
            sink(Failed(request_id, self.score_error, ""))
            return
        sink(Queued(request_id, 200))
        sink(PrefillProgress(request_id, 100, 200))
        while not self.score_hold.wait(0.005):
            if self._cancels[request_id].is_set():
                sink(Failed(request_id, "Reading the tokens was stopped.", ""))
                return
        texts = [*re.findall(r"\n| ?[^ \n]{1,7}| ", request.messages[-1].content), "<|im_end|>"]
        tokens = []
        for at, text in enumerate(texts):
            share = SHARES[at % len(SHARES)]
            others = [(200 + at, " hum\x1b]0;x\x07", 0.6 * (1 - share)), (300 + at, "\n", 0.3 * (1 - share))]
            shares = sorted([(100 + at, text, share), *others], key=lambda other: -other[2])
            alternatives = tuple(Alternative(id, other, math.log(own)) for id, other, own in shares)
            tokens.append(TokenScore(100 + at, text, math.log(share), alternatives))
        sink(Scored(request_id, tuple(tokens), bool(request.token_ids)))

    def _hold(self, cancel: threading.Event) -> None:
        while not cancel.is_set() and not self._release.wait(0.005):
            pass
        self._release.clear()


@pytest.fixture(autouse=True)
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the Hugging Face cache is: nowhere yet, whatever this machine has."""
    from huggingface_hub import constants

    path = tmp_path / "hub-cache"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(path))
    return path


@pytest.fixture
def home(paths: Paths, make_model: Callable[..., Path]) -> Path:
    """Where an app that is started in a terminal has its data, the model `tiny` among it."""
    make_model("tiny")
    return paths.data


@pytest.fixture
def engine():
    """A FakeEngine without a model; its threads are ended after the test."""
    fake = FakeEngine()
    yield fake
    fake.close()


@pytest.fixture
def second_engine():
    """The engine that an app makes beside `engine`, should it want two."""
    fake = FakeEngine()
    yield fake
    fake.close()


@pytest.fixture(autouse=True)
def same_load(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine always has the same load: pictures show it."""
    monkeypatch.setattr(Machine, "sample", lambda self, *, gpu: MachineLoad(0.42, 400_000_000))


@pytest.fixture
def make_app(engine: FakeEngine, second_engine: FakeEngine, paths: Paths, make_model: Callable[..., Path]):
    """`make_app()`: the app with the scripted engine and a converted model `tiny`, not yet running.

    `model=None` leaves out the model; `settings` is the text of the settings file.
    """

    def make(model: str | None = "tiny", settings: str = "") -> LiteLlamaApp:
        if model is not None and not (paths.models / model).exists():
            make_model(model)
        if settings:
            paths.settings.parent.mkdir(parents=True, exist_ok=True)
            paths.settings.write_text(settings, encoding="utf-8")
        engines = iter((engine, second_engine))
        return LiteLlamaApp(paths, create_engine=lambda: next(engines))

    return make


@pytest.fixture
def make_model(paths: Paths) -> Callable[..., Path]:
    """`make_model("tiny")` puts a converted model (without real weights) under paths.models.

    It is a LLaVA, which sees images, if its name begins with `llava`.
    """

    def make(name: str, source: str = "demo") -> Path:
        directory = paths.models / name
        directory.mkdir(parents=True)
        config = {
            "architectures": ["LlamaForCausalLM"],
            "vocab_size": 128,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 2048,
        }
        if name.startswith("llava"):
            config = {
                "architectures": ["LlavaForConditionalGeneration"],
                "text_config": config | {"model_type": "llama"},
                "vision_config": {},
                "image_token_index": 127,
            }
        files = {"config.json": json.dumps(config).encode(), "model.safetensors": b"\0" * 4096}
        records = {}
        for file, content in files.items():
            (directory / file).write_bytes(content)
            records[file] = FileRecord(len(content), hashlib.sha256(content).hexdigest())
        manifest = Manifest(
            format_version=1,
            name=name,
            source=source,
            revision=None,
            architecture="LlamaForCausalLM",
            family="Llama",
            dtype="bfloat16",
            parameter_count=134_515_008,
            created_at="2026-01-01T00:00:00Z",
            tool_version="0.1.0",
            files=records,
        )
        (directory / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
        return directory

    return make


class ScreenHost(App[None]):
    """An app around one screen, with our themes, that keeps what the screen dismisses with.

    Nothing moves by itself in it, neither animations nor cursors, so that pictures of it are all alike.
    """

    def __init__(self, screen: Screen[Any], theme: str = "lite-llama-dark") -> None:
        super().__init__()
        self.hosted = screen
        self.results: list[Any] = []
        self.animation_level = "none"
        for each in THEMES:
            self.register_theme(each)
        self.theme = theme

    def on_mount(self) -> None:
        self.push_screen(self.hosted, self.results.append)

    @on(DescendantFocus)
    def _stop_cursor(self, event: DescendantFocus) -> None:
        if isinstance(event.widget, Input | TextArea):
            event.widget.cursor_blink = False


@pytest.fixture
def host() -> type[ScreenHost]:
    """`host(screen)` is an app that shows the screen; see ScreenHost."""
    return ScreenHost


@pytest.fixture
def chat(make_app):
    """`async with chat() as c:` runs the app until the model is loaded; c is a Chat, or another `driver`."""

    class Running:
        def __init__(self, driver=Chat, *, size=(80, 24), wait=True, **options):
            self.app = make_app(**options)
            self.driver, self.size, self.wait = driver, size, wait

        async def __aenter__(self):
            self._run = self.app.run_test(size=self.size)
            running = self.driver(self.app, await self._run.__aenter__())
            if self.wait:
                await running.until(lambda: running.text_of("#telemetry").startswith("Ready"))
            return running

        async def __aexit__(self, *error):
            await self.app.controller.cancel()
            await self._run.__aexit__(*error)

    return Running
