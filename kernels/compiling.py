"""Compiles kernels side by side on the CPU's cores, before their first launch.

One after the other, as launches find them missing, they take most of the time to a first token on a machine
whose Triton cache is empty.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

from ._triton import HAS_TRITON, triton

_one_at_a_time = threading.Lock()


@contextmanager
def compiling() -> Iterator[None]:
    """This thread's launches inside compile and do not run; at the end of the block all are ready.

    What PyTorch does meanwhile is done, on outputs that nothing has written. A kernel that cannot be compiled
    says so when it is launched. Launches of other threads run as ever, as do all in Triton's interpreter and
    with its version 3.4. One thread at a time compiles so.
    """
    if not (HAS_TRITON and hasattr(triton, "AsyncCompileMode")):  # Triton 3.4 has none
        yield
        return
    from triton.runtime.jit import JITFunction

    class Mode(triton.AsyncCompileMode):
        def submit(self, key: object, compile_fn: Callable[[], Any], finalize_fn: Callable[..., Any]) -> Any:
            def compile_and_load() -> Any:
                kernel = compile_fn()
                with suppress(Exception):  # no GPU of this kind is there
                    kernel.run  # noqa: B018 - loads it, and builds what launches it with a C compiler
                return kernel

            return super().submit(key, compile_and_load, finalize_fn)

    thread = threading.get_ident()

    def compile_only(kernel: Any, *args: object, grid: object, warmup: bool, **options: object) -> object:
        mine = threading.get_ident() == thread
        return run(kernel, *args, grid=grid, warmup=warmup or mine, **options)

    with _one_at_a_time, ThreadPoolExecutor() as pool, Mode(pool, ignore_errors=True):
        run = JITFunction.run
        JITFunction.run = compile_only  # pyright: ignore[reportAttributeAccessIssue]
        try:
            yield
        finally:
            JITFunction.run = run
