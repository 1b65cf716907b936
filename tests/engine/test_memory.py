"""Memory is planned before loading, and refused with numbers."""

from __future__ import annotations

import pytest
import torch

from lite_llama.engine.memory import MemoryPlan, page_bytes, plan_memory
from lite_llama.engine.options import EngineOptions
from lite_llama.kernels import PAGE_SIZE
from lite_llama.models.config import ModelConfig, RopeConfig
from lite_llama.models.errors import UserError
from lite_llama.models.weights import parameter_count

CONFIG = ModelConfig(
    architecture="LlamaForCausalLM",
    vocab_size=32000,
    hidden_size=1024,
    intermediate_size=4096,
    num_layers=8,
    num_heads=16,
    num_kv_heads=4,
    head_dim=64,
    rms_norm_eps=1e-5,
    max_position=8192,
    rope=RopeConfig(10000.0),
    tie_word_embeddings=True,
)


@pytest.fixture
def plan(monkeypatch):
    """plan_memory on a machine with so many bytes of memory."""

    def make(available: int, max_context: int | None = None, device: str = "cpu") -> MemoryPlan:
        monkeypatch.setattr("lite_llama.engine.memory.available_memory", lambda device: available)
        options = EngineOptions(max_context=max_context)
        return plan_memory(CONFIG, torch.bfloat16, torch.device(device), options)

    return make


def test_plenty_of_memory_holds_four_whole_contexts(plan):
    made = plan(100 * 10**9)
    assert made.max_context == 8192
    assert (made.kv_pages - 1) * PAGE_SIZE == 4 * 8192
    assert made.weight_bytes == 2 * parameter_count(CONFIG)
    assert made.kv_bytes == made.kv_pages * 2 * 8 * PAGE_SIZE * 256 * 2


def test_little_memory_shortens_the_context(plan):
    need = plan(100 * 10**9)
    fixed = need.weight_bytes + need.workspace_bytes
    available = int((fixed + 101 * page_bytes(CONFIG, torch.bfloat16)) / 0.95) + 1000
    made = plan(available)
    assert made.max_context == 100 * PAGE_SIZE
    assert made.weight_bytes + made.kv_bytes + made.workspace_bytes <= available


def test_too_little_memory_is_refused_with_numbers(plan):
    with pytest.raises(UserError, match=r"needs \d+ MB .* 100 MB are free on CPU"):
        plan(100 * 10**6)


def test_a_context_that_was_asked_for_is_not_shortened(plan):
    need = plan(100 * 10**9)
    little = int((need.weight_bytes + need.workspace_bytes + need.kv_bytes / 8) / 0.95)
    assert plan(little).max_context < 8192
    with pytest.raises(UserError, match="8192 tokens"):
        plan(little, max_context=8192)
    assert plan(100 * 10**9, max_context=1000).max_context == 1000


def test_on_a_gpu_a_short_context_does_not_starve_a_large_batch(plan):
    made = plan(100 * 10**9, max_context=512, device="cuda")
    assert made.max_context == 512
    assert (made.kv_pages - 1) * PAGE_SIZE == 64 * 4096
    little = int((made.weight_bytes + made.workspace_bytes + made.kv_bytes / 2) / 0.95)
    squeezed = plan(little, max_context=512, device="cuda")
    assert squeezed.max_context == 512
    assert made.kv_pages // 2 - 2 <= squeezed.kv_pages <= made.kv_pages // 2


def test_on_a_cpu_half_of_what_is_free_beyond_one_context_stays_free(plan):
    need = plan(100 * 10**9)
    two_contexts = 2 * 8192 // PAGE_SIZE * page_bytes(CONFIG, torch.bfloat16)
    made = plan(int((need.weight_bytes + need.workspace_bytes + two_contexts) / 0.95))
    assert made.max_context == 8192
    assert made.kv_pages * PAGE_SIZE == pytest.approx(1.5 * 8192, abs=2 * PAGE_SIZE)
