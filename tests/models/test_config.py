"""config.json of transformers 4 and 5, and what is refused."""

from __future__ import annotations

import json

import pytest
from transformers import LlavaConfig

from lite_llama.models.config import ModelConfig
from lite_llama.models.errors import CheckpointError, UnsupportedModelError
from lite_llama.models.weights import parameter_count, source_name, targets

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


# The config.json of llava-hf/llava-1.5-7b-hf, which leaves out what is as transformers has it by default.
LLAVA_15_7B = {
    "architectures": ["LlavaForConditionalGeneration"],
    "image_token_index": 32000,
    "model_type": "llava",
    "projector_hidden_act": "gelu",
    "text_config": {
        "architectures": ["LlamaForCausalLM"],
        "max_position_embeddings": 4096,
        "model_type": "llama",
        "rms_norm_eps": 1e-05,
        "torch_dtype": "float16",
        "vocab_size": 32064,
    },
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "vision_config": {
        "hidden_size": 1024,
        "image_size": 336,
        "intermediate_size": 4096,
        "model_type": "clip_vision_model",
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "patch_size": 14,
        "projection_dim": 768,
        "vocab_size": 32000,
    },
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default",
    "vocab_size": 32064,
}


def test_published_config_of_llava_15_7b():
    config = ModelConfig.from_dict(LLAVA_15_7B)
    assert (config.family, config.dtype, config.max_position) == ("LLaVA-1.5", "float16", 4096)
    assert (config.hidden_size, config.num_layers, config.num_kv_heads, config.head_dim) == (
        4096,
        32,
        32,
        128,
    )
    assert config.vision
    assert config.vision.tokens == 576
    assert config.vision.num_layers == 23
    assert (config.vision.activation, config.vision.projector_activation) == ("quick_gelu", "gelu")
    # 7,063,427,072 less the 12,596,224 of the tower's last layer and 2,048 of the norm after it, neither of
    # which is computed.
    assert parameter_count(config) == 7_063_427_072 - 12_596_224 - 2_048


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_what_a_llava_config_leaves_out_is_as_in_transformers(kind):
    raw = LLAVA_15_7B | {"text_config": {"model_type": kind}, "vision_config": {}, "image_token_index": 7}
    full = LlavaConfig(
        text_config={"model_type": kind}, vision_config={"model_type": "clip_vision_model"}
    ).to_dict()
    expected = ModelConfig.from_dict(raw | {name: full[name] for name in ("text_config", "vision_config")})
    assert ModelConfig.from_dict(raw) == expected
    assert expected.vision
    assert expected.vision.tokens == 49


@pytest.mark.parametrize(
    "change",
    [
        {"image_token_index": 32064},
        {"vision_feature_layer": 25},
        {"vision_feature_layer": []},
        {"vision_config": None},
    ],
)
def test_llava_configs_that_make_no_sense(change):
    with pytest.raises(CheckpointError, match="incomplete or wrong"):
        ModelConfig.from_dict(LLAVA_15_7B | change)


def test_tensors_have_one_name_in_all_layouts():
    layouts = {
        "model.layers.0.mlp.up_proj.weight": ["language_model.model.", "model.language_model.", "model."],
        "vision_tower.pre_layrnorm.bias": [
            "vision_tower.vision_model.",
            "model.vision_tower.vision_model.",
            "model.vision_tower.",
        ],
        "multi_modal_projector.linear_1.weight": ["model.multi_modal_projector."],
        "lm_head.weight": ["language_model.lm_head."],
    }
    for name, prefixes in layouts.items():
        rest = name.partition(".")[2]
        assert {source_name(prefix + rest) for prefix in prefixes} == {name} == {source_name(name)}
