"""Programmatic dependent launch (CUDA programming guide; compute capability 9.0 and later).

A kernel may start while the one before it still runs. Until `await_previous` it may read only what no kernel
of the same step writes (weights, mostly), and every kernel of the chain calls it, so that "previous" includes
all before. A kernel's PDL is 0 for plain launches, 1 to let the next start at once, 2 to let it start when
this one has its inputs; Target.chain gives it.
"""

from ._triton import tl, triton


@triton.jit
def start_dependents(PDL: tl.constexpr):
    """Let the next kernel on the stream start as soon as there is room for it; called first."""
    if PDL == 1:
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def await_previous(PDL: tl.constexpr):
    """Wait until the kernels before this one are done and their writes can be seen."""
    if PDL != 0:
        tl.extra.cuda.gdc_wait()
        if PDL == 2:
            tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def read_ahead(row_ptr, inside, size, BYTES: tl.constexpr, PDL: tl.constexpr):
    """Ask for BYTES of each row [N] that is `inside` to be brought into the L2 cache, and wait for none.

    Rows are aligned to 16 bytes and have `size` bytes. BYTES: 0, or 256 times a power of two.
    """
    if PDL != 0 and BYTES > 0:
        piece = tl.arange(0, BYTES // 256)[None, :] * 256
        wanted = inside[:, None] & (piece + 256 <= size)
        address = row_ptr.to(tl.int64)[:, None] + piece
        tl.inline_asm_elementwise(
            "{ .reg .pred wanted; setp.ne.s32 wanted, $2, 0;"
            "@wanted cp.async.bulk.prefetch.L2.global [$1], 256; mov.u32 $0, 0; }",
            constraints="=r,l,r",
            args=[address, wanted.to(tl.int32)],
            dtype=tl.int32,
            is_pure=False,
            pack=1,
        )
