"""The lite_llama checkpoint format: a directory that the converter writes and the engine loads.

    NAME/
      manifest.json            what this is (class Manifest below)
      model.safetensors        the fused weights, one dtype, names from models/weights.py
      config.json              Hugging Face's, unchanged
      generation_config.json   unchanged, when the source has one
      tokenizer.json, ...      tokenizer files and chat template, unchanged

A directory without a manifest is no model: the converter writes the manifest last and then renames the
whole directory into place.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .config import ModelConfig
from .errors import CheckpointError

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
WEIGHTS = "model.safetensors"
VERIFIED = ".verified.json"
_CHUNK = 1 << 20


@dataclass(frozen=True)
class FileRecord:
    """Size in bytes and sha256 (hex) of one file of a checkpoint."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """Where a converted model came from and what it holds."""

    format_version: int
    name: str
    source: str
    """What the user named: a directory, a Hub repo id, a GGUF file or `demo`."""
    revision: str | None
    """The Hub commit, when there is one."""
    architecture: str
    family: str
    dtype: str
    parameter_count: int
    created_at: str
    """UTC, ISO 8601."""
    tool_version: str
    files: dict[str, FileRecord]

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Parse. Raises ValueError, KeyError or TypeError on anything that is no manifest."""
        raw: dict[str, Any] = json.loads(text)
        files = {name: FileRecord(**record) for name, record in raw.pop("files").items()}
        return cls(**raw, files=files)


@dataclass(frozen=True)
class Checkpoint:
    """A converted model on disk."""

    path: Path
    manifest: Manifest
    config: ModelConfig

    @property
    def weights(self) -> Path:
        return self.path / WEIGHTS

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(record.size for record in self.manifest.files.values())

    @classmethod
    def open(cls, path: Path) -> Checkpoint:
        """Read the manifest and config and check that every file is there with its size.

        Raises CheckpointError when the directory is no converted model, is incomplete, or was written by a
        newer version of the program.
        """
        again = f"convert it again (lite-llama-tui convert SOURCE --name {path.name} --force)"
        try:
            manifest = Manifest.from_json((path / MANIFEST).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise CheckpointError(
                f"{path} is no converted model: run lite-llama-tui convert on it first."
            ) from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise CheckpointError(f"The manifest of {path.name} is damaged: {again}.") from None
        if manifest.format_version != FORMAT_VERSION:
            raise CheckpointError(
                f"{path.name} has checkpoint format {manifest.format_version}, this program reads "
                f"{FORMAT_VERSION}: {again}."
            )
        for name, record in manifest.files.items():
            try:
                size = (path / name).stat().st_size
            except OSError:
                raise CheckpointError(f"{path.name} lacks its file {name}: {again}.") from None
            if size != record.size:
                raise CheckpointError(
                    f"{path.name}/{name} has {size} bytes instead of {record.size}: {again}."
                )
        return cls(path, manifest, ModelConfig.from_file(path / "config.json"))

    def verify(self, *, force: bool = False, progress: Callable[[int], None] | None = None) -> None:
        """Check every file's sha256; raises CheckpointError naming the first that differs.

        The result is remembered beside the files with their size and modification time, and only a file
        that changed since is read again, unless `force`. `progress` gets the number of bytes just read.
        """
        stamps = {name: _stamp(self.path / name) for name in self.manifest.files}
        known = {} if force else self._verified()
        for name, record in self.manifest.files.items():
            if known.get(name) == stamps[name]:
                continue
            digest = hashlib.sha256()
            with (self.path / name).open("rb") as file:
                while chunk := file.read(_CHUNK):
                    digest.update(chunk)
                    if progress:
                        progress(len(chunk))
            if digest.hexdigest() != record.sha256:
                raise CheckpointError(
                    f"{self.path.name}/{name} is damaged (its checksum differs): convert it again "
                    f"(lite-llama-tui convert {self.manifest.source} --name {self.path.name} --force)."
                )
        self.mark_verified()

    def mark_verified(self) -> None:
        """Remember that the files, as they are now, have the right checksums."""
        stamps = {name: _stamp(self.path / name) for name in self.manifest.files}
        with contextlib.suppress(OSError):  # a read-only model directory is only verified again next time
            (self.path / VERIFIED).write_text(json.dumps(stamps), encoding="utf-8")

    def _verified(self) -> dict[str, list[int]]:
        try:
            known = json.loads((self.path / VERIFIED).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return known if isinstance(known, dict) else {}


def _stamp(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of a model's directory; empty when there is no such file, or it holds something else.

    Raises CheckpointError for a damaged one.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON ({error}): convert the model again.") from None
    return raw if isinstance(raw, dict) else {}
