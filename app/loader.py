"""The model in use: loaded here or reached at an endpoint, switched, lost, and got back.

Nothing here knows of conversations or of the screen. All of it runs on the event loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..engine.events import Loaded, LoadFailed, LoadProgress, ModelInfo, Usage
from ..models.units import format_bytes
from .events import Listener, ModelFailed, ModelGone, ModelLoading, ModelReady, Told
from .library import remember_speed, scan
from .log import INTERNAL_ERROR
from .replies import Inbox

if TYPE_CHECKING:  # the engine's thread imports torch, which takes seconds: the screen must be up before
    from ..engine.thread import EngineThread
    from .backend import Backend
    from .remote.endpoint import Endpoints
    from .remote.engine import RemoteEngine
    from .settings import Settings

log = logging.getLogger(__name__)


def create_engine() -> EngineThread:
    """The engine. Importing it imports torch, which takes seconds: call this off the event loop."""
    from ..engine.thread import EngineThread

    return EngineThread()


class ModelLoader:
    """One model at a time, in the engine of this machine or behind an endpoint.

    `tell` is awaited with what becomes of it: ModelLoading, ModelReady, ModelFailed, ModelGone and Told.
    """

    def __init__(
        self,
        models_dir: Path,
        endpoints: Endpoints,
        create_engine: Callable[[], EngineThread],
        tell: Listener,
    ) -> None:
        """`create_engine` makes the engine of this machine; `endpoints` are models that run elsewhere."""
        self.models_dir = models_dir
        self.engine: Backend[Any] | None = None
        """What writes the replies: the engine of this machine, or the one for endpoints."""
        self.name: str | None = None
        """The directory or the endpoint of the model that was loaded last."""
        self._endpoints = endpoints
        self._create_engine = create_engine
        self._tell = tell
        self._starting: asyncio.Task[EngineThread] | None = None
        self._remote: RemoteEngine | None = None
        self._load: asyncio.Task[None] | None = None
        self._settled = asyncio.Event()
        """Set while it is known which model there is, if any: neither at the start nor during a load."""
        self._back_to: str | None = None
        """The model that a load replaces, loaded again when it comes to nothing."""

    @property
    def model(self) -> ModelInfo | None:
        """What is loaded, by the name of its directory (it may have been renamed since)."""
        info = self.engine.model if self.engine else None
        return replace(info, name=self.name) if info and self.name else info

    @property
    def loading(self) -> bool:
        """A model is being loaded, or the app has yet to find out which."""
        return not self._settled.is_set()

    # Which models there are

    async def find(self, wanted: str | None) -> str | None:
        """The model to begin with: `wanted`, or else any; None when there is none.

        Tells what is wrong with the endpoints.
        """
        library = await asyncio.to_thread(scan, self.models_dir)
        endpoints, problems = await asyncio.to_thread(self._endpoints.load)
        for problem in problems:
            await self._tell(Told(problem))
        names = [*(checkpoint.path.name for checkpoint in library.models), *endpoints]
        return wanted if wanted in names else next(iter(names), None)

    def described(self) -> dict[str, str]:
        """The models and endpoints that can be loaded, each with what it is; reads the disk."""
        described = {}
        for model in scan(self.models_dir).models:
            remarks = [model.manifest.family, format_bytes(model.size)]
            remarks += ["sees images"] if model.config.vision else []
            described[model.path.name] = ", ".join(remarks)
        # An endpoint goes before a model that has its name.
        endpoints = self._endpoints.load()[0].values()
        return described | {each.name: f"{each.model} at {each.host}" for each in endpoints}

    def has(self, name: str) -> bool:
        """Whether there is a model or an endpoint of that name; reads the disk."""
        return self._endpoints.get(name) is not None or (self.models_dir / name).is_dir()

    async def remember_speed(self, name: str, usage: Usage) -> None:
        """Note for the list of models how fast `name` wrote; an endpoint is timed with its network."""
        if usage.decode_tokens_per_s and not usage.remote:
            await asyncio.to_thread(remember_speed, self.models_dir / name, usage.decode_tokens_per_s)

    # The engines

    async def start_engine(self) -> EngineThread:
        """This machine's engine, brought up on first use; that takes seconds, on another thread."""
        if self._starting is None:
            self._starting = asyncio.create_task(asyncio.to_thread(self._create_engine))
        engine = await asyncio.shield(self._starting)
        self.engine = self.engine or engine
        return engine

    def use_engine(self, engine: Backend[Any]) -> None:
        """Have another engine write the replies; the one before frees what it has."""
        if self.engine is not None and self.engine is not engine:
            self.engine.unload()
        self.engine = engine

    def close_engines(self) -> None:
        """End their threads; the last thing to be done."""
        if self._remote is not None:
            self._remote.close()
        starting = self._starting
        if starting and starting.done() and not starting.cancelled() and not starting.exception():
            starting.result().close()

    # Loading

    def load(self, name: str, settings: Settings) -> None:
        """Load a converted model, as the settings say, or connect to the endpoint of that name.

        Returns at once; ModelReady or ModelFailed tells the outcome. When it fails or is cancelled, the
        model that was loaded before is loaded again. What the engine is writing is to be stopped before.
        """
        if self.model is not None:
            self._back_to = self.name
        if self._load is not None and not self._load.done():
            self._load.cancel()
            if self.engine:
                self.engine.cancel_load()
        self._settled.clear()
        self._load = asyncio.create_task(self._load_or_go_back(name, settings))

    async def _load_or_go_back(self, name: str, settings: Settings) -> None:
        await self._tell(ModelLoading(name, 0, 0, "Starting the engine"))
        try:
            if self.engine is not None:
                self.engine.unload()  # whatever becomes of the load, nothing more goes to what is left
            engine, source = await self._source(name, settings)
            self.use_engine(engine)
            inbox = Inbox()
            engine.load(source, inbox.sink)
            async for events in inbox.batches():
                match events[-1]:
                    case LoadProgress(done, total, text):
                        await self._tell(ModelLoading(name, done, total, text))
                    case Loaded():
                        await self.changed(name)
                    case LoadFailed(message):
                        if self._back_to in (None, name):
                            self._back_to = None
                            self._settled.set()
                            await self._tell(ModelFailed(name, message))
                        else:
                            await self._tell(Told(f"{name}: {message} Going back to {self._back_to}."))
                            await self._load_or_go_back(self._back_to, settings)
        except Exception:
            log.exception("loading %s failed", name)
            self._settled.set()
            await self._tell(ModelFailed(name, INTERNAL_ERROR))

    async def _source(self, name: str, settings: Settings) -> tuple[Backend[Any], Any]:
        """The engine for the model `name`, and what that engine is to load."""
        endpoint = await asyncio.to_thread(self._endpoints.get, name)
        if endpoint is not None:
            from .remote.engine import RemoteEngine  # the HTTP client is for those who need it

            self._remote = self._remote or RemoteEngine()
            return self._remote, endpoint
        engine = await self.start_engine()
        from ..engine.thread import LoadOptions  # now that torch is there, this is quick

        return engine, LoadOptions(self.models_dir / name, settings.device, settings.dtype)

    def cancel(self) -> None:
        """Stop the load in progress, if any; what was loaded before comes back."""
        if self.engine and self.loading:
            self.engine.cancel_load()

    async def settled(self, stop: asyncio.Event) -> None:
        """Wait until it is known which model there is, or `stop` is set."""
        if self.loading:
            waits = {asyncio.create_task(event.wait()) for event in (self._settled, stop)}
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            for wait in waits:
                wait.cancel()

    async def done(self) -> None:
        """Return when no model is being loaded, and the outcome is told."""
        if self._load is not None:
            await asyncio.wait([self._load])

    async def close(self) -> None:
        """Stop the load in progress for good; then comes `close_engines`."""
        self.cancel()
        if self._load is not None:
            self._load.cancel()
            await asyncio.gather(self._load, return_exceptions=True)

    async def unload(self) -> None:
        """Have no model loaded."""
        if self.engine:
            self.engine.unload()
        self._back_to = self.name = None
        await self._tell(ModelGone())

    async def renamed(self, name: str, new_name: str) -> None:
        """The directory `name` is called `new_name` now."""
        if self._back_to == name:
            self._back_to = new_name
        if self.name == name:
            self.name = new_name
            if not self.loading:
                await self.changed(new_name)

    async def changed(self, name: str | None) -> None:
        """The engine now has the model `name`, loaded here or by the wizard; None: whatever it has."""
        loaded = self.engine.model if self.engine else None
        self.name = name or (loaded.name if loaded else None)
        self._settled.set()
        if self.model is None or self.name is None:
            await self._tell(ModelGone())
        else:
            await self._tell(ModelReady(self.name, self.model))
