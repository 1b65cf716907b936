"""Whether models fit into the memory of the device that they would run on. Imports torch: not before the
screen is up, and off the event loop.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ..engine.device import resolve_device, resolve_dtype
from ..engine.events import ModelInfo
from ..engine.memory import plan_memory
from ..engine.options import EngineOptions
from ..engine.thread import LoadOptions
from ..models.checkpoint import Checkpoint
from ..models.errors import UserError


@dataclass(frozen=True)
class Fit:
    """`context` is the tokens that there is room for in one conversation; `problem` says why none."""

    context: int
    problem: str = ""

    @property
    def fits(self) -> bool:
        return not self.problem


def fits(
    models: Iterable[Checkpoint], device: str, dtype: str, loaded: ModelInfo | None = None
) -> dict[str, Fit]:
    """By name, how each model would fit with these settings in place of the one that is `loaded` now."""
    found = {}
    for model in models:
        try:
            where = resolve_device(device)
            freed = loaded.weight_bytes + loaded.kv_bytes if loaded and loaded.device == where.type else 0
            stored = resolve_dtype(dtype, where, model.manifest.dtype)
            plan = plan_memory(model.config, stored, where, reclaimed=freed)
            found[model.path.name] = Fit(plan.max_context)
        except UserError as error:
            found[model.path.name] = Fit(0, str(error))
    return found


def fit_together(loads: Iterable[LoadOptions], reclaimed: int) -> bool:
    """Whether models that are loaded one after the other, each as it says, all have room.

    `reclaimed` are the bytes that are freed before. A model that cannot be loaded at all does not fit.
    """
    try:
        for load in loads:
            model, where = Checkpoint.open(load.path), resolve_device(load.device)
            dtype = resolve_dtype(load.dtype, where, model.manifest.dtype)
            options = EngineOptions(max_context=load.max_context, max_sequences=load.max_sequences)
            plan = plan_memory(model.config, dtype, where, options, reclaimed)
            reclaimed -= plan.weight_bytes + plan.kv_bytes + plan.workspace_bytes
    except UserError:
        return False
    return True
