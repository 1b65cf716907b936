"""The backend that writes replies elsewhere: EngineThread's counterpart for an endpoint."""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
import re
import threading
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from pydantic import SecretStr

from ...engine.events import (
    UNKNOWN_CONTEXT,
    EngineFigures,
    Failed,
    Finished,
    Loaded,
    LoadFailed,
    LoadProgress,
    ModelInfo,
    Queued,
    TextDelta,
    Thinking,
    ThinkingDelta,
)
from ...engine.request import GenerationRequest, Message, ScoreRequest
from ...engine.sink import Sink, guarded
from ...models.errors import UserError
from ..text import one_line
from . import keys
from .client import Client, Rejected, ServedModel
from .endpoint import Endpoint
from .estimate import IMAGE_TOKENS, Estimate, estimate
from .payload import EXTRAS, as_json, payload
from .stream import ReplyStream

log = logging.getLogger(__name__)

NOT_CONNECTED = "No endpoint is connected: choose a model first."
NO_SCORES = "The tokens can only be looked at with a model of this machine: load one with /model."
CANCELLED = "Connecting was cancelled."
DISCONNECTED = "The endpoint was left before the reply was finished."
_SEEDS = 2**31
"""Servers that take a seed take one of 31 bits."""
_COUNT_S = 15.0


@dataclass
class _Connection:
    """The endpoint in use, and what is known of it."""

    endpoint: Endpoint
    client: Client
    served: ServedModel
    info: ModelInfo
    counts: bool
    """Whether the server counts tokens."""
    refused: set[str] = field(default_factory=set)
    """Those of EXTRAS that it does not take."""
    counted: tuple[tuple[Message, ...], int] = ((), 0)
    """The conversation as of the last reply, and its tokens as the server counted them."""


@dataclass
class _Running:
    """A request under way."""

    request_id: int
    sink: Sink
    reply: ReplyStream
    seed: int
    abandoned: str = ""
    """Why it ends in a failure when it is cancelled; empty when the user asked for that."""


class RemoteEngine:
    """A Backend whose models are Endpoints. One thread of its own does the talking.

    Tokens are counted by the server with each reply; before it, by vLLM's /tokenize where that is and there
    are no images, else they are an Estimate. Times are taken on this machine's clock (Usage.remote).
    """

    def __init__(self, find_key: Callable[[Endpoint], SecretStr | None] = keys.find) -> None:
        self._find_key = find_key
        self._ids = itertools.count(1)
        self._connection: _Connection | None = None
        self._loading: asyncio.Task[_Connection] | None = None
        self._running: dict[int, tuple[_Running, asyncio.Task[Finished]]] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="remote", daemon=True)
        self._thread.start()

    @property
    def model(self) -> ModelInfo | None:
        """The endpoint that is connected, None while there is none."""
        connection = self._connection
        return connection.info if connection else None

    @property
    def figures(self) -> EngineFigures | None:
        """None: what a server holds is not known here."""
        return None

    def load(self, endpoint: Endpoint, sink: Sink, /) -> None:
        """Leave the endpoint in use (its running requests fail) and connect to another."""
        self._loop.call_soon_threadsafe(self._load, endpoint, guarded(sink))

    def cancel_load(self) -> None:
        """Stop connecting, if that goes on; it ends in LoadFailed."""
        self._loop.call_soon_threadsafe(lambda: self._loading and self._loading.cancel())

    def unload(self) -> None:
        """Leave the endpoint, or stop connecting to one; running requests fail."""
        self._loop.call_soon_threadsafe(self._leave)

    def submit(self, request: GenerationRequest, sink: Sink) -> int:
        """Start a reply and return its request id; `sink` gets Queued first (or Failed)."""
        request_id, now = next(self._ids), time.monotonic()
        self._loop.call_soon_threadsafe(self._submit, request_id, request, guarded(sink), now)
        return request_id

    def score(self, request: ScoreRequest, sink: Sink) -> int:
        """Refuse: servers do not tell how likely the tokens of a given reply are. Returns the request id."""
        request_id = next(self._ids)
        self._loop.call_soon_threadsafe(guarded(sink), Failed(request_id, NO_SCORES, ""))
        return request_id

    def cancel(self, request_id: int) -> None:
        """Close the connection of a request; it ends in Finished, `cancelled`, with the partial text."""
        self._loop.call_soon_threadsafe(self._cancel, request_id)

    def count_tokens(self, messages: Sequence[Message]) -> int:
        """Tokens of the conversation, an Estimate where nobody has counted them; waits for the server.

        0 when no endpoint is connected. Raises UserError when the server does not answer.
        """
        connection = self._connection
        if connection is None:
            return 0
        counted, tokens = connection.counted
        if counted and tuple(messages[: len(counted)]) == counted:
            rest = messages[len(counted) :]
            return tokens + estimate(rest) if rest else tokens
        if connection.counts and not any(message.images for message in messages):
            counting = connection.client.count(as_json(tuple(messages)))
            try:
                count = asyncio.run_coroutine_threadsafe(counting, self._loop).result(_COUNT_S)
            except FutureTimeout:
                count = None
            if count is not None:
                return count
        return estimate(messages)

    def close(self) -> None:
        """Cancel everything, close the connections and end the thread."""
        if self._thread.is_alive():
            asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    # Everything below runs on the thread's event loop.

    def _load(self, endpoint: Endpoint, sink: Sink) -> None:
        self._leave()
        sink(LoadProgress(0, 0, f"Connecting to {endpoint.host}"))
        self._loading = loading = asyncio.create_task(self._connect(endpoint))
        loading.add_done_callback(lambda task: self._loaded(task, sink))

    async def _connect(self, endpoint: Endpoint) -> _Connection:
        key = await asyncio.to_thread(self._find_key, endpoint)  # a keyring may ask the user first
        client = Client(endpoint, key)
        try:
            served = choose(endpoint, await client.models())
            counts = await client.count([{"role": "user", "content": "Hi"}]) is not None
        except BaseException:
            await client.close()
            raise
        return _Connection(endpoint, client, served, _info(endpoint, served), counts)

    def _loaded(self, task: asyncio.Task[_Connection], sink: Sink) -> None:
        # It may have been left for another one, or for none, when it was done but this had yet to run.
        is_left = task is not self._loading
        if not is_left:
            self._loading = None
        if task.cancelled():
            sink(LoadFailed(CANCELLED))
        elif isinstance(error := task.exception(), UserError):
            sink(LoadFailed(str(error)))
        elif error is not None:
            log.error("connecting failed", exc_info=error)
            sink(LoadFailed(f"Connecting failed ({type(error).__name__}): the log file has the details."))
        elif is_left:
            self._close(task.result())
            sink(LoadFailed(CANCELLED))
        else:
            self._connection = task.result()
            sink(Loaded(self._connection.info))

    def _leave(self) -> None:
        if self._loading:
            self._loading.cancel()
            self._loading = None
        if self._connection:
            for running, task in self._running.values():
                running.abandoned = DISCONNECTED
                task.cancel()
            self._close(self._connection)
            self._connection = None

    def _close(self, connection: _Connection) -> None:
        closing = asyncio.create_task(connection.client.close())
        self._closing.add(closing)  # the event loop itself keeps no task alive
        closing.add_done_callback(self._closing.discard)

    def _submit(self, request_id: int, request: GenerationRequest, sink: Sink, now: float) -> None:
        connection = self._connection
        if connection is None:
            sink(Failed(request_id, NOT_CONNECTED, ""))
            return
        seed = request.params.seed if request.params.seed is not None else random.randrange(_SEEDS)
        running = _Running(request_id, sink, ReplyStream(now, estimate(request.messages)), seed)
        task = asyncio.create_task(self._reply(connection, request, running))
        self._running[request_id] = running, task
        task.add_done_callback(lambda task: self._ended(task, running))

    def _cancel(self, request_id: int) -> None:
        if request_id in self._running:
            self._running[request_id][1].cancel()

    async def _reply(
        self, connection: _Connection, request: GenerationRequest, running: _Running
    ) -> Finished:
        """Raises UserError when the reply does not begin, or does not come to its end."""
        reply, request_id = running.reply, running.request_id
        async with aclosing(await _begin(connection, request, running.seed)) as chunks:
            running.sink(Queued(request_id, reply.prompt_tokens))
            async for chunk in chunks:
                now = time.monotonic()
                self._tell(running, *reply.add(chunk, now), now)
        now = time.monotonic()
        self._tell(running, *reply.flush(now), now)
        if not isinstance(reply.prompt_tokens, Estimate):
            connection.counted = _counted(request, reply)
        return Finished(
            request_id, reply.reason or "stop", reply.text, (), reply.usage(now, running.seed), reply.thinking
        )

    def _tell(self, running: _Running, thought: str, text: str, now: float) -> None:
        reply, request_id = running.reply, running.request_id
        figures = (reply.completion_tokens, now, reply.tokens_per_s)
        if thought:
            thinking = reply.thinking
            running.sink(ThinkingDelta(request_id, thought, thinking.tokens, thinking.seconds, *figures))
        if text:
            running.sink(TextDelta(request_id, text, *figures))

    def _ended(self, task: asyncio.Task[Finished], running: _Running) -> None:
        """However a request ends, its last event is sent here."""
        self._running.pop(running.request_id, None)
        reply, request_id = running.reply, running.request_id
        error = None if task.cancelled() else task.exception()
        if task.cancelled() and not running.abandoned:
            usage = reply.usage(time.monotonic(), running.seed)
            running.sink(Finished(request_id, "cancelled", reply.text, (), usage, reply.thinking))
        elif task.cancelled():
            running.sink(Failed(request_id, running.abandoned, reply.text, reply.thinking))
        elif isinstance(error, UserError):
            running.sink(Failed(request_id, str(error), reply.text, reply.thinking))
        elif error is not None:
            log.error("the request failed", exc_info=error)
            message = f"The request failed ({type(error).__name__}): the log file has the details."
            running.sink(Failed(request_id, message, reply.text, reply.thinking))
        else:
            running.sink(task.result())

    async def _end(self) -> None:
        tasks: list[asyncio.Task[Any]] = [task for _, task in self._running.values()]
        self._leave()
        await asyncio.gather(*tasks, return_exceptions=True)
        others = asyncio.all_tasks() - {asyncio.current_task()}
        await asyncio.gather(*others, return_exceptions=True)


async def _begin(
    connection: _Connection, request: GenerationRequest, seed: int
) -> AsyncGenerator[dict[str, Any], None]:
    """The chunks of a reply that the server has begun. Raises UserError when it does not."""
    model, llama_cpp = connection.endpoint.model, connection.served.owner == "llamacpp"
    body = await asyncio.to_thread(payload, model, request, seed, llama_cpp=llama_cpp)
    while True:
        for name in connection.refused:
            body.pop(name, None)
        chunks = connection.client.chat(body)
        try:
            await anext(chunks)
        except Rejected as error:
            refused = {name for name in EXTRAS if name in body and _is_named(name, error.body)}
            if not refused:
                raise
            log.warning("%s takes no %s", connection.endpoint.name, ", ".join(sorted(refused)))
            connection.refused |= refused
        else:
            return chunks


def choose(endpoint: Endpoint, models: list[ServedModel]) -> ServedModel:
    """The endpoint's model among those of its server. Raises UserError when it is not there."""
    for model in models:
        if model.id == endpoint.model:
            return model
    there = ", ".join(one_line(model.id) for model in models[:5]) or "none at all"
    more = " and more" if len(models) > 5 else ""
    raise UserError(f"{endpoint.name} has no model {endpoint.model!r}: it has {there}{more}.")


def _info(endpoint: Endpoint, served: ServedModel) -> ModelInfo:
    return ModelInfo(
        name=endpoint.name,
        family="",
        parameter_count=0,
        device="remote",
        device_name=f"{endpoint.model} at {endpoint.host}",
        dtype="",
        max_context=endpoint.context or served.context or UNKNOWN_CONTEXT,
        kv_pages=0,
        weight_bytes=0,
        kv_bytes=0,
        operators="",
        defaults={},
        thinking="optional",
        image_tokens=Estimate(IMAGE_TOKENS) if endpoint.images else 0,
    )


def _is_named(name: str, text: str) -> bool:
    """Whether a refusal is about this field."""
    return re.search(rf"(?<![A-Za-z_]){name}(?![A-Za-z_])", text) is not None


def _counted(request: GenerationRequest, reply: ReplyStream) -> tuple[tuple[Message, ...], int]:
    """The conversation with the reply, and its tokens: what was thought is not passed on."""
    begun = request.messages[-1].content if request.continue_last else ""
    before = request.messages[:-1] if request.continue_last else request.messages
    tokens = reply.prompt_tokens + reply.completion_tokens
    if reply.thinking != Thinking():  # its share is known only about
        tokens = Estimate(tokens - reply.thinking.tokens)
    return (*before, Message("assistant", begun + reply.text)), tokens
