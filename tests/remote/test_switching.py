"""Going from one endpoint to the next while the engine is still connecting. No server is needed."""

import asyncio
import queue
import threading
from types import SimpleNamespace

import pytest

from lite_llama.app.remote.endpoint import Endpoint
from lite_llama.app.remote.engine import CANCELLED, RemoteEngine
from lite_llama.engine.events import Loaded, LoadFailed

FIRST, SECOND = (Endpoint(name, "http://127.0.0.1:1/v1", "served") for name in ("first", "second"))


class Connection:
    """What connecting comes to, without a server."""

    def __init__(self, name):
        self.info, self.client, self.closed = SimpleNamespace(name=name), self, False

    async def close(self):
        self.closed = True


@pytest.fixture
def engine():
    made = RemoteEngine(lambda endpoint: None)
    yield made
    made.close()


@pytest.fixture
def connections(engine, monkeypatch):
    """Connecting takes no time; what it came to."""
    made = {}

    async def connect(endpoint):
        return made.setdefault(endpoint.name, Connection(endpoint.name))

    monkeypatch.setattr(engine, "_connect", connect)
    return made


def last(events):
    while not isinstance(event := events.get(timeout=10), Loaded | LoadFailed):
        pass
    return event


def between(engine, then):
    """Load FIRST, and do `then` on the engine's loop when that is done but not yet told; its events."""
    events = queue.SimpleQueue()

    async def run():
        engine._load(FIRST, events.put)
        asyncio.get_running_loop().call_soon(then)

    asyncio.run_coroutine_threadsafe(run(), engine._loop).result(10)
    return events


def test_the_endpoint_that_was_asked_for_last_is_the_one_in_use(engine, connections):
    second = queue.SimpleQueue()
    first = between(engine, lambda: engine._load(SECOND, second.put))
    assert last(first) == LoadFailed(CANCELLED)
    assert isinstance(last(second), Loaded)
    assert engine.model.name == "second"
    engine.close()
    assert connections["first"].closed


def test_unloading_ends_a_connection_that_was_just_made(engine, connections):
    assert last(between(engine, engine._leave)) == LoadFailed(CANCELLED)
    assert engine.model is None
    engine.close()
    assert connections["first"].closed


def test_unloading_stops_connecting():
    asked, answer = threading.Event(), threading.Event()

    def find_key(_):
        asked.set()
        answer.wait(10)

    engine, events = RemoteEngine(find_key), queue.SimpleQueue()
    engine.load(FIRST, events.put)
    assert asked.wait(10)
    engine.unload()
    assert last(events) == LoadFailed(CANCELLED)
    answer.set()
    engine.close()
    assert engine.model is None
