"""config.json of transformers 4 and 5, and what is refused."""

from __future__ import annotations

import json

import pytest

from lite_llama.models.config import ModelConfig
from lite_llama.models.errors import CheckpointError, UnsupportedModelError
from lite_llama.models.weights import parameter_count, targets

LLAMA_32_1B = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "vocab_size": 128256,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": True,
    "rope_theta": 500000.0,
    "rope_scaling": {
        "factor": 32.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "torch_dtype": "bfloat16",
}


def test_published_config_of_llama_3_2_1b():
    config = ModelConfig.from_dict(LLAMA_32_1B)
    assert config.family == "Llama"
    assert (config.q_size, config.kv_size) == (2048, 512)
    assert config.rope.kind == "llama3"
    assert config.rope.theta == 500000.0
    assert config.rope.parameters["factor"] == 32.0
    assert not config.qkv_bias
    assert config.dtype == "bfloat16"
    assert parameter_count(config) == 1_235_814_400  # as the model card says: 1.23B


def test_both_spellings_of_rope_settings_mean_the_same():
    new = {key: value for key, value in LLAMA_32_1B.items() if key not in ("rope_theta", "rope_scaling")}
    new["rope_parameters"] = {**LLAMA_32_1B["rope_scaling"], "rope_theta": 500000.0}
    assert ModelConfig.from_dict(new) == ModelConfig.from_dict(LLAMA_32_1B)
    old_key = dict(LLAMA_32_1B, rope_scaling={"type": "linear", "factor": 2.0})
    assert ModelConfig.from_dict(old_key).rope.kind == "linear"


def test_qwen_flags():
    base = {key: value for key, value in LLAMA_32_1B.items() if key != "rope_scaling"}
    qwen2 = ModelConfig.from_dict(base | {"architectures": ["Qwen2ForCausalLM"]})
    assert qwen2.qkv_bias
    assert not qwen2.o_bias
    assert not qwen2.qk_norm
    qwen3 = ModelConfig.from_dict(base | {"architectures": ["Qwen3ForCausalLM"], "head_dim": 128})
    assert qwen3.qk_norm
    assert not qwen3.qkv_bias
    assert qwen3.q_size == 4096
    names = {target.name for target in targets(qwen3)}
    assert "model.layers.0.self_attn.q_norm.weight" in names
    assert "lm_head.weight" not in names


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"architectures": ["MambaForCausalLM"]}, "MambaForCausalLM"),
        ({"architectures": [], "model_type": "t5"}, "t5"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"use_sliding_window": True}, "Sliding-window"),
        ({"quantization_config": {"quant_method": "gptq"}}, "gptq"),
        ({"rope_scaling": {"rope_type": "longrope"}}, "longrope"),
    ],
)
def test_refusals_name_what_is_unsupported(change, word):
    with pytest.raises(UnsupportedModelError, match=word):
        ModelConfig.from_dict(LLAMA_32_1B | change)


def test_missing_field_missing_file_and_broken_json(tmp_path):
    incomplete = {key: value for key, value in LLAMA_32_1B.items() if key != "hidden_size"}
    with pytest.raises(CheckpointError, match="hidden_size"):
        ModelConfig.from_dict(incomplete)
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        ModelConfig.from_file(tmp_path / "config.json")
    for text in ("{", json.dumps([1])):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(CheckpointError, match="download it again"):
            ModelConfig.from_file(tmp_path / "config.json")
