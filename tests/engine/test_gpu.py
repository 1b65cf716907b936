"""The engine on a GPU: Triton kernels against the PyTorch operators on the CPU (pytest -m gpu)."""

from __future__ import annotations

import queue

import pytest
import torch

from lite_llama.engine.engine import Engine
from lite_llama.engine.events import Failed, Finished, Loaded, LoadProgress
from lite_llama.engine.options import EngineOptions
from lite_llama.engine.request import GenerationRequest, Message, SamplingParams, ScoreRequest
from lite_llama.engine.thread import EngineThread, LoadOptions
from lite_llama.models.checkpoint import Checkpoint

pytestmark = pytest.mark.gpu

QUESTIONS = [
    "Hi",
    "What is the capital of France?",
    "Write a short story about a lighthouse keeper and her cat.",
    "List the first ten prime numbers and explain why 1 is not among them.",
    "Explain gravity to a child. " * 40,
    "def quicksort(items):",
]
GREEDY = SamplingParams(temperature=0, max_new_tokens=64)


@pytest.fixture(scope="module")
def checkpoint(demo_model_fp32) -> Checkpoint:
    return Checkpoint.open(demo_model_fp32)


@pytest.fixture(scope="module")
def on_cpu(checkpoint) -> Engine:
    return Engine.load(checkpoint, EngineOptions(device="cpu", dtype="float32"))


@pytest.fixture(scope="module")
def prompts(on_cpu) -> list[list[int]]:
    return [on_cpu.tokenizer.encode_chat([Message("user", question)]) for question in QUESTIONS]


@pytest.mark.parametrize("attention", ["flash2", "flash1", "plain"])
@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"])
def test_tiny_models_in_fp32_give_the_cpus_tokens(tiny_model, run, architecture, attention):
    checkpoint = tiny_model(architecture).checkpoint
    prompts = [[(7 * at + length) % 380 + 3 for at in range(length)] for length in (1, 16, 17, 100)]
    engines = [
        Engine.load(checkpoint, EngineOptions(device=device, dtype="float32", attention=attention))
        for device in ("cpu", "cuda")
    ]
    for engine in engines:
        engine.tokenizer.eos_ids = frozenset()
        engine.scheduler.chunk_tokens = 50  # so that prompts are cut and meet a cached prefix
    cpu, gpu = ([reply.token_ids for reply in run(engine, prompts, GREEDY)] for engine in engines)
    assert gpu == cpu
    assert engines[1].info.operators == "triton"


def test_demo_model_in_fp32_gives_the_cpus_tokens(checkpoint, on_cpu, prompts, run):
    on_gpu = Engine.load(checkpoint, EngineOptions(device="cuda", dtype="float32"))
    cpu = [reply.token_ids for reply in run(on_cpu, prompts, GREEDY)]
    assert [reply.token_ids for reply in run(on_gpu, prompts, GREEDY)] == cpu


def test_sampled_tokens_are_the_same_on_both_devices(checkpoint, on_cpu, prompts, run):
    params = SamplingParams(temperature=0.8, top_p=0.9, top_k=50, min_p=0.02, seed=11, max_new_tokens=48)
    on_gpu = Engine.load(checkpoint, EngineOptions(device="cuda", dtype="float32"))
    cpu = [reply.token_ids for reply in run(on_cpu, prompts, params)]
    assert [reply.token_ids for reply in run(on_gpu, prompts, params)] == cpu


def test_token_scores_are_the_cpus(checkpoint, on_cpu):
    on_gpu = Engine.load(checkpoint, EngineOptions(device="cuda", dtype="float32"))
    question, params = Message("user", QUESTIONS[2]), SamplingParams(temperature=0, max_new_tokens=200)
    events = []
    on_gpu.submit(0, GenerationRequest((question,), params), events.append, 0.0)
    while on_gpu.busy:
        on_gpu.step()
    reply, scored = events[-1], []
    for engine in (on_gpu, on_cpu):
        request = ScoreRequest((question, Message("assistant", reply.text)), reply.token_ids)
        engine.score(1, request, events.append, 0.0)
        while engine.busy:
            engine.step()
        assert engine.pool.used == 0
        assert events[-1].as_generated
        scored.append(events[-1].tokens)
    assert len(scored[0]) == len(reply.token_ids)
    for gpu, cpu in zip(*scored, strict=True):
        assert gpu.id == cpu.id == gpu.alternatives[0].id
        assert gpu.logprob == pytest.approx(cpu.logprob, abs=1e-2)
        expected = [other.logprob for other in cpu.alternatives]
        assert [other.logprob for other in gpu.alternatives] == pytest.approx(expected, abs=1e-2)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_demo_model_in_16_bits_differs_only_where_the_race_is_close(
    checkpoint, on_cpu, prompts, run, prefill_logits, dtype
):
    """Where the tokens first differ, each side's choice is among the other's five best."""
    on_gpu = Engine.load(checkpoint, EngineOptions(device="cuda", dtype=dtype))
    cpu = [reply.token_ids for reply in run(on_cpu, prompts, GREEDY)]
    gpu = [reply.token_ids for reply in run(on_gpu, prompts, GREEDY)]
    for prompt, ours, exact in zip(prompts, gpu, cpu, strict=True):
        at = next(
            (index for index, pair in enumerate(zip(ours, exact, strict=False)) if pair[0] != pair[1]), None
        )
        print(f"prompt of {len(prompt)} tokens: first difference at {at}")
        if at is None:
            continue
        text = [*prompt, *exact[:at]]
        best = [prefill_logits(engine, [text])[0][-1].topk(5).indices.tolist() for engine in (on_gpu, on_cpu)]
        assert exact[at] in best[0]
        assert ours[at] in best[1]


def test_batch_and_alone_agree_in_bf16(checkpoint, prompts, run, prefill_logits):
    """The logits of a ragged batch are those of each sequence alone, but for the rounding of bf16."""
    on_gpu = Engine.load(checkpoint, EngineOptions(device="cuda", dtype="bfloat16"))
    with torch.inference_mode():
        together = prefill_logits(on_gpu, prompts)
        for prompt, batched in zip(prompts, together, strict=True):
            (alone,) = prefill_logits(on_gpu, [prompt])
            error = (batched - alone).norm() / alone.norm()
            assert error < 0.02


def test_two_engines_answer_in_turn_as_each_alone(checkpoint, on_cpu, prompts, run):
    """As when two models are compared: the second is loaded and answers while the first is idle."""
    expected = [reply.token_ids for reply in run(on_cpu, prompts[:3], GREEDY)]
    threads, events = [EngineThread(), EngineThread()], queue.SimpleQueue()
    options = LoadOptions(checkpoint.path, "cuda", "float32", max_context=2048, max_sequences=2)
    try:
        for thread in threads:
            thread.load(options, events.put)
            while not isinstance(event := events.get(timeout=120), Loaded):
                assert isinstance(event, LoadProgress), event
        for thread in (*threads, *threads):
            replies = []
            for question in QUESTIONS[:3]:
                thread.submit(GenerationRequest((Message("user", question),), GREEDY), events.put)
                while not isinstance(event := events.get(timeout=120), Finished):
                    assert not isinstance(event, Failed), event
                replies.append(event.token_ids)
            assert replies == expected
    finally:
        for thread in threads:
            thread.close()
