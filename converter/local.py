"""Finds checkpoints that can be converted: in the Hub's cache and in directories of the user."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..models.config import ModelConfig
from ..models.errors import UserError
from .huggingface import CONFIG, HuggingFaceSource
from .names import default_name, directory_name, gguf_parts, is_gguf

_DEPTH = 3
"""How many directories deep a directory of the user's is searched."""


@dataclass(frozen=True)
class Local:
    """A checkpoint that the converter takes; `source` is what to tell it."""

    source: str
    name: str
    """The name that the model gets by default."""
    family: str | None
    """None for GGUF files, whose headers are not read here."""
    size: int
    """Bytes of the weights."""
    repo: str | None = None
    revision: str | None = None
    """The Hub repo and commit that a snapshot in the cache is of."""


def find_local(directories: Iterable[Path]) -> list[Local]:
    """All that can be converted in the Hub's cache and under `directories`, by name.

    Whatever cannot be read or converted is passed over. It reads many files: call it off the event loop.
    """
    found = {local.source: local for local in _cached()}
    for directory in directories:
        for local in _search(directory.expanduser().absolute(), _DEPTH):
            found.setdefault(local.source, local)
    return sorted(found.values(), key=lambda local: (local.name.lower(), local.source))


def _cached() -> Iterator[Local]:
    """The newest snapshot of each model in the Hub's cache."""
    from huggingface_hub import CacheNotFound, constants, scan_cache_dir

    try:
        repos = scan_cache_dir(constants.HF_HUB_CACHE).repos
    except (CacheNotFound, ValueError, OSError):
        return
    for repo in repos:
        revisions = sorted(repo.revisions, key=lambda revision: revision.last_modified, reverse=True)
        if repo.repo_type == "model" and revisions:
            newest = revisions[0]
            yield from _look_at(newest.snapshot_path, repo.repo_id, newest.commit_hash)


def _search(directory: Path, depth: int) -> Iterator[Local]:
    yield from _look_at(directory)
    if depth:
        try:
            inner = [entry.path for entry in os.scandir(directory) if entry.is_dir(follow_symlinks=False)]
        except OSError:
            return
        for path in sorted(inner):
            if not Path(path).name.startswith("."):
                yield from _search(Path(path), depth - 1)


def _look_at(directory: Path, repo: str | None = None, revision: str | None = None) -> Iterator[Local]:
    """What `directory` itself holds: a checkpoint, or GGUF files."""
    try:
        if (directory / CONFIG).is_file():
            source = HuggingFaceSource(directory)
            source.close()
            size = sum(path.stat().st_size for path in source.files)
            family = ModelConfig.from_dict(source.config).family
            yield Local(str(directory), directory_name(directory), family, size, repo, revision)
            return
        for path in sorted(directory.glob("*.gguf")):
            parts = gguf_parts(path)
            if path == parts[0] and all(part.is_file() for part in parts) and is_gguf(path):
                size = sum(part.stat().st_size for part in parts)
                yield Local(str(path), default_name(path.stem), None, size, repo, revision)
    except (UserError, OSError):
        return
