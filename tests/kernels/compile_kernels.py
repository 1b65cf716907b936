"""Compile every kernel for a GPU that need not be there: `python compile_kernels.py cuda:80 hip:gfx942 ...`.

The launchers of the package are called on CPU tensors while Triton's driver is replaced by one that names
the target and each launch by a compilation, so what is compiled is what a user's launch would compile. One
JSON object per kernel goes to stdout: target, launch, kernel, shared (bytes) or error.
"""

import json
import sys
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from lite_llama.kernels import (
    Hidden,
    decode_attention,
    flash_attention1,
    flash_attention2,
    flash_decoding,
    gemm,
    gemv,
    image_attention,
    operators,
    rmsnorm,
    sampling,
    skip_rmsnorm,
    tiles,
)
from lite_llama.kernels._triton import Target

TARGETS = {
    "cuda:80": (GPUTarget("cuda", 80, 32), Target("sm_80", False, 32, 108, 163)),
    "cuda:86": (GPUTarget("cuda", 86, 32), Target("sm_86", False, 32, 82, 99)),
    "cuda:90": (GPUTarget("cuda", 90, 32), Target("sm_90", False, 32, 132, 227, pdl=True)),
    "hip:gfx90a": (GPUTarget("hip", "gfx90a", 64), Target("gfx90a", True, 64, 104, 64)),
    "hip:gfx942": (GPUTarget("hip", "gfx942", 64), Target("gfx942", True, 64, 304, 64)),
    "hip:gfx1100": (GPUTarget("hip", "gfx1100", 32), Target("gfx1100", True, 32, 48, 64)),
}


class AbsentDriver:
    """As much of a Triton driver as compiling asks for; each target is one device of it."""

    def __init__(self, device: int, target: GPUTarget) -> None:
        self.device, self.target = device, target

    def get_current_device(self) -> int:
        return self.device

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return self.target


def launches() -> Iterator[tuple[str, Callable[[], object]]]:
    """(description, call) for each variant that the launchers can choose once, at the largest tiles.

    float16 and bfloat16 differ in a conversion: what computes in float32 is compiled for one of them.
    """
    half, wide, full = torch.float16, torch.bfloat16, torch.float32
    ops = operators.triton_operators()
    for dtype in (wide, full):
        x, weight = torch.empty(4, 9728, dtype=dtype), torch.empty(9728, dtype=dtype)
        yield f"rmsnorm {dtype}", partial(ops.rmsnorm, x, weight, 1e-5)
        yield f"skip_rmsnorm {dtype}", partial(ops.skip_rmsnorm, x[None], x, weight, 1e-5)
        yield f"layernorm {dtype}", partial(ops.layernorm, x, weight, weight, 1e-5)
        yield f"skip_layernorm {dtype}", partial(ops.skip_layernorm, x, x, weight, weight, 1e-5)
        yield f"swiglu {dtype}", partial(ops.swiglu, x)
        yield f"gelu {dtype}", partial(ops.gelu, x)
        yield f"quick_gelu {dtype}", partial(ops.quick_gelu, x)
        yield f"mul {dtype}", partial(ops.mul, x, x)
        yield f"softmax {dtype}", partial(ops.softmax, x)
    slots, positions = torch.arange(4).int(), torch.arange(4)
    state = sampling.SamplingState.allocate(5, 151936, torch.device("cpu"))
    yield "sample", partial(ops.sample, torch.empty(4, 151936), slots, positions, state)
    embedding, table = torch.empty(8, 4096, dtype=wide), torch.zeros(5, 8).int()
    yield "begin_step", partial(ops.begin_step, embedding, slots, slots, state.token, state.token, table)
    yield from linear_launches()
    for heads, head_dim, dtype in ((16, 64, wide), (16, 80, half), (8, 128, wide), (8, 128, full)):
        qkv = torch.empty(2, 577, 3 * heads * head_dim, dtype=dtype)
        yield f"image_attention {heads} {head_dim} {dtype}", partial(ops.image_attention, qkv, heads, 0.1)
    for heads, kv_heads, head_dim, dtype in (
        (14, 2, 64, wide), (12, 12, 80, half), (32, 8, 128, wide), (8, 4, 256, wide), (8, 4, 256, full),
    ):  # fmt: skip
        q, k = torch.empty(4, heads, head_dim, dtype=dtype), torch.empty(4, kv_heads, head_dim, dtype=dtype)
        cache = torch.empty(8, operators.PAGE_SIZE, kv_heads, head_dim, dtype=dtype)
        angles, positions, weight = torch.empty(32, head_dim // 2), torch.arange(4), q[0, 0]
        norm = (weight, weight) if head_dim >= 128 else ()
        table, lengths, starts = torch.zeros(4, 8).int(), torch.ones(4).int(), torch.arange(5).int()
        label = f"{heads}/{kv_heads} {head_dim} {dtype}"
        yield f"rope {label}", partial(ops.rope, q, k, positions, angles, angles, *norm)
        yield f"kv_write {label}", partial(ops.kv_write, k, k, cache, cache, positions)
        for name in ("flash1", "flash2"):
            prefill = operators.triton_operators(name).prefill_attention
            yield f"{name} {label}", partial(prefill, q, cache, cache, table, starts, lengths, 1, 0.1)
        in_steps = partial(flash_decoding.triton_flash_decoding, q, cache, cache, table, lengths, 0.1)
        yield f"flash_decoding {label}", in_steps
        # One, several whose splits are shared, and so many that they are not.
        for batch, parts in ((1, 1), (5, 4), (512, 1)) if head_dim == 128 else ((1, 1),):
            yield (
                f"decode {label} {batch} {parts}",
                decode_launch(heads, kv_heads, head_dim, dtype, batch, bool(norm), parts),
            )


def decode_launch(
    heads: int, kv_heads: int, head_dim: int, dtype: torch.dtype, batch: int, norm: bool, parts: int = 1
) -> Callable[[], object]:
    """A launch of decode attention, its inputs in one or several parts."""
    width = (heads + 2 * kv_heads) * head_dim
    qkv = torch.empty(parts, batch, width, dtype=torch.float32 if parts > 1 else dtype)
    place = torch.arange(batch), torch.arange(batch).int(), torch.zeros(batch, 8).int()
    angles, weight = torch.empty(32, head_dim // 2), torch.empty(head_dim, dtype=dtype) if norm else None
    cache = torch.empty(8, operators.PAGE_SIZE, kv_heads, head_dim, dtype=dtype)
    attend = operators.triton_operators().decode_attention
    return partial(attend, qkv, *place, angles, angles, cache, cache, heads, 0.1, weight, weight)


def tile_launches(target: Target) -> Iterator[tuple[str, Callable[[], object]]]:
    """A launch for each entry of the table of tiles that is for this kind of GPU."""
    for key in list(tiles._table()):
        where, kernel, dtype_name, *numbers = key.split()
        shape = {name: int(value) for name, _, value in (number.partition("=") for number in numbers)}
        dtype = getattr(torch, dtype_name)
        if where != target.arch:
            continue
        if kernel == "decode_attention":
            heads = 2 * shape["group"], 2, shape["head_dim"]
            yield key, decode_launch(*heads, dtype, 1 if shape["few"] else 5, bool(shape["norm"]))
            continue
        gated = bool(shape.get("gated"))
        weight = torch.empty(shape["outputs"] * (2 if gated else 1), shape["inputs"], dtype=dtype)
        if kernel == "gemv":
            x = torch.empty(1, shape["inputs"], dtype=dtype)
            yield key, partial(gemv.gemv, x, weight, gated=gated)
        else:
            x = torch.empty(64 if shape.get("wide") else 16, shape["inputs"], dtype=dtype)
            yield key, partial(gemm.gemm, x, weight, split=bool(shape["split"]))


def linear_launches() -> Iterator[tuple[str, Callable[[], object]]]:
    """The linear layers for one, few and many tokens, at narrow and wide shapes."""
    linear = operators.triton_operators().linear
    narrow, wide = (896, 4864, torch.bfloat16), (2048, 8192, torch.float16)
    for (hidden, ffn, dtype), rows in ((narrow, 1), (narrow, 64), (wide, 4), (wide, 16)):
        norm, bias = torch.empty(hidden, dtype=dtype), torch.empty(2 * ffn, dtype=dtype)
        square, gate_up = torch.empty(hidden, hidden, dtype=dtype), torch.empty(2 * ffn, hidden, dtype=dtype)
        down, head = torch.empty(hidden, ffn, dtype=dtype), torch.empty(151936, hidden, dtype=dtype)
        stream, x = Hidden(torch.empty(rows, hidden, dtype=dtype)), torch.empty(rows, ffn, dtype=dtype)
        label = f"{rows} {hidden} {dtype}"
        yield f"norm_linear {label}", partial(linear.norm_linear, stream, norm, 1e-5, square, norm)
        yield f"linear_add {label}", partial(linear.linear_add, x, down, None, stream, norm, 1e-5)
        yield f"norm_gate_up {label}", partial(linear.norm_gate_up, stream, norm, 1e-5, gate_up, bias)
        yield f"norm_logits {label}", partial(linear.norm_logits, stream, norm, 1e-5, head)


def main() -> None:
    current = {"target": "", "launch": ""}

    def compile_instead(kernel: JITFunction, grid: tuple[int, ...]) -> Callable[..., object]:
        def launch(*args: object, **kwargs: object) -> None:
            compiled: Any = kernel.run(*args, grid=grid, warmup=True, **kwargs)
            name = f"{kernel.fn.__module__.rpartition('.')[2]}.{kernel.fn.__name__}"
            print(json.dumps(current | {"kernel": name, "shared": compiled.metadata.shared}), flush=True)

        return launch

    JITFunction.__getitem__ = compile_instead  # pyright: ignore[reportAttributeAccessIssue]
    for index, name in enumerate(sys.argv[1:]):
        gpu, target = TARGETS[name]
        driver.set_active(AbsentDriver(index, gpu))  # pyright: ignore[reportArgumentType]
        modules: list[Any] = [
            flash_attention1, flash_attention2, flash_decoding,
            decode_attention, gemm, gemv, image_attention, rmsnorm, sampling, skip_rmsnorm,
        ]  # fmt: skip
        for module in modules:
            module.target = lambda device, target=target: target
        for description, call in chain(launches(), tile_launches(target)):
            current.update(target=name, launch=description)
            try:
                call()
            except Exception as error:  # reported, so that one failure does not hide the others
                print(json.dumps(current | {"error": f"{type(error).__name__}: {error}"[:2000]}), flush=True)


if __name__ == "__main__":
    main()
