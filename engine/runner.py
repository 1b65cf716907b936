"""Runs the model on scheduled batches: owns the decoder, the KV cache's tensors and the device."""

from __future__ import annotations

from collections.abc import Sequence as Sequences
from dataclasses import dataclass

import torch
from torch import Tensor

from ..kernels import PAGE_SIZE
from ..models.batch import TokenBatch
from ..models.decoder import Decoder, LayerCache
from .kv_cache import pages_for
from .sampler import sample
from .scheduler import Batch, Chunk


@dataclass(frozen=True)
class Step:
    """A batch that was launched."""

    drawn: list[int]

    def tokens(self) -> list[int]:
        """Wait for the step; the token of each sequence of `batch.drawing`."""
        return self.drawn


class ModelRunner:
    """One forward pass for all decodes of a step, and one for each prefill chunk."""

    steps_ahead = 0
    """Steps that may be launched before the tokens of an earlier one are fetched."""

    def __init__(self, model: Decoder, cache: list[LayerCache], device: torch.device) -> None:
        self.model = model
        self.cache = cache
        self.device = device

    @torch.inference_mode()
    def launch(self, batch: Batch) -> Step:
        """Start the work of a batch whose sequences are marked as `Batch` says."""
        tokens: list[int] = []
        if batch.decode:
            newest = [Chunk(sequence, sequence.computed - 1, 1, True) for sequence in batch.decode]
            logits = self.model(self.upload(newest, decode=True), self.cache)
            tokens += sample(self.model.ops, logits, batch.decode)
        for chunk in batch.prefill:
            logits = self.model(self.upload([chunk]), self.cache)
            if chunk.is_last:
                tokens += sample(self.model.ops, logits, [chunk.sequence])
        return Step(tokens)

    def upload(self, chunks: Sequences[Chunk], *, decode: bool = False) -> TokenBatch:
        """The tensors of one ragged forward pass, built on the host and copied to the device."""
        ids: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        starts = [0]
        last_rows: list[int] = []
        for chunk in chunks:
            pages = chunk.sequence.pages
            end = chunk.start + chunk.count
            ids += chunk.sequence.tokens[chunk.start : end]
            positions += range(chunk.start, end)
            slots += [pages[at // PAGE_SIZE] * PAGE_SIZE + at % PAGE_SIZE for at in range(chunk.start, end)]
            starts.append(len(ids))
            if chunk.is_last:
                last_rows.append(len(ids) - 1)
        used = [pages_for(chunk.start + chunk.count) for chunk in chunks]
        table = torch.zeros(len(used), max(used), dtype=torch.int32)
        for row, chunk, count in zip(table, chunks, used, strict=True):
            row[:count] = torch.tensor(chunk.sequence.pages[:count], dtype=torch.int32)

        def upload(values: list[int], dtype: torch.dtype) -> Tensor:
            return torch.tensor(values, dtype=dtype).to(self.device)

        return TokenBatch(
            token_ids=upload(ids, torch.int64),
            positions=upload(positions, torch.int64),
            slots=upload(slots, torch.int64),
            page_table=table.to(self.device),
            context_lens=upload([chunk.start + chunk.count for chunk in chunks], torch.int32),
            query_start=None if decode else upload(starts, torch.int32),
            max_query_len=max(chunk.count for chunk in chunks),
            logit_rows=None if decode else upload(last_rows, torch.int64),
        )
