"""The model manager: the converted models, and what could become one; load, add, rename, verify, delete."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from textual import events, on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Button, Input, OptionList, Static
from textual.widgets.option_list import Option

from ...converter import Cancelled, Local, Part, discard_part, find_local, parts
from ...converter.names import check_name
from ...engine.events import ModelInfo
from ...models.checkpoint import Checkpoint
from ...models.errors import UserError
from ...models.units import format_bytes, format_count
from ..library import last_speed, not_converted, scan
from ..paths import Paths
from ..remote import keys
from ..remote.endpoint import Endpoint, Endpoints
from ..settings import Settings
from ..text import one_line
from ..widgets.status import bar
from ..widgets.type_ahead import type_into_field

if TYPE_CHECKING:  # imports torch, which takes seconds
    from ..fit import Fit

_REFRESH_S = 0.1


@dataclass(frozen=True)
class ModelChoice:
    """What the user decided: load, rename or delete the model `name`, add one, or convert `source`.

    Or change the endpoint `name`; without one, add an endpoint.
    """

    action: Literal["load", "add", "convert", "rename", "delete", "endpoint"]
    name: str | None = None
    new_name: str | None = None
    source: Local | Part | None = None


class ConfirmScreen(ModalScreen[bool]):
    """Asks before something that cannot be undone; escape and `n` say no."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "dismiss(True)", "Yes"),
        Binding("n,escape", "dismiss(False)", "No"),
    ]
    DEFAULT_CSS = """
    ConfirmScreen {
        align: center middle;
        background: $background 60%;

        #question {
            width: 60;
            max-width: 90%;
            height: auto;
            padding: 1 2;
            background: $surface;
            border: round $error 60%;
        }
        #answers { height: 1; margin-top: 1; align-horizontal: right; }
        Button { margin-left: 2; min-width: 10; }
        #answers Button:focus { text-style: bold underline; }
    }
    """

    def __init__(self, question: str, yes: str) -> None:
        super().__init__()
        self._question = question
        self._yes = yes

    def compose(self) -> ComposeResult:
        with Vertical(id="question"):
            yield Static(self._question, markup=False)
            with Horizontal(id="answers"):
                yield Button("Cancel n", id="no", compact=True)
                yield Button(f"{self._yes} y", id="yes", variant="error", compact=True)

    @on(Button.Pressed)
    def _answer(self, event: Button.Pressed) -> None:
        self.dismiss(event.button.id == "yes")


class NameScreen(ModalScreen[str | None]):
    """Asks for another name of the model `name`; dismisses with one that is free and allowed, or None."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "dismiss(None)", "Back")]
    DEFAULT_CSS = """
    NameScreen {
        align: center middle;
        background: $background 60%;

        #rename {
            width: 60;
            max-width: 90%;
            height: auto;
            padding: 1 2;
            background: $surface;
            border: round $primary 60%;
            border-title-color: $text-primary;
        }
        Input { padding: 0 1 !important; background: $foreground 7%; }
        Static { margin-top: 1; color: $text-muted; }
        Static.-error { color: $text-error; }
    }
    """

    def __init__(self, paths: Paths, name: str) -> None:
        super().__init__()
        self._paths = paths
        self._name = name

    def compose(self) -> ComposeResult:
        with Vertical(id="rename") as dialog:
            dialog.border_title = f"Rename {self._name}"
            yield Input(self._name, compact=True, select_on_focus=True)
            yield Static("Enter renames · Esc goes back", markup=False)

    @on(Input.Submitted)
    def _check(self, event: Input.Submitted) -> None:
        name = event.value.strip()
        try:
            check_name(name)
            taken = (self._paths.models / name).exists() or Endpoints(self._paths.endpoints).get(name)
            if name != self._name and taken:
                raise UserError(f"There is already a model called {name}.")
        except UserError as error:
            note = self.query_one(Static)
            note.update(one_line(str(error)))
            note.add_class("-error")
        else:
            self.dismiss(name if name != self._name else None)


class ModelScreen(ModalScreen[ModelChoice | None]):
    """Lists the models under `paths.models`; `loaded` is the one in use, by the name of its directory.

    Below them come conversions that were stopped, and checkpoints on this machine that are not converted.
    Dismisses with a ModelChoice (None when the user leaves it at that), which is the caller's to carry out;
    only verifying, discarding a stopped conversion and forgetting an endpoint are done here.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("a", "add", "Add"),
        Binding("n", "new_endpoint", "New endpoint"),
        Binding("e", "edit_endpoint", "Edit endpoint"),
        Binding("r", "rename", "Rename"),
        Binding("v", "verify", "Verify"),
        Binding("d,delete", "delete", "Delete"),
        Binding("escape", "close", "Close"),
        # So that the list can be walked while the filter has the focus.
        Binding("up", "move(-1)", show=False),
        Binding("down", "move(1)", show=False),
    ]
    DEFAULT_CSS = """
    ModelScreen {
        align: center middle;
        background: $background 60%;

        #dialog {
            width: 96%;
            max-width: 96;
            height: 96%;
            max-height: 32;
            background: $surface;
            border: round $primary 60%;
            border-title-color: $text-primary;
            border-title-style: bold;
        }
        #filter { margin: 0 2 1 2; width: 1fr; padding: 0 1 !important; background: $foreground 7%; }
        #filter:focus { background: $primary 25%; }
        #models {
            height: 1fr;
            margin: 0 1;
            text-wrap: nowrap;
            text-overflow: ellipsis;
            background: $surface;
            scrollbar-size-vertical: 1;
            scrollbar-background: $surface;
            scrollbar-color: $foreground 25%;
            &:focus { background-tint: $foreground 0%; }
        }
        #models > .option-list--option { padding: 0 1; }
        #models > .option-list--option-highlighted, #models:focus > .option-list--option-highlighted {
            background: $primary 25%;
            color: $foreground;
            text-style: none;
        }
        #note { padding: 0 2; color: $text-muted; }
        #note.-damage { margin-top: 1; color: $text-error; }
        #buttons {
            height: 2;
            padding: 0 2;
            align-horizontal: right;
            border-top: solid $foreground 15%;
        }
        Button { margin-left: 1; min-width: 0; }
        #buttons Button:focus { text-style: bold underline; }
    }
    """

    def __init__(
        self, paths: Paths, settings: Settings, loaded: ModelInfo | None, chosen: str | None = None
    ) -> None:
        super().__init__()
        self._paths = paths
        self._options = settings
        self._loaded = loaded
        self._current = loaded.name if loaded else None
        self._first = chosen or self._current
        """Where the cursor begins."""
        self._library = scan(paths.models)
        self._endpoints = Endpoints(paths.endpoints).load()[0]  # the app has told of wrong ones
        self._models = {
            model.path.name: model for model in self._library.models if model.path.name not in self._endpoints
        }
        self._damage = {
            name: problem for name, problem in self._library.damage.items() if name not in self._endpoints
        }
        self._speeds = {name: last_speed(model.path) for name, model in self._models.items()}
        self._parts = {f"part:{part.name}:{part.fingerprint}": part for part in parts(paths.models)}
        self._locals: dict[str, Local] = {}
        self._fits: dict[str, Fit] = {}
        self._verification: threading.Event | None = None
        """Set to stop the verification under way."""

    def compose(self) -> ComposeResult:
        with Vertical(id="dialog") as dialog:
            dialog.border_title = "Models"
            dialog.border_subtitle = "Esc closes"
            yield Input(placeholder="/ to filter", id="filter", compact=True, select_on_focus=False)
            yield OptionList(id="models", compact=True, markup=False)
            yield Static(id="note", markup=False)
            with Horizontal(id="buttons"):
                yield Button("Delete d", id="delete", compact=True)
                yield Button("Endpoint n", id="endpoint", compact=True)
                yield Button("Rename r", id="rename", compact=True)
                yield Button("Verify v", id="verify", compact=True)
                yield Button("Add a", id="add", compact=True)
                yield Button("Load ↵", id="load", variant="primary", compact=True)

    def on_mount(self) -> None:
        self._show()
        self._list.focus()
        self._look_for_checkpoints()
        if self._models:  # for endpoints alone torch is not imported
            self._see_what_fits()

    @work(group="checkpoints")
    async def _look_for_checkpoints(self) -> None:
        found = await asyncio.to_thread(find_local, self._options.searched)
        self._locals = {f"local:{local.source}": local for local in not_converted(found, self._library)}
        self._show()

    @work(group="fits")
    async def _see_what_fits(self) -> None:
        def look() -> dict[str, Fit]:
            from ..fit import fits

            settings = self._options
            return fits(self._library.models, settings.device, settings.dtype, self._loaded)

        self._fits = await asyncio.to_thread(look)
        self._show()

    @property
    def _list(self) -> OptionList:
        return self.query_one("#models", OptionList)

    @property
    def _chosen(self) -> str | None:
        """The id of the line under the cursor: a model's name, or a key of `_parts` or `_locals`."""
        option = self._list.highlighted_option
        return option.id if option else None

    def _show(self) -> None:
        """Fill the list with the lines that hold every word of the filter."""
        wanted = self.query_one("#filter", Input).value
        words = wanted.lower().split()
        options = [Option(self._entry(model), name) for name, model in self._models.items()]
        options += [Option(_damaged(name), name) for name in self._damage]
        options += [Option(self._endpoint_entry(each), name) for name, each in self._endpoints.items()]
        options.sort(key=lambda option: (option.id or "").lower())
        options += [Option(_stopped(part), key) for key, part in self._parts.items()]
        options += [Option(_unconverted(local), key) for key, local in self._locals.items()]
        found = [option for option in options if all(word in str(option.prompt).lower() for word in words)]
        chosen = self._chosen or self._first
        self._list.set_options(found)
        names = [option.id for option in found]
        if found:
            self._list.highlighted = names.index(chosen) if chosen in names else 0
        if not found:
            self._note(
                f"No model matches {wanted!r}." if options else "There is no model yet: press a to add one."
            )

    def _note(self, text: str | Content, *, damage: bool = False) -> None:
        note = self.query_one("#note", Static)
        note.update(text)
        note.display = bool(text)
        note.set_class(damage, "-damage")

    @on(OptionList.OptionHighlighted)
    def _explain(self, event: OptionList.OptionHighlighted) -> None:
        key = event.option_id or ""
        convert = key in self._parts or key in self._locals
        load = self.query_one("#load", Button)
        load.label = "Convert ↵" if convert else "Load ↵"
        load.refresh(layout=True)  # a new label alone does not make it wider
        if self._verification is None:
            problem = self._damage.get(key, "") or (self._fits[key].problem if key in self._fits else "")
            self._note(problem, damage=True)

    def _entry(self, model: Checkpoint) -> Content:
        name, manifest = model.path.name, model.manifest
        parts: list[tuple[str, str]] = []
        if name == self._current:
            parts.append(("in use", "$text-success"))
        elif fit := self._fits.get(name):
            limit = f" with context {fit.context:,}" if fit.context < model.config.max_position else ""
            parts.append((f"fits{limit}", "") if fit.fits else ("does not fit", "$text-error"))
        if speed := self._speeds[name]:
            parts.append((f"{speed:.1f} tok/s", ""))
        if model.config.vision:
            parts.append(("sees images", ""))
        figures = (
            manifest.family,
            format_count(manifest.parameter_count),
            manifest.dtype,
            format_bytes(model.size),
            f"context {model.config.max_position:,}",
        )
        return _line(name, " · ".join(figures), *parts, in_use=name == self._current)

    def _endpoint_entry(self, endpoint: Endpoint) -> Content:
        in_use = endpoint.name == self._current
        states = [("in use", "$text-success")] if in_use else []
        details = f"{endpoint.model} · {endpoint.host} · e edits it"
        return _line(endpoint.name, details, *states, in_use=in_use)

    @on(Input.Changed, "#filter")
    def _filter(self) -> None:
        self._show()

    async def on_key(self, event: events.Key) -> None:
        await type_into_field(event, self, self._list, self.query_one("#filter", Input))

    def action_move(self, step: int) -> None:
        if self.focused is not self._list:
            (self._list.action_cursor_down if step > 0 else self._list.action_cursor_up)()

    @on(OptionList.OptionSelected)
    @on(Input.Submitted)
    @on(Button.Pressed, "#load")
    def _load(self) -> None:
        key = self._chosen
        if key is None:
            return
        if source := self._parts.get(key) or self._locals.get(key):
            self.dismiss(ModelChoice("convert", source=source))
        elif key in self._damage:
            self.notify(self._damage[key], severity="error", markup=False)
        else:
            self.dismiss(ModelChoice("load", key))

    @on(Button.Pressed, "#add")
    def action_add(self) -> None:
        self.dismiss(ModelChoice("add"))

    @on(Button.Pressed, "#endpoint")
    def action_new_endpoint(self) -> None:
        self.dismiss(ModelChoice("endpoint"))

    def action_edit_endpoint(self) -> None:
        if self._chosen in self._endpoints:
            self.dismiss(ModelChoice("endpoint", self._chosen))

    def action_close(self) -> None:
        if self._verification:
            self._verification.set()
        else:
            self.dismiss(None)

    @on(Button.Pressed, "#rename")
    @work(exclusive=True)
    async def action_rename(self) -> None:
        if (model := self._sound_model()) is None:
            return
        name = model.path.name
        new_name = await self.app.push_screen_wait(NameScreen(self._paths, name))
        if new_name is not None:
            self.dismiss(ModelChoice("rename", name, new_name))

    @on(Button.Pressed, "#delete")
    @work(exclusive=True)
    async def action_delete(self) -> None:
        key = self._chosen
        if key is None:
            return
        if part := self._parts.get(key):
            question = f"Delete the {format_bytes(part.done)} that a stopped conversion has of {part.name}?"
            if await self._confirm(question):
                await asyncio.to_thread(discard_part, self._paths.models, part)
                del self._parts[key]
                self._show()
        elif local := self._locals.get(key):
            self.notify(f"{local.name} is not converted: its files are not the program's to delete.")
        elif key in self._endpoints:
            await self._forget(key)
        else:
            frees = f" It frees {format_bytes(self._models[key].size)}." if key in self._models else ""
            unload = " It is in use and unloaded first." if key == self._current else ""
            if await self._confirm(f"Delete the model {key}?{frees}{unload}") and await self._confirm(
                f"This cannot be undone. Delete {key} for good?"
            ):
                self.dismiss(ModelChoice("delete", key))

    async def _forget(self, name: str) -> None:
        """Remove an endpoint and its key, unless it is the one in use."""
        if name == self._current:
            self.notify(
                f"{name} is in use: load another model before you forget it.",
                severity="warning",
                markup=False,
            )
        elif await self._confirm(f"Forget {name} and its key?", "Forget"):
            try:
                await asyncio.to_thread(keys.remove, Endpoints(self._paths.endpoints), name)
            except UserError as error:
                self.notify(str(error), severity="error", markup=False)
            else:
                del self._endpoints[name]
                self._show()

    async def _confirm(self, question: str, yes: str = "Delete") -> bool:
        return bool(await self.app.push_screen_wait(ConfirmScreen(question, yes)))

    @on(Button.Pressed, "#verify")
    @work(group="verify")
    async def action_verify(self) -> None:
        """Read every file of the model again; escape stops that."""
        if self._verification is not None or (model := self._sound_model()) is None:
            return
        name, done = model.path.name, 0
        stop = self._verification = threading.Event()

        def progress(count: int) -> None:  # called on the thread that reads
            nonlocal done
            done += count
            if stop.is_set():
                raise Cancelled

        def show() -> None:
            share = done / max(1, model.size)
            self._note(
                Content.assemble(
                    f"Verifying {name}  ", bar(share, 12, "$primary"), f" {share:4.0%}  ", "Esc stops"
                )
            )

        show()
        timer = self.set_interval(_REFRESH_S, show)
        problem = ""
        try:
            await asyncio.to_thread(model.verify, force=True, progress=progress)
            said = f"{name}: all {len(model.manifest.files)} files are sound."
        except Cancelled:
            said = f"{name} was not verified to the end."
        except UserError as error:
            said = problem = str(error)
        except OSError as error:
            said = problem = f"{name} cannot be read ({error.strerror}): check its disk and its owner."
        finally:
            timer.stop()
            stop.set()  # when the screen is left meanwhile, the thread must end
            self._verification = None
        self._note(said, damage=bool(problem))

    def _sound_model(self) -> Checkpoint | None:
        """The model under the cursor; None, and a notice, when there is none that can be used."""
        key = self._chosen
        if key is not None and key not in self._models:
            reason = "It is not converted yet: Enter converts it."
            if key in self._endpoints:
                reason = f"{key} is an endpoint: e edits it."
            self.notify(self._damage.get(key, reason), markup=False)
        return self._models.get(key or "")


def _line(
    name: str,
    details: str,
    *states: tuple[str, str],
    in_use: bool = False,
    style: str = "$foreground 60%",
) -> Content:
    """What the list says of one thing: its name and states, and the details below."""
    mark = ("● ", "$text-success") if in_use else "  "
    shown = [part for state in states for part in ("  ", state)]
    return Content.assemble(mark, (one_line(name), "bold"), *shown, (f"\n  {one_line(details)}", style))


def _stopped(part: Part) -> Content:
    state = (f"stopped at {part.done / part.total:.0%}: Enter goes on", "$text-warning")
    return _line(part.name, f"{part.dtype} · from {part.source}", state)


def _unconverted(local: Local) -> Content:
    details = (local.family or "GGUF", format_bytes(local.size), local.repo or local.source)
    return _line(local.name, " · ".join(details), ("not converted yet", "$text-warning"))


def _damaged(name: str) -> Content:
    return _line(name, "damaged, cannot be loaded", style="$text-error")
