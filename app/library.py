"""The converted models on this machine, and which of them the user means."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..models.checkpoint import MANIFEST, Checkpoint
from ..models.errors import CheckpointError, UserError

if TYPE_CHECKING:
    from ..converter import Local

NO_MODEL = "There is no converted model yet: run lite-llama-tui convert demo to get the demo model."

_SPEED = ".speed.json"
"""Beside the model's files, as .verified.json is: it moves with the model and goes with it."""


@dataclass(frozen=True)
class Library:
    """The models of one directory: those that can be loaded, and what is wrong with the others."""

    models: tuple[Checkpoint, ...]
    damage: dict[str, str]
    """Name of a damaged model -> the sentence that says what is wrong with it."""


def scan(models_dir: Path) -> Library:
    """Open every model under `models_dir`; directories without a manifest are no models and passed over."""
    models, damage = [], {}
    for path in sorted(models_dir.iterdir()) if models_dir.is_dir() else []:
        if path.name.startswith(".") or not (path / MANIFEST).is_file():
            continue
        try:
            models.append(Checkpoint.open(path))
        except UserError as error:
            damage[path.name] = str(error)
    return Library(tuple(models), damage)


def find(models_dir: Path, model: str | None, last_used: str | None = None) -> Checkpoint:
    """The model to run.

    `model` is the name of a converted model or the path of its directory. None means the one used last,
    else the only one there is. Raises UserError, listing the names, when that settles nothing.
    """
    if model is not None:
        return _named(models_dir, model)
    if last_used and _is_model(models_dir / last_used):
        return Checkpoint.open(models_dir / last_used)
    library = scan(models_dir)
    if len(library.models) == 1:
        return library.models[0]
    if library.models:
        raise UserError(f"Say which model with --model: {_names(library)}.")
    if library.damage:
        raise CheckpointError(next(iter(library.damage.values())))
    raise UserError(NO_MODEL)


def _named(models_dir: Path, model: str) -> Checkpoint:
    for path in (models_dir / model, Path(model).expanduser()):
        if model and _is_model(path):
            return Checkpoint.open(path)
    path = Path(model).expanduser()
    if model and (path.suffix.lower() == ".gguf" or (path / "config.json").is_file()) and path.exists():
        raise UserError(f"{model} is not converted yet: run lite-llama-tui convert {model} first.")
    library = scan(models_dir)
    if library.models:
        raise UserError(f"There is no converted model {model!r}; there are: {_names(library)}.")
    raise UserError(f"There is no converted model {model!r}, nor any other: run lite-llama-tui convert demo.")


def _is_model(path: Path) -> bool:
    return (path / MANIFEST).is_file()


def _names(library: Library) -> str:
    return ", ".join(checkpoint.path.name for checkpoint in library.models)


def remember_speed(path: Path, tokens_per_s: float) -> None:
    """Note how fast the model in `path` wrote its last reply."""
    with contextlib.suppress(OSError):  # a read-only model directory has no last speed
        (path / _SPEED).write_text(json.dumps({"tokens_per_s": tokens_per_s}), encoding="utf-8")


def last_speed(path: Path) -> float | None:
    """Tokens per second of the last reply of the model in `path`, None when there was none."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return float(json.loads((path / _SPEED).read_text(encoding="utf-8"))["tokens_per_s"])
    return None


def not_converted(found: Iterable[Local], library: Library) -> list[Local]:
    """Those checkpoints that no model of the library was made from."""
    made = {(model.manifest.source, model.manifest.revision) for model in library.models}
    sources = {source for source, _ in made}
    return [
        local for local in found if local.source not in sources and (local.repo, local.revision) not in made
    ]
