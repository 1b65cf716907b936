"""The wizard that gets a model: choose a source, look at it, convert it, load it and hear it answer."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.screen import Screen
from textual.widgets import Button, ContentSwitcher, Static
from textual.worker import Worker

from ...converter import (
    Cancelled,
    Done,
    Local,
    Notice,
    Part,
    Progress,
    SourceInfo,
    convert,
    find_local,
    inspect,
    parts,
)
from ...engine.events import (
    Event,
    Failed,
    Finished,
    Loaded,
    LoadFailed,
    LoadProgress,
    ModelInfo,
    TextDelta,
    ThinkingDelta,
)
from ...engine.request import GenerationRequest, Message, SamplingParams
from ...models.checkpoint import Checkpoint
from ...models.errors import UserError
from .. import keymap
from ..library import not_converted, scan
from ..log import record
from ..paths import Paths
from ..settings import Settings
from .endpoint import EndpointScreen
from .wizard_steps import CheckStep, ChooseStep, ConvertStep, Step, TryStep

if TYPE_CHECKING:  # imports torch, which takes seconds
    from ...engine.thread import EngineThread, Sink

QUESTION = "In one sentence: what is a computer?"
_ANSWER_TOKENS = 48
_REFRESH_S = 0.1
_TITLES = {"choose": "Choose", "check": "Check", "convert": "Convert", "try": "Try"}


class WizardScreen(Screen[str | None]):
    """Dismisses with the name of the model that is now converted and loaded, or None when the user left.

    It can also be that of an endpoint, which is added then and not connected to yet.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "back", "Back"),
        Binding("enter", "next", "Continue", show=False),
    ]
    DEFAULT_CSS = """
    WizardScreen {
        align: center middle;

        #page {
            width: 96%;
            max-width: 92;
            height: 100%;
            max-height: 26;
            background: $surface;
            border: round $primary 60%;
            border-title-color: $text-primary;
            border-title-style: bold;
        }
        #steps { padding: 0 2; margin: 1 0; }
        ContentSwitcher { height: 1fr; }
        ProgressBar { width: 1fr; }
        Bar { width: 1fr; }
        Bar > .bar--bar, Bar > .bar--complete, Bar > .bar--indeterminate { background: $foreground 10%; }
        Bar > .bar--indeterminate { color: $primary; }
        #buttons { height: 2; padding: 0 2; align-horizontal: right; border-top: solid $foreground 15%; }
        Button { margin-left: 2; min-width: 10; }
        #buttons Button:focus { text-style: bold underline; }
    }
    """

    def __init__(
        self,
        paths: Paths,
        engine: EngineThread,
        settings: Settings,
        first_run: bool,
        source: Local | Part | None = None,
    ) -> None:
        """`source` is what to begin with, where it is known already: the wizard then opens at step 2."""
        super().__init__()
        self._paths = paths
        self._engine = engine
        self._options = settings
        self._first_run = first_run
        self._known = source
        self._source: SourceInfo | None = None
        self._search: Worker[None] | None = None
        """Looks at a source while step 1 still shows."""
        self._conversion = threading.Event()
        """Set to cancel the conversion under way."""
        self._progress: tuple[float, Progress] | None = None
        self._notices: list[str] = []
        self._model: Checkpoint | None = None
        self._loaded = False
        """Whether `_model` is what the engine has loaded."""
        self._request: int | None = None
        """The smoke test's request while it runs."""

    def compose(self) -> ComposeResult:
        with Vertical(id="page") as page:
            page.border_title = "Welcome to lite-llama" if self._first_run else "Add a model"
            yield Static(id="steps")
            with ContentSwitcher(initial="choose"):
                yield ChooseStep(self._first_run)
                yield CheckStep(self._paths.models)
                yield ConvertStep()
                yield TryStep()
            with Horizontal(id="buttons"):
                back = Button("Back", id="back", compact=True)
                back.can_focus = False  # else it would get the focus, and so enter, while "next" is hidden
                yield back
                yield Button("Continue", id="next", variant="primary", compact=True)

    def on_mount(self) -> None:
        self._go("choose")
        self._measure_demo()
        self._look_for_checkpoints()
        if known := self._known:
            self._step.note(f"Looking at {known.source}…")
            self._search = self._look(known.source, known if isinstance(known, Part) else None)

    # Where the wizard is

    @property
    def _step(self) -> Step:
        switcher = self.query_one(ContentSwitcher)
        return switcher.get_child_by_id(switcher.current or "choose", Step)

    def _go(self, step: str, note: str = "", *, error: bool = False) -> None:
        """Show a step, with a sentence beneath it."""
        self.query_one(ContentSwitcher).current = step
        names = list(_TITLES)
        here = names.index(step)
        crumbs: list[str | tuple[str, str]] = []
        for index, name in enumerate(names):
            style = "$text-success" if index < here else "$foreground 45%"
            if index == here:
                style = "bold $text-primary"
            mark = "✓" if index < here else f"{index + 1}"
            crumbs += ["  ›  " if index else "", (f"{mark} {_TITLES[name]}", style)]
        self.query_one("#steps", Static).update(Content.assemble(*crumbs))
        self._step.note(note, error=error)
        self._label_buttons()
        self._step.start()

    def _label_buttons(self) -> None:
        step = self._step
        onward = self.query_one("#next", Button)
        onward.label = f"{step.next_label} ↵"
        onward.display = bool(step.next_label)
        self.query_one("#back", Button).label = f"{step.back_label} esc"
        for button in self.query(Button):
            button.refresh(layout=True)  # a new label alone does not make it wider
        if step.next_label and isinstance(step, TryStep):
            onward.focus()

    @on(Button.Pressed, "#back")
    def action_back(self) -> None:
        """One step back; what runs is cancelled first."""
        step = self._step
        if isinstance(step, ConvertStep):
            self._conversion.set()
            step.note("Cancelling…")
        elif isinstance(step, TryStep) and not step.next_label:
            if self._request is None:
                self._engine.cancel_load()
            else:
                self._engine.cancel(self._request)
        elif isinstance(step, TryStep):
            name = self._model.path.name if self._model else "The model"
            self._go("choose", f"{name} is converted and in your list of models.")
        elif isinstance(step, CheckStep) or self._is_looking:
            self.workers.cancel_group(self, "look")
            self._search = None
            self._go("choose")
        else:
            self.dismiss(None)

    @on(Step.Next)
    @on(Button.Pressed, "#next")
    def action_next(self) -> None:
        step = self._step
        if isinstance(step, ChooseStep) and not self._is_looking:
            if step.wants_endpoint:
                self._add_endpoint()
            elif source := step.source:
                step.note(f"Looking at {source}…")
                self._search = self._look(source)
        elif isinstance(step, CheckStep) and self._source and step.check():
            self._start_conversion(self._source, step.model_name, step.dtype, step.replace)
        elif isinstance(step, TryStep) and step.next_label and self._model:
            if self._loaded:
                self.dismiss(self._model.path.name)
            else:
                self._start_test(self._model)

    @work(group="endpoint", exclusive=True)
    async def _add_endpoint(self) -> None:
        """In place of the other steps: nothing is converted, and the chat connects to it."""
        if name := await self.app.push_screen_wait(EndpointScreen(self._paths)):
            self.dismiss(name)

    # 1 and 2: what is there

    @work(group="demo")
    async def _measure_demo(self) -> None:
        """Fill in the demo's sizes."""
        with contextlib.suppress(UserError):
            self.query_one(ChooseStep).show_demo_sizes(await asyncio.to_thread(self._inspect, "demo", "auto"))

    @work(group="checkpoints")
    async def _look_for_checkpoints(self) -> None:
        """Offer what is on this machine."""

        def look() -> list[Local]:
            return not_converted(find_local(self._options.searched), scan(self._paths.models))

        self.query_one(ChooseStep).offer(await asyncio.to_thread(look))

    def _inspect(self, source: str, dtype: str) -> SourceInfo:
        return inspect(source, self._paths.models, self._paths.downloads, dtype=dtype)

    @work(group="look", exclusive=True)
    async def _look(self, source: str, part: Part | None = None) -> None:
        """Find out about a source; `part` is what a stopped conversion of it has."""
        dtype = part.dtype if part else "auto"
        try:
            self._source = await asyncio.to_thread(self._inspect, source, dtype)
        except Exception as error:
            self._go("choose", self._sentence(error), error=True)
        else:
            name = part.name if part else self._source.name
            self.query_one(CheckStep).show(self._source, name, dtype)
            self._go("check")

    @property
    def _is_looking(self) -> bool:
        return self._search is not None and not self._search.is_finished

    @on(CheckStep.DtypeChanged)
    @work(group="look", exclusive=True)
    async def _look_again(self, event: CheckStep.DtypeChanged) -> None:
        """The sizes for another dtype."""
        assert self._source is not None
        step = self.query_one(CheckStep)
        try:
            info = await asyncio.to_thread(self._inspect, self._source.source, event.dtype)
        except Exception as error:
            step.note(self._sentence(error), error=True)
        else:
            step.show(info)

    def _sentence(self, error: Exception) -> str:
        """What to tell the user; anything but a UserError is a fault of ours, and the log has the details."""
        return str(error) if isinstance(error, UserError) else record(error, self._paths.log)

    # 3: the conversion

    def _start_conversion(self, source: SourceInfo, name: str, dtype: str, replace: bool) -> None:
        self._conversion = threading.Event()
        self._progress, self._notices = None, []
        self.query_one(ConvertStep).begin(f"{source.source} → {name}")
        self._go("convert")
        self._convert(source, name, dtype, replace, self._conversion)

    @work(group="convert", exclusive=True)
    async def _convert(
        self, source: SourceInfo, name: str, dtype: str, replace: bool, cancel: threading.Event
    ) -> None:
        # The thread leaves its latest state and the screen looks at it ten times a second: however many
        # events there are, the interface has no more to do.
        timer = self.set_interval(_REFRESH_S, self._show_progress)
        try:
            self._model = await asyncio.to_thread(self._run, source.source, name, dtype, replace, cancel)
        except Cancelled:
            if any(part.name == name for part in await asyncio.to_thread(parts, self._paths.models)):
                rest = f"{keymap.key('app.models')} shows the part that is done, to go on from there"
            elif source.download_bytes > 0 and _holds_data(self._paths.downloads):
                rest = "what was downloaded is kept for the next try"
            else:
                rest = "nothing was left behind"
            self._go("choose", f"Cancelled; {rest}.")
        except Exception as error:
            self._go("check", self._sentence(error), error=True)
        else:
            self._start_test(self._model)
        finally:
            timer.stop()
            cancel.set()  # when the app is closed meanwhile, the thread must end and clean up

    def _run(self, source: str, name: str, dtype: str, replace: bool, cancel: threading.Event) -> Checkpoint:
        """The conversion, in a thread of its own."""
        models, downloads = self._paths.models, self._paths.downloads
        events = convert(source, models, downloads, name=name, dtype=dtype, force=replace, cancel=cancel)
        for event in events:
            if isinstance(event, Done):
                return event.checkpoint
            if isinstance(event, Notice):
                self._notices.append(event.text)
            else:
                self._progress = (time.monotonic(), event)
        raise AssertionError("the conversion ended without Done")

    def _show_progress(self) -> None:
        step = self.query_one(ConvertStep)
        if self._progress:
            at, progress = self._progress
            step.show(progress, at)
        step.tell(self._notices)

    # 4: the smoke test

    def _start_test(self, model: Checkpoint) -> None:
        self._loaded = False
        self.query_one(TryStep).begin(model.path.name)
        self._go("try")
        self._test(model)

    @work(group="test", exclusive=True)
    async def _test(self, model: Checkpoint) -> None:
        step = self.query_one(TryStep)
        try:
            info = await self._load(model, step)
        except UserError as error:
            step.failed(str(error), "Try again")
        else:
            self._loaded = True
            step.loaded(info.name, info.device_name, info.dtype, QUESTION)
            self._label_buttons()
            await self._ask(step)
        self._label_buttons()

    async def _load(self, model: Checkpoint, step: TryStep) -> ModelInfo:
        """Raises UserError with what the engine says when it cannot."""
        from ...engine.thread import LoadOptions  # see TYPE_CHECKING above

        sink, events = _channel()
        self._engine.load(LoadOptions(model.path, self._options.device, self._options.dtype), sink)
        while True:
            event = await events.get()
            if isinstance(event, LoadProgress):
                step.show_load(event.done, event.total, event.text)
            elif isinstance(event, LoadFailed):
                raise UserError(event.message)
            elif isinstance(event, Loaded):
                return event.info

    async def _ask(self, step: TryStep) -> None:
        sink, events = _channel()
        params = SamplingParams(temperature=0, max_new_tokens=_ANSWER_TOKENS)
        # Without thinking, where the model can: so few tokens would not reach the answer.
        request = GenerationRequest((Message("user", QUESTION),), params, thinking=False)
        self._request = self._engine.submit(request, sink)
        try:
            while True:
                event = await events.get()
                if isinstance(event, TextDelta | ThinkingDelta):
                    step.add(event.text)
                elif isinstance(event, Failed):
                    step.failed(event.message, "Start chatting anyway")
                    return
                elif isinstance(event, Finished):
                    step.finished(event.usage)
                    break
        finally:
            self._request = None
        if not (event.text + event.thinking.text).strip() and event.reason != "cancelled":
            step.failed(
                "The model gave an empty answer: its weights may be damaged.", "Start chatting anyway"
            )


def _holds_data(directory: Path) -> bool:
    """Whether there is a file with something in it (not just a lock) under the directory."""
    return any(path.is_file() and path.stat().st_size for path in directory.rglob("*"))


def _channel() -> tuple[Sink, asyncio.Queue[Event]]:
    """A sink for the engine's thread, and the queue in which its events arrive here."""
    loop = asyncio.get_running_loop()
    events: asyncio.Queue[Event] = asyncio.Queue()

    def sink(event: Event) -> None:
        with contextlib.suppress(RuntimeError):  # the app has been closed, and its loop with it
            loop.call_soon_threadsafe(events.put_nowait, event)

    return sink, events
