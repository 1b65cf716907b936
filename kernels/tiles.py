"""The table of measured tiles: what `tuning.tune` found to be faster than the kernels' own rules.

Keys name the kind of GPU, the kernel and the shape; values are the launch options that its rule would give.
The package brings the table of GPUs that we have measured; the file that LITE_LLAMA_TILES names, a user's
own, comes on top.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch

from ._triton import Target

Options = dict[str, int]

VARIABLE = "LITE_LLAMA_TILES"
_asked: dict[str, Callable[[], Iterable[Options]]] | None = None
_PACKAGED = Path(__file__).with_name("tiles.json")


def key(kernel: str, where: Target, dtype: torch.dtype, **shape: int) -> str:
    """`sm_90 gemv bfloat16 inputs=2048 outputs=3072 gated=0`."""
    parts = [where.arch, kernel, str(dtype).removeprefix("torch.")]
    return " ".join([*parts, *(f"{name}={value}" for name, value in shape.items())])


def choose(name: str, rule: Callable[[], Options], candidates: Callable[[], Iterable[Options]]) -> Options:
    """The measured options of a key, else those of `rule`. Raises ValueError where the user's table is none.

    `candidates`: what a tuner should try.
    """
    if _asked is not None:
        _asked[name] = candidates
    return _table().get(name) or rule()


@contextmanager
def asked() -> Iterator[dict[str, Callable[[], Iterable[Options]]]]:
    """Collects the keys that are asked for meanwhile, each with its candidates."""
    global _asked
    _asked = {}
    try:
        yield _asked
    finally:
        _asked = None


def update(options: dict[str, Options]) -> None:
    """Add to the table of this process."""
    _table().update(options)


def save(path: Path, options: dict[str, Options]) -> None:
    """Write `options` into a user's table; what it says of other keys stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(_read(path) | options, indent=1, sort_keys=True)
    path.write_text(text + "\n", encoding="utf-8")


@cache
def _table() -> dict[str, Options]:
    packaged, own = _read(_PACKAGED), os.environ.get(VARIABLE)
    return packaged | (_current(_read(Path(own)), packaged) if own else {})


def _current(own: dict[str, Options], packaged: dict[str, Options]) -> dict[str, Options]:
    """Those entries of a user's table whose options have the names that the kernels' options have today."""

    def kernel(name: str) -> list[str]:
        return name.split()[1:2]

    known = [(kernel(name), options.keys()) for name, options in packaged.items()]
    return {name: options for name, options in own.items() if (kernel(name), options.keys()) in known}


def _read(path: Path) -> dict[str, Options]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError:
        found = None
    if not isinstance(found, dict) or not all(_are_options(options) for options in found.values()):
        raise ValueError(f"{path} is no table of tiles: delete it and tune again.")
    return found


def _are_options(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(number, int) for number in value.values())
