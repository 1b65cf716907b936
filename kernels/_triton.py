"""Triton where it is installed, a stand-in where it is not (macOS), and what a GPU's tiles must fit in.

Every kernel file takes `triton` and `tl` from here, so that it can be imported for its PyTorch reference
on any machine.
"""

from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

HAS_TRITON = find_spec("triton") is not None

if TYPE_CHECKING:  # a kernel's body is a language of its own, which Python's type rules do not describe
    triton: Any

    class tl(Any):
        constexpr: TypeAlias = Any
elif HAS_TRITON:
    import triton
    import triton.language as tl
else:

    class _Absent:
        """Swallows the decorators and annotations of a kernel's definition; it can launch nothing."""

        def __getattr__(self, name: str) -> "_Absent":
            return self

        def __call__(self, *args: object, **kwargs: object) -> "_Absent":
            return self

    triton = tl = _Absent()

__all__ = ["HAS_TRITON", "Target", "target", "tl", "triton"]


@dataclass(frozen=True)
class Target:
    """The GPU properties that tiles and launches depend on.

    `hip`: an AMD GPU; `warp_size`: threads per warp (64 on AMD's CDNA, else 32); `processors`: SMs or
    compute units.
    """

    hip: bool
    warp_size: int
    processors: int


@cache
def target(device: torch.device) -> Target:
    """The target of `device`. The CPU, on which only the interpreter runs kernels, poses as a small GPU."""
    if device.type != "cuda":
        return Target(hip=False, warp_size=32, processors=16)
    properties = torch.cuda.get_device_properties(device)
    return Target(bool(torch.version.hip), properties.warp_size, properties.multi_processor_count)
