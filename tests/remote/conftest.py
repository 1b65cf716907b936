"""Fixtures of the endpoints' tests: server processes on loopback, and engines that talk to them."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from lite_llama.app.remote.endpoint import Endpoint
from lite_llama.app.remote.engine import RemoteEngine
from lite_llama.engine.events import Event, Failed, Finished, Loaded, LoadFailed, Queued
from lite_llama.engine.request import GenerationRequest, Message, SamplingParams

KEY = "sk-loopback-0123456789abcdef"
SERVER = Path(__file__).with_name("server.py")


@dataclass
class Running:
    """A server process."""

    port: int
    scheme: str = "http"

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}/v1"

    def log(self) -> dict[str, Any]:
        """What it was asked, and which replies were cancelled."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/log") as answer:
            return json.load(answer)


def _serve(*arguments: str | Path) -> Iterator[Running]:
    process = subprocess.Popen(
        [sys.executable, str(SERVER), *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stdin
    assert process.stdout
    try:
        yield Running(int(process.stdout.readline()), "https" if "--certificate" in arguments else "http")
    finally:
        process.stdin.close()
        process.wait(20)
        process.stdout.close()


@pytest.fixture
def key() -> str:
    """What the locked server wants."""
    return KEY


@pytest.fixture(scope="session")
def server() -> Iterator[Running]:
    """Faults and recordings, without a key."""
    yield from _serve("-")


@pytest.fixture(scope="session")
def locked_server() -> Iterator[Running]:
    """The same, with a key."""
    yield from _serve("-", "--key", KEY)


@pytest.fixture(scope="session")
def demo_server(demo_model: Path) -> Iterator[Running]:
    """Our engine with the demo model."""
    yield from _serve(demo_model)


@pytest.fixture
def tls_server(tmp_path: Path) -> Iterator[Running]:
    """A server whose certificate nobody has signed."""
    pem = tmp_path / "server.pem"
    subject = ("-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1")
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *subject]
    try:
        subprocess.run(
            [*make, "-keyout", tmp_path / "key", "-out", tmp_path / "cert"], check=True, capture_output=True
        )
    except FileNotFoundError:
        pytest.skip("openssl is not installed")
    pem.write_text((tmp_path / "key").read_text() + (tmp_path / "cert").read_text())
    yield from _serve("-", "--certificate", pem)


class Talk:
    """A RemoteEngine, and what comes of it: each call waits for its last event."""

    def __init__(self, key: str | None) -> None:
        self.engine = RemoteEngine(lambda endpoint: SecretStr(key) if key else None)

    def connect(self, endpoint: Endpoint) -> Loaded | LoadFailed:
        events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self.engine.load(endpoint, events.put)
        while not isinstance(event := events.get(timeout=60), Loaded | LoadFailed):
            pass
        return event

    def submit(self, text: str | GenerationRequest, **params: Any) -> tuple[int, queue.SimpleQueue[Event]]:
        request = text
        if isinstance(request, str):
            request = GenerationRequest((Message("user", request),), SamplingParams(**params))
        events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        return self.engine.submit(request, events.put), events

    def ask(self, text: str | GenerationRequest, **params: Any) -> list[Event]:
        """All events of a reply."""
        _, events = self.submit(text, **params)
        return self.rest(events)

    def rest(self, events: queue.SimpleQueue[Event]) -> list[Event]:
        taken: list[Event] = []
        while not taken or not isinstance(taken[-1], Finished | Failed):
            taken.append(events.get(timeout=120))
        return taken

    def fails(self, text: str | GenerationRequest = "Hi") -> tuple[str, bool, str]:
        """The failure's sentence, whether the reply had begun, and what there was of it."""
        *before, failed = self.ask(text)
        assert isinstance(failed, Failed)
        return failed.message, any(isinstance(event, Queued) for event in before), failed.text


@pytest.fixture
def talk() -> Iterator[Callable[..., Talk]]:
    """`talk(server, "demo")` is connected to that model; `key` is what it is given."""
    talks: list[Talk] = []

    def make(server: Running, model: str, key: str | None = None, **more: Any) -> Talk:
        talks.append(Talk(key))
        outcome = talks[-1].connect(Endpoint("cluster", server.url, model, **more))
        assert isinstance(outcome, Loaded), outcome
        return talks[-1]

    yield make
    for each in talks:
        each.engine.close()
