"""`bench tune`: measures tiles for one model's shapes and keeps them for this user."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ...models.config import ModelConfig
from ...models.errors import UserError


def tune(config: ModelConfig, path: Path, *, device: str, dtype: str, tell: Callable[[str], None]) -> int:
    """Tune the kernels for `config` and write them to the table at `path`; returns the number of entries.

    Raises UserError where there is no GPU.
    """
    from ...engine.device import resolve_device, resolve_dtype
    from ...kernels import tiles
    from ...kernels.tuning import AttentionShape, LinearShape
    from ...kernels.tuning import tune as tune_kernels

    place = resolve_device(device)
    if place.type != "cuda":
        raise UserError("Tiles are tuned on a GPU, and none that PyTorch can use was found.")
    hidden, ffn = config.hidden_size, config.intermediate_size
    linears = [
        LinearShape(hidden, config.q_size + 2 * config.kv_size, split=True),
        LinearShape(config.q_size, hidden, split=True),
        LinearShape(hidden, ffn, gated=True),
        LinearShape(ffn, hidden, split=True),
        LinearShape(hidden, config.vocab_size),
    ]
    heads = AttentionShape(config.num_heads, config.num_kv_heads, config.head_dim)
    found = tune_kernels(linears, heads, place, resolve_dtype(dtype, place, config.dtype), tell)
    tiles.save(path, found)
    return len(found)
