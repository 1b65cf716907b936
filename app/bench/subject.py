"""The model that is measured: a converted checkpoint, or random weights at a published shape."""

from __future__ import annotations

import gc
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...models.checkpoint import Checkpoint
from ...models.config import ModelConfig
from ...models.errors import UserError
from .shapes import shape_config

if TYPE_CHECKING:
    from ...engine.engine import Engine
    from ...engine.events import ModelInfo


@dataclass(frozen=True)
class Subject:
    """What to load, where, and in which dtype (both as EngineOptions names them)."""

    name: str
    raw_config: dict[str, Any]
    """Hugging Face's config.json: transformers' model is built from the same one."""
    checkpoint: Checkpoint | None
    """None: random weights."""
    device: str = "auto"
    dtype: str = "auto"

    @classmethod
    def of_shape(cls, shape: str, device: str, dtype: str) -> Subject:
        """Random weights at a shape of shapes.py. Raises UserError for an unknown one."""
        name, raw = shape_config(shape)
        return cls(name, raw, None, device, dtype)

    @classmethod
    def of_checkpoint(cls, checkpoint: Checkpoint, device: str, dtype: str) -> Subject:
        """A converted model."""
        raw = json.loads((checkpoint.path / "config.json").read_text(encoding="utf-8"))
        return cls(checkpoint.path.name, raw, checkpoint, device, dtype)

    @property
    def config(self) -> ModelConfig:
        return ModelConfig.from_dict(self.raw_config)

    @property
    def weights(self) -> str:
        """Where the weights come from, in words."""
        return "checkpoint" if self.checkpoint else "random"

    def load(self, **switches: Any) -> Engine:
        """An engine with the EngineOptions `switches`. Raises UserError when it cannot be loaded."""
        from ...engine.engine import Engine
        from ...engine.options import EngineOptions

        options = EngineOptions(device=self.device, dtype=self.dtype, **switches)
        if self.checkpoint:
            return Engine.load(self.checkpoint, options)
        return Engine.random(self.config, options, name=self.name)


def free_memory() -> None:
    """Return what dropped engines and models held to the device."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def fits(info: ModelInfo, tokens: int) -> bool:
    """Whether one conversation of `tokens` tokens, prompt and reply together, fits the context."""
    return tokens <= info.max_context


def check_fits(info: ModelInfo, batch: int, tokens: int) -> None:
    """Raise UserError unless `batch` requests of `tokens` tokens run at once without preemption."""
    from ...engine.kv_cache import pages_for
    from ...kernels import PAGE_SIZE

    if not fits(info, tokens):
        raise UserError(
            f"{tokens} tokens do not fit the context of {info.max_context}: use fewer prompt or new tokens."
        )
    if batch * pages_for(tokens) > info.kv_pages:
        raise UserError(
            f"{batch} requests of {tokens} tokens do not fit the KV cache of {info.kv_pages * PAGE_SIZE} "
            f"tokens: use a smaller batch or fewer tokens."
        )
