"""Turns the logits of a step into the next token of each sequence."""

from __future__ import annotations

from collections.abc import Sequence as Sequences

import torch
from torch import Tensor

from ..kernels import Operators
from .sequence import Sequence


def sample(ops: Operators, logits: Tensor, sequences: Sequences[Sequence]) -> list[int]:
    """Draw the next token of each sequence from its row of `logits` [B, V] fp32 (changed in place).

    The noise depends on the seed and the position of the new token alone, so a reply does not depend on
    what else is in the batch.
    """
    for row, sequence in enumerate(sequences):
        if sequence.params.repetition_penalty != 1:
            penalise_repetition(logits[row], sequence.tokens, sequence.params.repetition_penalty)
    params = [sequence.params for sequence in sequences]
    device = logits.device

    def column(values: list[float] | list[int], dtype: torch.dtype) -> Tensor:
        return torch.tensor(values, dtype=dtype, device=device)

    return ops.sample(
        logits,
        temperature=column([p.temperature for p in params], torch.float32),
        top_k=column([p.top_k for p in params], torch.int32),
        top_p=column([p.top_p for p in params], torch.float32),
        min_p=column([p.min_p for p in params], torch.float32),
        seed=column([sequence.seed for sequence in sequences], torch.int64),
        position=column([len(sequence.tokens) for sequence in sequences], torch.int64),
    ).tolist()


def penalise_repetition(logits: Tensor, tokens: list[int], penalty: float) -> None:
    """Make every token that occurred (prompt included) less likely, in place (Keskar et al. 2019, CTRL).

    logits [V]: positive ones are divided by `penalty`, negative ones multiplied.
    """
    seen = torch.tensor(tokens, device=logits.device).unique()
    values = logits[seen]
    logits[seen] = torch.where(values > 0, values / penalty, values * penalty)
