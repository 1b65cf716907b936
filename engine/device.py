"""Which device and dtype a model runs in, how much memory there is, and the reasons in words."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from ..models.errors import UserError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def resolve_device(name: str) -> torch.device:
    """`auto` is the first GPU (NVIDIA or ROCm) when torch sees one, else the CPU.

    Raises UserError when `cuda` is asked for and there is none, or the name is unknown.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise UserError(f"Unknown device {name!r}: choose auto, cpu or cuda.")
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UserError(
            "No GPU that PyTorch can use was found: use --device cpu (lite-llama-tui doctor tells more)."
        )
    return torch.device("cuda", 0)


def resolve_dtype(name: str, device: torch.device, stored: str) -> torch.dtype:
    """`auto` is the dtype that the weights are stored in, unless the device computes slowly in it.

    A CPU runs float16 weights in bfloat16; a GPU without bf16 runs bfloat16 weights in float16. Raises
    UserError for an unknown name.
    """
    if name != "auto":
        if name not in DTYPES:
            raise UserError(f"Unknown dtype {name!r}: choose auto, {', '.join(DTYPES)}.")
        return DTYPES[name]
    dtype = DTYPES[stored]
    if dtype == torch.float32:
        return dtype
    if device.type == "cpu":
        return torch.bfloat16
    if dtype == torch.bfloat16 and not torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.float16
    return dtype


def device_name(device: torch.device) -> str:
    """`NVIDIA H100 80GB HBM3`, `AMD Instinct MI300X` or `CPU, 8 threads`."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"CPU, {threads} thread{'s' if threads > 1 else ''}"


def available_memory(device: torch.device) -> int:
    """Bytes that can still be allocated on `device`.

    On the CPU: what the kernel says is available, within the control group's limit where there is one
    (containers); on systems that tell neither, the physical memory.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    limits = []
    for line in _read("/proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            limits.append(int(line.split()[1]) * 1024)
    limit, used = _read("/sys/fs/cgroup/memory.max"), _read("/sys/fs/cgroup/memory.current")
    if limit.isdigit() and used.isdigit():
        limits.append(int(limit) - int(used))
    if not limits:
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return max(0, min(limits))


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii").strip()
    except OSError:
        return ""
