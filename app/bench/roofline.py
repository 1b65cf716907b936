"""The floor under a decode step: the bytes that it must read, and how fast this device moves bytes."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...models.config import ModelConfig
from ...models.weights import parameter_count
from .subject import free_memory

if TYPE_CHECKING:
    import torch

COPY_BYTES = {"cuda": 1 << 30, "cpu": 1 << 28}
"""Bytes that are copied: far more than any cache holds."""
_COPIES = {"cuda": 10, "cpu": 1}
"""Copies between two looks at the clock, so that waiting for the device does not count."""
_REPEATS = 10


@dataclass(frozen=True)
class CopyBandwidth:
    """Copies within the memory of the device, in this process; each byte counts as read and as written."""

    bytes: int
    seconds: list[float]

    @property
    def gb_per_s(self) -> float:
        return 2 * self.bytes / statistics.median(self.seconds) / 1e9

    def as_dict(self) -> dict[str, Any]:
        return {"bytes": self.bytes, "repeats_s": self.seconds, "gb_per_s": self.gb_per_s}


def copy_bandwidth(device: torch.device) -> CopyBandwidth:
    """Measure it. Needs twice COPY_BYTES for the moment: run it before a model is loaded."""
    size = COPY_BYTES[device.type]
    seconds = _copy_seconds(device, size, _COPIES[device.type])
    free_memory()
    return CopyBandwidth(size, seconds)


def _copy_seconds(device: torch.device, size: int, copies: int) -> list[float]:
    import torch

    source = torch.randint(0, 256, (size,), dtype=torch.uint8, device=device)  # zeros may be quicker
    target = torch.empty_like(source)

    def seconds() -> float:
        start = time.perf_counter()
        for _ in range(copies):
            target.copy_(source)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return (time.perf_counter() - start) / copies

    seconds()
    return [seconds() for _ in range(_REPEATS)]


def weight_bytes(config: ModelConfig, itemsize: int) -> int:
    """Bytes of weights that one decode step reads: all, but for an embedding that is not the head too."""
    embedding = 0 if config.tie_word_embeddings else config.vocab_size * config.hidden_size
    return (parameter_count(config) - embedding) * itemsize


def kv_bytes(config: ModelConfig, itemsize: int, tokens: float) -> int:
    """Bytes of the keys and values of `tokens` tokens over all layers."""
    return round(2 * config.num_layers * config.kv_size * itemsize * tokens)


def step_traffic(
    config: ModelConfig, itemsize: int, batch: int, context: float, step_s: float, copy: CopyBandwidth
) -> dict[str, float]:
    """What a decode step must read (weights once, `context` tokens of KV per sequence) and how fast it did.

    `floor_ratio` is the step's time over the time in which a copy moves as many bytes.
    """
    weights, kv = weight_bytes(config, itemsize), batch * kv_bytes(config, itemsize, context)
    rate = (weights + kv) / step_s / 1e9
    return {
        "weight_bytes_per_step": weights,
        "kv_bytes_per_step": kv,
        "gb_per_s": rate,
        "percent_of_copy": 100 * rate / copy.gb_per_s,
        "floor_ratio": copy.gb_per_s / rate,
    }
