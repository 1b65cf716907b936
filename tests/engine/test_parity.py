"""transformers is the oracle: same weights, same prompt, same logits and greedy tokens (fp32, CPU)."""

from __future__ import annotations

import random

import pytest
import torch
from transformers import AutoModelForCausalLM

from lite_llama.engine.engine import Engine
from lite_llama.engine.kv_cache import PagePool
from lite_llama.engine.options import EngineOptions
from lite_llama.engine.request import SamplingParams

LLAMA3_ROPE = {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
}
MODELS = {
    "llama3-untied": ("LlamaForCausalLM", {}),
    "llama3-tied": ("LlamaForCausalLM", {"tie_word_embeddings": True}),
    "llama-biases": ("LlamaForCausalLM", {"attention_bias": True, "mlp_bias": True, "seed": 3}),
    "llama-linear": ("LlamaForCausalLM", {"rope_parameters": LINEAR}),
    "qwen2.5": ("Qwen2ForCausalLM", {}),
    "qwen2.5-yarn": ("Qwen2ForCausalLM", {"rope_parameters": YARN}),
    "qwen3": ("Qwen3ForCausalLM", {}),
    "qwen3-tied": ("Qwen3ForCausalLM", {"tie_word_embeddings": True, "num_key_value_heads": 1}),
}
NEW_TOKENS = 24
LENGTHS = (1, 15, 16, 17, 40, 3, 90, 33)
GREEDY = SamplingParams(temperature=0, max_new_tokens=NEW_TOKENS)


def prompts(count: int = len(LENGTHS)) -> list[list[int]]:
    rng = random.Random(5)
    return [[rng.randrange(3, 384) for _ in range(length)] for length in LENGTHS[:count]]


@pytest.fixture(params=MODELS, scope="module")
def pair(request, tiny_model):
    """(our engine, transformers' model) of one family, neither of which ends a reply by itself."""
    architecture, overrides = MODELS[request.param]
    tiny = tiny_model(architecture, **overrides)
    engine = Engine.load(tiny.checkpoint, EngineOptions(device="cpu", dtype="float32"))
    engine.tokenizer.eos_ids = frozenset()
    oracle = AutoModelForCausalLM.from_pretrained(tiny.source, dtype=torch.float32)
    oracle.generation_config.eos_token_id = None
    return engine, oracle


@torch.inference_mode()
def oracle_greedy(oracle, prompt: list[int]) -> tuple[int, ...]:
    ids = torch.tensor([prompt])
    out = oracle.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=NEW_TOKENS,
        temperature=None,
        top_p=None,
        top_k=None,
        pad_token_id=0,
    )
    return tuple(out[0, len(prompt) :].tolist())


def test_logits_of_every_position(pair, prefill_logits):
    engine, oracle = pair
    sequences = prompts()
    logits = prefill_logits(engine, sequences)
    for tokens, ours in zip(sequences, logits, strict=True):
        with torch.inference_mode():
            expected = oracle(torch.tensor([tokens])).logits[0]
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-3)


def test_llama3_rope_beyond_its_original_context(tiny_model, prefill_logits, run):
    """Llama-3.2's own numbers, and 8,300 tokens: all of its frequency bands, on both sides of 8,192."""
    rope = LLAMA3_ROPE | {
        "rope_theta": 500000.0,
        "factor": 32.0,
        "original_max_position_embeddings": 8192,
    }
    shape = {"max_position_embeddings": 16384, "head_dim": 64, "num_hidden_layers": 2}
    tiny = tiny_model("LlamaForCausalLM", rope_parameters=rope, **shape)
    engine = Engine.load(tiny.checkpoint, EngineOptions(device="cpu", dtype="float32", max_context=8448))
    engine.tokenizer.eos_ids = frozenset()
    oracle = AutoModelForCausalLM.from_pretrained(tiny.source, dtype=torch.float32)
    prompt = random.Random(8).choices(range(3, 384), k=8300)
    (reply,) = run(engine, [prompt], GREEDY)  # in chunks
    with torch.inference_mode():
        expected = oracle(torch.tensor([[*prompt, *reply.token_ids]])).logits[0, :-1]
    assert reply.token_ids == tuple(expected[len(prompt) - 1 :].argmax(-1).tolist())
    engine.pool.forget()
    (ours,) = prefill_logits(engine, [prompt])
    torch.testing.assert_close(ours, expected[: len(prompt)], rtol=0, atol=1e-3)


def test_ragged_batch_gives_the_oracles_greedy_tokens(pair, run):
    engine, oracle = pair
    for prompt, reply in zip(prompts(), run(engine, prompts(), GREEDY), strict=True):
        assert reply.token_ids == oracle_greedy(oracle, prompt)
        assert reply.reason == "length"
        assert reply.usage.prompt_tokens == len(prompt)
        assert reply.usage.completion_tokens == NEW_TOKENS
    assert engine.pool.used == 0


def test_alone_or_in_a_batch_the_tokens_are_the_same(pair, run):
    engine, _ = pair
    together = run(engine, prompts(), GREEDY)
    for prompt, reply in zip(prompts(), together, strict=True):
        (alone,) = run(engine, [prompt], GREEDY)
        assert alone.token_ids == reply.token_ids


def test_chunked_prefill_changes_nothing(pair, run):
    engine, _ = pair
    whole = run(engine, prompts(), GREEDY)
    engine.pool.forget()
    engine.scheduler.chunk_tokens, usual = 7, engine.scheduler.chunk_tokens
    try:
        chunked = run(engine, prompts(), GREEDY)
    finally:
        engine.scheduler.chunk_tokens = usual
    assert [reply.token_ids for reply in chunked] == [reply.token_ids for reply in whole]
    assert sum(reply.usage.cached_prompt_tokens for reply in chunked) == 0


def test_working_a_step_ahead_changes_nothing(pair, run, run_ahead):
    engine, _ = pair
    whole = run(engine, prompts(), GREEDY)
    engine.pool.forget()
    run_ahead(engine)
    ahead = run(engine, prompts(), GREEDY)
    assert [reply.token_ids for reply in ahead] == [reply.token_ids for reply in whole]


@pytest.mark.parametrize("ahead", [False, True])
def test_preemption_changes_nothing(pair, run, run_ahead, ahead):
    engine, _ = pair
    whole = run(engine, prompts(), GREEDY)
    usual = engine.pool
    engine.pool = engine.scheduler.pool = PagePool(1 + 14)
    if ahead:
        run_ahead(engine)
    preempted = []
    original = engine.scheduler._preempt
    engine.scheduler._preempt = lambda victim: (preempted.append(victim), original(victim))[1]
    try:
        squeezed = run(engine, prompts(), GREEDY)
        assert engine.pool.used == 0
    finally:
        engine.pool = engine.scheduler.pool = usual
        engine.scheduler._preempt = original
        engine.pool.forget()  # what it knew was written over
    assert preempted
    assert [reply.token_ids for reply in squeezed] == [reply.token_ids for reply in whole]
