"""What the device knows of each running sequence, in one row ("slot") per sequence.

A decode step reads its inputs here and leaves the next one's, so that the host need not see a token before
the next step is launched.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..kernels.sampling import SamplingState
from .graphs import Inputs
from .kv_cache import pages_for
from .sequence import Sequence


@dataclass(frozen=True)
class DeviceState:
    """S slots: one for each sequence that may run, and a last one for the padded rows of a batch."""

    sampling: SamplingState
    """Sampling parameters, and the token drawn last."""
    positions: Tensor
    """[S] int64: where in its sequence that token is."""
    page_table: Tensor
    """[S, pages] int32: the pages of each sequence, in order; those of the last slot are the dummy page 0."""

    @classmethod
    def allocate(
        cls, max_sequences: int, max_context: int, vocabulary: int, device: torch.device
    ) -> DeviceState:
        slots = max_sequences + 1
        return cls(
            sampling=SamplingState.allocate(slots, vocabulary, device),
            positions=torch.zeros(slots, dtype=torch.int64, device=device),
            page_table=torch.zeros(slots, pages_for(max_context), dtype=torch.int32, device=device),
        )

    @property
    def padding(self) -> int:
        """The slot of padded rows."""
        return len(self.positions) - 1

    def enter(self, sequence: Sequence) -> None:
        """Fill the slot of a sequence that was admitted: how it draws, and where its pages are."""
        slot, params, sampling = sequence.slot, sequence.params, self.sampling
        sampling.temperature[slot] = params.temperature
        sampling.top_k[slot] = params.top_k
        sampling.top_p[slot] = params.top_p
        sampling.min_p[slot] = params.min_p
        sampling.repetition_penalty[slot] = params.repetition_penalty
        sampling.seed[slot] = sequence.seed
        if params.repetition_penalty != 1:
            sampling.seen[slot] = 0
            sampling.seen[slot].index_fill_(0, self.upload(sequence.tokens, torch.int64), 1)
        self.enter_pages(sequence, 0)

    def enter_pages(self, sequence: Sequence, first: int) -> None:
        """Enter a sequence's pages from the `first` on."""
        pages = self.upload(sequence.pages[first:], torch.int32)
        self.page_table[sequence.slot, first : first + len(pages)] = pages

    def enter_token(self, sequence: Sequence) -> None:
        """Make the last token that the host knows the one to go on from."""
        self.sampling.token[sequence.slot] = sequence.tokens[-1]
        self.positions[sequence.slot] = len(sequence.tokens) - 1

    def upload(self, values: Inputs, dtype: torch.dtype) -> Tensor:
        """A tensor on the device, by a copy that does not wait for what runs there."""
        pinned = host_tensor(values, dtype, self.positions.device)
        return pinned.to(self.positions.device, non_blocking=True)


def host_tensor(values: Inputs, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor on the host that `device` can copy from in the background; PyTorch sees to its life."""
    return torch.tensor(values, dtype=dtype, pin_memory=device.type == "cuda")
