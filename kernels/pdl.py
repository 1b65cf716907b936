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
