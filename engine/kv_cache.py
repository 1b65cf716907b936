"""The paged KV cache (Kwon et al. 2023, arXiv:2309.06180): which pages are free, and the tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from ..kernels import PAGE_SIZE
from ..models.config import ModelConfig
from ..models.decoder import LayerCache


class PagePool:
    """Hands out page numbers. Host only; page 0 is the target of padded rows and never handed out."""

    def __init__(self, pages: int) -> None:
        self.total = pages - 1
        self._free = list(range(pages - 1, 0, -1))

    @property
    def free(self) -> int:
        return len(self._free)

    def grow(self, owned: list[int], tokens: int) -> bool:
        """Extend `owned` in place so that it holds `tokens` tokens; False, changing nothing, if it cannot."""
        missing = -(-tokens // PAGE_SIZE) - len(owned)
        if missing > len(self._free):
            return False
        owned.extend(self._free.pop() for _ in range(missing))
        return True

    def give_back(self, owned: list[int]) -> None:
        """Return all pages of a sequence; `owned` is emptied."""
        self._free.extend(reversed(owned))
        owned.clear()


def allocate_cache(
    config: ModelConfig, pages: int, dtype: torch.dtype, device: torch.device
) -> list[LayerCache]:
    """Keys and values per layer, each [pages, PAGE_SIZE, num_kv_heads, head_dim]."""
    shape = (config.num_layers, 2, pages, PAGE_SIZE, config.num_kv_heads, config.head_dim)
    cache: Tensor = torch.empty(shape, dtype=dtype, device=device)
    return [(layer[0], layer[1]) for layer in cache]
