"""Weights that are read soon, brought into the GPU's second-level cache while memory would be idle."""

from torch import Tensor

from ._triton import Target, tl, triton

_LINE = triton.language.constexpr(512)
_LINES = triton.language.constexpr(128)
UNIT = 512 * 128
"""Bytes that one program asks for at a time."""


@triton.jit
def prefetch_halves(ptr, half_bytes, units, program, programs):
    """This program's share of the first units / 2 units of both halves of what `ptr` points to.

    It neither waits nor reads: the memory system is asked to (cp.async.bulk.prefetch, PTX ISA 8.0).
    """
    for unit in range(program, units, programs):
        offset = unit % 2 * half_bytes + unit // 2 * (_LINE * _LINES) + tl.arange(0, _LINES) * _LINE
        tl.inline_asm_elementwise(
            "cp.async.bulk.prefetch.L2.global [$1], 512; mov.u32 $0, 0;",
            "=r,l", [ptr.to(tl.int64) + offset], dtype=tl.int32, is_pure=False, pack=1,
        )  # fmt: skip


def units(weight: Tensor | None, kib: int, where: Target) -> int:
    """Units of `weight` to prefetch when `kib` are wanted: an even number, and 0 where the GPU cannot."""
    if weight is None or not where.pdl:
        return 0
    return min(kib << 10, weight.nbytes) // UNIT // 2 * 2
