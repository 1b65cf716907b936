"""A Hugging Face checkpoint directory as a source: config, tokenizer and safetensors, single or sharded."""

from __future__ import annotations

import fnmatch
import io
import json
import math
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..models.checkpoint import MANIFEST
from ..models.config import ModelConfig
from ..models.errors import CheckpointError, UnsupportedModelError, UserError
from ..models.weights import is_ignored, source_name
from .writer import BYTES

if TYPE_CHECKING:
    from torch import Tensor

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
# Everything but the weights that a converted model keeps, as shell patterns.
COMPANIONS = (
    CONFIG,
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.json*",
    "chat_template.jinja",
    "preprocessor_config.json",
    "processor_config.json",
)
_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
_PICKLES = ("*.bin", "*.pt", "*.pth")
# Far above any real header (a 400B model's takes some 100 KB); a damaged length field is far above this.
_MAX_HEADER = 100 << 20


def is_companion(name: str) -> bool:
    """Whether a file of this name goes into the converted model unchanged."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in COMPANIONS)


def check_files(names: Iterable[str], where: str) -> None:
    """Raise UserError unless a checkpoint with files of these names can be converted; `where` it is."""
    found = set(names)
    if not found:
        raise CheckpointError(f"{where} is empty: point at a Hugging Face checkpoint.")
    if MANIFEST in found and WEIGHTS in found:
        raise UserError(f"{where} is a converted model already: name the checkpoint that it was made from.")
    if CONFIG not in found and (ggufs := sorted(fnmatch.filter(found, "*.gguf"))):
        raise UserError(f"{where} holds GGUF files: name one of them, such as {ggufs[0]}.")
    if CONFIG not in found:
        raise CheckpointError(f"{where} has no {CONFIG}: point at a Hugging Face checkpoint.")
    if not {WEIGHTS, INDEX} & found:
        pickles = sorted(name for name in found if any(fnmatch.fnmatch(name, p) for p in _PICKLES))
        if pickles:
            raise CheckpointError(
                f"{where} has its weights only as pickle ({pickles[0]}), which runs code when loaded: save "
                "it as safetensors first (with transformers: from_pretrained, then save_pretrained)."
            )
        raise CheckpointError(f"{where} has neither {WEIGHTS} nor {INDEX}: get the complete checkpoint.")
    if not ({"tokenizer.json", "tokenizer.model"} & found or {"vocab.json", "merges.txt"} <= found):
        raise CheckpointError(f"{where} has no tokenizer: put its tokenizer.json beside {CONFIG}.")


def auto_dtype(config: Mapping[str, Any], tensors: Iterable[str]) -> str:
    """What `--dtype auto` means: the config's dtype, or else that of the tensors (the widest of them)."""
    declared = str(config.get("dtype") or config.get("torch_dtype") or "").removeprefix("torch.")
    if declared in _DTYPES.values():
        return declared
    stored = set(tensors)
    return next((dtype for dtype in ("float32", "bfloat16", "float16") if dtype in stored), "float32")


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies: `offset` and `size` in bytes, `dtype` by the format's name (F32, ...)."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    size: int


def read_header(path: Path) -> dict[str, Entry]:
    """The tensors of a safetensors file, checked against the format and against the file's size.

    They are named as `source_name` says, whatever layout the checkpoint was written in.

    Raises CheckpointError naming the file when it is no sound safetensors file.
    Format: https://github.com/huggingface/safetensors#format
    """

    def damaged(what: str) -> CheckpointError:
        return CheckpointError(f"{path} is damaged ({what}): get that file again.")

    with path.open("rb") as file:
        file_size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if file_size < 8 or length > min(_MAX_HEADER, file_size - 8):
            raise damaged("it is cut short, or the length of its header is wrong")
        text = file.read(length)
    try:
        raw = json.loads(text)
        raw.pop("__metadata__", None)
        entries = {source_name(name): _entry(path, fields, 8 + length) for name, fields in raw.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise damaged("its header is unreadable") from None
    end = 8 + length
    for entry in sorted(entries.values(), key=lambda entry: (entry.offset, entry.size)):
        if entry.offset != end:
            raise damaged("its tensors overlap or leave gaps")
        end += entry.size
    if end != file_size:
        raise damaged(f"it has {file_size} bytes instead of {end}")
    return entries


def _entry(path: Path, fields: Mapping[str, Any], data_start: int) -> Entry:
    """One item of a header. Raises ValueError, KeyError or TypeError when it makes no sense."""
    start, end = (int(offset) for offset in fields["data_offsets"])
    shape = tuple(int(extent) for extent in fields["shape"])
    dtype = str(fields["dtype"])
    elements = math.prod(shape)
    if start < 0 or end < start or min(shape, default=0) < 0:
        raise ValueError
    if dtype in _DTYPES and end - start != elements * BYTES[_DTYPES[dtype]]:
        raise ValueError
    return Entry(path, dtype, shape, data_start + start, end - start)


class HuggingFaceSource:
    """See converter/source.py. Tensors are read from their place in the file, without a memory map: mapped
    pages would count as the program's memory until the kernel takes them back.
    """

    def __init__(self, directory: Path) -> None:
        """Read config and headers. Raises CheckpointError or UserError saying what is wrong with them."""
        check_files((path.name for path in directory.iterdir() if path.is_file()), str(directory))
        self._directory = directory
        model = ModelConfig.from_file(directory / CONFIG)
        self.config: Mapping[str, Any] = json.loads((directory / CONFIG).read_text(encoding="utf-8"))
        self._entries = self._read_entries(model)
        self._file: io.FileIO | None = None
        self._file_path: Path | None = None

    @property
    def dtype(self) -> str:
        return auto_dtype(self.config, (_DTYPES.get(entry.dtype, "") for entry in self._entries.values()))

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {name: entry.shape for name, entry in self._entries.items()}

    @property
    def files(self) -> Sequence[Path]:
        return sorted({entry.file for entry in self._entries.values()})

    def read(self, name: str) -> Tensor:
        import torch

        entry = self._entries[name]
        if entry.dtype not in _DTYPES:
            raise UnsupportedModelError(
                f"Tensor {name} is stored as {entry.dtype}: get a float32, float16 or bfloat16 checkpoint."
            )
        data = torch.empty(entry.size, dtype=torch.uint8)
        buffer = data.numpy().data
        file = self._open(entry.file)
        file.seek(entry.offset)
        done = 0
        while done < entry.size:
            count = file.readinto(buffer[done:])
            if not count:
                raise CheckpointError(f"{entry.file} became shorter while it was read: convert it again.")
            done += count
        return data.view(getattr(torch, _DTYPES[entry.dtype])).reshape(entry.shape)

    def write_files(self, directory: Path) -> None:
        for path in self._directory.iterdir():
            if path.is_file() and is_companion(path.name):
                shutil.copyfile(path, directory / path.name)

    def close(self) -> None:
        if self._file:
            self._file.close()
        self._file = self._file_path = None

    def _open(self, path: Path) -> io.FileIO:
        """The file, kept open while its neighbours are read, as tensors mostly lie in order."""
        if self._file is None or self._file_path != path:
            self.close()
            self._file, self._file_path = path.open("rb", buffering=0), path
        return self._file

    def _read_entries(self, model: ModelConfig) -> dict[str, Entry]:
        """Every tensor of the checkpoint; with shards, exactly those that the index lists."""
        if (self._directory / WEIGHTS).is_file():
            return read_header(self._directory / WEIGHTS)
        listed = self._read_index()
        shards = sorted(set(listed.values()))
        if missing := [shard for shard in shards if not (self._directory / shard).is_file()]:
            raise CheckpointError(
                f"{self._directory} lacks {some(missing)}, {len(missing)} of {len(shards)} shards: "
                "get the missing files."
            )
        entries: dict[str, Entry] = {}
        for shard in shards:
            header = read_header(self._directory / shard)
            expected = {name for name, file in listed.items() if file == shard}
            if absent := expected - header.keys():
                raise CheckpointError(f"{shard} lacks {some(absent)}, which {INDEX} lists: get it again.")
            if extra := {name for name in header.keys() - expected if not is_ignored(name, model)}:
                raise CheckpointError(f"{shard} holds {some(extra)}, which {INDEX} lacks: get both again.")
            entries.update({name: header[name] for name in expected})
        return entries

    def _read_index(self) -> dict[str, str]:
        """Tensor name (by `source_name`) -> file name."""
        path = self._directory / INDEX
        try:
            listed = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
            # A name with a directory in it would reach outside of the checkpoint.
            if not listed or any(Path(file).name != file for file in listed.values()):
                raise ValueError
        except (ValueError, KeyError, TypeError, AttributeError):
            raise CheckpointError(f"{path} is damaged: get that file again.") from None
        return {source_name(name): file for name, file in listed.items()}


def some(names: Iterable[str]) -> str:
    """Up to three of the names, and how many more there are."""
    ordered = sorted(names)
    more = f" and {len(ordered) - 3} more" if len(ordered) > 3 else ""
    return ", ".join(ordered[:3]) + more
