"""Tiny checkpoints to convert, and a Hub on loopback that speaks the endpoints that a download uses."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Protocol

import pytest

from lite_llama.converter import Done, convert
from lite_llama.models.checkpoint import Checkpoint


@pytest.fixture(scope="session")
def tiny_llama(make_checkpoint, tmp_path_factory) -> Path:
    """The float32 Llama checkpoint itself, for tests that only read it."""
    return make_checkpoint("LlamaForCausalLM", tmp_path_factory.mktemp("llama") / "tiny-llama")


@pytest.fixture(scope="session")
def tiny_sharded(make_checkpoint, tmp_path_factory) -> Path:
    """The sharded bfloat16 checkpoint itself, for tests that only read it."""
    directory = tmp_path_factory.mktemp("sharded") / "tiny-sharded"
    return make_checkpoint("LlamaForCausalLM", directory, dtype="bfloat16", max_shard_size="150KB")


@pytest.fixture
def llama(tiny_llama, tmp_path) -> Path:
    """A float32 Llama checkpoint in one safetensors file, the test's own to damage."""
    return Path(shutil.copytree(tiny_llama, tmp_path / tiny_llama.name))


@pytest.fixture
def sharded(tiny_sharded, tmp_path) -> Path:
    """A bfloat16 Llama checkpoint in several shards, the test's own to damage."""
    return Path(shutil.copytree(tiny_sharded, tmp_path / tiny_sharded.name))


@pytest.fixture
def models_dir(tmp_path) -> Path:
    return tmp_path / "data" / "models"


@pytest.fixture
def downloads_dir(tmp_path) -> Path:
    return tmp_path / "data" / "downloads"


class Convert(Protocol):
    """Runs a conversion to its end, with convert()'s options, and returns the model."""

    def __call__(self, source: object, **options: Any) -> Checkpoint: ...


@pytest.fixture
def run(models_dir, downloads_dir) -> Convert:
    def run(source: object, **options: Any) -> Checkpoint:
        *_, last = convert(str(source), models_dir, downloads_dir, **options)
        assert isinstance(last, Done)
        return last.checkpoint

    return run


@dataclass
class FakeRepo:
    """A model repo; its safetensors files are in large-file storage."""

    files: dict[str, bytes]
    commit: str = "0123456789abcdef0123456789abcdef01234567"
    gated: bool = False


@dataclass
class Fault:
    """What goes wrong with the download of a file."""

    cut_after: int | None = None
    """Bytes after which the connection breaks, `times` times."""
    times: int = 1
    flip: bool = False
    """Send a wrong byte at the end."""
    stall_after: int | None = None
    """Bytes after which nothing more is sent, while the connection stays open."""
    status: int | None = None
    """The HTTP error that is sent instead, `times` times."""


@dataclass
class FakeHub:
    """The server. `requests` holds (file name, first byte asked for) of every download so far."""

    repos: dict[str, FakeRepo] = field(default_factory=dict)
    faults: dict[str, Fault] = field(default_factory=dict)
    requests: list[tuple[str, int]] = field(default_factory=list)
    ranges: bool = True
    """Whether it honours the Range header."""
    released: threading.Event = field(default_factory=threading.Event)
    """Set at the end of a test: stalled connections then end."""

    def add(self, name: str, directory: Path, **options: Any) -> FakeRepo:
        files = {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}
        self.repos[name] = FakeRepo(files, **options)
        return self.repos[name]

    def spoil(self, file: str, **fault: Any) -> None:
        """Let something go wrong with every download of `file`; see Fault."""
        self.faults[file] = Fault(**fault)

    def fetched(self) -> list[str]:
        """The files that were asked for."""
        return sorted({name for name, _ in self.requests})


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: FakeHub

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?", path):
            self._info(*match.groups())
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._file(*match.groups())
        else:
            self._error(404, "EntryNotFound")

    def _info(self, name: str, revision: str | None) -> None:
        repo = self.hub.repos.get(name)
        if repo is None:
            # What the real Hub answers to somebody who is not logged in.
            return self._error(401, "RepoNotFound")
        if revision not in (None, "main", repo.commit):
            return self._error(404, "RevisionNotFound")
        siblings = []
        for file, content in repo.files.items():
            entry: dict[str, Any] = {"rfilename": file, "size": len(content), "blobId": _git_hash(content)}
            if file.endswith(".safetensors"):
                sha256 = hashlib.sha256(content).hexdigest()
                entry["lfs"] = {"sha256": sha256, "size": len(content), "pointerSize": 134}
            siblings.append(entry)
        body = {"id": name, "sha": repo.commit, "siblings": siblings, "private": False, "tags": []}
        return self._send(200, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def _file(self, name: str, revision: str, file: str) -> None:
        repo = self.hub.repos[name]
        if repo.gated:
            return self._error(403, "GatedRepo")
        if revision != repo.commit or file not in repo.files:
            return self._error(404, "EntryNotFound")
        content = repo.files[file]
        start = 0
        if self.hub.ranges and (match := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))):
            start = int(match[1])
        self.hub.requests.append((file, start))
        fault = self.hub.faults.get(file, Fault())
        if fault.status and fault.times > 0:
            fault.times -= 1
            return self._error(fault.status, "")
        if fault.flip:
            content = content[:-1] + bytes([content[-1] ^ 1])
        headers = {"ETag": f'"{_git_hash(content)}"', "X-Repo-Commit": repo.commit}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        body, length = content[start:], len(content) - start
        if fault.cut_after is not None and fault.times > 0:
            fault.times -= 1
            self._send(206 if start else 200, body[: fault.cut_after], headers, length)
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
        elif fault.stall_after is not None:
            self._send(206 if start else 200, body[: fault.stall_after], headers, length)
            self.hub.released.wait(30)
            self.close_connection = True
        else:
            self._send(206 if start else 200, body, headers)
        return None

    def _send(self, status: int, body: bytes, headers: dict[str, str], length: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        try:
            self.wfile.write(body)
            self.wfile.flush()
        except ConnectionError:  # the client cancelled
            self.close_connection = True

    def _error(self, status: int, code: str) -> None:
        self._send(status, b"", {"X-Error-Code": code} if code else {})


def _git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@pytest.fixture
def hub(monkeypatch, tmp_path) -> Iterator[FakeHub]:
    """An empty Hub on loopback, used by huggingface_hub for the time of the test, with an empty cache."""
    import huggingface_hub

    hub = FakeHub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hf-cache"))
    yield hub
    hub.released.set()
    server.shutdown()
    server.server_close()
