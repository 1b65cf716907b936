"""Plans memory for weights and KV cache before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..kernels import PAGE_SIZE
from ..models.config import ModelConfig
from ..models.errors import UserError
from ..models.units import format_bytes
from ..models.weights import parameter_count
from .device import available_memory, device_name

MAX_SEQUENCES = 64
"""Requests that run at once; more wait."""
STEP_TOKENS = {"cpu": 256, "cuda": 4096}
"""Prompt tokens of one step: long enough to fill the device, short enough for a prompt cancel."""

MIN_CONTEXT = 512
"""Below this a chat is no use: rather refuse than load."""
WANTED_CONTEXTS = 4
"""Full conversations that the KV cache holds when memory allows."""
KEEP_FREE = 0.05
"""Part of the available memory that is left alone (other programs, fragmentation)."""


@dataclass(frozen=True)
class MemoryPlan:
    """What is going to be allocated, in bytes."""

    weight_bytes: int
    kv_bytes: int
    workspace_bytes: int
    """Largest activations of one step and its logits."""
    kv_pages: int
    """Pages of the KV cache, the dummy page 0 included."""
    max_context: int
    """Tokens of one conversation."""


def page_bytes(config: ModelConfig, dtype: torch.dtype) -> int:
    """Bytes of one page of keys and values over all layers."""
    return 2 * config.num_layers * PAGE_SIZE * config.kv_size * dtype.itemsize


def plan_memory(
    config: ModelConfig, dtype: torch.dtype, device: torch.device, *, max_context: int | None = None
) -> MemoryPlan:
    """Fit the model into the memory that `device` has left.

    The context is the model's own, or `max_context`, shortened to what fits unless it was asked for.
    Raises UserError with the numbers when it does not fit.
    """
    wanted = min(max_context or config.max_position, config.max_position)
    weights = parameter_count(config) * dtype.itemsize
    row = 4 * config.hidden_size + config.q_size + 2 * config.kv_size + 3 * config.intermediate_size
    workspace = STEP_TOKENS[device.type] * row * dtype.itemsize + 4 * MAX_SEQUENCES * config.vocab_size * 4
    per_page = page_bytes(config, dtype)
    available = available_memory(device)
    room = int(available * (1 - KEEP_FREE)) - weights - workspace
    pages = min(room // per_page, 1 + WANTED_CONTEXTS * _pages(wanted))
    least = wanted if max_context else min(wanted, MIN_CONTEXT)
    if pages < 1 + _pages(least):
        need = weights + workspace + (1 + _pages(least)) * per_page
        raise UserError(
            f"The model needs {format_bytes(need)} of memory ({format_bytes(weights)} weights, the rest for "
            f"{least} tokens of context and work space) and {format_bytes(available)} are free on "
            f"{device_name(device)}: close other programs, or choose a smaller model, dtype or context."
        )
    context = min(wanted, (pages - 1) * PAGE_SIZE)
    return MemoryPlan(weights, pages * per_page, workspace, pages, context)


def _pages(tokens: int) -> int:
    return -(-tokens // PAGE_SIZE)
