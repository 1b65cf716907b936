"""The dialog in which an endpoint is added or changed, and its lines in the list of models."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, ClassVar

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Button, Checkbox, Input, Label, OptionList, Static

from ...models.errors import UserError
from ..paths import Paths
from ..remote import keys
from ..remote.endpoint import Endpoint, Endpoints
from ..text import one_line
from .models import ConfirmScreen

if TYPE_CHECKING:
    from pydantic import SecretStr

    from ..remote.client import ServedModel

_FIELDS = {
    "name": ("Name", "what to call it, such as cluster"),
    "url": ("Address", "https://host:8000/v1"),
    "key": ("API key", "none"),
    "model": ("Model", "the server's name for it; Ctrl+T lists them"),
    "context": ("Context", "tokens; empty: as the server says"),
}


class EndpointScreen(ModalScreen[str | None]):
    """Adds an endpoint, or changes `endpoint`; dismisses with its name when it is saved, else None."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "dismiss(None)", "Cancel"),
        Binding("ctrl+t", "test", "Test"),
        Binding("ctrl+s", "save", "Save"),
    ]
    DEFAULT_CSS = """
    EndpointScreen {
        align: center middle;
        background: $background 60%;

        #endpoint {
            width: 76;
            max-width: 96%;
            height: auto;
            max-height: 96%;
            background: $surface;
            border: round $primary 60%;
            border-title-color: $text-primary;
            border-title-style: bold;
        }
        #form { height: auto; max-height: 1fr; padding: 1 2 0 2; scrollbar-size-vertical: 1; }
        .row { height: auto; }
        Label { width: 10; text-style: bold; }
        .about { margin: 0 0 1 10; color: $text-muted; }
        Input { width: 1fr; padding: 0 1 !important; background: $foreground 7%; }
        Input:focus { background: $primary 25%; }
        Input:disabled { color: $text-muted; }
        #served {
            height: auto;
            max-height: 5;
            margin-left: 10;
            background: $foreground 4%;
            display: none;
            scrollbar-size-vertical: 1;
        }
        #served > .option-list--option { padding: 0 1; }
        #served > .option-list--option-highlighted { background: $primary 25%; color: $foreground; }
        Checkbox { margin: 1 0 0 9; background: $surface; }
        #outcome { margin: 1 2 0 2; color: $text-muted; }
        #outcome.-error { color: $text-error; }
        #outcome.-done { color: $text-success; }
        #buttons { height: 2; padding: 0 2; align-horizontal: right; border-top: solid $foreground 15%; }
        Button { margin-left: 2; min-width: 10; }
        #buttons Button:focus { text-style: bold underline; }
    }
    """

    def __init__(self, paths: Paths, endpoint: Endpoint | None = None) -> None:
        super().__init__()
        self._paths = paths
        self._endpoints = Endpoints(paths.endpoints)
        self._before = endpoint
        self._served: list[str] = []
        """What the server's models are called, as they are listed."""

    def compose(self) -> ComposeResult:
        before = self._before
        values = {"name": "", "url": "", "model": "", "context": ""}
        if before is not None:
            context = str(before.context or "")
            values = {"name": before.name, "url": before.url, "model": before.model, "context": context}
        with Vertical(id="endpoint") as dialog:
            dialog.border_title = f"Change {before.name}" if before else "Add an endpoint"
            with VerticalScroll(id="form", can_focus=False):
                for name, (title, placeholder) in _FIELDS.items():
                    if name == "key" and before is not None:
                        placeholder = "as before"
                    with Horizontal(classes="row"):
                        yield Label(title)
                        yield Input(
                            values.get(name, ""),
                            placeholder=placeholder,
                            password=name == "key",
                            disabled=name == "name" and before is not None,
                            compact=True,
                            select_on_focus=False,
                            id=name,
                        )
                    if name == "key":
                        yield Static(id="where", classes="about", markup=False)
                    elif name == "model":
                        yield OptionList(id="served", compact=True, markup=False)
                yield Checkbox("It sees images", before is None or before.images, compact=True)
            yield Static(
                "Any OpenAI-compatible server: vLLM, SGLang, llama.cpp, Ollama.", id="outcome", markup=False
            )
            with Horizontal(id="buttons"):
                yield Button("Cancel esc", id="cancel", compact=True)
                yield Button("Test ^t", id="test", compact=True)
                yield Button("Save ^s", id="save", variant="primary", compact=True)

    def on_mount(self) -> None:
        self._say_where_the_key_goes()
        self.query_one("#url" if self._before else "#name", Input).focus()

    def _value(self, name: str) -> str:
        return self.query_one(f"#{name}", Input).value.strip()

    @on(Input.Changed, "#name")
    def _say_where_the_key_goes(self) -> None:
        variable = keys.variable(self._value("name") or "NAME")
        if self._before and self._before.key_variable:
            variable = self._before.key_variable
        self.query_one("#where", Static).update(f"Kept in the keyring; ${variable} counts above it.")

    def _say(self, text: str, kind: str = "") -> None:
        outcome = self.query_one("#outcome", Static)
        outcome.update(one_line(text))
        outcome.set_class(kind == "error", "-error")
        outcome.set_class(kind == "done", "-done")

    # What the fields say

    def _endpoint(self, model: str) -> Endpoint:
        """Raises UserError."""
        context = self._value("context").replace(",", "")
        if context and not context.isdecimal():
            raise UserError("The context length must be a whole number above 0, or empty: correct it.")
        return Endpoint(
            self._value("name"),
            self._value("url"),
            model,
            int(context) if context else None,
            self._before.key_variable if self._before else None,
            self.query_one(Checkbox).value,
        )

    def _new_key(self) -> SecretStr | None:
        """What was typed; it goes no further as text. Raises UserError if it can be no key."""
        return keys.checked(self._value("key"), "that was typed") if self._value("key") else None

    async def _agrees(self, endpoint: Endpoint, key: SecretStr | None) -> bool:
        """Whether the key may go out, which is asked only where others could read it."""
        if key is None or not endpoint.exposes_key:
            return True
        return bool(await self.app.push_screen_wait(ConfirmScreen(endpoint.exposure, "Send it")))

    # Trying and saving

    @on(Button.Pressed, "#test")
    @work(group="endpoint", exclusive=True)
    async def action_test(self) -> None:
        """Connect and list the server's models."""
        try:
            endpoint = self._endpoint(self._value("model") or "?")
            key = self._new_key() or await asyncio.to_thread(keys.find, endpoint)
            if not await self._agrees(endpoint, key):
                return
            self._say(f"Connecting to {endpoint.host}…")
            await self._connect(endpoint, key)
        except UserError as error:
            self._say(str(error), "error")

    async def _connect(self, endpoint: Endpoint, key: SecretStr | None) -> None:
        from ..remote.client import models_of
        from ..remote.engine import choose

        served = await models_of(endpoint, key)
        self._show(served)
        if not self._value("model"):
            self._say(f"{endpoint.host} answers: choose one of its {len(served)} models.")
            self.query_one("#served", OptionList).focus()
            return
        model = choose(endpoint, served)
        context = f" with a context of {model.context:,} tokens" if model.context else ""
        self._say(f"{endpoint.host} answers and has {model.id}{context}.", "done")

    def _show(self, served: list[ServedModel]) -> None:
        listed = self.query_one("#served", OptionList)
        listed.set_options([Content(one_line(model.id)) for model in served])
        listed.display = len(served) > 1
        listed.highlighted = 0 if served else None
        self._served = [model.id for model in served]
        if len(served) == 1 and not self._value("model"):
            self.query_one("#model", Input).value = served[0].id

    @on(OptionList.OptionSelected, "#served")
    def _choose(self, event: OptionList.OptionSelected) -> None:
        self.query_one("#model", Input).value = self._served[event.option_index]
        self.query_one("#served").display = False
        self.action_test()

    @on(Input.Submitted)
    @on(Button.Pressed, "#save")
    @work(group="endpoint", exclusive=True)
    async def action_save(self) -> None:
        try:
            endpoint = self._endpoint(self._value("model"))
            taken = (
                endpoint.name in self._endpoints.load()[0] or (self._paths.models / endpoint.name).is_dir()
            )
            if self._before is None and taken:
                raise UserError(f"There is already a model called {endpoint.name}: choose another name.")
            key = self._new_key()
            if not await self._agrees(endpoint, key):
                return
            if key is not None:
                await asyncio.to_thread(keys.store, endpoint.name, key)
            await asyncio.to_thread(self._endpoints.save, endpoint)
        except UserError as error:
            self._say(str(error), "error")
        else:
            self.dismiss(endpoint.name)

    @on(Button.Pressed, "#cancel")
    def _cancel(self) -> None:
        self.dismiss(None)
