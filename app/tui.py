"""The full-screen app: puts the screens, the controller and the engine together."""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from textual import events, on, work
from textual.app import App, SystemCommand
from textual.binding import Binding, BindingType
from textual.constants import TEXTUAL_ANIMATIONS
from textual.filter import LineFilter
from textual.keys import Keys
from textual.screen import Screen
from textual.widgets import Input, TextArea

from ..models.errors import UserError
from ..models.units import format_bytes
from . import clipboard, collector, keymap, presets, terminal
from .actions import ACTIONS, key_name, named
from .compare import Comparison
from .compare_models import CompareModels
from .controller import NO_MODEL, Controller
from .database import open_or_replace
from .draft import Draft
from .driver import TerminalDriver
from .events import CannotSee, ControllerEvent, ConversationShown, ModelFailed, ModelReady, Told
from .guard import Guard
from .library import scan
from .loader import create_engine
from .log import INTERNAL_ERROR
from .paths import Paths
from .remote.endpoint import Endpoints
from .screens.attaching import AttachingScreen
from .screens.chat import ChatScreen
from .screens.conversations import ConversationsScreen
from .screens.figures import FiguresScreen
from .screens.help import HelpScreen
from .screens.images import ImagesScreen, PreviewScreen, SeeingModelsScreen
from .settings import AUTO, Settings, SettingsStore
from .theme import THEMES, theme_for
from .widgets.attachments import Chip
from .widgets.graphics import graphics_widget
from .widgets.message import UserMessage
from .widgets.prompt import PromptInput

if TYPE_CHECKING:
    from ..converter import Local, Part
    from ..engine.thread import EngineThread

log = logging.getLogger(__name__)

QUIET_S = 2.0
"""So long without a key or the mouse, and nobody waits for the app."""


def run(
    paths: Paths, model: str | None = None, create_engine: Callable[[], EngineThread] = create_engine
) -> int:
    """Open the app until the user quits; returns the exit code. `model` names the model to load."""
    terminal.mend()
    recognise_alt_enter()
    terminal.understand_notifications()
    graphics_widget()  # asks the terminal, while it still answers
    app = LiteLlamaApp(paths, model, create_engine, dark=terminal.is_dark())
    app.run()
    app.controller.loader.close_engines()
    return app.return_code or 0


def recognise_alt_enter() -> None:
    """Have Alt+Enter start a new line on terminals without the kitty keyboard protocol too.

    They send it as escape and return, which Textual 8.2 takes for Enter: the message would be sent.
    """
    terminal.teach({"\x1b\r": Keys.ControlJ})


class LiteLlamaApp(App[None]):
    """Start and end, the dialogs around the chat, and the themes."""

    TITLE = "lite-llama"
    CSS_PATH = "app.tcss"
    BINDINGS: ClassVar[list[BindingType]] = [replace(named("app.quit").binding, action="quit", priority=True)]

    def __init__(
        self,
        paths: Paths,
        model: str | None = None,
        create_engine: Callable[[], EngineThread] = create_engine,
        *,
        dark: bool | None = None,
    ) -> None:
        collector.spare()
        super().__init__(driver_class=TerminalDriver)
        self.paths = paths
        self._wanted_model = model
        self._create_engine = create_engine
        self._comparison: Comparison | None = None
        self._store = SettingsStore(paths.settings)
        self._endpoints = Endpoints(paths.endpoints)
        self.controller = Controller(
            self._store.load(), paths.models, create_engine, self._told, self._endpoints
        )
        self._chat = ChatScreen(self.controller, Draft(paths.draft))
        self._ending = False
        self._terminal_is_dark = dark is not False
        self._still = False
        self._touched = 0.0
        self._guard = Guard()
        for theme in THEMES:
            self.register_theme(theme)
        self._apply(self.settings)

    @property
    def settings(self) -> Settings:
        return self.controller.settings

    def get_line_filters(self) -> list[LineFilter]:
        return [*super().get_line_filters(), self._guard]

    # Start and end

    def get_default_screen(self) -> Screen:
        return self._chat

    async def on_mount(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGHUP):
                asyncio.get_running_loop().add_signal_handler(
                    number, lambda code=128 + number: self.run_worker(self._end(code))
                )
        self.set_interval(QUIET_S / 2, self._tidy)
        database, notice = await open_or_replace(self.paths.database)
        await self.controller.start(database)
        if self._driver:
            self._driver.write(terminal.NOTIFY_ON)
        for text in (notice, *self._store.problems, *presets.problems(self.settings), *self._key_problems):
            if text:
                await self._told(Told(text))
        self.call_after_refresh(self._find_model)  # the screen first: what follows imports torch

    def _tidy(self) -> None:
        """Collect garbage if nobody would notice: there is some only since the user did something."""
        working = self.controller.replying or self.controller.loader.loading or self._comparison is not None
        if self._touched and not working and time.monotonic() - self._touched > QUIET_S:
            collector.tidy()

    @work
    async def _find_model(self) -> None:
        """Load the model that was used last, or any; have one made when there is none."""
        name = await self.controller.loader.find(self._wanted_model or self.settings.model)
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
            async with self._chat.editing:  # an editor that is open has the terminal, and text of the user's
                pass
            await self._remember_theme()
            if self._comparison is not None:
                await self._comparison.close()
            await self.controller.close()
            self.exit(return_code=code)

    async def on_unmount(self) -> None:
        if self._driver:
            self._driver.write(terminal.NOTIFY_OFF)
        await self.controller.close()  # whatever ended the app: the database's thread has to end too
        self._chat.close_draft()  # after what that may have handed back

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
        if isinstance(event, ConversationShown) and self._touched:  # what was shown is garbage now
            self.call_after_refresh(collector.tidy)

    # Models

    @work(group="dialog", exclusive=True)
    async def action_models(self, wanted: str = "") -> None:
        """Load the model of that name, or show those that there are."""
        from .screens.models import ModelChoice, ModelScreen

        if wanted and await asyncio.to_thread(self.controller.loader.has, wanted):
            return await self.controller.load_model(wanted)
        if wanted:
            await self._told(Told(f"There is no model {wanted}: these are those that there are."))
        chosen = None
        while True:
            screen = ModelScreen(self.paths, self.settings, self.controller.loader.model, chosen)
            match await self.push_screen_wait(screen):
                case ModelChoice("rename", str(name), str(new_name)):
                    await self._rename_model(name, new_name)
                    chosen = new_name
                case ModelChoice("delete", str(name)):
                    await self._delete_model(name)
                case ModelChoice("endpoint", name):
                    if saved := await self._edit_endpoint(name):
                        return await self.controller.load_model(saved)
                case ModelChoice("load", str(name)):
                    return await self.controller.load_model(name)
                case ModelChoice("add" | "convert", source=source):
                    return await self._add_model(first_run=False, source=source)
                case _:
                    return None

    async def _rename_model(self, name: str, new_name: str) -> None:
        from ..converter import rename

        try:
            await asyncio.to_thread(rename, self.paths.models, name, new_name)
        except UserError as error:
            await self._told(Told(str(error), "error"))
            return
        if self.settings.model == name:
            await self._use_settings(self.settings.model_copy(update={"model": new_name}))
        await self.controller.model_renamed(name, new_name)

    async def _delete_model(self, name: str) -> None:
        from ..converter import remove

        if self.controller.loader.loading:
            await self._told(
                Told("A model is being loaded: wait, or stop it with Esc, before you delete one.")
            )
            return
        if self.controller.loader.model and self.controller.loader.model.name == name:
            await self.controller.unload()
        try:
            freed = await asyncio.to_thread(remove, self.paths.models, name)
        except UserError as error:
            await self._told(Told(str(error), "error"))
        else:
            await self._told(Told(f"Deleted {name}: {format_bytes(freed)} are free again.", "information"))

    @work(group="dialog", exclusive=True)
    async def action_seeing_models(self) -> None:
        """Offer models that see images in place of the one that is loaded."""
        library = await asyncio.to_thread(scan, self.paths.models)
        names = [checkpoint.path.name for checkpoint in library.models if checkpoint.config.vision]
        name = await self.push_screen_wait(SeeingModelsScreen(self.controller.loader.name or "", names))
        if name:
            await self.controller.load_model(name)
        elif name is not None:
            await self._add_model(first_run=False)

    async def _edit_endpoint(self, name: str | None) -> str | None:
        """Change an endpoint, or add one; returns its name if it was saved."""
        from .screens.endpoint import EndpointScreen

        return await self.push_screen_wait(EndpointScreen(self.paths, self._endpoints.get(name)))

    async def _add_model(self, *, first_run: bool, source: Local | Part | None = None) -> None:
        """Open the wizard, at `source` when it is known, and use the model or the endpoint that it adds.

        Without one, the model before comes back.
        """
        from .screens.wizard import WizardScreen

        await self.controller.free_engine()  # the wizard loads its model in it
        before = self.controller.loader.name if self.controller.loader.model else None
        name, is_endpoint = None, False
        try:
            engine = await self.controller.loader.start_engine()
        except Exception:
            log.exception("the engine did not start")
            await self._told(Told(INTERNAL_ERROR, "error"))
        else:
            wizard = WizardScreen(self.paths, engine, self.settings, first_run, source)
            name = await self.push_screen_wait(wizard)
            is_endpoint = self._endpoints.get(name) is not None
            if name is not None and not is_endpoint:
                self.controller.loader.use_engine(engine)
            elif self.controller.loader.engine is not engine:
                engine.unload()
        if name is not None and is_endpoint:
            await self.controller.load_model(name)
        elif before and self.controller.loader.model is None:
            await self.controller.load_model(before)
        else:
            await self.controller.loader.changed(name)

    @work(group="dialog", exclusive=True)
    async def action_compare(self) -> None:
        from .screens.compare import CompareScreen

        controller, loader = self.controller, self.controller.loader
        if controller.replying or controller.titling or loader.loading:
            await self._told(
                Told("The model is at work: wait for it, or stop it with Esc, before you compare.")
            )
            return
        models = CompareModels(loader, self.settings, self._create_engine, self._endpoints)
        names = await models.names()
        if not names:
            await self._told(Told(NO_MODEL))
            return
        before, kept = loader.name if loader.model else None, None
        comparison = self._comparison = Comparison(
            models, controller.archive, self.settings, controller.own_settings
        )
        try:
            screen = CompareScreen(comparison, names, comparison.first_sides(names, before))
            kept = await self.push_screen_wait(screen)
        finally:
            self._comparison = None
            await comparison.close()
        if kept is not None:
            await controller.take_conversation(kept)
        wanted = kept.model if kept else before
        if wanted and (models.displaced or wanted != before):
            await controller.load_model(wanted)

    # Dialogs

    def action_help(self) -> None:
        self.push_screen(HelpScreen())

    def action_figures(self) -> None:
        self.push_screen(FiguresScreen(self.controller, self._chat.load))

    def action_images(self) -> None:
        screen = self.screen
        self.push_screen(ImagesScreen(screen if isinstance(screen, AttachingScreen) else self._chat))

    @on(Chip.Opened)
    def _show_image(self, event: Chip.Opened) -> None:
        """One that was sent, and those beside it that are still there."""
        sent = event.chip.query_ancestor(UserMessage).turn.images
        there = [image for image in sent if image.thumbnail is not None]
        self.push_screen(PreviewScreen(there, event.chip.attachment))

    @work(group="dialog", exclusive=True)
    async def action_conversations(self) -> None:
        await self._choose_conversation()

    @work(group="dialog", exclusive=True)
    async def action_search(self, words: str = "") -> None:
        await self._choose_conversation(search=words)

    async def _choose_conversation(self, search: str | None = None) -> None:
        chosen = await self.push_screen_wait(ConversationsScreen(self.controller, search=search))
        if chosen is not None:
            await self._chat.open_conversation(chosen.conversation_id, chosen.turn_id)

    @work(group="dialog", exclusive=True)
    async def action_settings(self) -> None:
        from .screens.settings import Preferences, SettingsScreen

        await self._remember_theme()
        model = self.controller.loader.model
        before = Preferences(self.settings, self.controller.own_settings)
        after = await self.push_screen_wait(SettingsScreen(before, model.defaults if model else None))
        if after is not None:
            self._apply(after.settings)
            await self._use_settings(after.settings)
            await self.controller.use_own_settings(after.own)

    async def action_preset(self, text: str = "") -> None:
        """Take a preset for this chat, or save one: what follows `/preset`."""
        word, _, name = text.strip().partition(" ")
        known, own = presets.known(self.settings), self.controller.own_settings
        if word == "save":
            try:
                name = presets.checked_name(name)
            except UserError as error:
                await self._told(Told(str(error)))
                return
            chosen = self.settings.model_dump(include=set(presets.NAMES), exclude_unset=True) | own
            saved = self.settings.presets | {name: chosen}
            await self._use_settings(self.settings.model_copy(update={"presets": saved}))
            await self._told(Told(f"This chat's settings are now the preset {name}.", "information"))
        elif word in known:
            kept = {key: value for key, value in own.items() if key == "system_prompt"}
            await self.controller.use_own_settings(kept | known[word])
            await self._told(Told(f"This chat uses the preset {word}.", "information"))
        elif word == presets.NONE:
            await self.controller.use_own_settings({})
            await self._told(Told("This chat is as in the settings.", "information"))
        else:
            names = ", ".join((*known, presets.NONE))
            await self._told(Told(f"The presets are {names}: /preset NAME, or /preset save NAME."))

    async def _use_settings(self, settings: Settings) -> None:
        self.controller.set_settings(settings)
        try:
            await asyncio.to_thread(self._store.save, settings)
        except UserError as error:
            await self._told(Told(str(error), "error"))

    # Appearance and keys

    def _apply(self, settings: Settings) -> None:
        """Show the theme that the settings ask for, move as much as they allow, and take their keys."""
        self._shown_theme = self.theme = theme_for(
            settings, self.available_themes, dark=self._terminal_is_dark
        )
        if settings.motion == "reduced":
            self.animation_level = "none"
        elif self._still:
            self.animation_level = TEXTUAL_ANIMATIONS
            self._chat.query_one(PromptInput).cursor_blink = True
        self._still = settings.motion == "reduced"
        self._key_problems = keymap.use(settings.keys)
        self.set_keymap(keymap.for_textual())

    async def action_toggle_theme(self) -> None:
        settings = self.settings.model_copy(update={"theme": AUTO})
        self.theme = theme_for(settings, self.available_themes, dark=not self.current_theme.dark)
        await self._remember_theme()

    async def _remember_theme(self) -> None:
        """Settings hold the theme too, but Textual's palette changes it by itself."""
        if self.theme != self._shown_theme:
            self._shown_theme = self.theme
            await self._use_settings(self.settings.model_copy(update={"theme": self.theme}))

    async def on_event(self, event: events.Event) -> None:
        """See to it that what the terminal tells about itself is not taken for a key."""
        if isinstance(event, events.InputEvent):
            self._touched = time.monotonic()
        if isinstance(event, events.Key) and event.key in {told.value for told in terminal.Told}:
            await self._remember_theme()
            self._terminal_is_dark = event.key == terminal.Told.DARK.value
            self._apply(self.settings)
        else:
            await super().on_event(event)

    @on(events.DescendantFocus)
    def _calm_cursor(self, event: events.DescendantFocus) -> None:
        if self._still and isinstance(event.widget, Input | TextArea):
            event.widget.cursor_blink = False

    def get_key_display(self, binding: Binding) -> str:
        """As Textual prints it, but function keys as they are printed on keyboards."""
        shown = super().get_key_display(binding)
        return shown.capitalize() if keymap.FUNCTION_KEY.fullmatch(shown) else shown

    # The command palette

    def get_system_commands(self, screen: Screen) -> Iterable[SystemCommand]:
        if screen is not self._chat:  # what the keys of a dialog do
            for binding in screen.BINDINGS:
                if isinstance(binding, Binding) and binding.description:
                    keys = " ".join(map(key_name, binding.key.split(",")))
                    yield SystemCommand(
                        binding.description, f"Key {keys}", partial(screen.run_action, binding.action)
                    )
        for action in ACTIONS:
            if screen is self._chat or action.anywhere:
                yield SystemCommand(
                    action.title, action.help.capitalize(), partial(screen.run_action, action.name)
                )


def _clean_up(paths: Paths) -> None:
    from ..converter import clean_up

    clean_up(paths.models, paths.downloads)
