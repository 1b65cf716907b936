"""What the conversion needs from a source, whatever its format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:  # torch takes seconds to import, and the app imports this package as it starts
    from torch import Tensor


class Source(Protocol):
    """An opened checkpoint that speaks Hugging Face names and layouts, tensor by tensor."""

    @property
    def config(self) -> Mapping[str, Any]:
        """The Hugging Face `config.json` (rebuilt from the metadata where the format has none)."""
        ...

    @property
    def dtype(self) -> str:
        """What `--dtype auto` means for this source: float32, bfloat16 or float16."""
        ...

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Name and shape of every tensor in the source, under the name that models/weights.py has for it."""
        ...

    @property
    def files(self) -> Sequence[Path]:
        """The files that the tensors are read from."""
        ...

    def read(self, name: str) -> Tensor:
        """One tensor on the CPU, in the source's dtype (fp32 when dequantised), and no other in memory."""
        ...

    def write_files(self, directory: Path) -> None:
        """Copy (or rebuild) config, generation config, tokenizer and chat template into `directory`."""
        ...

    def close(self) -> None:
        """Release files and maps."""
        ...
