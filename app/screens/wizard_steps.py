"""What the four steps of the wizard look like: they show what they are told and say what the user wants."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal

from textual import on
from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.message import Message
from textual.suggester import Suggester
from textual.widgets import Checkbox, Input, Label, OptionList, ProgressBar, Select, Static
from textual.widgets.option_list import Option

from ...converter import Local, Progress, SourceInfo
from ...converter.names import check_name
from ...engine.events import Usage
from ...models.errors import UserError
from ...models.units import format_bytes, format_count
from ..incoming import typed_path
from ..settings import Settings, choices
from ..text import format_seconds, one_line

Kind = Literal["demo", "demo-vision", "hub", "directory", "gguf", "endpoint"]

_SOURCES: dict[Kind, tuple[str, str]] = {
    "demo": ("Demo model", "SmolLM2-135M, quick on any computer: the one to take without a GPU."),
    "demo-vision": ("Demo model that sees", "Tiny and already here: knows coloured shapes, to try images."),
    "hub": ("Hugging Face Hub", "Llama 3, Qwen2.5, Qwen3 and relatives, by repo id."),
    "directory": ("Directory", "A checkpoint on this machine: config.json with safetensors."),
    "gguf": ("GGUF file", "Any quantisation; the weights are dequantised."),
    "endpoint": ("Server", "Elsewhere, behind an OpenAI-compatible API: vLLM, SGLang, Ollama."),
}
_PLACEHOLDERS: dict[Kind, str] = {
    "hub": "repo id, such as Qwen/Qwen3-0.6B",
    "directory": "path of the directory; ~ is your home, → completes, drag and drop works",
    "gguf": "path of the .gguf file; ~ is your home, → completes, drag and drop works",
}


class PathSuggester(Suggester):
    """Completes the last part of a path: directories, and with `suffix` also files that end in it."""

    def __init__(self, suffix: str | None = None) -> None:
        super().__init__(use_cache=False, case_sensitive=True)
        self._suffix = suffix

    async def get_suggestion(self, value: str) -> str | None:
        return await asyncio.to_thread(self._complete, value)

    def _complete(self, value: str) -> str | None:
        directory, slash, start = value.rpartition("/")
        if not slash or not start:
            return None
        try:
            with os.scandir(Path(directory + slash).expanduser()) as entries:
                found = sorted(
                    entry.name + "/" * entry.is_dir() for entry in entries if self._fits(entry, start)
                )
        except OSError:
            return None
        return directory + slash + found[0] if found else None

    def _fits(self, entry: os.DirEntry[str], start: str) -> bool:
        is_wanted = entry.is_dir() or (self._suffix and entry.name.lower().endswith(self._suffix))
        return entry.name.startswith(start) and bool(is_wanted)


class Step(Vertical):
    """A step of the wizard, with a note at its end: a hint, or what went wrong."""

    next_label = "Continue"
    """What the button that goes on says; empty while there is nothing to go on to."""
    back_label = "Back"
    """What the button that goes back says."""

    DEFAULT_CSS = """
    Step {
        height: 1fr;
        padding: 0 2;
        overflow-y: auto;
        scrollbar-size-vertical: 1;

        .note { margin-top: 1; color: $text-muted; }
        .note.-error { color: $text-error; }
        .note.-empty { display: none; }
        Input { padding: 0 1 !important; background: $foreground 7%; }
        Input:focus { background: $primary 25%; }
    }
    """

    class Next(Message):
        """The user wants to go on, by a key inside the step."""

    def compose_note(self) -> ComposeResult:
        yield Static(classes="note -empty", markup=False)

    def note(self, text: str, *, error: bool = False) -> None:
        """Show a sentence (none if empty)."""
        label = self.query_one(".note", Static)
        label.update(one_line(text))
        label.set_class(error, "-error")
        label.set_class(not text, "-empty")

    def start(self) -> None:
        """Take the focus; called when the step comes up."""


class ChooseStep(Step):
    """Where the model comes from."""

    back_label = "Leave"

    DEFAULT_CSS = """
    ChooseStep {
        OptionList {
            height: auto;
            max-height: 78%;  /* the input below stays in view */
            margin: 1 0;
            background: $surface;
            text-wrap: nowrap;
            text-overflow: ellipsis;
            scrollbar-size-vertical: 1;
            scrollbar-background: $surface;
            scrollbar-color: $foreground 25%;
        }
        &.-no-input OptionList { max-height: 90%; }
        OptionList:focus { background-tint: $foreground 0%; }
        OptionList > .option-list--option { padding: 0 1; }
        OptionList > .option-list--option-highlighted, OptionList:focus > .option-list--option-highlighted {
            background: $primary 25%;
            color: $foreground;
            text-style: none;
        }
    }
    """

    def __init__(self, first_run: bool) -> None:
        super().__init__(id="choose")
        self._first_run = first_run

    def compose(self) -> ComposeResult:
        yield Static(
            "Chat with open models on your own machine. First, you need one."
            if self._first_run
            else "Where does the model come from?"
        )
        yield OptionList(*(self._option(kind) for kind in _SOURCES), compact=True, markup=False)
        yield Input(compact=True, select_on_focus=False)
        yield from self.compose_note()

    @staticmethod
    def _option(kind: Kind, more: str = "") -> Option:
        title, about = _SOURCES[kind]
        return Option(Content.assemble((title, "bold"), (f"\n{more or about}", "$foreground 60%")), kind)

    def start(self) -> None:
        options = self.query_one(OptionList)
        if options.highlighted is None:
            options.highlighted = 0
        (self.query_one(Input) if self.query_one(Input).value and self._asks_where else options).focus()

    def show_demo_sizes(self, info: SourceInfo) -> None:
        about = _SOURCES["demo"][1]
        sizes = (
            f"{format_bytes(info.download_bytes)} to download, {format_bytes(info.converted_bytes)} on disk"
        )
        options = self.query_one(OptionList)
        options.replace_option_prompt("demo", self._option("demo", f"{about}\n{sizes}.").prompt)

    def offer(self, found: Sequence[Local]) -> None:
        """Add checkpoints of this machine to the list."""
        options = self.query_one(OptionList)
        for local in found:
            details = f"{local.family or 'GGUF'}, {format_bytes(local.size)}, {local.repo or local.source}"
            prompt = Content.assemble(
                (one_line(local.name), "bold"), (f"\n{one_line(details)}", "$foreground 60%")
            )
            options.add_option(Option(prompt, local.source))

    @property
    def _chosen(self) -> str:
        """A Kind, or the source that is a checkpoint of this machine."""
        option = self.query_one(OptionList).highlighted_option
        return option.id if option and option.id else "demo"

    @property
    def _kind(self) -> Kind | None:
        """Of a source that has to be named here; for the others there is nothing to type."""
        return next((kind for kind in _PLACEHOLDERS if kind == self._chosen), None)

    @property
    def _asks_where(self) -> bool:
        return self._kind is not None

    @property
    def wants_endpoint(self) -> bool:
        """Whether the model is to run elsewhere: there is no source then."""
        return self._chosen == "endpoint"

    @property
    def source(self) -> str | None:
        """What the converter is to take, None (and a note) while it is not said yet."""
        text = self.query_one(Input).value.strip()
        kind = self._kind
        if kind is None:
            return self._chosen
        if not text:
            self.note(f"Type the {_PLACEHOLDERS[kind].split(';')[0].split(',')[0]}.", error=True)
            self.query_one(Input).focus()
            return None
        return text if kind == "hub" else str(typed_path(text))

    @on(OptionList.OptionHighlighted)
    def _show_input(self) -> None:
        field = self.query_one(Input)
        kind = self._kind
        field.display = kind is not None
        self.set_class(kind is None, "-no-input")
        field.placeholder = _PLACEHOLDERS[kind] if kind else ""
        field.suggester = {"directory": PathSuggester(), "gguf": PathSuggester(".gguf")}.get(kind or "")
        self.note("")

    @on(OptionList.OptionSelected)
    def _selected(self) -> None:
        if not self._asks_where or self.query_one(Input).value.strip():
            self.post_message(self.Next())
        else:
            self.query_one(Input).focus()

    @on(Input.Submitted)
    def _submitted(self) -> None:
        self.post_message(self.Next())

    @on(Input.Changed)
    def _edited(self) -> None:
        self.note("")


class CheckStep(Step):
    """What will be made, before anything is written."""

    next_label = "Convert"

    DEFAULT_CSS = """
    CheckStep {
        .facts { height: auto; }
        .row { height: 1; }
        .row > Label { width: 16; color: $text-muted; }
        .fact { width: 1fr; }
        .fact.-short { color: $text-error; }
        #name-row { margin-top: 1; }
        SelectCurrent { padding: 0 1 !important; background: $foreground 7%; }
        Select:focus > SelectCurrent { background: $primary 25%; }
        Select, #name { width: 1fr; }
        Checkbox { margin: 1 0 0 16; background: $surface; }
        Checkbox > .toggle--button { color: $panel; }
        Checkbox.-on > .toggle--button { color: $text-success; }
    }
    """

    class DtypeChanged(Message):
        """The sizes are to be found anew for this dtype."""

        def __init__(self, dtype: str) -> None:
            super().__init__()
            self.dtype = dtype

    _FACTS: ClassVar[dict[str, str]] = {
        "source": "Source",
        "model": "Model",
        "download": "To download",
        "disk": "On disk",
    }

    def __init__(self, models: Path) -> None:
        super().__init__(id="check")
        self._models = models
        self._dtype = "auto"

    def compose(self) -> ComposeResult:
        with Vertical(classes="facts"):
            for key, title in self._FACTS.items():
                with Horizontal(classes="row"):
                    yield Label(title)
                    yield Static(id=f"fact-{key}", classes="fact", markup=False)
        with Horizontal(classes="row", id="name-row"):
            yield Label("Name")
            yield Input(id="name", compact=True, select_on_focus=False)
        with Horizontal(classes="row"):
            yield Label("Number format")
            options = [(dtype, dtype) for dtype in choices(Settings.model_fields["dtype"])]
            yield Select(options, value="auto", allow_blank=False, compact=True)
        yield Checkbox("Replace the model of this name", compact=True)
        yield from self.compose_note()

    def start(self) -> None:
        self.query_one("#name", Input).focus()

    def show(self, info: SourceInfo, name: str | None = None, dtype: str = "auto") -> None:
        """Show a source and propose a name and dtype; without a name, what the user entered stays."""
        family = info.family or "known after the download"
        count = f", {format_count(info.parameter_count)} parameters" if info.parameter_count else ""
        facts = {
            "source": info.source,
            "model": family + count,
            "download": format_bytes(info.download_bytes) if info.download_bytes else "nothing",
            "disk": f"{format_bytes(info.converted_bytes)} of {format_bytes(info.free_bytes)} that are free",
        }
        for key, text in facts.items():
            self.query_one(f"#fact-{key}", Static).update(one_line(text))
        short = info.download_bytes + info.converted_bytes > info.free_bytes
        self.query_one("#fact-disk").set_class(short, "-short")
        self.note("")
        if name is not None:
            self._dtype = self.query_one(Select).value = dtype
            self.query_one(Checkbox).value = False
            self.query_one("#name", Input).value = name
            self._look_for_taken_name()

    @property
    def model_name(self) -> str:
        return self.query_one("#name", Input).value.strip()

    @property
    def dtype(self) -> str:
        return self._dtype

    @property
    def replace(self) -> bool:
        """Whether a model of that name is to be replaced."""
        return self.query_one(Checkbox).value and self._is_taken(self.model_name)

    def check(self) -> bool:
        """Whether the conversion can start; says why not."""
        try:
            check_name(self.model_name)
        except UserError as error:
            self.note(str(error), error=True)
            return False
        if self._is_taken(self.model_name) and not self.replace:
            self._look_for_taken_name(error=True)
            return False
        return True

    def _is_taken(self, name: str) -> bool:
        return bool(name) and (self._models / name).exists()

    def _look_for_taken_name(self, *, error: bool = False) -> None:
        name = self.model_name
        taken = self._is_taken(name)
        self.query_one(Checkbox).display = taken
        if not taken:
            self.note("")
            return
        free = next(other for number in range(2, 10**6) if not self._is_taken(other := f"{name}-{number}"))
        self.note(f"There is a model {name} already: name this one {free}, say, or replace it.", error=error)

    @on(Input.Changed, "#name")
    def _name_changed(self) -> None:
        self._look_for_taken_name()

    @on(Input.Submitted, "#name")
    def _submitted(self) -> None:
        self.post_message(self.Next())

    @on(Select.Changed)
    def _dtype_changed(self, event: Select.Changed) -> None:
        # A Select tells its first value on mount, too.
        if event.value != self._dtype:
            self._dtype = str(event.value)
            self.post_message(self.DtypeChanged(self._dtype))


_LEAST_SPEED = 1000
"""Bytes per second; below this the figure is noise of a phase's beginning, and the time left absurd."""


class Speed:
    """Bytes per second over the last seconds of a phase."""

    _WINDOW_S = 5.0

    def __init__(self) -> None:
        self._points: deque[tuple[float, int]] = deque()

    def add(self, time: float, done: int) -> None:
        """At `time` (seconds, monotonic) `done` bytes were there."""
        self._points.append((time, done))
        while len(self._points) > 2 and self._points[1][0] < time - self._WINDOW_S:
            self._points.popleft()

    @property
    def bytes_per_s(self) -> float:
        """0 until it is known."""
        if len(self._points) < 2:
            return 0.0
        (start, before), (end, after) = self._points[0], self._points[-1]
        return (after - before) / (end - start) if end > start else 0.0


class ConvertStep(Step):
    """Download and conversion under way: a bar for each phase, what is at hand, speed and time left."""

    next_label = ""
    back_label = "Cancel"

    DEFAULT_CSS = """
    ConvertStep {
        #converting { text-style: bold; margin-bottom: 1; }
        .row { height: 1; }
        .row > Label { width: 16; color: $text-muted; }
        #pace { margin-top: 1; }
        #item { color: $text-muted; }
        #notices { margin-top: 1; color: $text-warning; }
    }
    """
    _PHASES: ClassVar[dict[str, str]] = {
        "download": "Downloading",
        "convert": "Converting",
        "finish": "Finishing",
    }

    def __init__(self) -> None:
        super().__init__(id="convert")
        self._phase = ""
        self._speed = Speed()

    def compose(self) -> ComposeResult:
        yield Static(id="converting", markup=False)
        for phase, title in self._PHASES.items():
            with Horizontal(classes="row", id=f"phase-{phase}"):
                yield Label(title)
                yield ProgressBar(total=1, show_eta=False)
        yield Static(id="pace", markup=False)
        yield Static(id="item", markup=False)
        yield Static(id="notices", markup=False)
        yield from self.compose_note()

    def begin(self, name: str) -> None:
        """A new conversion."""
        self._phase = ""
        self.query_one("#converting", Static).update(name)
        for phase in self._PHASES:
            self.query_one(f"#phase-{phase}").display = False
        for key in ("pace", "item", "notices"):
            self.query_one(f"#{key}", Static).update("")
        self.note("")

    def show(self, progress: Progress, time: float) -> None:
        """Show how far it is; `time` (seconds, monotonic) is when that was so."""
        if progress.phase != self._phase:
            if self._phase:
                self._bar(self._phase).update(total=1, progress=1)
            self._phase = progress.phase
            self._speed = Speed()
            self.query_one(f"#phase-{progress.phase}").display = True
        self._speed.add(time, progress.done)
        self._bar(progress.phase).update(total=progress.total or None, progress=progress.done)
        # Unpacking a download and reading its tokenizer take seconds in which nothing else is told.
        downloaded = progress.phase == "download" and 0 < progress.total <= progress.done
        self.query_one("#item", Static).update(
            "Preparing the conversion…" if downloaded else one_line(progress.item)
        )
        self.query_one("#pace", Static).update(self._pace(progress))

    def tell(self, notices: list[str]) -> None:
        self.query_one("#notices", Static).update("\n".join(map(one_line, notices)))

    def _bar(self, phase: str) -> ProgressBar:
        return self.query_one(f"#phase-{phase} ProgressBar", ProgressBar)

    def _pace(self, progress: Progress) -> str:
        parts = []
        if progress.total:
            parts.append(f"{format_bytes(progress.done)} of {format_bytes(progress.total)}")
        elif progress.done:
            parts.append(format_bytes(progress.done))
        if (speed := self._speed.bytes_per_s) >= _LEAST_SPEED:
            parts.append(f"{format_bytes(speed)}/s")
            if progress.done < progress.total:
                parts.append(f"{format_seconds((progress.total - progress.done) / speed)} left")
        return " · ".join(parts)


class TryStep(Step):
    """The model is loaded and answers a question."""

    DEFAULT_CSS = """
    TryStep {
        #loading { text-style: bold; }
        #question { margin-top: 1; color: $text-muted; }
        #answer { margin-top: 1; padding-left: 1; border-left: outer $primary; }
        #figures { margin-top: 1; color: $text-success; }
    }
    """

    def __init__(self) -> None:
        super().__init__(id="try")
        self.next_label = ""
        self._answer = ""

    def compose(self) -> ComposeResult:
        yield Static(id="loading", markup=False)
        yield ProgressBar(total=1, show_eta=False)
        yield Static(id="question", markup=False)
        yield Static(id="answer", markup=False)
        yield Static(id="figures", markup=False)
        yield from self.compose_note()

    def _set(self, key: str, text: str) -> None:
        line = self.query_one(f"#{key}", Static)
        line.update(text)
        line.display = bool(text)

    def begin(self, name: str) -> None:
        """A load begins."""
        self._answer = ""
        self.next_label, self.back_label = "", "Cancel"
        self._set("loading", f"Loading {name}")
        for key in ("question", "answer", "figures"):
            self._set(key, "")
        self.query_one(ProgressBar).display = True
        self.query_one(ProgressBar).update(total=1, progress=0)
        self.note("")

    def show_load(self, done: int, total: int, text: str) -> None:
        self.query_one(ProgressBar).update(total=total or None, progress=done)
        self.note(text)

    def loaded(self, name: str, device: str, dtype: str, question: str) -> None:
        """The model is there and is asked `question`."""
        self.back_label = "Skip"
        self.query_one(ProgressBar).display = False
        self._set("loading", f"{name} is loaded: {device}, {dtype}")
        self._set("question", question)
        self.note("")

    def add(self, text: str) -> None:
        """More of the answer."""
        self._answer += text
        self._set("answer", self._answer.strip())

    def finished(self, usage: Usage) -> None:
        """The answer is complete."""
        self.next_label, self.back_label = "Start chatting", "Back"
        rate = f"{usage.decode_tokens_per_s:.1f} tok/s, " if usage.decode_tokens_per_s else ""
        self._set("figures", f"{rate}first token after {usage.ttft_s:.2f} s")

    def failed(self, text: str, next_label: str) -> None:
        """Something went wrong; `next_label` says how one can go on all the same."""
        self.query_one(ProgressBar).display = False
        self.next_label, self.back_label = next_label, "Back"
        self.note(text, error=True)
