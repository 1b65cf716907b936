"""From a converted checkpoint on disk to a decoder ready to run."""

from __future__ import annotations

from collections.abc import Callable

import torch
from safetensors import SafetensorError, safe_open

from ..kernels import Operators
from .checkpoint import Checkpoint
from .decoder import Decoder
from .errors import CheckpointError
from .rope import rope_table
from .weights import targets


def load_decoder(
    checkpoint: Checkpoint,
    ops: Operators,
    device: torch.device,
    dtype: torch.dtype,
    max_context: int,
    progress: Callable[[int], None] | None = None,
) -> Decoder:
    """Build the model on the meta device and give it the file's tensors.

    On the CPU, and in the file's own dtype, the tensors are the memory-mapped file: nothing is copied.
    `progress` gets the number of bytes of each tensor once it is in place; an exception that it raises
    ends the load. Raises CheckpointError when the file does not hold exactly the model's tensors.
    """
    with torch.device("meta"):
        model = Decoder(checkpoint.config, ops)
    expected = {target.name: target.shape for target in targets(checkpoint.config)}
    damaged = f"The weights of {checkpoint.path.name} are damaged: convert the model again"
    state = {}
    try:
        with safe_open(checkpoint.weights, framework="pt", device="cpu") as file:
            if difference := set(file.keys()) ^ expected.keys():
                raise CheckpointError(f"{damaged} (tensor {min(difference)} is missing or unknown).")
            for name, shape in expected.items():
                tensor = file.get_tensor(name)
                if tuple(tensor.shape) != shape:
                    raise CheckpointError(f"{damaged} ({name} has shape {tuple(tensor.shape)}, not {shape}).")
                state[name.removeprefix("model.")] = tensor.to(device).to(dtype)
                if progress:
                    progress(tensor.nbytes)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{damaged} ({error}).") from None
    if checkpoint.config.tie_word_embeddings:
        state["lm_head.weight"] = state["embed_tokens.weight"]
    model.load_state_dict(state, strict=True, assign=True)
    model.rope = rope_table(checkpoint.config, max_context, device)
    return model.eval().requires_grad_(False)
