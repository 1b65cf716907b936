"""Reads GGUF files: metadata, and tensors one at a time.

The format is described in https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The `gguf` package's
own reader is not used because it maps the file, copies every token into numpy scalars and, on a damaged
file, loops for as long as a corrupt count says; of that package we use the dequantisation.
"""

from __future__ import annotations

import contextlib
import functools
import io
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from torch import Tensor

from ..models.errors import CheckpointError, UnsupportedModelError
from .names import gguf_parts

Kind = gguf.GGMLQuantizationType
_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_MAX_DIMENSIONS = 4
_DEQUANTISED_AT_ONCE = 1 << 20
"""Elements; `gguf` needs several temporaries of this many floats."""

# GGUF's value types by number.
_SCALARS = {0: "u1", 1: "i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?", 10: "<u8", 11: "<i8"}
_SCALARS[12] = "<f8"
_STRING, _ARRAY, _FLOAT32 = 8, 9, 6

# Kept as stored. numpy has no bfloat16: its bits travel as int16.
_FLOATS = {Kind.F32: np.float32, Kind.F16: np.float16, Kind.BF16: np.int16}


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies and how it is stored; `shape` is in PyTorch's order (rows first)."""

    name: str
    shape: tuple[int, ...]
    kind: Kind
    file: io.BufferedReader
    position: int
    """Of its first byte, from the file's start."""
    size: int
    """In bytes."""

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


class Metadata:
    """The key-value part of a GGUF file, read with the type that the caller expects.

    Every getter raises CheckpointError when the key is missing (and no default is given) or holds
    something else.
    """

    def __init__(self, path: Path, values: dict[str, Any]):
        self.path = path
        self._values = values

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def integer(self, key: str, default: int | None = None) -> int:
        return self._get(key, int, default)

    def number(self, key: str, default: float | None = None) -> float:
        value = float(self._get(key, (int, float), default))
        if not math.isfinite(value):
            raise damaged(self.path, f"{key} is {value}")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        return self._get(key, str, default)

    def flag(self, key: str, default: bool) -> bool:
        value = self._values.get(key, default)
        if not isinstance(value, bool):
            raise damaged(self.path, f"{key} has the wrong type")
        return value

    def texts(self, key: str) -> list[str]:
        return self._list(key, str)

    def numbers(self, key: str) -> list[Any]:
        return self._list(key, (int, float))

    def _list(self, key: str, of: type | tuple[type, ...]) -> list[Any]:
        values = self._get(key, list, [])
        if values and not isinstance(values[0], of):  # an array has one type throughout
            raise damaged(self.path, f"{key} has the wrong type")
        return values

    def _get(self, key: str, kind: type | tuple[type, ...], default: Any) -> Any:
        value = self._values.get(key, default)
        if value is None:
            raise damaged(self.path, f"it does not say {key}")
        if not isinstance(value, kind) or isinstance(value, bool):
            raise damaged(self.path, f"{key} has the wrong type")
        return value


class GGUFFile:
    """An opened GGUF model, in one file or split over several (NAME-00001-of-0000N.gguf).

    Everything that the headers claim is checked against the size of the files before it is believed.
    Raises CheckpointError for a file that is no GGUF, damaged or cut short, UnsupportedModelError for one in
    a version, byte order or quantisation that cannot be read.
    """

    def __init__(self, path: Path):
        self.path = path
        self.paths = gguf_parts(path)
        self.tensors: dict[str, TensorInfo] = {}
        self._files = contextlib.ExitStack()
        try:
            headers = [self._open_part(part) for part in self.paths]
            if headers[0].integer("split.count", 1) > len(headers):
                raise CheckpointError(
                    f"{path} is one part of a split model: give the parts their names "
                    "NAME-00001-of-0000N.gguf back and keep them in one directory."
                )
        except BaseException:
            self.close()
            raise
        self.metadata = headers[0]

    def _open_part(self, path: Path) -> Metadata:
        try:
            file = self._files.enter_context(path.open("rb"))
            metadata, tensors = _read_header(path, file)
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read ({error.strerror}): check the path.") from None
        for tensor in tensors:
            if tensor.name in self.tensors:
                raise damaged(path, f"it has two tensors {tensor.name}")
            self.tensors[tensor.name] = tensor
        return metadata

    def read(self, name: str) -> Tensor:
        """One tensor: F32, F16 and BF16 as they are, everything else dequantised to fp32."""
        info = self.tensors[name]
        if dtype := _FLOATS.get(info.kind):
            stored = np.empty(info.shape, dtype)
            self._fill(stored, info, 0)
            tensor = torch.from_numpy(stored)
            return tensor.view(torch.bfloat16) if info.kind == Kind.BF16 else tensor
        columns = info.shape[-1]
        rows = info.elements // columns
        row_size = info.size // rows
        result = np.empty((rows, columns), np.float32)
        step = max(1, _DEQUANTISED_AT_ONCE // columns)
        for start in range(0, rows, step):
            block = np.empty((min(step, rows - start), row_size), np.uint8)
            self._fill(block, info, start * row_size)
            result[start : start + step] = gguf.quants.dequantize(block, info.kind)
        return torch.from_numpy(result).reshape(info.shape)

    def _fill(self, array: np.ndarray, info: TensorInfo, offset: int) -> None:
        """Fill `array` from `offset` bytes into the tensor."""
        info.file.seek(info.position + offset)
        # An unbuffered read may return less than asked for; a buffered one only at the file's end.
        if info.file.readinto(array.data.cast("B")) != array.nbytes:
            raise damaged(self.path, f"it ends within {info.name}")

    def close(self) -> None:
        self._files.close()


def damaged(path: Path, why: str) -> CheckpointError:
    """The error for a file whose content cannot be right."""
    return CheckpointError(f"{path} is damaged or incomplete ({why}): download it again.")


class _Cursor:
    """Reads a header's little-endian values, never past the end of the file."""

    def __init__(self, path: Path, file: io.BufferedReader):
        self._path = path
        self._file = file
        self.size = file.seek(0, io.SEEK_END)
        self.position = 0
        file.seek(0)

    def take(self, count: int) -> bytes:
        if count > self.size - self.position:
            raise damaged(self._path, "it ends within its header")
        self.position += count
        return self._file.read(count)

    def integer(self, code: str) -> int:
        return struct.unpack(f"<{code}", self.take(struct.calcsize(code)))[0]

    def text(self) -> str:
        raw = self.take(self.integer("Q"))
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise damaged(self._path, "a text in its header is not UTF-8") from None

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.text()
        if kind == _ARRAY:
            return self._array()
        return self._scalars(kind, 1)[0]

    def _array(self) -> list[Any]:
        kind, count = self.integer("I"), self.integer("Q")
        if kind == _STRING:
            if count * 8 > self.size - self.position:  # each has at least its length
                raise damaged(self._path, "it ends within its header")
            return [self.text() for _ in range(count)]
        return self._scalars(kind, count)

    def _scalars(self, kind: int, count: int) -> list[Any]:
        if kind not in _SCALARS:
            raise damaged(self._path, f"its header has a value of unknown type {kind}")
        dtype = np.dtype(_SCALARS[kind])
        values = np.frombuffer(self.take(count * dtype.itemsize), dtype)
        if kind == _FLOAT32 and count == 1:
            # The shortest decimal that is the same fp32: 1e-05, not 9.999999747378752e-06.
            return [float(str(values[0]))]
        return values.tolist()


def _read_header(path: Path, file: io.BufferedReader) -> tuple[Metadata, list[TensorInfo]]:
    cursor = _Cursor(path, file)
    if cursor.size < 4 or cursor.take(4) != _MAGIC:
        raise CheckpointError(f"{path} is no GGUF file: check the path or download it again.")
    version = cursor.integer("I")
    if version not in _VERSIONS:
        if version & 0xFFFF == 0 and version:
            raise UnsupportedModelError(f"{path} is a big-endian GGUF file: get the little-endian one.")
        raise UnsupportedModelError(
            f"{path} has GGUF version {version}, readable are {_VERSIONS[0]} and {_VERSIONS[1]}: "
            "get a newer file of this model."
        )
    tensor_count, value_count = cursor.integer("Q"), cursor.integer("Q")
    values: dict[str, Any] = {}
    for _ in range(value_count):
        key = cursor.text()
        if key in values:
            raise damaged(path, f"its header says {key} twice")
        values[key] = cursor.value(cursor.integer("I"))
    metadata = Metadata(path, values)
    described = [_describe(path, cursor) for _ in range(tensor_count)]
    alignment = metadata.integer("general.alignment", 32)
    if alignment < 1 or alignment & (alignment - 1):
        raise damaged(path, f"its alignment is {alignment}")
    start = -(-cursor.position // alignment) * alignment
    tensors, expected = [], 0
    for name, shape, kind, size, offset in described:
        if offset != expected:  # tensors follow one another without gaps
            raise damaged(path, f"{name} is said to be in the wrong place")
        if start + offset + size > cursor.size:
            raise damaged(path, f"it ends before the end of {name}")
        tensors.append(TensorInfo(name, shape, kind, file, start + offset, size))
        expected = -(-(offset + size) // alignment) * alignment
    return metadata, tensors


def _describe(path: Path, cursor: _Cursor) -> tuple[str, tuple[int, ...], Kind, int, int]:
    """Name, shape, kind, size in bytes and offset of the next tensor of the header."""
    name = cursor.text()
    dimensions = cursor.integer("I")
    if not 1 <= dimensions <= _MAX_DIMENSIONS:
        raise damaged(path, f"{name} has {dimensions} dimensions")
    shape = tuple(cursor.integer("Q") for _ in range(dimensions))[::-1]  # GGUF counts from the innermost
    number, offset = cursor.integer("I"), cursor.integer("Q")
    try:
        kind = Kind(number)
    except ValueError:
        raise UnsupportedModelError(
            f"{path} has {name} in the unknown tensor type {number}: download it again or get another "
            "quantisation."
        ) from None
    if kind not in _FLOATS and not _can_dequantise(kind):
        raise UnsupportedModelError(
            f"{path} has {name} in {kind.name}, which cannot be converted: get another quantisation."
        )
    block, block_size = gguf.GGML_QUANT_SIZES[kind]
    if 0 in shape or shape[-1] % block:
        raise damaged(path, f"{name} has the shape {list(shape)} in {kind.name}")
    return name, shape, kind, math.prod(shape) // block * block_size, offset


@functools.cache
def _can_dequantise(kind: Kind) -> bool:
    try:
        gguf.quants.dequantize(np.zeros((1, gguf.GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
    except NotImplementedError:
        return False
    return True
