"""What a decoder needs to know, read from a Hugging Face `config.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import CheckpointError, UnsupportedModelError

ARCHITECTURES = {
    "LlamaForCausalLM": "Llama",
    "Qwen2ForCausalLM": "Qwen2.5",
    "Qwen3ForCausalLM": "Qwen3",
}
ROPE_TYPES = ("default", "linear", "llama3", "yarn")


@dataclass(frozen=True)
class RopeConfig:
    """Rotary embedding settings; `parameters` holds the numbers of the scaling rule (factor, ...)."""

    theta: float
    kind: str = "default"
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ModelConfig:
    """Shape and flags of a Llama-like decoder. Sizes are in elements, not bytes."""

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    max_position: int
    rope: RopeConfig
    tie_word_embeddings: bool
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    dtype: str = "bfloat16"
    """The dtype that the checkpoint declares: float32, float16 or bfloat16."""

    @property
    def family(self) -> str:
        """The name people use: Llama, Qwen2.5 or Qwen3."""
        return ARCHITECTURES[self.architecture]

    @property
    def q_size(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        return self.num_kv_heads * self.head_dim

    @classmethod
    def from_file(cls, path: Path) -> ModelConfig:
        """Read `config.json`. Raises CheckpointError when it is missing or no JSON object."""
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise CheckpointError(
                f"{path.parent} has no config.json: point at a Hugging Face checkpoint."
            ) from None
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path} cannot be read as JSON ({error}): download it again.") from None
        if not isinstance(raw, dict):
            raise CheckpointError(f"{path} holds no JSON object: download it again.")
        return cls.from_dict(raw)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> ModelConfig:
        """Build from the parsed `config.json` of transformers 4 or 5.

        Raises UnsupportedModelError for an architecture, activation, rope rule, sliding window or
        quantisation that the decoder does not implement, CheckpointError when a field is missing.
        """
        names = raw.get("architectures") or []
        architecture = names[0] if names else ""
        if architecture not in ARCHITECTURES:
            raise UnsupportedModelError(
                f"Architecture {architecture or raw.get('model_type', 'unknown')!r} is not supported; "
                f"supported are {', '.join(ARCHITECTURES)}."
            )
        if raw.get("quantization_config"):
            method = raw["quantization_config"].get("quant_method", "unknown")
            raise UnsupportedModelError(
                f"The checkpoint is quantised ({method}): convert its float checkpoint or a GGUF file."
            )
        if raw.get("hidden_act", "silu") != "silu":
            raise UnsupportedModelError(f"Activation {raw['hidden_act']!r} is not supported, only silu.")
        if raw.get("use_sliding_window"):
            raise UnsupportedModelError("Sliding-window attention is not supported.")
        try:
            num_heads = int(raw["num_attention_heads"])
            hidden_size = int(raw["hidden_size"])
            qwen2 = architecture == "Qwen2ForCausalLM"
            attention_bias = bool(raw.get("attention_bias", False))
            return cls(
                architecture=architecture,
                vocab_size=int(raw["vocab_size"]),
                hidden_size=hidden_size,
                intermediate_size=int(raw["intermediate_size"]),
                num_layers=int(raw["num_hidden_layers"]),
                num_heads=num_heads,
                num_kv_heads=int(raw.get("num_key_value_heads") or num_heads),
                head_dim=int(raw.get("head_dim") or hidden_size // num_heads),
                rms_norm_eps=float(raw.get("rms_norm_eps", 1e-6)),
                max_position=int(raw.get("max_position_embeddings", 2048)),
                rope=_rope(raw),
                tie_word_embeddings=bool(raw.get("tie_word_embeddings", False)),
                qkv_bias=qwen2 or attention_bias,
                o_bias=attention_bias and not qwen2,
                mlp_bias=bool(raw.get("mlp_bias", False)),
                qk_norm=architecture == "Qwen3ForCausalLM",
                dtype=str(raw.get("dtype") or raw.get("torch_dtype") or "float32").removeprefix("torch."),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"config.json is incomplete or wrong ({error}): download it again."
            ) from None


def _rope(raw: Mapping[str, Any]) -> RopeConfig:
    """Rope settings: `rope_parameters` (transformers 5) or `rope_theta` + `rope_scaling` (before)."""
    settings = dict(raw.get("rope_parameters") or {})
    settings.update(raw.get("rope_scaling") or {})
    theta = float(settings.pop("rope_theta", None) or raw.get("rope_theta") or 10000.0)
    old_name = settings.pop("type", None)
    kind = settings.pop("rope_type", None) or old_name or "default"
    if kind not in ROPE_TYPES:
        raise UnsupportedModelError(
            f"Rope scaling {kind!r} is not supported; supported are {', '.join(ROPE_TYPES)}."
        )
    return RopeConfig(theta=theta, kind=kind, parameters=settings)
