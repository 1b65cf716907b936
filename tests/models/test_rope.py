"""Rope tables against transformers' own, for every scaling rule."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from lite_llama.models.config import ModelConfig, RopeConfig
from lite_llama.models.errors import CheckpointError
from lite_llama.models.rope import inverse_frequencies, rope_table

RULES = [
    {"rope_type": "default"},
    {"rope_type": "linear", "factor": 4.0},
    {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
    {
        "rope_type": "yarn",
        "factor": 8.0,
        "original_max_position_embeddings": 4096,
        "beta_fast": 16,
        "beta_slow": 2,
        "mscale": 1.2,
        "mscale_all_dim": 0.8,
        "truncate": False,
    },
    {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 4096, "attention_factor": 0.9},
]


@pytest.mark.parametrize("theta", [10000.0, 500000.0])
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["rope_type"])
def test_tables_equal_transformers(rule, theta):
    hf = LlamaConfig(
        hidden_size=512,
        num_attention_heads=4,
        max_position_embeddings=131072,
        rope_parameters={**rule, "rope_theta": theta},
        architectures=["LlamaForCausalLM"],
    )
    config = ModelConfig.from_dict(hf.to_dict())
    positions = 5000
    cos, sin = rope_table(config, positions, torch.device("cpu"))
    expected_cos, expected_sin = LlamaRotaryEmbedding(hf)(torch.zeros(1), torch.arange(positions)[None])
    half = config.head_dim // 2
    torch.testing.assert_close(cos, expected_cos[0, :, :half], rtol=0, atol=2e-6)
    torch.testing.assert_close(sin, expected_sin[0, :, :half], rtol=0, atol=2e-6)


def test_missing_parameter_is_named():
    with pytest.raises(CheckpointError, match="factor"):
        inverse_frequencies(RopeConfig(10000.0, "yarn", {}), 64)
