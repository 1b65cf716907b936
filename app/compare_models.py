"""What is loaded while two models or settings are compared, and how the two are going to answer.

Two requests to one model are one batch, and a server has a machine of its own: these answer at once.
Two models of this machine answer in turn, so that the speed of each is its own; both stay loaded if there is
room.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..engine.events import LoadFailed, LoadProgress, Usage
from ..models.errors import UserError
from .events import Listener, ModelLoading
from .library import scan
from .replies import Inbox

if TYPE_CHECKING:  # imports torch, or the HTTP client
    from ..engine.thread import EngineThread, LoadOptions
    from .backend import Backend
    from .loader import ModelLoader
    from .remote.endpoint import Endpoints
    from .remote.engine import RemoteEngine
    from .settings import Settings

SHORT_CONTEXT = 8192
"""Tokens for prompt and reply where a model is to leave room for the other."""


@dataclass(frozen=True)
class Plan:
    """How the two are going to answer, and `why`, in a sentence."""

    why: str
    at_once: bool = False
    drops: tuple[str, ...] = ()
    """The models that are unloaded first."""
    short: bool = False
    """Both are loaded with SHORT_CONTEXT."""
    reload: bool = False
    """Each is loaded for its turn, and unloaded for the other's."""


class CompareModels:
    """Borrows the chat's engine, which must be idle, and makes others; holds what they load until `close`."""

    def __init__(
        self,
        loader: ModelLoader,
        settings: Settings,
        create_engine: Callable[[], EngineThread],
        endpoints: Endpoints,
    ) -> None:
        """`create_engine` makes a second engine of this machine."""
        self.displaced = False
        """The chat's model is no longer loaded, or not as it was: it has to be loaded again."""
        self._loader = loader
        self._settings = settings
        self._create_engine = create_engine
        self._endpoints = endpoints
        self._engines: list[Backend[Any]] = []
        """Those of this machine, the chat's first."""
        self._remotes: list[RemoteEngine] = []
        self._held: dict[str, Backend[Any]] = {}
        """What is loaded, by the model's name."""
        self._loading: Backend[Any] | None = None
        self._cancelled = False
        self._one_load = asyncio.Lock()
        self._chat_model: str | None = None
        if loader.engine and loader.model and loader.model.device != "remote":
            self._chat_model = loader.model.name
            self._engines.append(loader.engine)
            self._held[self._chat_model] = loader.engine

    async def names(self) -> list[str]:
        """All converted models and endpoints."""
        library = await asyncio.to_thread(scan, self._loader.models_dir)
        endpoints, _ = await asyncio.to_thread(self._endpoints.load)
        return list(dict.fromkeys([*(model.path.name for model in library.models), *endpoints]))

    def has(self, name: str) -> bool:
        """Whether this model need not be loaded."""
        return name in self._held and self._held[name].model is not None

    # The plan

    async def plan(self, names: Sequence[str]) -> Plan:
        """How two sides with these models, which may be one, are going to answer."""
        endpoints, _ = await asyncio.to_thread(self._endpoints.load)
        return await asyncio.to_thread(self._plan, list(dict.fromkeys(names)), endpoints.keys())

    def _plan(self, names: Sequence[str], endpoints: Collection[str]) -> Plan:
        here = [name for name in names if name not in endpoints]
        others = tuple(name for name in self._here if name not in names)
        missing = [name for name in here if not self.has(name)]
        fit = not missing or self._fit(missing, ())  # beside all that is loaded
        if len(here) < 2:
            drops = () if fit else others
            if len(names) == 2:
                why = "Both at once, one of them on a server." if here else "Both at once, on servers."
            elif here:
                why = "Both at once, in the same steps of one model, which slows each."
            else:
                why = "Both at once, on one server."
            return Plan(why, at_once=True, drops=drops)
        why = "In turn, so that each has the machine to itself; both stay loaded."
        if fit or self._fit(missing, others):
            return Plan(why, drops=() if fit else others)
        if self._fit(here, self._here, short=True):
            return Plan(why, drops=self._here, short=True)
        return Plan("In turn, each loaded for it: memory is too short for both at once.", reload=True)

    @property
    def _here(self) -> tuple[str, ...]:
        """The models that are loaded on this machine."""
        return tuple(name for name, engine in self._held.items() if engine in self._engines)

    def _fit(self, names: Sequence[str], dropped: Sequence[str], *, short: bool = False) -> bool:
        from .fit import fit_together

        infos = [info for name in dropped if (info := self._held[name].model)]
        freed = sum(info.weight_bytes + info.kv_bytes for info in infos)
        return fit_together([self._options(name, short=short) for name in names], freed)

    # Loading

    async def prepare(self, plan: Plan) -> None:
        """Free what the plan says; loads are wanted again."""
        self._cancelled = False
        for name in plan.drops:
            await self._drop(name)

    async def have(self, name: str, plan: Plan, tell: Listener) -> Backend[Any]:
        """The engine with this model, loaded if need be. Raises UserError when that fails or is stopped."""
        async with self._one_load:
            if not self.has(name):
                if name in self._held:  # its engine had to drop it
                    await self._drop(name)
                await self._load(name, plan, tell)
            return self._held[name]

    async def remember_speed(self, name: str, usage: Usage) -> None:
        """Note for the list of models how fast `name` wrote by itself."""
        await self._loader.remember_speed(name, usage)

    async def _load(self, name: str, plan: Plan, tell: Listener) -> None:
        engine: Backend[Any]
        source: Any
        await tell(ModelLoading(name, 0, 0, "Starting"))
        endpoint = await asyncio.to_thread(self._endpoints.get, name)
        if endpoint is not None:
            from .remote.engine import RemoteEngine

            source, engine = endpoint, RemoteEngine()
            self._remotes.append(engine)
        else:
            for each in self._here if plan.reload else ():
                await self._drop(each)
            engine = await self._free_engine()
            source = await asyncio.to_thread(self._options, name, short=plan.short)
        if self._cancelled:
            raise UserError("Loading was cancelled.")
        self._loading, inbox = engine, Inbox()
        engine.load(source, inbox.sink)
        try:
            async for events in inbox.batches():
                match events[-1]:
                    case LoadProgress(done, total, text):
                        await tell(ModelLoading(name, done, total, text))
                    case LoadFailed(message):
                        raise UserError(message)
        finally:
            self._loading = None
        self._held[name] = engine

    def cancel_load(self) -> None:
        """Stop the load in progress, if any, and let no other begin before the next `prepare`."""
        self._cancelled = True
        if self._loading is not None:
            self._loading.cancel_load()

    def _options(self, name: str, *, short: bool) -> LoadOptions:
        from ..engine.thread import LoadOptions  # imports torch

        path = self._loader.models_dir / name
        options = LoadOptions(path, self._settings.device, self._settings.dtype)
        return replace(options, max_context=SHORT_CONTEXT, max_sequences=2) if short else options

    async def _free_engine(self) -> Backend[Any]:
        """An engine of this machine that holds nothing: the chat's, else a second one."""
        for engine in self._engines:
            if engine not in self._held.values():
                return engine
        if self._engines:
            engine = await asyncio.to_thread(self._create_engine)
        else:
            engine = await self._loader.start_engine()
        self._engines.append(engine)
        return engine

    async def _drop(self, name: str) -> None:
        """Free a model of this machine, so that what is loaded next finds its memory free."""
        engine = self._held.pop(name)
        if engine in self._remotes:
            return
        if name == self._chat_model:
            self.displaced = True
        if engine is self._engines[0]:
            engine.unload()  # which is over before it loads another
        else:
            self._engines.remove(engine)
            await asyncio.to_thread(engine.close)  # which waits for that

    async def close(self) -> None:
        """Free all but the chat's model, or what is in its place now. No load may be in progress."""
        if self._engines and self._chat_model is None:
            self._engines[0].unload()
        for engine in (*self._engines[1:], *self._remotes):
            await asyncio.to_thread(engine.close)
        self._held.clear()
        self._engines.clear()
        self._remotes.clear()
