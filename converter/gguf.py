"""GGUF as a conversion source: llama.cpp's names, layouts and metadata turned into Hugging Face's."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..models.errors import UnsupportedModelError
from .gguf_file import GGUFFile, Kind, Metadata, damaged
from .gguf_tokenizer import GGUFTokenizer

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
_GLOBAL_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_LAYER = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")
_ROPE_FACTORS = "rope_freqs.weight"
_DTYPES = {Kind.F32: "float32", Kind.F16: "float16"}  # anything else: bfloat16


def open_gguf(path: Path) -> GGUFSource:
    """Open a GGUF model of any size in little time; nothing but the header is read.

    Raises CheckpointError when the file is damaged or no GGUF, UnsupportedModelError when it holds a model,
    quantisation or tokenizer that cannot be converted.
    """
    file = GGUFFile(path)
    try:
        return GGUFSource(file)
    except BaseException:
        file.close()
        raise


class GGUFSource:
    """The `Source` of one GGUF model."""

    def __init__(self, file: GGUFFile):
        self._file = file
        arch = file.metadata.text("general.architecture")
        if arch not in ARCHITECTURES:
            raise UnsupportedModelError(
                f"{file.path} holds a model of architecture {arch!r}; "
                f"supported are {', '.join(ARCHITECTURES)}."
            )
        self._names = _hugging_face_names(file)
        self._dtype = _majority_dtype(file.tensors.values())
        self._tokenizer = GGUFTokenizer(file.metadata)
        self._config: dict[str, Any] = (
            _config(file, arch, self._names) | {"dtype": self._dtype} | self._tokenizer.ids
        )
        if len(self._tokenizer.tokens) > self._config["vocab_size"]:
            raise damaged(file.path, "it has more tokens than embeddings")
        # llama.cpp stores the heads of `llama` models for rope on adjacent pairs, of the others as they are.
        self._heads_permuted = arch == "llama"

    @property
    def config(self) -> Mapping[str, Any]:
        return self._config

    @property
    def dtype(self) -> str:
        return self._dtype

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {name: self._file.tensors[stored].shape for name, stored in self._names.items()}

    @property
    def files(self) -> Sequence[Path]:
        return self._file.paths

    def read(self, name: str) -> Tensor:
        tensor = self._file.read(self._names[name])
        if self._heads_permuted and ".q_proj." in name:
            return _halves_from_pairs(tensor, self._config["num_attention_heads"])
        if self._heads_permuted and ".k_proj." in name:
            return _halves_from_pairs(tensor, self._config["num_key_value_heads"])
        return tensor

    def write_files(self, directory: Path) -> None:
        config = json.dumps(self._config, indent=2) + "\n"
        (directory / "config.json").write_text(config, encoding="utf-8")
        self._tokenizer.write(directory)

    def close(self) -> None:
        self._file.close()


def _hugging_face_names(file: GGUFFile) -> dict[str, str]:
    """Hugging Face name -> GGUF name of every tensor but the rope factors."""
    names = {}
    for stored in file.tensors:
        if stored == _ROPE_FACTORS:
            continue
        module, _, suffix = stored.rpartition(".")
        if module in _GLOBAL_NAMES:
            names[f"{_GLOBAL_NAMES[module]}.{suffix}"] = stored
        elif (match := _LAYER.fullmatch(stored)) and match[2] in _LAYER_NAMES:
            names[f"model.layers.{int(match[1])}.{_LAYER_NAMES[match[2]]}.{match[3]}"] = stored
        else:
            raise UnsupportedModelError(
                f"{file.path} has a tensor {stored}, which no supported model has: it needs another program."
            )
    return names


def _majority_dtype(tensors: Any) -> str:
    """The dtype that holds most of the parameters; bfloat16 stands for every quantisation as well."""
    elements: Counter[str] = Counter()
    for tensor in tensors:
        elements[_DTYPES.get(tensor.kind, "bfloat16")] += tensor.elements
    return elements.most_common(1)[0][0] if elements else "bfloat16"


def _halves_from_pairs(tensor: Tensor, heads: int) -> Tensor:
    """Undo llama.cpp's reordering of each head's rows: (x0, y0, x1, y1, ...) -> (x0, x1, ..., y0, y1, ...).

    Its rope turns neighbouring rows, Hugging Face's row i with row i + head_dim / 2.
    """
    pairs = tensor.shape[0] // heads // 2
    return tensor.reshape(heads, pairs, 2, -1).transpose(1, 2).reshape(tensor.shape)


def _config(file: GGUFFile, arch: str, names: Mapping[str, str]) -> dict[str, Any]:
    """Hugging Face's config.json without dtype and token ids."""
    data, tensors = file.metadata, file.tensors
    if data.integer(f"{arch}.expert_count", 0):
        raise UnsupportedModelError(f"{file.path} holds a mixture of experts, which is not supported.")
    if data.integer(f"{arch}.attention.sliding_window", 0):
        raise UnsupportedModelError(f"{file.path} needs sliding-window attention, which is not supported.")
    layers = {match[1] for name in tensors if (match := _LAYER.fullmatch(name))}
    num_layers = data.integer(f"{arch}.block_count")
    # Checked here so that a damaged count sends nobody looping over billions of layers.
    if not layers or layers != {str(n) for n in range(len(layers))} or num_layers != len(layers):
        raise damaged(file.path, f"it has {len(layers)} of {num_layers} layers")
    if "token_embd.weight" not in tensors:
        raise damaged(file.path, "it has no token embeddings")
    hidden_size = data.integer(f"{arch}.embedding_length")
    heads = data.integer(f"{arch}.attention.head_count")
    kv_heads = data.integer(f"{arch}.attention.head_count_kv", heads)
    if not 0 < kv_heads <= heads or heads % kv_heads:
        raise damaged(file.path, f"it has {heads} query and {kv_heads} key-value heads")
    head_dim = data.integer(f"{arch}.attention.key_length", hidden_size // heads)
    rotated = data.integer(f"{arch}.rope.dimension_count", head_dim)
    if data.integer(f"{arch}.attention.value_length", head_dim) != head_dim or rotated != head_dim:
        raise UnsupportedModelError(
            f"{file.path} has heads of unequal sizes or rotates only a part of each, which is not supported."
        )
    for name, rows in (("attn_q", heads * head_dim), ("attn_k", kv_heads * head_dim)):
        for index in range(num_layers):
            tensor = tensors.get(f"blk.{index}.{name}.weight")
            if tensor is None or tensor.shape[0] != rows or head_dim % 2:
                raise damaged(file.path, f"blk.{index}.{name}.weight does not fit its heads")
    config: dict[str, Any] = {
        "architectures": [ARCHITECTURES[arch]],
        "model_type": arch,
        "vocab_size": tensors["token_embd.weight"].shape[0],
        "hidden_size": hidden_size,
        "intermediate_size": data.integer(f"{arch}.feed_forward_length"),
        "num_hidden_layers": num_layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": data.integer(f"{arch}.context_length"),
        "rms_norm_eps": data.number(f"{arch}.attention.layer_norm_rms_epsilon"),
        "rope_parameters": _rope(file, arch, head_dim),
        "tie_word_embeddings": "lm_head.weight" not in names,
    }
    if arch == "qwen2":
        config["use_sliding_window"] = False
    else:
        config["attention_bias"] = "blk.0.attn_q.bias" in tensors
    if arch == "llama":
        config["mlp_bias"] = "blk.0.ffn_up.bias" in tensors
    return config


def _rope(file: GGUFFile, arch: str, head_dim: int) -> dict[str, Any]:
    """Hugging Face's `rope_parameters`."""
    data, prefix = file.metadata, f"{arch}.rope.scaling"
    theta = data.number(f"{arch}.rope.freq_base", 10000.0)
    if theta <= 0:
        raise damaged(file.path, f"its rope base is {theta}")
    parameters: dict[str, Any] = {"rope_type": "default", "rope_theta": theta}
    kind = data.text(f"{prefix}.type", "linear")
    # Files from before `rope.scaling` say only a linear factor, under another name.
    factor = data.number(f"{prefix}.factor", data.number(f"{arch}.rope.scale_linear", 1.0))
    if kind not in ("none", "linear", "yarn"):
        raise UnsupportedModelError(f"{file.path} uses rope scaling {kind!r}, which is not supported.")
    if kind != "none" and factor != 1.0:
        parameters |= {"rope_type": kind, "factor": factor}
        if kind == "yarn":
            parameters |= _yarn(data, arch, factor)
    if _ROPE_FACTORS in file.tensors:
        divisors = file.read(_ROPE_FACTORS).double()
        llama3 = llama3_rope(divisors, theta, head_dim)
        if llama3 is None or parameters["rope_type"] != "default":
            raise UnsupportedModelError(
                f"{file.path} has rope factors that are not Llama 3's rule, which is not supported."
            )
        parameters |= llama3
    return parameters


def _yarn(data: Metadata, arch: str, factor: float) -> dict[str, Any]:
    prefix = f"{arch}.rope.scaling"
    context = data.integer(f"{prefix}.original_context_length", data.integer(f"{arch}.context_length"))
    found: dict[str, Any] = {"original_max_position_embeddings": context}
    for key in ("beta_fast", "beta_slow"):
        if f"{prefix}.yarn_{key}" in data:
            found[key] = data.number(f"{prefix}.yarn_{key}")
    # llama.cpp multiplies YaRN's own attention factor, Hugging Face replaces it.
    attention = data.number(f"{prefix}.yarn_attn_factor", data.number(f"{prefix}.attn_factor", 1.0))
    if attention != 1.0:
        found["attention_factor"] = attention * (0.1 * math.log(factor) + 1.0)
    return found


def llama3_rope(divisors: Tensor, theta: float, head_dim: int) -> dict[str, Any] | None:
    """The parameters of Llama 3.1's rope rule that give these divisors of the frequencies, or None.

    llama.cpp stores the rule's result, [head_dim / 2] divisors: 1 for wavelengths below
    original_max_position / high_freq_factor, `factor` for those above original_max_position /
    low_freq_factor, in between interpolated linearly in the inverse wavelength. Every Llama 3 has
    low_freq_factor 1 and high_freq_factor 4; the other two are read off the divisors.
    """
    if divisors.shape != (head_dim // 2,) or not bool(torch.isfinite(divisors).all()):
        return None
    factor = round(float(divisors.max()), 4)
    if float(divisors.min()) < 0.999 or factor < 1.0:
        return None
    if factor == 1.0:
        return {}
    wavelengths = 2 * math.pi * theta ** (torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    smooth = (1 / divisors - 1 / factor) / (1 - 1 / factor)
    # The wavelength nearest to the middle of the band tells the original context most exactly. With none in
    # the band, any context that puts its edges between the same wavelengths is the same rule.
    middle = int((smooth - 0.5).abs().argmin())
    original = round(float(wavelengths[middle] * (1 + 3 * smooth[middle])))
    for candidate in (original, 8192):
        weight = ((candidate / wavelengths - 1) / 3).clamp(0, 1)
        expected = 1 / ((1 - weight) / factor + weight)
        if torch.allclose(divisors, expected, rtol=1e-3, atol=0):
            return {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": candidate,
            }
    return None
