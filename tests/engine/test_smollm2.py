"""The real demo model against transformers, which reads the same GGUF file by code of its own.

Only the weights are transformers': its GGUF import splits digits wrongly for this tokenizer, so both sides
get the ids of ours (which tests/converter checks against the file's own vocabulary).
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from lite_llama.engine.engine import Engine
from lite_llama.engine.options import EngineOptions
from lite_llama.engine.request import GenerationRequest, Message, SamplingParams, ScoreRequest
from lite_llama.models.checkpoint import Checkpoint

NEW_TOKENS = 16
LICENSE = (Path(__file__).parents[2] / "LICENSE").read_text(encoding="utf-8")
QUESTIONS = [
    "Hi",
    "What is the capital of France?",
    "Write a haiku about the sea.",
    "List three uses of a paper clip.",
    "Explain gravity to a child in two sentences.",
    "Translate 'good morning' into Spanish.",
    "What is 17 + 25?",
    "def fibonacci(n):",
    "Why is the sky blue?",
    "Name the planets of the solar system in order.",
    "Wie heißt die Hauptstadt von Österreich?",
    "你好!",
    "Summarise the plot of Romeo and Juliet.",
    "Give me a recipe for pancakes with 3 eggs and 250 g of flour.",
    "In 1969, 2 people walked on the Moon. Who were they?",
    "Correct the grammar: 'she go to school yesterday'.",
    "Summarise this text:\n\n" + LICENSE[:1500],
]
CONVERSATIONS = [
    *[(Message("user", question),) for question in QUESTIONS],
    (
        Message("system", "You are a pirate. Answer as one."),
        Message("user", "Where are you from?"),
        Message("assistant", "Arr, from the seven seas!"),
        Message("user", "And what do you eat?"),
    ),
    (
        Message("user", "My name is Ada and I like trains."),
        Message("assistant", "Nice to meet you, Ada! Trains are fascinating."),
        Message("user", "What is my name, and what do I like?"),
    ),
    (Message("user", "What are the conditions for redistribution in this licence?\n\n" + LICENSE[:5000]),),
]


@pytest.fixture(scope="module")
def engine(demo_model_fp32):
    return Engine.load(Checkpoint.open(demo_model_fp32), EngineOptions(device="cpu", dtype="float32"))


@pytest.fixture(scope="module")
def oracle(demo_gguf):
    config = AutoConfig.from_pretrained(demo_gguf.parent, gguf_file=demo_gguf.name)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    # from_pretrained would do the same but asks for the accelerate package.
    weights = load_gguf_checkpoint(str(demo_gguf), return_tensors=True, model_to_load=model)["tensors"]
    missing, unknown = model.load_state_dict(weights, strict=False)
    assert missing == ["lm_head.weight"]  # tied
    assert not unknown
    model.tie_weights()
    return model.eval()


@torch.inference_mode()
def test_greedy_tokens_and_logits_of_twenty_prompts(engine, oracle, run, prefill_logits):
    prompts = [engine.tokenizer.encode_chat(messages) for messages in CONVERSATIONS]
    assert len(prompts) == 20
    assert len(prompts[-1]) > 1000  # read in chunks
    replies = run(engine, prompts, SamplingParams(temperature=0, max_new_tokens=NEW_TOKENS))
    expected = []
    for prompt, reply in zip(prompts, replies, strict=True):
        # In one pass: if each token is the likeliest behind those before it, `generate` would give them too.
        logits = oracle(torch.tensor([[*prompt, *reply.token_ids]])).logits[0, :-1]
        assert reply.token_ids == tuple(logits[len(prompt) - 1 :].argmax(-1).tolist())
        assert reply.reason == "length" or reply.token_ids[-1] in engine.tokenizer.eos_ids
        expected.append(logits[: len(prompt)])
    for ours, theirs in zip(prefill_logits(engine, prompts[-4:]), expected[-4:], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-3)


@torch.inference_mode()
def test_token_scores_are_transformers_log_softmax(engine, oracle):
    question, events = CONVERSATIONS[1], []
    params = SamplingParams(temperature=0, max_new_tokens=24)
    engine.submit(0, GenerationRequest(question, params), events.append, 0.0)
    while engine.busy:
        engine.step()
    reply = events[-1]
    assert reply.reason == "stop"
    scored = ScoreRequest((*question, Message("assistant", reply.text)), reply.token_ids, 8)
    engine.score(1, scored, events.append, 0.0)
    while engine.busy:
        engine.step()
    tokens, prompt = events[-1].tokens, engine.tokenizer.encode_chat(question)
    assert "".join(token.text for token in tokens) == f"{reply.text}<|im_end|>"
    logits = oracle(torch.tensor([[*prompt, *reply.token_ids]])).logits[0, len(prompt) - 1 : -1]
    for token, row in zip(tokens, logits.log_softmax(-1), strict=True):
        assert token.logprob == pytest.approx(row[token.id].item(), abs=1e-3)
        assert [other.id for other in token.alternatives] == row.topk(8).indices.tolist()
        expected = row[[other.id for other in token.alternatives]].tolist()
        assert [other.logprob for other in token.alternatives] == pytest.approx(expected, abs=1e-3)
        assert token.alternatives[0].id == token.id  # greedy
