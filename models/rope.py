"""Rotary position embedding tables (Su et al. 2021, arXiv:2104.09864) and their scaling rules."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .config import ModelConfig, RopeConfig
from .errors import CheckpointError


def inverse_frequencies(rope: RopeConfig, head_dim: int) -> tuple[Tensor, float]:
    """Angular step per position of each dimension pair [head_dim / 2] fp32, and the factor on cos and sin.

    Rules: `default`; `linear` (position interpolation, Chen et al. 2023, arXiv:2306.15595); `llama3` (the
    Llama 3.1 report, arXiv:2407.21783: long wavelengths are stretched, short ones kept, a ramp between);
    `yarn` (Peng et al. 2023, arXiv:2309.00071: the same idea by number of rotations, plus a temperature on
    attention that is folded into cos and sin). Raises CheckpointError when a parameter is missing.
    """
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
    frequencies = 1.0 / rope.theta**exponents
    try:
        if rope.kind == "linear":
            return frequencies / float(rope.parameters["factor"]), 1.0
        if rope.kind == "llama3":
            return _llama3(frequencies, rope), 1.0
        if rope.kind == "yarn":
            return _yarn(frequencies, rope, head_dim)
    except KeyError as error:
        raise CheckpointError(f"config.json lacks {error} of its {rope.kind} rope scaling.") from None
    return frequencies, 1.0


def _llama3(frequencies: Tensor, rope: RopeConfig) -> Tensor:
    factor = float(rope.parameters["factor"])
    low = float(rope.parameters["low_freq_factor"])
    high = float(rope.parameters["high_freq_factor"])
    trained = float(rope.parameters["original_max_position_embeddings"])
    rotations = trained * frequencies / (2 * math.pi)
    smooth = ((rotations - low) / (high - low)).clamp(0, 1)
    return (1 - smooth) * frequencies / factor + smooth * frequencies


def _yarn(frequencies: Tensor, rope: RopeConfig, head_dim: int) -> tuple[Tensor, float]:
    parameters = rope.parameters
    factor = float(parameters["factor"])
    trained = float(parameters["original_max_position_embeddings"])

    def dimension(rotations: float) -> float:
        """The (fractional) pair index whose wave turns that many times over the trained length."""
        return head_dim * math.log(trained / (rotations * 2 * math.pi)) / (2 * math.log(rope.theta))

    first = dimension(float(parameters.get("beta_fast") or 32))
    last = dimension(float(parameters.get("beta_slow") or 1))
    if parameters.get("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, head_dim - 1)
    ramp = (torch.arange(head_dim // 2).float() - first) / max(last - first, 0.001)
    kept = 1 - ramp.clamp(0, 1)
    scaled = frequencies / factor * (1 - kept) + frequencies * kept
    return scaled, _yarn_attention_factor(rope, factor)


def _yarn_attention_factor(rope: RopeConfig, factor: float) -> float:
    given = rope.parameters.get("attention_factor")
    if given is not None:
        return float(given)

    def mscale(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    all_dim = rope.parameters.get("mscale_all_dim")
    if rope.parameters.get("mscale") and all_dim:
        return mscale(float(rope.parameters["mscale"])) / mscale(float(all_dim))
    return mscale(1.0)


def rope_table(config: ModelConfig, positions: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """cos and sin, each [positions, head_dim / 2] fp32, for positions 0 ... positions - 1."""
    frequencies, factor = inverse_frequencies(config.rope, config.head_dim)
    angles = torch.arange(positions).float()[:, None] * frequencies
    return (angles.cos() * factor).to(device), (angles.sin() * factor).to(device)
