"""A decoder of random weights at a real model's shapes: as fast as the real one, with nothing to download."""

from __future__ import annotations

import torch
from torch import Tensor

from ..kernels import Operators
from .config import ModelConfig
from .decoder import Decoder
from .rope import rope_table
from .weights import targets


def random_decoder(
    config: ModelConfig, ops: Operators, device: torch.device, dtype: torch.dtype, max_context: int
) -> Decoder:
    """Weights and biases from N(0, 0.02), norm weights from N(1, 0.02), the same ones at every call.

    Each tensor is drawn on `device` in `dtype`, so that no second copy of the model is ever held.
    """
    with torch.device("meta"):
        model = Decoder(config, ops)
    generator = torch.Generator(device).manual_seed(0)
    state: dict[str, Tensor] = {}
    for target in targets(config):
        mean = 1.0 if "norm" in target.name and target.name.endswith("weight") else 0.0
        tensor = torch.empty(target.shape, dtype=dtype, device=device)
        state[target.name.removeprefix("model.")] = tensor.normal_(mean, 0.02, generator=generator)
    if config.tie_word_embeddings:
        state["lm_head.weight"] = state["embed_tokens.weight"]
    model.load_state_dict(state, strict=True, assign=True)
    model.rope = rope_table(config, max_context, device)
    return model.eval().requires_grad_(False)
