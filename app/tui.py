"""The full-screen app: puts the screens, the controller and the engine together."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import threading
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, cast

from textual import work
from textual.app import App, SystemCommand
from textual.binding import Binding, BindingType
from textual.keys import Keys
from textual.screen import Screen

from ..models.errors import UserError
from . import clipboard
from .actions import ACTIONS
from .controller import INTERNAL_ERROR, Controller
from .database import open_or_replace
from .events import CannotSee, ControllerEvent, ModelFailed, ModelReady, Told
from .library import scan
from .paths import Paths
from .remote.endpoint import Endpoints
from .screens.chat import ChatScreen
from .screens.conversations import ConversationsScreen
from .screens.help import HelpScreen
from .screens.images import ImagesScreen, SeeingModelsScreen
from .settings import Settings, SettingsStore
from .theme import DARK, LIGHT, THEMES
from .widgets.graphics import graphics_widget

if TYPE_CHECKING:
    from ..engine.thread import EngineThread

log = logging.getLogger(__name__)


def run(paths: Paths, model: str | None = None) -> int:
    """Open the app until the user quits; returns the exit code. `model` names the model to load."""
    recognise_alt_enter()
    graphics_widget()  # asks the terminal, while it still answers
    app = LiteLlamaApp(paths, model)
    app.run()
    app.controller.close_engines()
    return app.return_code or 0


def recognise_alt_enter() -> None:
    """Have Alt+Enter start a new line on terminals without the kitty keyboard protocol too.

    They send it as escape and return, which Textual 8.2 does not know and takes for Enter: the message would
    be sent. A later Textual may know it, or keep its table elsewhere; then nothing is to be done here.
    """
    with contextlib.suppress(ImportError, TypeError):
        from textual import _ansi_sequences

        table = cast("dict[str, Any]", _ansi_sequences.ANSI_SEQUENCES_KEYS)
        table.setdefault("\x1b\r", (Keys.ControlJ,))


def create_engine() -> EngineThread:
    """The engine. Importing it imports torch, which takes seconds: call this off the event loop."""
    from ..engine.thread import EngineThread

    return EngineThread()


class LiteLlamaApp(App[None]):
    """Start and end, the dialogs around the chat, and the themes."""

    TITLE = "lite-llama"
    CSS_PATH = "app.tcss"
    BINDINGS: ClassVar[list[BindingType]] = [Binding("ctrl+q", "quit", "Quit", priority=True)]

    def __init__(
        self,
        paths: Paths,
        model: str | None = None,
        create_engine: Callable[[], EngineThread] = create_engine,
    ) -> None:
        super().__init__()
        self.paths = paths
        self._wanted_model = model
        self._store = SettingsStore(paths.settings)
        self._endpoints = Endpoints(paths.endpoints)
        self.controller = Controller(
            self._store.load(), paths.models, create_engine, self._told, self._endpoints
        )
        self._chat = ChatScreen(self.controller)
        self._ending = False
        for theme in THEMES:
            self.register_theme(theme)
        self._use_theme(self.settings.theme)

    @property
    def settings(self) -> Settings:
        return self.controller.settings

    # Start and end

    def get_default_screen(self) -> Screen:
        return self._chat

    async def on_mount(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGHUP):
                asyncio.get_running_loop().add_signal_handler(
                    number, lambda code=128 + number: self.run_worker(self._end(code))
                )
        database, notice = await open_or_replace(self.paths.database)
        await self.controller.start(database)
        for text in (notice, *self._store.problems):
            if text:
                await self._told(Told(text))
        self.call_after_refresh(self._find_model)  # the screen first: what follows imports torch

    @work
    async def _find_model(self) -> None:
        """Load the model that was used last, or any; have one made when there is none."""
        library = await asyncio.to_thread(scan, self.paths.models)
        endpoints, problems = await asyncio.to_thread(self._endpoints.load)
        for problem in problems:
            await self._told(Told(problem))
        names = [*(checkpoint.path.name for checkpoint in library.models), *endpoints]
        wanted = self._wanted_model or self.settings.model
        name = wanted if wanted in names else next(iter(names), None)
        if name is not None:
            await self.controller.load_model(name)
        try:
            await asyncio.to_thread(_clean_up, self.paths)
        except (OSError, UserError) as error:
            await self._told(Told(f"What a killed conversion left behind could not be removed: {error}"))
        if name is None:
            await self._add_model(first_run=True)

    async def action_quit(self) -> None:
        await self._end(0)

    async def _end(self, code: int) -> None:
        """Stop and save, then leave; also on SIGTERM, and when the terminal is closed."""
        if not self._ending:
            self._ending = True
            await self._remember_theme()
            await self.controller.close()
            self.exit(return_code=code)

    async def on_unmount(self) -> None:
        await self.controller.close()  # whatever ended the app: the database's thread has to end too

    def copy_to_clipboard(self, text: str) -> None:
        super().copy_to_clipboard(text)
        self.run_worker(partial(clipboard.copy, text), thread=True)

    # What the controller tells

    async def _told(self, event: ControllerEvent) -> None:
        match event:
            case Told(text, severity):
                self.notify(text, severity=severity, markup=False)
            case ModelFailed(_, message):
                self.notify(message, title="The model was not loaded", severity="error", markup=False)
                self.action_models()
            case CannotSee():
                self.action_seeing_models()
            case ModelReady(name) if name != self.settings.model:
                await self._use_settings(self.settings.model_copy(update={"model": name}))
        await self._chat.handle(event)

    # Models

    @work(group="dialog", exclusive=True)
    async def action_models(self) -> None:
        from .screens.models import ModelScreen

        while True:
            loaded = self.controller.model_name if self.controller.model else None
            choice = await self.push_screen_wait(ModelScreen(self.paths, loaded))
            if choice is not None and choice.action == "endpoint":
                if name := await self._edit_endpoint(choice.name):
                    await self.controller.load_model(name)
                    return
            elif choice is None or choice.action != "removed":
                break
        if choice is not None and choice.action == "add":
            await self._add_model(first_run=False)
        elif choice is not None and choice.name is not None:
            await self.controller.load_model(choice.name)

    @work(group="dialog", exclusive=True)
    async def action_seeing_models(self) -> None:
        """Offer models that see images in place of the one that is loaded."""
        library = await asyncio.to_thread(scan, self.paths.models)
        names = [checkpoint.path.name for checkpoint in library.models if checkpoint.config.vision]
        name = await self.push_screen_wait(SeeingModelsScreen(self.controller.model_name or "", names))
        if name:
            await self.controller.load_model(name)
        elif name is not None:
            await self._add_model(first_run=False)

    async def _edit_endpoint(self, name: str | None) -> str | None:
        """Change an endpoint, or add one; returns its name if it was saved."""
        from .screens.endpoint import EndpointScreen

        return await self.push_screen_wait(EndpointScreen(self.paths, self._endpoints.get(name)))

    async def _add_model(self, *, first_run: bool) -> None:
        from .screens.wizard import WizardScreen

        await self.controller.free_engine()  # the wizard loads its model in it
        name = None
        try:
            engine = await self.controller.start_engine()
        except Exception:
            log.exception("the engine did not start")
            await self._told(Told(INTERNAL_ERROR, "error"))
        else:
            name = await self.push_screen_wait(WizardScreen(self.paths, engine, self.settings, first_run))
            if name is not None:
                self.controller.use_engine(engine)
            elif self.controller.engine is not engine:
                engine.unload()
        await self.controller.model_changed(name)

    # Dialogs

    def action_help(self) -> None:
        self.push_screen(HelpScreen())

    def action_images(self) -> None:
        self.push_screen(ImagesScreen(self._chat))

    @work(group="dialog", exclusive=True)
    async def action_conversations(self) -> None:
        await self._choose_conversation(search=False)

    @work(group="dialog", exclusive=True)
    async def action_search(self) -> None:
        await self._choose_conversation(search=True)

    async def _choose_conversation(self, *, search: bool) -> None:
        chosen = await self.push_screen_wait(ConversationsScreen(self.controller, search=search))
        if chosen is not None:
            await self._chat.open_conversation(chosen.conversation_id, chosen.turn_id)

    @work(group="dialog", exclusive=True)
    async def action_settings(self) -> None:
        from .screens.settings import SettingsScreen

        await self._remember_theme()
        settings = await self.push_screen_wait(SettingsScreen(self.settings))
        if settings is not None:
            self._use_theme(settings.theme)
            await self._use_settings(settings)

    async def _use_settings(self, settings: Settings) -> None:
        self.controller.set_settings(settings)
        try:
            await asyncio.to_thread(self._store.save, settings)
        except UserError as error:
            await self._told(Told(str(error), "error"))

    # Themes

    async def action_toggle_theme(self) -> None:
        self.theme = LIGHT.name if self.current_theme.dark else DARK.name
        await self._remember_theme()

    async def _remember_theme(self) -> None:
        """Settings hold the theme too, but Textual's palette changes it by itself."""
        if self.theme != self._shown_theme:
            self._shown_theme = self.theme
            await self._use_settings(self.settings.model_copy(update={"theme": self.theme}))

    def _use_theme(self, name: str) -> None:
        """Show a theme, the dark one when there is none of that name."""
        self._shown_theme = self.theme = name if name in self.available_themes else DARK.name

    # The command palette

    def get_system_commands(self, screen: Screen) -> Iterable[SystemCommand]:
        for action in ACTIONS:
            if screen is self._chat or action.anywhere:
                yield SystemCommand(
                    action.title, action.help.capitalize(), partial(screen.run_action, action.name)
                )


def _clean_up(paths: Paths) -> None:
    from ..converter import clean_up

    clean_up(paths.models, paths.downloads)
