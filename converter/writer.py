"""Writes a safetensors file front to back, so that no more than a piece of a tensor is in memory."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..models.errors import CheckpointError, UserError
from ..models.weights import Target

if TYPE_CHECKING:
    from torch import Tensor

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_CODES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
_PIECE = 1 << 22
"""Elements cast, checked and written at a time."""
_READ = 8 << 20
"""Bytes read at a time of a file that is taken over."""
_ALIGNMENT = 64
"""The data begins at a multiple of this; tensors of a model's usual widths then all do."""


def header(targets: Sequence[Target], dtype: str) -> bytes:
    """The length field and JSON header of a safetensors file that holds `targets` in order, padded."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for target in targets:
        end = offset + math.prod(target.shape) * BYTES[dtype]
        entries[target.name] = {
            "dtype": _CODES[dtype],
            "shape": list(target.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


class WeightsWriter:
    """The file being written, with its size and sha256 so far. Tensors are appended in header order."""

    def __init__(self, path: Path, targets: Sequence[Target], dtype: str) -> None:
        """Open the file, which may hold a part of itself: `resume` it, or `begin` anew."""
        self._dtype = dtype
        self._header = header(targets, dtype)
        self._file = path.open("r+b" if path.exists() else "w+b")
        self._digest = hashlib.sha256()
        self.size = 0

    @property
    def header_size(self) -> int:
        return len(self._header)

    def begin(self) -> None:
        """Throw away what is there and write the header."""
        self._file.seek(0)
        self._file.truncate()
        self._digest, self.size = hashlib.sha256(), 0
        self._append(self._header)

    def resume(self, size: int) -> Iterator[None]:
        """Read the first `size` bytes of the file, yielding per piece, and drop the rest."""
        while self.size < size and (data := self._file.read(min(_READ, size - self.size))):
            self._digest.update(data)
            self.size += len(data)
            yield
        self._file.seek(self.size)
        self._file.truncate()

    def flush(self) -> None:
        """Hand all that was written to the operating system."""
        self._file.flush()

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    def write(self, name: str, tensor: Tensor) -> Iterator[None]:
        """Append a source tensor (CPU, contiguous, any float dtype) cast to the file's; yields per piece.

        Raises CheckpointError when it holds NaN or infinity, UserError when a value is beyond the range of
        the file's dtype.
        """
        import torch

        dtype = getattr(torch, self._dtype)
        for piece in tensor.reshape(-1).split(_PIECE):
            if not _finite(piece):
                raise CheckpointError(f"Tensor {name} holds NaN or infinity: the source is damaged.")
            cast = piece.to(dtype)
            if cast is not piece and not _finite(cast):
                raise UserError(
                    f"Tensor {name} holds values beyond the range of {self._dtype}: "
                    "convert with --dtype bfloat16 or float32."
                )
            self._append(cast.view(torch.uint8).numpy().data)
            yield

    def close(self) -> None:
        self._file.close()

    def _append(self, data: bytes | memoryview) -> None:
        self._file.write(data)
        self._digest.update(data)
        self.size += len(data)


def _finite(values: Tensor) -> bool:
    """Whether no value is NaN or infinite; the extremes tell, at a twentieth of isfinite's cost."""
    low, high = values.aminmax()
    return math.isfinite(low.item()) and math.isfinite(high.item())
