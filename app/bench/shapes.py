"""Published models whose shapes can be measured with random weights: their `config.json`, as released."""

from __future__ import annotations

from typing import Any

from ...models.errors import UserError


def _llama(
    hidden: int,
    ffn: int,
    layers: int,
    heads: int,
    kv_heads: int,
    *,
    scaling: float | None,
    context: int = 131072,
    tied: bool = True,
) -> dict[str, Any]:
    """Llama 3 (no rope scaling), 3.1 (factor 8) and 3.2 (factor 32)."""
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": 500000.0}
    if scaling:
        rope |= {
            "rope_type": "llama3",
            "factor": scaling,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 128256,
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": hidden // heads,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": context,
        "rope_parameters": rope,
        "tie_word_embeddings": tied,
        "dtype": "bfloat16",
    }


def _qwen(
    generation: int,
    hidden: int,
    ffn: int,
    layers: int,
    heads: int,
    kv_heads: int,
    *,
    vocab: int = 151936,
    tied: bool = True,
) -> dict[str, Any]:
    """Qwen2.5 (bias on q, k and v) and Qwen3 (norms of q and k, heads of 128 whatever the hidden size)."""
    return {
        "architectures": [f"Qwen{generation}ForCausalLM"],
        "model_type": f"qwen{generation}",
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": 128 if generation == 3 else hidden // heads,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 40960 if generation == 3 else 32768,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
        "tie_word_embeddings": tied,
        "dtype": "bfloat16",
    }


def _llava(text: dict[str, Any]) -> dict[str, Any]:
    """LLaVA-1.5 on Vicuna 1.5, which is Llama 2 with 64 more tokens, and CLIP's ViT-L/14 at 336 pixels."""
    text |= {"vocab_size": 32064, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}
    text |= {"dtype": "float16"}
    vision = {
        "model_type": "clip_vision_model",
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 336,
        "patch_size": 14,
        "projection_dim": 768,
    }
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "text_config": text,
        "vision_config": vision,
        "image_token_index": 32000,
        "projector_hidden_act": "gelu",
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "tie_word_embeddings": False,
        "dtype": "float16",
    }


_SMOLLM2 = _llama(576, 1536, 30, 9, 3, scaling=None, context=8192) | {
    "vocab_size": 49152,
    "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0},
}

SHAPES: dict[str, dict[str, Any]] = {
    "Llama-3.2-1B": _llama(2048, 8192, 16, 32, 8, scaling=32.0),
    "Llama-3.2-3B": _llama(3072, 8192, 28, 24, 8, scaling=32.0),
    "Llama-3.1-8B": _llama(4096, 14336, 32, 32, 8, scaling=8.0, tied=False),
    "Llama-3-8B": _llama(4096, 14336, 32, 32, 8, scaling=None, context=8192, tied=False),
    "Qwen2.5-0.5B": _qwen(2, 896, 4864, 24, 14, 2),
    "Qwen2.5-1.5B": _qwen(2, 1536, 8960, 28, 12, 2),
    "Qwen2.5-3B": _qwen(2, 2048, 11008, 36, 16, 2),
    "Qwen2.5-7B": _qwen(2, 3584, 18944, 28, 28, 4, vocab=152064, tied=False),
    "Qwen3-0.6B": _qwen(3, 1024, 3072, 28, 16, 8),
    "Qwen3-1.7B": _qwen(3, 2048, 6144, 28, 16, 8),
    "Qwen3-4B": _qwen(3, 2560, 9728, 36, 32, 8),
    "Qwen3-8B": _qwen(3, 4096, 12288, 36, 32, 8, tied=False),
    "SmolLM2-135M": _SMOLLM2,
    "LLaVA-1.5-7B": _llava(_llama(4096, 11008, 32, 32, 32, scaling=None, context=4096, tied=False)),
    "LLaVA-1.5-13B": _llava(_llama(5120, 13824, 40, 40, 40, scaling=None, context=4096, tied=False)),
}
"""Name -> config.json. For Qwen2.5 it is the Instruct model's, whose context is the shorter one."""


def shape_config(name: str) -> tuple[str, dict[str, Any]]:
    """The name as in SHAPES (given in any case) and its config. Raises UserError, listing the names."""
    for known, config in SHAPES.items():
        if known.lower() == name.lower():
            return known, config
    raise UserError(f"Unknown shape {name!r}: choose one of {', '.join(SHAPES)}.")
