"""The wizard, driven by keys, around a scripted engine: with real conversions, and slow or failing ones."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from textual.widgets import Button, Checkbox, ContentSwitcher, Input, OptionList, ProgressBar, Select, Static

from lite_llama.app.paths import Paths
from lite_llama.app.remote.endpoint import Endpoint, Endpoints
from lite_llama.app.screens import wizard
from lite_llama.app.screens.endpoint import EndpointScreen
from lite_llama.app.screens.wizard import QUESTION, WizardScreen
from lite_llama.app.screens.wizard_steps import PathSuggester, Speed, typed_path
from lite_llama.app.settings import Settings
from lite_llama.converter import Cancelled, ConvertEvent, Done, Local, Notice, Progress, SourceInfo
from lite_llama.engine.request import Message
from lite_llama.models.checkpoint import Checkpoint
from lite_llama.models.errors import UserError


def step(app: Any) -> str:
    return app.screen.query_one(ContentSwitcher).current


def text(app: Any, selector: str) -> str:
    """What a line of the step shows, empty when it is not displayed."""
    line = app.screen.query_one(f"#{step(app)} {selector}", Static)
    return str(line.render()) if line.display else ""


def note(app: Any) -> str:
    return text(app, ".note")


def is_error(app: Any) -> bool:
    return app.screen.query_one(f"#{step(app)} .note").has_class("-error")


def button(app: Any, name: str) -> str:
    found = app.screen.query_one(f"#{name}", Button)
    return str(found.label) if found.display else ""


class Script:
    """Stands in for the converter: what it knows of a source, and how far a conversion goes.

    The conversion tells what `tell` is given until `go` is set (or it is cancelled), and ends in `error` or
    in a model that `make_model` makes.
    """

    def __init__(self, paths: Paths, make_model: Callable[..., Path]) -> None:
        self._paths = paths
        self._make_model = make_model
        self._events: queue.SimpleQueue[ConvertEvent] = queue.SimpleQueue()
        self.go = threading.Event()
        self.error: Exception | None = None
        self.refuse: dict[str, Exception] = {}
        """Sources that `inspect` refuses."""
        self.hold_inspect: threading.Event | None = None
        self.calls: list[dict[str, Any]] = []
        self.cancelled = threading.Event()

    def tell(self, event: ConvertEvent) -> None:
        self._events.put(event)

    def inspect(self, source: str, models: Path, downloads: Path, *, dtype: str = "auto") -> SourceInfo:
        assert (models, downloads) == (self._paths.models, self._paths.downloads)
        if source in self.refuse:
            raise self.refuse[source]
        if self.hold_inspect and source != "demo":
            self.hold_inspect.wait(20)
        size = 538_060_032 if dtype == "float32" else 269_030_016
        kind, name = ("demo", "SmolLM2-135M") if source == "demo" else ("hub", source.rsplit("/", 1)[-1])
        return SourceInfo(source, kind, name, "Llama", 134_515_008, 92_871_040, size, 41 * 10**9)

    def convert(
        self, source: str, *_: Path, cancel: threading.Event, **options: Any
    ) -> Iterator[ConvertEvent]:
        self.calls.append({"source": source, **options})
        while not self.go.is_set():
            with contextlib.suppress(queue.Empty):
                yield self._events.get(timeout=0.005)
            if cancel.is_set():
                time.sleep(0.05)  # cleaning up takes a moment, and the wizard must wait for it
                self.cancelled.set()
                raise Cancelled
        if self.error:
            raise self.error
        path = self._paths.models / options["name"]
        yield Done(Checkpoint.open(path if path.exists() else self._make_model(options["name"])), 1.0)


@pytest.fixture
def script(
    paths: Paths, make_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Script]:
    """The wizard's converter replaced by a Script."""
    found = Script(paths, make_model)
    monkeypatch.setattr(wizard, "inspect", found.inspect)
    monkeypatch.setattr(wizard, "convert", found.convert)
    yield found
    found.go.set()


@pytest.fixture
def app(host: Any, paths: Paths, engine: Any) -> Any:
    return host(WizardScreen(paths, engine, Settings(device="cpu", dtype="float32"), first_run=True))


async def choose(pilot: Any, kind: str, source: str = "") -> None:
    """Type a source in step 1 and go on."""
    options = pilot.app.screen.query_one("#choose OptionList", OptionList)
    options.highlighted = options.get_option_index(kind)
    await pilot.pause()
    pilot.app.screen.query_one("#choose Input", Input).value = source
    await pilot.press("enter")


async def test_from_the_demo_to_the_chat(app: Any, script: Script, engine: Any, paths: Paths, until: Any):
    """The whole way with nothing but the enter key."""
    script.tell(Progress("download", 40_000_000, 92_871_040, "the.whl"))
    engine.reply("It ", "computes.", hold_after=1)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: "92.9 MB to download, 269 MB on disk" in choices(app))
        assert step(app) == "choose"
        await pilot.press("enter")
        await until(pilot, lambda: step(app) == "check")
        assert text(app, "#fact-model") == "Llama, 135M parameters"
        assert text(app, "#fact-download") == "92.9 MB"
        assert text(app, "#fact-disk") == "269 MB of 41 GB that are free"
        await pilot.press("enter")
        await until(pilot, lambda: step(app) == "convert" and text(app, "#item") == "the.whl")
        assert text(app, "#pace") == "40 MB of 92.9 MB"
        assert button(app, "next") == ""
        engine.load_hold.clear()
        script.go.set()
        await until(pilot, lambda: step(app) == "try" and note(app) == "Reading the weights")
        await pilot.press("enter")  # one too many does no harm
        engine.load_hold.set()
        await until(pilot, lambda: text(app, "#answer") == "It")
        assert text(app, "#loading") == "SmolLM2-135M is loaded: CPU, 2 threads, bfloat16"
        assert text(app, "#question") == QUESTION
        engine.release()
        await until(pilot, lambda: button(app, "next"))
        assert text(app, "#answer") == "It computes."
        assert text(app, "#figures") == "20.0 tok/s, first token after 0.25 s"
        assert app.results == []
        await pilot.press("enter")
    assert app.results == ["SmolLM2-135M"]
    assert script.calls == [{"source": "demo", "name": "SmolLM2-135M", "dtype": "auto", "force": False}]
    [load] = engine.loads
    assert (load.path, load.device, load.dtype) == (paths.models / "SmolLM2-135M", "cpu", "float32")
    [request] = engine.requests
    assert request.messages == (Message("user", QUESTION),)
    assert request.params.temperature == 0


def choices(app: Any) -> str:
    return " ".join(str(option.prompt) for option in app.screen.query_one("#choose OptionList").options)


async def test_checkpoints_of_this_machine_are_offered(
    app: Any, script: Script, make_model: Any, until: Any, monkeypatch: pytest.MonkeyPatch
):
    make_model("old", source="/shelf/old")
    found = [Local(f"/shelf/{name}", name, "Llama", 2_470_000_000) for name in ("new", "old")]
    monkeypatch.setattr(wizard, "find_local", lambda directories: found)
    async with app.run_test() as pilot:
        await until(pilot, lambda: "/shelf/new" in choices(app))
        assert "/shelf/old" not in choices(app)  # it is a model already
        await pilot.press("end")
        assert not app.screen.query_one("#choose Input", Input).display
        await pilot.press("enter")
        await until(pilot, lambda: step(app) == "check")
        assert text(app, "#fact-source") == "/shelf/new"


async def test_converts_a_real_directory(
    app: Any, tmp_path: Path, make_checkpoint: Any, paths: Paths, until: Any
):
    """No script: the converter itself, from a path as a terminal pastes it."""
    source = make_checkpoint("Qwen3ForCausalLM", tmp_path / "my model")
    async with app.run_test() as pilot:
        await choose(pilot, "directory", f"'{source}'")
        await until(pilot, lambda: step(app) == "check" or is_error(app))
        assert text(app, "#fact-model").startswith("Qwen3, ")
        assert text(app, "#fact-download") == "nothing"
        before = text(app, "#fact-disk")
        app.screen.query_one("#check Select", Select).value = "bfloat16"
        await until(pilot, lambda: text(app, "#fact-disk") != before)
        app.screen.query_one("#name", Input).value = "tiny"
        await pilot.press("enter")
        await until(pilot, lambda: step(app) == "try" and button(app, "next"))
        assert text(app, "#answer") == "Fine."
        await pilot.press("enter")
    assert app.results == ["tiny"]
    made = Checkpoint.open(paths.models / "tiny")
    assert (made.manifest.dtype, made.manifest.family) == ("bfloat16", "Qwen3")
    made.verify(force=True)


async def test_cancel_in_mid_conversion_leaves_nothing(
    app: Any,
    tmp_path: Path,
    make_checkpoint: Any,
    paths: Paths,
    until: Any,
    monkeypatch: pytest.MonkeyPatch,
):
    """The real converter, stopped after its first tensor until escape is pressed."""
    source = make_checkpoint("LlamaForCausalLM", tmp_path / "source")
    convert = wizard.convert

    def slow(*args: Any, cancel: threading.Event, **options: Any) -> Iterator[ConvertEvent]:
        for event in convert(*args, cancel=cancel, **options):
            yield event
            if isinstance(event, Progress) and event.phase == "convert":
                assert cancel.wait(20)

    monkeypatch.setattr(wizard, "convert", slow)
    async with app.run_test() as pilot:
        await choose(pilot, "directory", str(source))
        await until(pilot, lambda: step(app) == "check")
        await pilot.press("enter")
        await until(pilot, lambda: step(app) == "convert" and text(app, "#item").startswith("model."))
        assert list(paths.models.iterdir()) != []
        await pilot.press("escape")
        await until(pilot, lambda: step(app) == "choose")
        assert note(app) == "Cancelled; nothing was left behind."
        assert list(paths.models.iterdir()) == []
        # What was entered is still there, and a second try goes through.
        monkeypatch.setattr(wizard, "convert", convert)
        await pilot.press("enter")
        await until(pilot, lambda: step(app) == "check")
        await pilot.press("enter")
        await until(pilot, lambda: step(app) == "try" and button(app, "next"))
    assert (paths.models / "source").is_dir()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"part", "Cancelled; what was downloaded is kept for the next try."),
        (b"", "Cancelled; nothing was left behind."),
    ],
)
async def test_cancel_waits_for_the_cleaning_up(
    app: Any, script: Script, paths: Paths, until: Any, content: bytes, sentence: str
):
    async with app.run_test() as pilot:
        await choose(pilot, "hub", "org/model")
        await until(pilot, lambda: step(app) == "check")
        await pilot.press("enter")
        await until(pilot, lambda: step(app) == "convert")
        (paths.downloads / "org").mkdir(parents=True)
        (paths.downloads / "org" / "file").write_bytes(content)
        await pilot.press("escape")
        await until(pilot, lambda: step(app) == "choose")
        assert script.cancelled.is_set()
        assert note(app) == sentence


async def test_closing_the_app_cancels_the_conversion(app: Any, script: Script, until: Any):
    async with app.run_test() as pilot:
        await choose(pilot, "demo")
        await until(pilot, lambda: step(app) == "check")
        await pilot.press("enter")
        await until(pilot, lambda: step(app) == "convert")
    assert script.cancelled.wait(20)


async def test_conversion_shows_its_phases_and_notices(app: Any, script: Script, until: Any):
    async with app.run_test(size=(80, 24)) as pilot:
        await choose(pilot, "demo")
        await until(pilot, lambda: step(app) == "check")
        await pilot.press("enter")
        script.tell(Notice("The index is down: taking the Hub's."))
        script.tell(Progress("download", 46, 92, "file"))
        await until(pilot, lambda: step(app) == "convert" and text(app, "#item") == "file")
        assert text(app, "#notices") == "The index is down: taking the Hub's."
        assert bars(app) == {"download": 0.5}
        script.tell(Progress("download", 92, 92, "file"))
        await until(pilot, lambda: text(app, "#item") == "Preparing the conversion…")
        script.tell(Progress("convert", 100_000_000, 400_000_000, "model.layers.1.mlp"))
        await until(pilot, lambda: text(app, "#item") == "model.layers.1.mlp")
        assert text(app, "#pace") == "100 MB of 400 MB"
        assert bars(app) == {"download": 1, "convert": 0.25}


def bars(app: Any) -> dict[str, float]:
    """The phases that are shown, and how far each is."""
    rows = {phase: app.screen.query_one(f"#phase-{phase}") for phase in ("download", "convert", "finish")}
    return {phase: row.query_one(ProgressBar).percentage for phase, row in rows.items() if row.display}


async def test_failed_conversion_says_why_and_can_be_tried_again(app: Any, script: Script, until: Any):
    script.error = UserError("The disk became full: free some space.")
    script.go.set()
    async with app.run_test() as pilot:
        await choose(pilot, "demo")
        await until(pilot, lambda: step(app) == "check")
        await pilot.press("enter")
        await until(pilot, lambda: step(app) == "check" and is_error(app))
        assert note(app) == "The disk became full: free some space."
        script.error = None
        await pilot.press("enter")
        await until(pilot, lambda: step(app) == "try")


async def test_fault_of_ours_is_one_sentence_and_in_the_log(
    app: Any, script: Script, until: Any, caplog: Any
):
    script.error = KeyError("lm_head")
    script.go.set()
    async with app.run_test() as pilot:
        await choose(pilot, "demo")
        await until(pilot, lambda: step(app) == "check")
        await pilot.press("enter")
        await until(pilot, lambda: step(app) == "check" and is_error(app))
        assert "KeyError" in note(app)
    assert "Traceback" in caplog.text


async def test_refused_source_is_explained_beneath_it(app: Any, script: Script, until: Any):
    script.refuse["org/nothing"] = UserError("The Hub has no repository org/nothing: check the name.")
    async with app.run_test(size=(80, 24)) as pilot:
        await choose(pilot, "hub", "org/nothing")
        await until(pilot, lambda: is_error(app))
        assert (step(app), note(app)) == ("choose", "The Hub has no repository org/nothing: check the name.")
        await pilot.press("backspace")
        assert note(app) == ""
        await pilot.press(*"gX", "enter")
        await until(pilot, lambda: step(app) == "check")
        assert text(app, "#fact-source") == "org/nothingX"


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("hub", "Type the repo id."),
        ("directory", "Type the path of the directory."),
        ("gguf", "Type the path of the .gguf file."),
    ],
)
async def test_without_a_source_it_asks_for_one(app: Any, script: Script, kind: str, sentence: str):
    async with app.run_test() as pilot:
        await choose(pilot, kind)  # enter in the list goes to the line below it
        assert isinstance(app.focused, Input)
        await pilot.press("enter")
        assert note(app) == sentence
        assert step(app) == "choose"


async def test_missing_path_is_refused_by_the_converter_itself(app: Any, tmp_path: Path, until: Any):
    async with app.run_test() as pilot:
        await choose(pilot, "gguf", str(tmp_path / "no.gguf"))
        await until(pilot, lambda: is_error(app))
        assert "no.gguf" in note(app)
        assert step(app) == "choose"


async def test_escape_stops_looking_and_then_leaves(app: Any, script: Script, until: Any):
    script.hold_inspect = threading.Event()
    async with app.run_test() as pilot:
        await choose(pilot, "hub", "org/slow")
        await until(pilot, lambda: note(app) == "Looking at org/slow…")
        await pilot.press("escape")
        assert app.results == []
        script.hold_inspect.set()
        await pilot.pause(0.1)
        assert step(app) == "choose"  # the answer that came late is dropped
        assert note(app) == ""
        await pilot.press("escape")
    assert app.results == [None]


async def test_back_from_the_check(app: Any, script: Script, until: Any):
    async with app.run_test() as pilot:
        await choose(pilot, "hub", "org/model")
        await until(pilot, lambda: step(app) == "check")
        await pilot.press("escape")
        assert step(app) == "choose"
        assert app.screen.query_one("#choose Input", Input).value == "org/model"
        assert app.results == []


async def test_other_dtype_changes_the_sizes_and_the_conversion(app: Any, script: Script, until: Any):
    async with app.run_test() as pilot:
        await choose(pilot, "hub", "org/model")
        await until(pilot, lambda: step(app) == "check")
        app.screen.query_one("#name", Input).value = "mine"
        app.screen.query_one("#check Select", Select).value = "float32"
        await until(pilot, lambda: text(app, "#fact-disk").startswith("538 MB"))
        assert app.screen.query_one("#name", Input).value == "mine"
        await pilot.press("enter")
        await until(pilot, lambda: script.calls)
    assert script.calls[0] == {"source": "org/model", "name": "mine", "dtype": "float32", "force": False}


async def test_name_must_be_one(app: Any, script: Script, until: Any):
    async with app.run_test() as pilot:
        await choose(pilot, "hub", "org/model")
        await until(pilot, lambda: step(app) == "check")
        for name in ("", "../x", "a b"):
            app.screen.query_one("#name", Input).value = name
            await pilot.press("enter")
            assert step(app) == "check"
            assert is_error(app)
            assert "cannot be a model's name" in note(app)
    assert script.calls == []


@pytest.mark.parametrize("replace", [True, False])
async def test_taken_name_wants_another_or_replace(
    app: Any, script: Script, make_model: Callable[..., Path], until: Any, replace: bool
):
    make_model("model")
    make_model("model-2")
    script.go.set()
    async with app.run_test() as pilot:
        await choose(pilot, "hub", "org/model")
        await until(pilot, lambda: step(app) == "check")
        assert "name this one model-3, say, or replace it" in note(app)
        await pilot.press("enter")
        assert step(app) == "check"
        assert is_error(app)
        tick = app.screen.query_one(Checkbox)
        assert tick.display
        if replace:
            tick.focus()
            await pilot.press("space")
            await pilot.click("#next")
        else:
            app.screen.query_one("#name", Input).value = "model-3"
            await pilot.pause()
            assert not tick.display
            assert note(app) == ""
            await pilot.press("enter")
        await until(pilot, lambda: step(app) == "try")
    assert script.calls[0]["name"] == ("model" if replace else "model-3")
    assert script.calls[0]["force"] is replace


async def to_the_test(pilot: Any, script: Script, until: Any) -> None:
    script.go.set()
    await choose(pilot, "demo")
    await until(pilot, lambda: step(pilot.app) == "check")
    await pilot.press("enter")
    await until(pilot, lambda: step(pilot.app) == "try")


async def test_the_demo_that_sees_needs_no_source_named(app: Any, script: Script, until: Any):
    script.go.set()
    async with app.run_test() as pilot:
        options = app.screen.query_one("#choose OptionList", OptionList)
        options.highlighted = options.get_option_index("demo-vision")
        await pilot.pause()
        assert not app.screen.query_one("#choose Input", Input).display
        await pilot.press("enter")
        await until(pilot, lambda: step(app) == "check")
        await pilot.press("enter")
        await until(pilot, lambda: step(app) == "try")
    assert script.calls[0]["source"] == "demo-vision"


async def test_failed_load_can_be_tried_again(app: Any, script: Script, engine: Any, until: Any):
    engine.load_error = "2.4 GB are needed and 1.1 GB are free: choose a smaller model."
    async with app.run_test() as pilot:
        await to_the_test(pilot, script, until)
        await until(pilot, lambda: is_error(app))
        assert note(app) == engine.load_error
        assert button(app, "next") == "Try again ↵"
        engine.load_error = None
        await pilot.press("enter")
        await until(pilot, lambda: button(app, "next") == "Start chatting ↵")
        # A button takes no second press while it still shows the first.
        await until(pilot, lambda: not app.screen.query_one("#next").has_class("-active"))
        await pilot.press("enter")
    assert app.results == ["SmolLM2-135M"]


async def test_a_model_that_cannot_but_think_is_not_damaged(
    app: Any, script: Script, engine: Any, until: Any
):
    engine.reply(thinking=["A computer", " is"], reason="length")
    async with app.run_test() as pilot:
        await to_the_test(pilot, script, until)
        await until(pilot, lambda: button(app, "next") == "Start chatting ↵")
        assert text(app, "#answer") == "A computer is"
        assert engine.requests[-1].thinking is False


async def test_escape_cancels_the_load_and_goes_back(app: Any, script: Script, engine: Any, until: Any):
    engine.load_hold.clear()
    async with app.run_test() as pilot:
        await to_the_test(pilot, script, until)
        await until(pilot, lambda: note(app) == "Reading the weights")
        await pilot.press("escape")
        await until(pilot, lambda: note(app) == "Loading was cancelled.")
        await pilot.press("escape")
        assert step(app) == "choose"
        assert note(app) == "SmolLM2-135M is converted and in your list of models."
        await pilot.press("escape")
    assert app.results == [None]


@pytest.mark.parametrize(
    ("reply", "sentence"),
    [
        ({"error": "The GPU ran out of memory."}, "The GPU ran out of memory."),
        ({}, "The model gave an empty answer: its weights may be damaged."),
    ],
)
async def test_failed_smoke_test_leaves_the_choice(
    app: Any, script: Script, engine: Any, until: Any, reply: dict[str, Any], sentence: str
):
    engine.reply(**reply)
    async with app.run_test() as pilot:
        await to_the_test(pilot, script, until)
        await until(pilot, lambda: is_error(app))
        assert note(app) == sentence
        assert button(app, "next") == "Start chatting anyway ↵"
        await pilot.press("enter")
    assert app.results == ["SmolLM2-135M"]


async def test_escape_skips_the_rest_of_the_answer(app: Any, script: Script, engine: Any, until: Any):
    engine.reply("It ", "computes.", hold_after=1)
    async with app.run_test() as pilot:
        await to_the_test(pilot, script, until)
        await until(pilot, lambda: text(app, "#answer") == "It")
        assert button(app, "back") == "Skip esc"
        await pilot.press("escape")
        await until(pilot, lambda: button(app, "next") == "Start chatting ↵")
        assert engine.cancelled == [1]
        await pilot.press("enter")
    assert app.results == ["SmolLM2-135M"]


@pytest.mark.parametrize(
    "typed",
    [
        "{path}",
        "  {path}  ",
        "'{path}'",
        '"{path}"',
        "{escaped}",
        "file://{url}",
        "'file://{url}'",
        "~/my models/it's here.gguf",
    ],
)
def test_typed_path(typed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    path = tmp_path / "my models" / "it's here.gguf"
    path.parent.mkdir()
    path.touch()
    if "'{" in typed or "'f" in typed:  # a terminal that quotes so would escape the apostrophe
        path = path.rename(path.with_name("its here.gguf"))
    escaped = str(path).replace(" ", r"\ ").replace("'", r"\'")
    assert typed_path(typed.format(path=path, escaped=escaped, url=str(path).replace(" ", "%20"))) == path


def test_typed_path_of_what_is_not_there_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert typed_path("no such thing") == tmp_path / "no such thing"


async def test_path_suggestions(tmp_path: Path):
    for name in ("models/", "model.gguf", "model.txt", ".hidden/"):
        path = tmp_path / name
        path.mkdir() if name.endswith("/") else path.touch()
    start = f"{tmp_path}/mod"
    assert await PathSuggester().get_suggestion(start) == f"{tmp_path}/models/"
    assert await PathSuggester(".gguf").get_suggestion(start) == f"{tmp_path}/model.gguf"
    assert await PathSuggester().get_suggestion(f"{tmp_path}/x") is None
    assert await PathSuggester().get_suggestion(f"{tmp_path}/nowhere/x") is None
    assert await PathSuggester().get_suggestion("mod") is None


def test_speed_is_that_of_the_last_seconds():
    speed = Speed()
    assert speed.bytes_per_s == 0
    speed.add(100.0, 10**9)  # what an earlier run had downloaded already is no speed
    assert speed.bytes_per_s == 0
    speed.add(101.0, 10**9 + 50)
    assert speed.bytes_per_s == 50
    for second in range(102, 120):
        speed.add(float(second), 10**9 + 50 + (second - 101) * 10)
    assert speed.bytes_per_s == 10


async def test_a_server_in_place_of_a_model(app: Any, script: Script, engine: Any, paths: Paths, until: Any):
    async with app.run_test(size=(80, 24)) as pilot:
        await choose(pilot, "endpoint")
        await until(pilot, lambda: isinstance(app.screen, EndpointScreen))
        await pilot.press("escape")
        await until(pilot, lambda: isinstance(app.screen, WizardScreen))
        assert (step(app), note(app), app.results) == ("choose", "", [])
        await pilot.press("enter")  # it is still chosen
        await until(pilot, lambda: isinstance(app.screen, EndpointScreen))
        for field, value in (("name", "cluster"), ("url", "http://127.0.0.1:9"), ("model", "big")):
            app.screen.query_one(f"#{field}", Input).value = value
        await pilot.press("ctrl+s")
        await until(pilot, lambda: app.results == ["cluster"])
    assert Endpoints(paths.endpoints).get("cluster") == Endpoint("cluster", "http://127.0.0.1:9", "big")
    assert (script.calls, engine.loads) == ([], [])


# Pictures


async def picture_choose(pilot: Any, script: Script, until: Any) -> None:
    await choose(pilot, "hub", "org/nothing")
    await until(pilot, lambda: is_error(pilot.app))


async def picture_found(pilot: Any, script: Script, until: Any) -> None:
    found = [
        Local(f"/shelf/{size}", f"Llama-3.2-{size}", "Llama", size * 10**9, f"meta/Llama-3.2-{size}B", "c")
        for size in range(1, 5)
    ]
    pilot.app.screen.query_one("#choose").offer(found)
    await until(pilot, lambda: "92.9 MB" in choices(pilot.app))
    await choose(pilot, "hub", "org/nothing")  # the note and the input are in view whatever the list is
    await until(pilot, lambda: is_error(pilot.app))


async def picture_server(pilot: Any, script: Script, until: Any) -> None:
    await until(pilot, lambda: "92.9 MB" in choices(pilot.app))
    pilot.app.screen.query_one("#choose OptionList", OptionList).action_last()
    await pilot.pause()


async def picture_check(pilot: Any, script: Script, until: Any) -> None:
    await choose(pilot, "hub", "Qwen/Qwen3-0.6B")
    await until(pilot, lambda: step(pilot.app) == "check")


async def picture_convert(pilot: Any, script: Script, until: Any) -> None:
    await picture_check(pilot, script, until)
    pilot.app.screen.query_one("#name", Input).value = "mine"
    await pilot.press("enter")
    script.tell(Notice("The package index cannot be reached: the model comes from the Hub instead."))
    script.tell(Progress("download", 92_871_040, 92_871_040, "model.safetensors"))
    await until(pilot, lambda: step(pilot.app) == "convert" and text(pilot.app, "#item"))
    script.tell(Progress("convert", 101_000_000, 269_030_016, "model.layers.12.mlp.gate_up_proj.weight"))
    await until(pilot, lambda: text(pilot.app, "#item").startswith("model."))


async def picture_try(pilot: Any, script: Script, until: Any) -> None:
    script.go.set()
    await picture_check(pilot, script, until)
    pilot.app.screen.query_one("#name", Input).value = "mine"
    await pilot.press("enter")
    await until(pilot, lambda: step(pilot.app) == "try" and button(pilot.app, "next"))


@pytest.mark.parametrize("theme", ["lite-llama-dark", "lite-llama-light"])
@pytest.mark.parametrize("size", [(80, 24), (160, 48)], ids=["80x24", "160x48"])
@pytest.mark.parametrize(
    "picture",
    [picture_choose, picture_found, picture_server, picture_check, picture_convert, picture_try],
    ids=["choose", "found", "server", "check", "convert", "try"],
)
def test_looks_right(
    host: Any,
    paths: Paths,
    engine: Any,
    script: Script,
    make_model: Callable[..., Path],
    until: Any,
    snap_compare: Callable[..., bool],
    size: tuple[int, int],
    theme: str,
    picture: Any,
):
    make_model("Qwen3-0.6B")
    script.refuse["org/nothing"] = UserError("The Hub has no repository org/nothing: check the name.")
    engine.reply(*"A computer is a machine that follows instructions.".replace(" ", " |").split("|"))
    app = host(WizardScreen(paths, engine, Settings(), first_run=True), theme=theme)
    assert snap_compare(app, terminal_size=size, run_before=lambda pilot: picture(pilot, script, until))
