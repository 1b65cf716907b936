"""The decoder-only transformer of Llama, Qwen2.5 and Qwen3, told apart by the flags of ModelConfig."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..kernels import Operators
from .batch import TokenBatch
from .config import ModelConfig
from .linear import Linear

LayerCache = tuple[Tensor, Tensor]
"""Keys and values of one layer, each [pages, PAGE_SIZE, num_kv_heads, head_dim]."""


class Norm(nn.Module):
    """Holds the weight [size] of an RMSNorm; the operators do the arithmetic."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size), requires_grad=False)


class Attention(nn.Module):
    """Grouped-query attention over the paged KV cache."""

    def __init__(self, config: ModelConfig, ops: Operators) -> None:
        super().__init__()
        self.config = config
        self.ops = ops
        self.scale = config.head_dim**-0.5
        self.qkv_proj = Linear(config.hidden_size, config.q_size + 2 * config.kv_size, config.qkv_bias)
        self.o_proj = Linear(config.q_size, config.hidden_size, config.o_bias)
        self.q_norm = Norm(config.head_dim) if config.qk_norm else None
        self.k_norm = Norm(config.head_dim) if config.qk_norm else None

    def forward(self, x: Tensor, batch: TokenBatch, rope: tuple[Tensor, Tensor], cache: LayerCache) -> Tensor:
        """x [T, hidden] -> [T, hidden]; writes the new keys and values to the cache."""
        config, ops = self.config, self.ops
        qkv = self.qkv_proj(x).view(x.shape[0], -1, config.head_dim)
        q, k, v = qkv.split((config.num_heads, config.num_kv_heads, config.num_kv_heads), dim=1)
        q, k = ops.rope(
            q,
            k,
            batch.positions,
            *rope,
            q_weight=self.q_norm.weight if self.q_norm else None,
            k_weight=self.k_norm.weight if self.k_norm else None,
            eps=config.rms_norm_eps,
        )
        ops.kv_write(k, v, *cache, batch.slots)
        if batch.query_start is None:
            out = ops.decode_attention(q, *cache, batch.page_table, batch.context_lens, self.scale)
        else:
            out = ops.prefill_attention(
                q,
                *cache,
                batch.page_table,
                batch.query_start,
                batch.context_lens,
                batch.max_query_len,
                self.scale,
            )
        return self.o_proj(out.view(x.shape[0], config.q_size))


class Mlp(nn.Module):
    """SwiGLU feed-forward network (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, config: ModelConfig, ops: Operators) -> None:
        super().__init__()
        self.ops = ops
        self.gate_up_proj = Linear(config.hidden_size, 2 * config.intermediate_size, config.mlp_bias)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size, config.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
        """x [T, hidden] -> [T, hidden]."""
        return self.down_proj(self.ops.swiglu(self.gate_up_proj(x)))


class Layer(nn.Module):
    """Attention and feed-forward network, each behind a norm and added to the residual stream.

    The addition is done by the norm that follows it, so a layer hands on its output and the residual
    stream apart.
    """

    def __init__(self, config: ModelConfig, ops: Operators) -> None:
        super().__init__()
        self.ops = ops
        self.eps = config.rms_norm_eps
        self.input_layernorm = Norm(config.hidden_size)
        self.self_attn = Attention(config, ops)
        self.post_attention_layernorm = Norm(config.hidden_size)
        self.mlp = Mlp(config, ops)

    def forward(
        self,
        x: Tensor,
        residual: Tensor | None,
        batch: TokenBatch,
        rope: tuple[Tensor, Tensor],
        cache: LayerCache,
    ) -> tuple[Tensor, Tensor]:
        """x, residual [T, hidden] -> (output, residual stream before it), both [T, hidden]."""
        if residual is None:
            residual = x
            x = self.ops.rmsnorm(x, self.input_layernorm.weight, self.eps)
        else:
            x, residual = self.ops.skip_rmsnorm(x, residual, self.input_layernorm.weight, self.eps)
        x = self.self_attn(x, batch, rope, cache)
        x, residual = self.ops.skip_rmsnorm(x, residual, self.post_attention_layernorm.weight, self.eps)
        return self.mlp(x), residual


class Decoder(nn.Module):
    """Token ids to logits. Parameter names are those of models/weights.py without their `model.` prefix."""

    rope: tuple[Tensor, Tensor]
    """cos and sin, each [max_context, head_dim / 2] fp32; set by the loader."""

    def __init__(self, config: ModelConfig, ops: Operators) -> None:
        super().__init__()
        self.config = config
        self.ops = ops
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config, ops) for _ in range(config.num_layers))
        self.norm = Norm(config.hidden_size)
        self.lm_head = Linear(config.hidden_size, config.vocab_size, bias=False)

    def forward(self, batch: TokenBatch, caches: Sequence[LayerCache]) -> Tensor:
        """Logits [R, vocab_size] fp32 of the wanted rows; the KV cache is extended by the batch's tokens."""
        x = self.embed_tokens(batch.token_ids)
        residual: Tensor | None = None
        for layer, cache in zip(self.layers, caches, strict=True):
            x, residual = layer(x, residual, batch, self.rope, cache)
        assert residual is not None
        if batch.logit_rows is not None:
            x, residual = x[batch.logit_rows], residual[batch.logit_rows]
        x, _ = self.ops.skip_rmsnorm(x, residual, self.norm.weight, self.config.rms_norm_eps)
        return self.lm_head(x).float()
