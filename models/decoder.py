"""The decoder-only transformer of Llama, Qwen2.5 and Qwen3, told apart by the flags of ModelConfig.

LLaVA is one of them that has an image encoder before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..kernels import Hidden, Operators, sum_parts
from .batch import DecodeBatch, PrefillBatch
from .config import ModelConfig
from .linear import Embedding, Linear, Module, Norm
from .vision import Projector, VisionTower

Batch = PrefillBatch | DecodeBatch

LayerCache = tuple[Tensor, Tensor]
"""Keys and values of one layer, each [pages, PAGE_SIZE, num_kv_heads, head_dim]."""


class Attention(Module):
    """Grouped-query attention over the paged KV cache."""

    def __init__(self, config: ModelConfig, ops: Operators) -> None:
        super().__init__()
        self.config = config
        self.ops = ops
        self.scale = config.head_dim**-0.5
        width = config.q_size + 2 * config.kv_size
        self.qkv_proj = Linear(config.hidden_size, width, config.qkv_bias, ops)
        self.o_proj = Linear(config.q_size, config.hidden_size, config.o_bias, ops)
        self.q_norm = Norm(config.head_dim, config.rms_norm_eps) if config.qk_norm else None
        self.k_norm = Norm(config.head_dim, config.rms_norm_eps) if config.qk_norm else None

    def attend(self, qkv: Tensor, batch: Batch, rope: tuple[Tensor, Tensor], cache: LayerCache) -> Tensor:
        """qkv [S, T, (Hq + 2 Hk) * D], to be summed over S -> [T, Hq * D]; extends the cache."""
        norms = {
            "q_norm": self.q_norm.weight if self.q_norm else None,
            "k_norm": self.k_norm.weight if self.k_norm else None,
            "eps": self.config.rms_norm_eps,
        }
        heads = self.config.num_heads
        if isinstance(batch, DecodeBatch):
            place = (batch.positions, batch.slots, batch.page_table)
            step = {"one_sequence": batch.one_sequence, "memo": batch.memo}
            return self.ops.decode_attention(qkv, *place, *rope, *cache, heads, self.scale, **norms, **step)
        return self._prefill(qkv, batch, rope, cache, norms)

    def _prefill(
        self,
        qkv: Tensor,
        batch: PrefillBatch,
        rope: tuple[Tensor, Tensor],
        cache: LayerCache,
        norms: dict[str, Any],
    ) -> Tensor:
        config, ops = self.config, self.ops
        rows = qkv.shape[1]
        qkv = sum_parts(qkv, cache[0].dtype).view(rows, -1, config.head_dim)
        q, k, v = qkv.split((config.num_heads, config.num_kv_heads, config.num_kv_heads), dim=1)
        q, k = ops.rope(q, k, batch.positions, *rope, **norms)
        ops.kv_write(k, v, *cache, batch.cache_slots)
        out = ops.prefill_attention(
            q,
            *cache,
            batch.page_table,
            batch.query_start,
            batch.context_lens,
            batch.max_query_len,
            self.scale,
        )
        return out.view(rows, config.q_size)


class Mlp(Module):
    """SwiGLU feed-forward network (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, config: ModelConfig, ops: Operators) -> None:
        super().__init__()
        self.gate_up_proj = Linear(config.hidden_size, 2 * config.intermediate_size, config.mlp_bias, ops)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size, config.mlp_bias, ops)


class Layer(Module):
    """Attention and feed-forward network, each behind a norm and added to the residual stream."""

    def __init__(self, config: ModelConfig, ops: Operators) -> None:
        super().__init__()
        self.input_layernorm = Norm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config, ops)
        self.post_attention_layernorm = Norm(config.hidden_size, config.rms_norm_eps)
        self.mlp = Mlp(config, ops)

    def extend(
        self,
        hidden: Hidden,
        batch: Batch,
        rope: tuple[Tensor, Tensor],
        cache: LayerCache,
        next_norm: Norm,
    ) -> Hidden:
        """The stream after this layer; `next_norm` is the norm that reads it."""
        attention, mlp = self.self_attn, self.mlp
        qkv = attention.qkv_proj.after_norm(hidden, self.input_layernorm)
        attended = attention.attend(qkv, batch, rope, cache)
        hidden = attention.o_proj.added_to(hidden, attended, self.post_attention_layernorm)
        gated = mlp.gate_up_proj.gated_after_norm(hidden, self.post_attention_layernorm)
        return mlp.down_proj.added_to(hidden, gated, next_norm)


class Decoder(Module):
    """Token ids to logits. Parameter names are those of models/weights.py without their `model.` prefix."""

    rope: tuple[Tensor, Tensor]
    """cos and sin, each [max_context, head_dim / 2] fp32; set by the loader."""

    def __init__(self, config: ModelConfig, ops: Operators) -> None:
        super().__init__()
        self.config = config
        self.ops = ops
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)
        layers = [Layer(config, ops) for _ in range(config.num_layers)]
        self.layers = nn.ModuleList(layers)
        self.norm = Norm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = Linear(config.hidden_size, config.vocab_size, False, ops)
        norms = [*(layer.input_layernorm for layer in layers), self.norm]
        self._layers_and_next_norms = list(zip(layers, norms[1:], strict=True))
        if config.vision:
            self.vision_tower = VisionTower(config.vision, ops)
            self.multi_modal_projector = Projector(config.vision, config.hidden_size, ops)

    def encode_images(self, pixels: Tensor) -> Tensor:
        """Embeddings [N, tokens, H] of images [N, 3, size, size], for a model that sees them."""
        return self.multi_modal_projector(self.vision_tower(pixels))

    def prefill(self, batch: PrefillBatch, caches: Sequence[LayerCache]) -> Tensor | None:
        """Logits [R, vocab_size] fp32 of the wanted rows; the KV cache is extended by the batch's tokens.

        caches: one for each layer; with fewer, only so many layers run.
        """
        hidden = self.read(batch, caches)
        return None if batch.logit_rows is None else self.logits(hidden.rows(batch.logit_rows))

    def read(self, batch: PrefillBatch, caches: Sequence[LayerCache]) -> Hidden:
        """The stream after all layers, for whoever wants the logits of many rows a few at a time."""
        embedded = self.embed_tokens(batch.token_ids)
        if batch.images:
            is_image, images = batch.images
            embedded = torch.where(is_image[:, None], images, embedded)
        return self._layers(embedded, batch, caches)

    def decode(self, embedded: Tensor, batch: DecodeBatch, caches: Sequence[LayerCache]) -> Tensor:
        """Logits [B, vocab_size] fp32 after one more token of each sequence, its embedding [B, H]."""
        return self.logits(self._layers(embedded, batch, caches))

    def logits(self, hidden: Hidden) -> Tensor:
        """Logits [T, vocab_size] fp32 of what `read` returns."""
        return self.lm_head.logits_after_norm(hidden, self.norm)

    def _layers(self, embedded: Tensor, batch: Batch, caches: Sequence[LayerCache]) -> Hidden:
        hidden = Hidden(embedded)
        rope = self.rope
        layers = self._layers_and_next_norms[: len(caches)]
        for (layer, next_norm), cache in zip(layers, caches, strict=True):
            hidden = layer.extend(hidden, batch, rope, cache, next_norm)
        return hidden
