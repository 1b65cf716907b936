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
from .image_features import feature_bytes
from .kv_cache import pages_for
from .options import DEFAULT_OPTIONS, EngineOptions

CHUNK_TOKENS = {"cpu": 256, "cuda": 2048}
"""Prompt tokens of one forward pass: enough to fill the device."""
STEP_TOKENS = {"cpu": 256 + 64, "cuda": 4096}
"""Tokens of one step, decodes included: few enough for the other replies to flow, and for a prompt cancel."""

MIN_CONTEXT = 512
"""Below this a chat is no use: rather refuse than load."""
WANTED_CONTEXTS = 4
"""Full conversations that the KV cache holds when memory allows."""
WANTED_TOKENS = 4096
"""Tokens per sequence that a GPU's KV cache holds when memory allows, however short the context."""
CPU_SHARE = 0.5
"""Part of the room beyond one context that a CPU's KV cache may take: other programs live there too."""
KEEP_FREE = 0.05
"""Part of the available memory that is left alone (other programs, fragmentation)."""


@dataclass(frozen=True)
class MemoryPlan:
    """What is going to be allocated, in bytes."""

    weight_bytes: int
    kv_bytes: int
    workspace_bytes: int
    """Largest activations of one step, its logits, and what images take beside them."""
    kv_pages: int
    """Pages of the KV cache, the dummy page 0 included."""
    max_context: int
    """Tokens of one conversation."""


def page_bytes(config: ModelConfig, dtype: torch.dtype) -> int:
    """Bytes of one page of keys and values over all layers."""
    return 2 * config.num_layers * PAGE_SIZE * config.kv_size * dtype.itemsize


def plan_memory(
    config: ModelConfig,
    dtype: torch.dtype,
    device: torch.device,
    options: EngineOptions = DEFAULT_OPTIONS,
    reclaimed: int = 0,
) -> MemoryPlan:
    """Fit the model into the memory that `device` has left, and the `reclaimed` bytes of one that goes.

    The context is the model's own, or the one of `options`, shortened to what fits unless it was asked for.
    The KV cache takes what is free up to four full contexts (the prefix cache lives in it) and on a GPU, so
    that a short context does not starve a large batch, at least 4,096 tokens for each sequence; on a CPU
    no more than half of what is free beyond one context. Raises UserError with the numbers when the model
    does not fit.
    """
    context = min(options.max_context or config.max_position, config.max_position)
    weights = parameter_count(config) * dtype.itemsize
    row = 4 * config.hidden_size + config.q_size + 2 * config.kv_size + 3 * config.intermediate_size
    logits = 4 * options.max_sequences * config.vocab_size * 4
    workspace = STEP_TOKENS[device.type] * row * dtype.itemsize + logits + feature_bytes(config, dtype)
    per_page = page_bytes(config, dtype)
    available = available_memory(device) + reclaimed
    room = (int(available * (1 - KEEP_FREE)) - weights - workspace) // per_page - 1
    least = context if options.max_context else min(context, MIN_CONTEXT)
    if room < pages_for(least):
        need = weights + workspace + (1 + pages_for(least)) * per_page
        raise UserError(
            f"The model needs {format_bytes(need)} of memory ({format_bytes(weights)} weights, the rest for "
            f"{least} tokens of context and work space) and {format_bytes(available)} are free on "
            f"{device_name(device)}: close other programs, or choose a smaller model, dtype or context."
        )
    wanted = WANTED_CONTEXTS * context
    if device.type == "cuda":
        wanted = max(wanted, options.max_sequences * WANTED_TOKENS)
    else:
        one = min(room, pages_for(context))
        room = one + int((room - one) * CPU_SHARE)
    pages = 1 + min(room, pages_for(wanted))
    context = min(context, (pages - 1) * PAGE_SIZE)
    return MemoryPlan(weights, pages * per_page, workspace, pages, context)
