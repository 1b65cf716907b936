"""What the program takes of the machine: the GPU where one is used, else the processor."""

from __future__ import annotations

import logging
import os
import resource
import sys
import threading
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CPU_WINDOW_S = 0.8
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class GpuLoad:
    """Of the whole card, other programs included."""

    name: str
    used_bytes: int
    total_bytes: int
    utilisation: float | None
    """Share of the last moments in which something ran; None where the driver does not say."""


@dataclass(frozen=True)
class MachineLoad:
    """Of this process: processors' worth of time in the last CPU_WINDOW_S or more, and resident memory."""

    cpu: float
    rss_bytes: int
    gpu: GpuLoad | None = None


class Machine:
    """Takes samples. They block for some milliseconds: take them off the event loop."""

    def __init__(self) -> None:
        self._before = deque([(time.monotonic(), _cpu_seconds())])
        """When samples were taken, and the processors' time until then: those of the last CPU_WINDOW_S, and
        the one before them. So it does not matter how often and by whom samples are taken."""
        self._lock = threading.Lock()
        self._nvml: tuple[Any, Any] | None = None
        self._no_nvml = False

    def sample(self, *, gpu: bool) -> MachineLoad:
        """The load now; with `gpu` that of the first GPU too, which the engine uses."""
        return MachineLoad(self._cpu(), _rss_bytes(), self._gpu() if gpu else None)

    def _cpu(self) -> float:
        with self._lock:
            now, cpu_s = time.monotonic(), _cpu_seconds()
            while len(self._before) > 1 and now - self._before[1][0] >= CPU_WINDOW_S:
                self._before.popleft()
            before, cpu_before_s = self._before[0]
            self._before.append((now, cpu_s))
        return (cpu_s - cpu_before_s) / max(now - before, 1e-3)

    def _gpu(self) -> GpuLoad | None:
        try:
            import torch

            if not torch.cuda.is_available():
                return None
            name = torch.cuda.get_device_name(0)
            if (known := self._handle()) is not None:
                nvml, handle = known
                memory = nvml.nvmlDeviceGetMemoryInfo(handle)
                busy = nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100
                return GpuLoad(name, memory.used, memory.total, busy)
            free, total = torch.cuda.mem_get_info(0)
            return GpuLoad(name, total - free, total, None)
        except Exception:  # figures only: whatever the driver has, the chat goes on
            log.exception("the GPU's load cannot be read")
            return None

    def _handle(self) -> tuple[Any, Any] | None:
        """NVML and its handle of the card; None without NVML, as on AMD."""
        if self._nvml is None and not self._no_nvml:
            try:
                import pynvml
                import torch

                pynvml.nvmlInit()
                # By its id: NVML and CUDA number the cards differently, and CUDA may see only some of them.
                uuid = f"GPU-{torch.cuda.get_device_properties(0).uuid}"
                self._nvml = pynvml, pynvml.nvmlDeviceGetHandleByUUID(uuid)
            except Exception as error:
                log.info("no NVML: %s", error)
                self._no_nvml = True
        return self._nvml


def _cpu_seconds() -> float:
    times = os.times()
    return times.user + times.system


def _rss_bytes() -> int:
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf(
            "SC_PAGE_SIZE"
        )
    except OSError:  # no Linux: then the most that it ever was
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else 1024 * peak
