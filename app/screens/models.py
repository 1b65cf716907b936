"""The model switcher: the converted models, to load, add or delete one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Button, Input, OptionList, Static
from textual.widgets.option_list import Option

from ...converter import remove
from ...models.checkpoint import Checkpoint
from ...models.errors import UserError
from ...models.units import format_bytes, format_count
from ..library import scan
from ..paths import Paths
from ..remote.endpoint import Endpoints
from .endpoint import entry, forget


@dataclass(frozen=True)
class ModelChoice:
    """What the user decided: load the model `name`, add a new one or an endpoint, change the endpoint `name`;
    or `name` was removed."""

    action: Literal["load", "add", "endpoint", "removed"]
    name: str | None = None


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


class ModelScreen(ModalScreen[ModelChoice | None]):
    """Lists the models under `paths.models`; `current` is the name of the one that is loaded.

    Dismisses with a ModelChoice, or None when the user leaves it at that. Loading and adding are the
    caller's business; deleting is done here, after a question.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("a", "add", "Add"),
        Binding("n", "new_endpoint", "New endpoint"),
        Binding("e", "edit_endpoint", "Edit endpoint"),
        Binding("d,delete", "delete", "Delete"),
        Binding("slash", "filter", "Filter"),
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
            width: 90%;
            max-width: 88;
            height: auto;
            max-height: 92%;
            padding: 1 0 0 0;
            background: $surface;
            border: round $primary 60%;
            border-title-color: $text-primary;
            border-title-style: bold;
        }
        #filter { margin: 0 2 1 2; width: 1fr; padding: 0 1 !important; background: $foreground 7%; }
        #filter:focus { background: $primary 25%; }
        #models {
            height: auto;
            max-height: 1fr;
            margin: 0 1;
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
            margin-top: 1;
            padding: 0 2;
            align-horizontal: right;
            border-top: solid $foreground 15%;
        }
        Button { margin-left: 2; min-width: 10; }
        #buttons Button:focus { text-style: bold underline; }
    }
    """

    def __init__(self, paths: Paths, current: str | None) -> None:
        super().__init__()
        self._paths = paths
        self._current = current
        self._library = scan(paths.models)
        self._endpoints = Endpoints(paths.endpoints).load()[0]  # the app has told of wrong ones
        self._bytes = {model.path.name: model.size for model in self._library.models}

    def compose(self) -> ComposeResult:
        with Vertical(id="dialog") as dialog:
            dialog.border_title = "Models"
            yield Input(placeholder="/ to filter", id="filter", compact=True)
            yield OptionList(id="models", compact=True, markup=False)
            yield Static(id="note", markup=False)
            with Horizontal(id="buttons"):
                yield Button("Close esc", id="close", compact=True)
                yield Button("Delete d", id="delete", compact=True)
                yield Button("Endpoint n", id="endpoint", compact=True)
                yield Button("Add a", id="add", compact=True)
                yield Button("Load ↵", id="load", variant="primary", compact=True)

    def on_mount(self) -> None:
        self._show("")
        self._list.focus()

    @property
    def _list(self) -> OptionList:
        return self.query_one("#models", OptionList)

    @property
    def _chosen(self) -> str | None:
        """The name of the model under the cursor."""
        option = self._list.highlighted_option
        return option.id if option else None

    def _show(self, wanted: str) -> None:
        """Fill the list with the models whose line holds every word of `wanted`."""
        words = wanted.lower().split()
        models = [model for model in self._library.models if model.path.name not in self._endpoints]
        options = [Option(self._entry(model), model.path.name) for model in models]
        options += [Option(_damaged(name), name) for name in self._library.damage]
        options += [Option(entry(each, self._current), name) for name, each in self._endpoints.items()]
        options.sort(key=lambda option: (option.id or "").lower())
        found = [option for option in options if all(word in str(option.prompt).lower() for word in words)]
        chosen = self._chosen or self._current
        self._list.set_options(found)
        names = [option.id for option in found]
        if found:
            self._list.highlighted = names.index(chosen) if chosen in names else 0
        self._list.display = bool(found)
        if not found:
            self._note(
                f"No model matches {wanted!r}." if options else "There is no model yet: press a to add one."
            )

    def _note(self, text: str, *, damage: bool = False) -> None:
        note = self.query_one("#note", Static)
        note.update(text)
        note.display = bool(text)
        note.set_class(damage, "-damage")

    @on(OptionList.OptionHighlighted)
    def _explain(self, event: OptionList.OptionHighlighted) -> None:
        self._note(self._library.damage.get(event.option_id or "", ""), damage=True)

    def _entry(self, model: Checkpoint) -> Content:
        name = model.path.name
        manifest = model.manifest
        figures = (
            manifest.family,
            f"{format_count(manifest.parameter_count)} parameters",
            manifest.dtype,
            format_bytes(model.size),
            f"context {model.config.max_position:,}",
        )
        mark = ("● ", "$text-success") if name == self._current else ("  ", "")
        use = ("  in use", "$text-success") if name == self._current else ("", "")
        return Content.assemble(mark, (name, "bold"), use, ("\n  " + " · ".join(figures), "$foreground 60%"))

    @on(Input.Changed, "#filter")
    def _filter(self, event: Input.Changed) -> None:
        self._show(event.value)

    def action_filter(self) -> None:
        self.query_one("#filter", Input).focus()

    def action_move(self, step: int) -> None:
        if self.focused is not self._list:
            (self._list.action_cursor_down if step > 0 else self._list.action_cursor_up)()

    @on(OptionList.OptionSelected)
    @on(Input.Submitted)
    @on(Button.Pressed, "#load")
    def _load(self) -> None:
        name = self._chosen
        if name is None:
            return
        if name in self._library.damage:
            self.notify(self._library.damage[name], severity="error", markup=False)
        else:
            self.dismiss(ModelChoice("load", name))

    @on(Button.Pressed, "#add")
    def action_add(self) -> None:
        self.dismiss(ModelChoice("add"))

    @on(Button.Pressed, "#endpoint")
    def action_new_endpoint(self) -> None:
        self.dismiss(ModelChoice("endpoint"))

    def action_edit_endpoint(self) -> None:
        if self._chosen in self._endpoints:
            self.dismiss(ModelChoice("endpoint", self._chosen))

    @on(Button.Pressed, "#close")
    def action_close(self) -> None:
        self.dismiss(None)

    @on(Button.Pressed, "#delete")
    @work(exclusive=True)
    async def action_delete(self) -> None:
        name = self._chosen
        if name is None:
            return
        if name == self._current:
            self.notify(
                f"{name} is in use: load another model before you delete it.",
                severity="warning",
                markup=False,
            )
            return
        if name in self._endpoints:
            if await self.app.push_screen_wait(ConfirmScreen(f"Forget {name} and its key?", "Forget")):
                await self._remove(forget, self._paths, name)
            return
        frees = f" It frees {format_bytes(self._bytes[name])}." if name in self._bytes else ""
        if not await self.app.push_screen_wait(ConfirmScreen(f"Delete the model {name}?{frees}", "Delete")):
            return
        await self._remove(remove, self._paths.models, name)

    async def _remove(self, how: Callable[[Any, str], object], where: Any, name: str) -> None:
        try:
            await asyncio.to_thread(how, where, name)
        except UserError as error:
            self.notify(str(error), severity="error", markup=False)
        else:
            self.dismiss(ModelChoice("removed", name))


def _damaged(name: str) -> Content:
    return Content.assemble("  ", (name, "bold"), ("\n  damaged, cannot be loaded", "$text-error"))
