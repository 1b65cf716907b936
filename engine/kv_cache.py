"""The paged KV cache (Kwon et al. 2023, arXiv:2309.06180): its tensors, and what its pages hold.

Pages whose 16 tokens are all known are also the prefix cache: a block of tokens is found again by a digest
of itself and of all blocks before it, since its keys and values depend on nothing else (where there are
images, their content is a part of their blocks).
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from types import MappingProxyType

import torch
from torch import Tensor

from ..kernels import PAGE_SIZE
from ..models.config import ModelConfig
from ..models.decoder import LayerCache

NO_SALTS: Mapping[int, bytes] = MappingProxyType({})


class PagePool:
    """Counts the references to each page. Host only; page 0 is the target of padded rows, never handed out.

    A page is free (no content worth keeping), used (held by at least one sequence; several may share a full
    block), or cached (a registered block that no sequence holds). Cached pages are taken when the free ones
    are used up, the one that was given back longest ago first.
    """

    def __init__(self, pages: int) -> None:
        self.total = pages - 1
        self._free = list(range(pages - 1, 0, -1))
        self._references: dict[int, int] = {}
        self._cached: OrderedDict[int, None] = OrderedDict()  # oldest first
        self._page_of: dict[bytes, int] = {}  # every registered block, whether used or cached
        self._digest_of: dict[int, bytes] = {}

    @property
    def free(self) -> int:
        """Pages that hold nothing."""
        return len(self._free)

    @property
    def cached(self) -> int:
        """Pages that hold a registered block and can be taken."""
        return len(self._cached)

    @property
    def used(self) -> int:
        """Pages that some sequence holds. free + cached + used == total."""
        return len(self._references)

    def grow(self, owned: list[int], tokens: int) -> bool:
        """Extend `owned` in place so that it holds `tokens` tokens; False, changing nothing, if it cannot."""
        missing = pages_for(tokens) - len(owned)
        if missing > self.free + self.cached:
            return False
        owned.extend(self._take() for _ in range(missing))
        return True

    def give_back(self, owned: list[int]) -> None:
        """Drop a sequence's references; `owned` is emptied.

        The last page goes first, so that of a chain of cached blocks the tail is taken before the head,
        without which it could not be found.
        """
        while owned:
            page = owned.pop()
            self._references[page] -= 1
            if self._references[page]:
                continue
            del self._references[page]
            if page in self._digest_of:
                self._cached[page] = None
            else:
                self._free.append(page)

    def find(self, digests: Sequence[bytes]) -> list[int]:
        """Pages of the longest run of registered blocks that `digests` begins with; they are not held yet."""
        found = []
        for digest in digests:
            if (page := self._page_of.get(digest)) is None:
                break
            found.append(page)
        return found

    def admit(self, shared: list[int], tokens: int) -> list[int] | None:
        """Pages for a sequence of `tokens` tokens: `shared` (from `find`), then ones of its own.

        None, changing nothing, if there are too few.
        """
        missing = pages_for(tokens) - len(shared)
        if missing > self.free + self.cached - sum(page in self._cached for page in shared):
            return None
        for page in shared:
            self._cached.pop(page, None)
            self._references[page] = self._references.get(page, 0) + 1
        return shared + [self._take() for _ in range(missing)]

    def register(self, digest: bytes, page: int) -> None:
        """Let a full page that is held be found; a block that is known already stays where it is."""
        if digest not in self._page_of:
            self._page_of[digest] = page
            self._digest_of[page] = digest

    def forget(self) -> None:
        """Empty the prefix cache; what sequences hold stays theirs."""
        self._free.extend(self._cached)
        self._cached.clear()
        self._page_of.clear()
        self._digest_of.clear()

    def _take(self) -> int:
        if self._free:
            page = self._free.pop()
        else:
            page, _ = self._cached.popitem(last=False)
            del self._page_of[self._digest_of.pop(page)]
        self._references[page] = 1
        return page


def pages_for(tokens: int) -> int:
    """Pages that hold `tokens` tokens."""
    return -(-tokens // PAGE_SIZE)


def extend_digests(
    digests: list[bytes], tokens: Sequence[int], salts: Mapping[int, bytes] = NO_SALTS
) -> None:
    """Extend `digests` in place to all full blocks of `tokens`.

    Each is the BLAKE2b hash of the one before, the block's tokens and its salt, if `salts` has one for the
    block's number: equal digests mean equal tokens and salts from the start on.
    """
    parent = digests[-1] if digests else bytes(16)
    for block in range(len(digests), len(tokens) // PAGE_SIZE):
        content = array("q", tokens[block * PAGE_SIZE : (block + 1) * PAGE_SIZE]).tobytes()
        parent = blake2b(parent + content + salts.get(block, b""), digest_size=16).digest()
        digests.append(parent)


def allocate_cache(
    config: ModelConfig, pages: int, dtype: torch.dtype, device: torch.device
) -> list[LayerCache]:
    """Keys and values per layer, each [pages, PAGE_SIZE, num_kv_heads, head_dim]."""
    shape = (config.num_layers, 2, pages, PAGE_SIZE, config.num_kv_heads, config.head_dim)
    cache: Tensor = torch.empty(shape, dtype=dtype, device=device)
    return [(layer[0], layer[1]) for layer in cache]
