"""The chat without a screen: lines in, lines out, for simple terminals, SSH, screen readers and scripts.

The main thread reads the lines, since only there do readline and Ctrl-C get along. The controller runs on an
event loop on a thread of its own: each wish is handed to it and waited for.
"""

from __future__ import annotations

import asyncio
import io
import signal
import sys
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ..models.errors import UserError
from .attachments import Attachments
from .controller import Controller
from .database import open_or_replace
from .events import ControllerEvent, ModelReady, PromptsKnown
from .incoming import image_paths
from .interrupt import on_interrupt
from .library import NO_MODEL
from .lines import Lines
from .loader import create_engine
from .paths import Paths
from .plain_commands import Commands
from .plain_output import PROMPT, Printer
from .remote.endpoint import Endpoints
from .settings import SettingsStore

if TYPE_CHECKING:
    from ..engine.thread import EngineThread

T = TypeVar("T")
_NO = ("", "n", "no")


def run(
    paths: Paths, model: str | None = None, create_engine: Callable[[], EngineThread] = create_engine
) -> int:
    """Chat until the user quits or the input ends; returns the exit code. `model` names the model to load."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal without all characters is still a terminal
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    for number, handler in before.items():
        if handler != signal.SIG_IGN:  # as under nohup
            signal.signal(number, _leave)
    chat = PlainChat(paths, model, create_engine)
    try:
        return chat.run()
    finally:
        for number in before:  # nothing more may interrupt the saving
            signal.signal(number, signal.SIG_IGN)
        chat.close()
        for number, handler in before.items():
            signal.signal(number, handler)


def _leave(number: int, *_: object) -> None:
    raise SystemExit(128 + number)


class PlainChat:
    """One run of the chat: the loop over the lines, and what they ask for. Commands are in plain_commands."""

    def __init__(self, paths: Paths, model: str | None, create_engine: Callable[[], EngineThread]) -> None:
        self.paths = paths
        self.lines = Lines()
        self.printer = Printer()
        self._wanted_model = model
        self._store = SettingsStore(paths.settings)
        self.endpoints = Endpoints(paths.endpoints)
        self.controller = Controller(
            self._store.load(), paths.models, create_engine, self._told, self.endpoints
        )
        self.attachments = Attachments(lambda: None)
        self._commands = Commands(self)
        self._once_shown: Callable[[], object] | None = None
        """What is to begin when the first prompt is on the screen."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="chat", daemon=True)
        self._thread.start()

    # Start and end

    def run(self) -> int:
        self.call(self._open_database())
        for problem in self._store.problems:
            self.printer.say(problem)
        if self.lines.interactive:
            self.printer.say("lite-llama: /help lists the commands, Ctrl-C stops a reply, Ctrl-D quits.")
        self._find_model()
        try:
            while self._read_and_answer():
                pass
        except KeyboardInterrupt:  # the second one, or one when nothing goes on
            return 1
        return 1 if self.printer.failed and not self.lines.interactive else 0

    def close(self) -> None:
        """Stop the reply, save, and end the engine."""
        self.call(self.controller.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()
        self.controller.loader.close_engines()

    async def _open_database(self) -> None:
        database, notice = await open_or_replace(self.paths.database)
        if notice:
            self.printer.say(notice)
        await self.controller.start(database)

    def _find_model(self) -> None:
        """Have the model loaded that was used last, or any; offer to make one when there is none."""
        wanted = self._wanted_model or self.controller.settings.model
        name = self.call(self.controller.loader.find(wanted)) or self._offer_demo()
        if name is None:
            self.call(self.controller.loader.changed(None))
        else:
            self.printer.say(f"The model {name} is being loaded; you can write meanwhile.")
            # The prompt first: loading imports torch.
            self._once_shown = lambda: self.start(self.controller.load_model(name))

    def _offer_demo(self) -> str | None:
        if not self.lines.interactive:
            raise UserError(NO_MODEL)
        self.printer.say("There is no converted model yet. The demo model is small: a download of 93 MB.")
        try:
            answer = self.lines.line("Fetch and convert the demo model? (y/n) ")
            if answer.strip().lower() in _NO:
                return None
            return self._convert_demo()
        except UserError as error:
            self.printer.fail(str(error))
        except (EOFError, KeyboardInterrupt):
            print()
        return None

    def _convert_demo(self) -> str:
        """Raises UserError when that fails or Ctrl-C is pressed."""
        cancel = threading.Event()
        with on_interrupt(cancel.set):
            self.printer.say("Preparing the conversion…")
            from rich.console import Console

            from ..converter import Cancelled, convert
            from . import progress

            events = convert("demo", self.paths.models, self.paths.downloads, cancel=cancel)
            try:
                done = progress.show(events, Console(force_terminal=False))
            except Cancelled:
                raise UserError("Stopped: what was downloaded is kept for the next try.") from None
        self.printer.say("The demo model is converted.")
        return done.checkpoint.path.name

    # The event loop

    def start(self, wish: Coroutine[Any, Any, T]) -> None:
        """Hand a wish to the event loop and return at once."""
        asyncio.run_coroutine_threadsafe(wish, self._loop)

    def call(self, wish: Coroutine[Any, Any, T]) -> T:
        """Hand a wish to the event loop and wait for what it returns or raises."""
        return asyncio.run_coroutine_threadsafe(wish, self._loop).result()

    def answered(self, wish: Coroutine[Any, Any, object]) -> None:
        """Fulfil the wish and wait for the replies that it starts. Ctrl-C stops them and keeps their part."""

        async def fulfil() -> None:
            await wish
            await self.controller.idle()

        with on_interrupt(lambda: self.start(self.controller.cancel())):
            self.call(fulfil())

    def load(self, wish: Coroutine[Any, Any, object]) -> None:
        """Fulfil the wish and wait for the model that it loads. Ctrl-C stops that."""

        async def fulfil() -> None:
            await wish
            await self.controller.loader.done()

        with on_interrupt(self.controller.loader.cancel):
            self.call(fulfil())

    async def _told(self, event: ControllerEvent) -> None:
        await self.printer.handle(event)  # first: while the rest waits, other things happen
        match event:
            case PromptsKnown(texts):
                self.lines.remember(texts)
            case ModelReady(name) if name != self.controller.settings.model:
                settings = self.controller.settings.model_copy(update={"model": name})
                self.controller.set_settings(settings)
                try:
                    await asyncio.to_thread(self._store.save, settings)
                except UserError as error:
                    self.printer.say(str(error))

    # Lines

    def _read_and_answer(self) -> bool:
        """One message or command; False when it was the last."""
        try:
            text = self._read()
            return self._answer(text)
        except UserError as error:
            self.printer.fail(str(error))
        except EOFError:
            if self.lines.interactive:
                print()  # after the prompt
            return False
        return True

    def _read(self) -> str:
        """The next message. Ctrl-C drops what is typed; with nothing typed it asks for another, to quit."""
        asked = False
        while True:
            text, self.printer.returned = self.printer.returned or "", None
            shown, self._once_shown = self._once_shown, None
            self.printer.hold()
            try:
                return self.lines.read(PROMPT, text, shown)
            except KeyboardInterrupt:
                print()
                if not self.lines.interactive or (asked and not self.lines.typed):
                    raise
                asked = True
            finally:
                self.printer.release()
            self.printer.say("Press Ctrl-C again, or Ctrl-D, to quit.")

    def _answer(self, text: str) -> bool:
        # Images first: a path begins with a slash as a command does.
        if paths := image_paths(text):
            self.attach(paths)
        elif (goes_on := self._commands.run(text)) is not None:
            return goes_on
        elif text.strip() or self.attachments.items:
            self._send(text)
        return True

    def attach(self, paths: list[Path]) -> None:
        """Attach image files to the next message. Raises UserError for what is none."""
        for path in paths:
            if remark := self.call(self.attachments.add(path)):
                self.printer.say(remark)
        names = ", ".join(image.name for image in self.attachments.items)
        self.printer.say(f"Your next message has: {names}.")

    def _send(self, text: str) -> None:
        images, self.attachments.items = self.attachments.items, ()
        self.printer.typed = text
        self.lines.remember([text])
        self.answered(self.controller.send(text, images))
        if self.printer.returned is not None:
            self.attachments.items = self.printer.returned_images
