"""Fixtures of the command line's tests: a home directory, the runner, models that only look real, an engine
that plays a script."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from lite_llama.app.cli import app
from lite_llama.app.paths import HOME_VARIABLE
from lite_llama.engine.events import (
    Event,
    Failed,
    Finished,
    FinishReason,
    Loaded,
    LoadFailed,
    LoadProgress,
    ModelInfo,
    PrefillProgress,
    Queued,
    TextDelta,
    Thinking,
    ThinkingDelta,
    ThinkingMode,
    Usage,
)
from lite_llama.engine.request import GenerationRequest
from lite_llama.engine.thread import LoadOptions
from lite_llama.models.checkpoint import MANIFEST, FileRecord, Manifest

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 384,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 2048,
}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty directory that all of the program's data goes to."""
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def cli(home: Path) -> Callable[..., Result]:
    """Runs the command line in this process: cli("models", "rm", "x", input="y\\n")."""

    def run(*args: str | Path, input: str | bytes | None = None) -> Result:
        return CliRunner().invoke(app, [str(arg) for arg in args], input=input, prog_name="lite-llama-tui")

    return run


@pytest.fixture
def fails(cli: Callable[..., Result]) -> Callable[..., str]:
    """Runs a command that must fail with exit code 1 and one line on stderr; returns it without `error: `."""

    def run(*args: str | Path, input: str | bytes | None = None) -> str:
        result = cli(*args, input=input)
        assert result.exit_code == 1, (result.exit_code, result.output, result.exception)
        assert result.stdout == ""
        (line,) = result.stderr.splitlines()
        assert line.startswith("error: ")
        assert "Traceback" not in line
        return line.removeprefix("error: ")

    return run


@pytest.fixture
def add_model(home: Path) -> Callable[..., Path]:
    """Puts a converted model in place; its checksums are right, but its weights are no tensors."""

    def add(name: str, source: str = "someone/some-model") -> Path:
        directory = home / "models" / name
        directory.mkdir(parents=True)
        contents = {
            "config.json": json.dumps(CONFIG).encode(),
            "model.safetensors": b"weights of " + name.encode(),
        }
        for file, content in contents.items():
            (directory / file).write_bytes(content)
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
            files={
                file: FileRecord(len(content), hashlib.sha256(content).hexdigest())
                for file, content in contents.items()
            },
        )
        (directory / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
        return directory

    return add


@dataclass
class ScriptedEngine:
    """Stands in for EngineThread: thinks `thoughts` and answers every request with `pieces`, one token each.

    It records what it was asked; `interrupt_after` presses Ctrl-C after that many pieces and then waits to
    be cancelled, as `interrupt_load` does during the load.
    """

    pieces: tuple[str, ...] = ("Hello", " there", ".")
    thoughts: tuple[str, ...] = ()
    thinking: ThinkingMode = "never"
    reason: FinishReason = "stop"
    defaults: dict[str, float | int] = field(default_factory=dict)
    load_error: str | None = None
    answer_error: str | None = None
    interrupt_load: bool = False
    interrupt_after: int | None = None
    loads: list[LoadOptions] = field(default_factory=list)
    requests: list[GenerationRequest] = field(default_factory=list)
    closed: bool = False

    def __post_init__(self) -> None:
        self._cancelled = threading.Event()
        self._ids = itertools.count(1)

    def load(self, options: LoadOptions, sink: Callable[[Event], object]) -> None:
        self.loads.append(options)
        threading.Thread(target=self._load, args=(options, sink)).start()

    def cancel_load(self) -> None:
        self._cancelled.set()

    def submit(self, request: GenerationRequest, sink: Callable[[Event], object]) -> int:
        self.requests.append(request)
        request_id = next(self._ids)
        threading.Thread(target=self._answer, args=(request_id, request, sink)).start()
        return request_id

    def cancel(self, request_id: int) -> None:
        self._cancelled.set()

    def close(self) -> None:
        self.closed = True

    def _load(self, options: LoadOptions, sink: Callable[[Event], object]) -> None:
        sink(LoadProgress(1, 2, "Loading the weights"))
        if self.interrupt_load:
            self._press_ctrl_c()
            sink(LoadFailed("Loading was cancelled."))
        elif self.load_error:
            sink(LoadFailed(self.load_error))
        else:
            sink(
                Loaded(
                    ModelInfo(
                        name=options.path.name,
                        family="Llama",
                        parameter_count=1,
                        device="cpu",
                        device_name="CPU, 2 threads",
                        dtype="float32",
                        max_context=2048,
                        kv_pages=1,
                        weight_bytes=1,
                        kv_bytes=1,
                        operators="reference",
                        defaults=self.defaults,
                        thinking=self.thinking,
                    )
                )
            )

    def _answer(self, request_id: int, request: GenerationRequest, sink: Callable[[Event], object]) -> None:
        sink(Queued(request_id, 9))
        sink(PrefillProgress(request_id, 9, 9))
        text, thought, reason = "", Thinking(), self.reason
        for count, piece in enumerate((*self.thoughts, *self.pieces), start=1):
            if count <= len(self.thoughts):
                thought += Thinking(piece, 1, 1.0)
                sink(ThinkingDelta(request_id, piece, count, float(count), count, float(count), 20.0))
            else:
                text += piece
                sink(TextDelta(request_id, piece, count, float(count), 20.0))
            if count == self.interrupt_after:
                self._press_ctrl_c()
                reason = "cancelled"
                break
        if self.answer_error:
            sink(Failed(request_id, self.answer_error, text, thought))
            return
        total = len(self.thoughts) + len(self.pieces)
        usage = Usage(9, 0, total, 0.25, 20.0, 0.5, request.params.seed or 7)
        sink(Finished(request_id, reason, text, tuple(range(total)), usage, thought))

    def _press_ctrl_c(self) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        assert self._cancelled.wait(10), "Ctrl-C did not reach the engine"


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> ScriptedEngine:
    """The scripted engine, in the place of the real one."""
    scripted = ScriptedEngine()
    monkeypatch.setattr("lite_llama.engine.thread.EngineThread", lambda: scripted)
    return scripted


@pytest.fixture(scope="session")
def tiny_checkpoint(make_checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama checkpoint as Hugging Face writes it; tests change copies of it only."""
    return make_checkpoint("LlamaForCausalLM", tmp_path_factory.mktemp("checkpoints") / "tiny")


@pytest.fixture(scope="session")
def tiny_converted(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, converted."""
    from lite_llama.converter import Done, convert

    home = tmp_path_factory.mktemp("converted")
    *_, done = convert(str(tiny_checkpoint), home / "models", home / "downloads")
    assert isinstance(done, Done)
    return done.checkpoint.path


@pytest.fixture
def tiny_model(tiny_converted: Path, home: Path) -> Path:
    """A converted random model called tiny, in the home directory."""
    return Path(shutil.copytree(tiny_converted, home / "models" / "tiny"))


@pytest.fixture(scope="session")
def tiny_llava_converted(make_llava, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random LLaVA model, converted."""
    from lite_llama.converter import Done, convert

    source = make_llava(tmp_path_factory.mktemp("checkpoints") / "llava")
    home = tmp_path_factory.mktemp("converted")
    *_, done = convert(str(source), home / "models", home / "downloads")
    assert isinstance(done, Done)
    return done.checkpoint.path


@pytest.fixture
def tiny_llava(tiny_llava_converted: Path, home: Path) -> Path:
    """A converted random model that sees images, called llava, in the home directory."""
    return Path(shutil.copytree(tiny_llava_converted, home / "models" / "llava"))
