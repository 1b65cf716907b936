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

    `arch`: its kind (sm_90, gfx942); `hip`: an AMD GPU; `warp_size`: threads per warp (64 on AMD's CDNA, else
    32); `processors`: SMs or compute units; `shared_kib`: shared memory that a program may have; `pdl`: has
    programmatic dependent launch (NVIDIA, compute capability 9.0 and later).
    """

    arch: str
    hip: bool
    warp_size: int
    processors: int
    shared_kib: int = 64
    pdl: bool = False

    def warps(self, threads: int) -> int:
        """Warps that hold so many threads, at least one."""
        return max(1, threads // self.warp_size)

    def chain(self, *, early: bool) -> dict[str, object]:
        """Launch options of a kernel that calls `start_dependents` and `await_previous`, for its PDL.

        `early`: the next kernel may start at once, which pays where this one leaves it room; else only when
        this one has its inputs. (pdl.py)
        """
        return {"PDL": 1 if early else 2, "launch_pdl": True} if self.pdl else {"PDL": 0}


@cache
def target(device: torch.device) -> Target:
    """The target of `device`. The CPU, on which only the interpreter runs kernels, poses as a small GPU."""
    if device.type != "cuda":
        return Target("cpu", hip=False, warp_size=32, processors=4)
    properties = torch.cuda.get_device_properties(device)
    hip = bool(torch.version.hip)
    arch = properties.gcnArchName.split(":")[0] if hip else f"sm_{properties.major}{properties.minor}"
    pdl = not hip and properties.major >= 9
    shared_kib = getattr(properties, "shared_memory_per_block_optin", 64 << 10) // 1024  # NVIDIA's alone
    return Target(arch, hip, properties.warp_size, properties.multi_processor_count, shared_kib, pdl)
