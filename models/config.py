"""What a decoder needs to know, read from a Hugging Face `config.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from .errors import CheckpointError, UnsupportedModelError

LLAVA = "LlavaForConditionalGeneration"
ARCHITECTURES = {
    "LlamaForCausalLM": "Llama",
    "Qwen2ForCausalLM": "Qwen2.5",
    "Qwen3ForCausalLM": "Qwen3",
    LLAVA: "LLaVA-1.5",
}
ROPE_TYPES = ("default", "linear", "llama3", "yarn")
ACTIVATIONS = ("quick_gelu", "gelu")
"""Those of the image encoder."""

# A LLaVA config leaves out whatever is as transformers has it by default: of its text model, which is known
# by its `model_type`, and of the CLIP tower.
_WIDE = {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32}
_QWEN = _WIDE | {"vocab_size": 151936, "intermediate_size": 22016, "max_position_embeddings": 32768}
_TEXT_MODELS: dict[str, dict[str, Any]] = {
    "llama": _WIDE | {"architectures": ["LlamaForCausalLM"], "vocab_size": 32000, "intermediate_size": 11008},
    "qwen2": _QWEN | {"architectures": ["Qwen2ForCausalLM"], "num_key_value_heads": 32},
    "qwen3": _QWEN | {"architectures": ["Qwen3ForCausalLM"], "num_key_value_heads": 32, "head_dim": 128},
}
_CLIP: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 32,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}


@dataclass(frozen=True)
class RopeConfig:
    """Rotary embedding settings; `parameters` holds the numbers of the scaling rule (factor, ...)."""

    theta: float
    kind: str = "default"
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class VisionConfig:
    """Shape of LLaVA's image encoder: a CLIP vision tower and the projector into the decoder's embeddings."""

    hidden_size: int
    intermediate_size: int
    num_heads: int
    image_size: int
    """Width and height of the images that it takes, in pixels."""
    patch_size: int
    activation: str
    layer_norm_eps: float
    feature_layers: tuple[int, ...]
    """Hidden states whose features are joined: 0 is the tower's input, n the output of its layer n."""
    with_class_token: bool
    """Whether the feature of the class token is kept as the first of an image."""
    projector_activation: str
    projector_bias: bool
    image_token: int
    """The token id in whose places an image's features are put."""

    @property
    def num_layers(self) -> int:
        """Layers of the tower that are computed: those beyond the last feature are not."""
        return max(self.feature_layers)

    @property
    def num_patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2

    @property
    def tokens(self) -> int:
        """Tokens of the prompt that one image takes."""
        return self.num_patches + self.with_class_token

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> VisionConfig:
        """Build from the parsed `config.json` of a LLaVA model.

        Raises UnsupportedModelError for another tower than CLIP's and for unknown activations, and
        KeyError, TypeError or ValueError when a field makes no sense.
        """
        tower = _CLIP | dict(raw["vision_config"])
        if (kind := tower.get("model_type", "clip_vision_model")) != "clip_vision_model":
            raise UnsupportedModelError(f"Image encoder {kind!r} is not supported, only CLIP's.")
        activations = tower["hidden_act"], raw.get("projector_hidden_act", "gelu")
        if unknown := set(activations) - set(ACTIVATIONS):
            raise UnsupportedModelError(
                f"Activation {min(unknown)!r} of the image encoder is not supported; "
                f"supported are {', '.join(ACTIVATIONS)}."
            )
        strategy = raw.get("vision_feature_select_strategy", "default")
        if strategy not in ("default", "full"):
            raise UnsupportedModelError(f"The selection of image features {strategy!r} is not supported.")
        states = int(tower["num_hidden_layers"]) + 1
        layers = raw.get("vision_feature_layer", -2)
        layers = [layers] if isinstance(layers, int) else layers
        if not layers or not all(-states <= layer < states for layer in layers):
            raise ValueError(f"vision_feature_layer {layers}")
        token = raw.get("image_token_index", raw.get("image_token_id"))
        return cls(
            hidden_size=int(tower["hidden_size"]),
            intermediate_size=int(tower["intermediate_size"]),
            num_heads=int(tower["num_attention_heads"]),
            image_size=int(tower["image_size"]),
            patch_size=int(tower["patch_size"]),
            activation=activations[0],
            layer_norm_eps=float(tower["layer_norm_eps"]),
            feature_layers=tuple(layer % states for layer in layers),
            with_class_token=strategy == "full",
            projector_activation=activations[1],
            projector_bias=bool(raw.get("multimodal_projector_bias", True)),
            image_token=32000 if token is None else int(token),
        )


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
    vision: VisionConfig | None = None
    """The image encoder, if the model sees images."""

    @property
    def family(self) -> str:
        """The name people use: Llama, Qwen2.5, Qwen3 or LLaVA-1.5."""
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
        if architecture == LLAVA:
            return _llava(raw)
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


def _llava(raw: Mapping[str, Any]) -> ModelConfig:
    """The decoder of `text_config`, with the image encoder that the rest of LLaVA's config describes."""
    given = dict(raw.get("text_config") or {})
    kind = given.get("model_type", "llama")
    if kind not in _TEXT_MODELS:
        raise UnsupportedModelError(
            f"LLaVA on a language model of type {kind!r} is not supported; "
            f"supported are {', '.join(_TEXT_MODELS)}."
        )
    # Its own `architectures`, where there are any, say the same as the type.
    text = _TEXT_MODELS[kind] | {name: value for name, value in given.items() if name != "architectures"}
    text["tie_word_embeddings"] = bool(raw.get("tie_word_embeddings") or text.get("tie_word_embeddings"))
    decoder = ModelConfig.from_dict(text)
    try:
        vision = VisionConfig.from_dict(raw)
        if not 0 <= vision.image_token < decoder.vocab_size:
            raise ValueError(f"image token {vision.image_token}")
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"config.json is incomplete or wrong ({error}): download it again.") from None
    dtype = str(raw.get("dtype") or raw.get("torch_dtype") or decoder.dtype).removeprefix("torch.")
    return replace(decoder, architecture=LLAVA, dtype=dtype, vision=vision)


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
