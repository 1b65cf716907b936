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

__all__ = ["HAS_TRITON", "Target", "await_previous", "start_dependents", "target", "tl", "triton"]


@dataclass(frozen=True)
class Target:
    """The GPU properties that tiles and launches depend on.

    `hip`: an AMD GPU; `warp_size`: threads per warp (64 on AMD's CDNA, else 32); `processors`: SMs or
    compute units; `pdl`: has programmatic dependent launch (NVIDIA, compute capability 9.0 and later).
    """

    hip: bool
    warp_size: int
    processors: int
    pdl: bool = False

    def warps(self, threads: int) -> int:
        """Warps that hold so many threads, at least one."""
        return max(1, threads // self.warp_size)

    def chain(self, *, early: bool) -> dict[str, object]:
        """Launch options of a kernel that calls `start_dependents` and `await_previous`, for its PDL.

        `early`: the next kernel may start at once, which pays where one token's kernels leave room beside
        them; else only when this one has its inputs.
        """
        return {"PDL": EARLY if early else LATE, "launch_pdl": True} if self.pdl else {"PDL": 0}


@cache
def target(device: torch.device) -> Target:
    """The target of `device`. The CPU, on which only the interpreter runs kernels, poses as a small GPU."""
    if device.type != "cuda":
        return Target(hip=False, warp_size=32, processors=4)
    properties = torch.cuda.get_device_properties(device)
    hip = bool(torch.version.hip)
    return Target(
        hip, properties.warp_size, properties.multi_processor_count, pdl=not hip and properties.major >= 9
    )


# Programmatic dependent launch (CUDA programming guide, 9.0 and later): a kernel may start while the one
# before it still runs. Until `await_previous` it may read only what no kernel of the same step writes
# (weights, mostly), and every kernel of the chain must call it, so that "previous" includes all before.
# The kernels' PDL is 0 (plain launches), EARLY or LATE.
EARLY, LATE = 1, 2
_EARLY, _LATE = triton.language.constexpr(EARLY), triton.language.constexpr(LATE)


@triton.jit
def start_dependents(PDL: tl.constexpr):
    """Let the next kernel on the stream start as soon as there is room for it; called first."""
    if PDL == _EARLY:
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def await_previous(PDL: tl.constexpr):
    """Wait until the kernels before this one are done and their writes can be seen."""
    if PDL != 0:
        tl.extra.cuda.gdc_wait()
        if PDL == _LATE:
            tl.extra.cuda.gdc_launch_dependents()
