"""Runs the model on scheduled batches: owns the decoder, the KV cache's tensors and the device."""

from __future__ import annotations

import torch
from torch import Tensor

from ..kernels import PAGE_SIZE
from ..models.batch import TokenBatch
from ..models.decoder import Decoder, LayerCache
from .sampler import sample
from .scheduler import Batch


class ModelRunner:
    """One forward pass per step, over sequences of different lengths."""

    def __init__(self, model: Decoder, cache: list[LayerCache], device: torch.device) -> None:
        self.model = model
        self.cache = cache
        self.device = device

    @torch.inference_mode()
    def run(self, batch: Batch) -> list[int]:
        """Compute the batch; returns the next token of each chunk that ends its sequence, in order."""
        finishing = [chunk.sequence for chunk in batch.chunks if chunk.is_last]
        logits = self.model(self.upload(batch), self.cache)
        return sample(self.model.ops, logits, finishing) if finishing else []

    def upload(self, batch: Batch) -> TokenBatch:
        """The batch's tensors, built on the host and copied to the device."""
        ids: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        starts = [0]
        last_rows: list[int] = []
        for chunk in batch.chunks:
            pages = chunk.sequence.pages
            end = chunk.start + chunk.count
            ids += chunk.sequence.tokens[chunk.start : end]
            positions += range(chunk.start, end)
            slots += [pages[at // PAGE_SIZE] * PAGE_SIZE + at % PAGE_SIZE for at in range(chunk.start, end)]
            starts.append(len(ids))
            if chunk.is_last:
                last_rows.append(len(ids) - 1)
        used = [-(-(chunk.start + chunk.count) // PAGE_SIZE) for chunk in batch.chunks]
        table = torch.zeros(len(used), max(used), dtype=torch.int32)
        for row, chunk, count in zip(table, batch.chunks, used, strict=True):
            row[:count] = torch.tensor(chunk.sequence.pages[:count], dtype=torch.int32)

        def upload(values: list[int], dtype: torch.dtype) -> Tensor:
            return torch.tensor(values, dtype=dtype).to(self.device)

        return TokenBatch(
            token_ids=upload(ids, torch.int64),
            positions=upload(positions, torch.int64),
            slots=upload(slots, torch.int64),
            page_table=table.to(self.device),
            context_lens=upload([chunk.start + chunk.count for chunk in batch.chunks], torch.int32),
            query_start=None if batch.is_decode else upload(starts, torch.int32),
            max_query_len=max(chunk.count for chunk in batch.chunks),
            logit_rows=None if batch.is_decode else upload(last_rows, torch.int64),
        )
