"""How an engine runs: device, precision, limits, and a switch for each of its optimisations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from ..kernels import Operators, select

Attention = Literal["flash2", "flash1", "plain"]


@dataclass(frozen=True)
class EngineOptions:
    """The defaults are the fastest. Whatever is switched, greedy replies differ by rounding at most."""

    device: str = "auto"
    """auto (the first GPU, else the CPU), cpu or cuda."""
    dtype: str = "auto"
    """auto (the checkpoint's own, where the device is fast in it), float32, bfloat16 or float16."""
    max_context: int | None = None
    """Tokens of one conversation; None: as many as the model and the memory allow."""

    # The switches that the ablation benchmark turns one by one.
    attention: Attention = "flash2"
    """Prefill attention: FlashAttention-2, FlashAttention-1, or plain PyTorch."""
    flash_decoding: bool = True
    """Decode attention split over the context; off: plain PyTorch."""
    dynamic_kv: bool = True
    """KV pages are taken as a sequence grows; off: all that it may ever need, at admission."""
    fused: bool = True
    """Fused operators on the decode path."""
    cuda_graphs: bool = True
    """Steps replay captured CUDA graphs, unless some attention is plain PyTorch, which reads lengths."""
    prefix_cache: bool = True
    """Finished sequences leave their keys and values to later ones that begin with the same tokens."""
    speculate: bool = True
    """Prompt-lookup speculative decoding of a single sequence on a GPU, where it pays."""
    max_sequences: int = 64
    """Sequences that run at once; more wait."""

    batch_invariant: bool = False
    """A reply does not depend, in any bit, on what else runs; a single sequence pays for it."""

    @property
    def captures(self) -> bool:
        """Whether steps are to be captured, and can be."""
        return self.cuda_graphs and self.flash_decoding and self.attention != "plain"

    def operators(self, device: torch.device) -> Operators:
        """The operators for `device` as these options ask for them."""
        return select(
            device,
            "reference" if self.attention == "plain" else self.attention,
            flash_decoding=self.flash_decoding,
            fused=self.fused,
            batch_invariant=self.batch_invariant,
        )


DEFAULT_OPTIONS = EngineOptions()
