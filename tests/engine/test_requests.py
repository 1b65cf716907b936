"""What a request may ask for: sampling, seeds, stop strings, end of turn, limits, cancel."""

from __future__ import annotations

import time

import pytest
import torch

from lite_llama.engine.engine import Engine
from lite_llama.engine.events import Failed, Finished, PrefillProgress, Queued, TextDelta
from lite_llama.engine.options import EngineOptions
from lite_llama.engine.request import GenerationRequest, Message, SamplingParams
from lite_llama.kernels import sampling
from lite_llama.models.errors import UserError

PROMPT = [5, 9, 100, 42, 17]


@pytest.fixture(scope="module")
def engine(tiny_model):
    engine = Engine.load(
        tiny_model("Qwen3ForCausalLM").checkpoint, EngineOptions(device="cpu", dtype="float32")
    )
    engine.tokenizer.eos_ids = frozenset()
    return engine


def test_events_of_a_reply_come_in_order_and_add_up(engine, run):
    (reply,) = run(engine, [PROMPT], SamplingParams(temperature=0, max_new_tokens=30))
    kinds = [type(event) for event in run.events]
    assert kinds[:2] == [Queued, PrefillProgress]
    assert kinds[-1] is Finished
    deltas = [event for event in run.events if isinstance(event, TextDelta)]
    assert "".join(delta.text for delta in deltas) == reply.text
    assert reply.text == engine.tokenizer.decode(reply.token_ids)
    counts = [delta.completion_tokens for delta in deltas]
    assert counts == sorted(counts)
    assert counts[-1] == 30
    assert [delta.time for delta in deltas] == sorted(delta.time for delta in deltas)
    assert reply.usage.ttft_s > 0
    assert reply.usage.decode_tokens_per_s > 0
    assert deltas[-1].decode_tokens_per_s == pytest.approx(reply.usage.decode_tokens_per_s)


def test_same_seed_same_text_other_seed_other_text(engine, run):
    def tokens(seed):
        return run(engine, [PROMPT], SamplingParams(temperature=1.5, seed=seed, max_new_tokens=40))[
            0
        ].token_ids

    assert tokens(1) == tokens(1)
    assert tokens(1) != tokens(2)


def test_a_seeded_reply_does_not_depend_on_its_company(engine, run):
    mine = SamplingParams(temperature=1.2, top_p=0.95, top_k=50, seed=77, max_new_tokens=30)
    (alone,) = run(engine, [PROMPT], mine)
    others = [SamplingParams(temperature=0.8, seed=seed, max_new_tokens=10 + seed) for seed in range(6)]
    crowd = run(
        engine, [[7] * 20, PROMPT, *[[8 + seed] * 9 for seed in range(5)]], [others[0], mine, *others[1:]]
    )
    assert crowd[1].token_ids == alone.token_ids


def test_the_seed_that_was_drawn_is_reported_and_reproduces(engine, run):
    (first,) = run(engine, [PROMPT], SamplingParams(temperature=1.5, max_new_tokens=20))
    seeded = SamplingParams(temperature=1.5, seed=first.usage.seed, max_new_tokens=20)
    assert run(engine, [PROMPT], seeded)[0].token_ids == first.token_ids


def test_top_k_1_is_greedy(engine, run):
    (greedy,) = run(engine, [PROMPT], SamplingParams(temperature=0, max_new_tokens=20))
    (top,) = run(engine, [PROMPT], SamplingParams(temperature=1, top_k=1, seed=3, max_new_tokens=20))
    assert top.token_ids == greedy.token_ids


def test_repetition_penalty_equals_transformers():
    from transformers import RepetitionPenaltyLogitsProcessor

    logits, tokens = torch.randn(50), [3, 3, 7, 49, 0]
    expected = RepetitionPenaltyLogitsProcessor(1.3)(torch.tensor([tokens]), logits[None].clone())[0]  # type: ignore[arg-type]
    state = sampling.SamplingState.allocate(2, 50, torch.device("cpu"))
    state.repetition_penalty[0], state.seen[0, tokens] = 1.3, 1
    for _ in range(5):  # the best token, which then counts as seen; the next best; ...
        slots, positions = torch.tensor([0], dtype=torch.int32), torch.tensor([9])
        token = int(sampling.reference(logits[None], slots, positions, state))
        assert token == int(expected.argmax())
        tokens.append(token)
        expected = RepetitionPenaltyLogitsProcessor(1.3)(torch.tensor([tokens]), logits[None].clone())[0]  # type: ignore[arg-type]


def test_repetition_penalty_of_one_request_leaves_the_others_alone(engine, run):
    plain = SamplingParams(temperature=0, max_new_tokens=20)
    strict = SamplingParams(temperature=0, repetition_penalty=10, max_new_tokens=20)
    (alone,) = run(engine, [PROMPT], plain)
    penalised, beside = run(engine, [PROMPT, PROMPT], [strict, plain])
    assert beside.token_ids == alone.token_ids
    assert len(set(penalised.token_ids)) > len(set(alone.token_ids))


def test_any_of_the_eos_ids_ends_the_turn_and_is_not_shown(engine, run):
    (free,) = run(engine, [PROMPT], SamplingParams(temperature=0, max_new_tokens=20))
    end = free.token_ids[7]
    at = free.token_ids.index(end)
    engine.tokenizer.eos_ids = frozenset({380, end})
    try:
        (reply,) = run(engine, [PROMPT], SamplingParams(temperature=0, max_new_tokens=20))
    finally:
        engine.tokenizer.eos_ids = frozenset()
    assert reply.reason == "stop"
    assert reply.token_ids == free.token_ids[: at + 1]
    assert reply.text == engine.tokenizer.decode(free.token_ids[:at])


def test_eos_list_and_defaults_come_from_generation_config(tiny_model):
    engine = Engine.load(
        tiny_model("LlamaForCausalLM").checkpoint, EngineOptions(device="cpu", dtype="float32")
    )
    assert engine.tokenizer.eos_ids == {2, 0}
    assert engine.info.defaults == {"temperature": 0.7, "top_p": 0.8, "top_k": 20}


def test_stop_string_ends_the_reply_before_it(engine, run):
    (free,) = run(engine, [PROMPT], SamplingParams(temperature=0, max_new_tokens=40))
    stop = free.text[10:13]
    (reply,) = run(engine, [PROMPT], SamplingParams(temperature=0, max_new_tokens=40, stop=(stop,)))
    assert reply.reason == "stop"
    assert reply.text == free.text[: free.text.index(stop)]
    shown = "".join(event.text for event in run.events if isinstance(event, TextDelta))
    assert shown == reply.text


def test_cancel_ends_within_a_step_and_frees_the_pages(engine):
    events = []
    engine.submit_tokens(1, list(PROMPT), GenerationRequest((), SamplingParams(seed=1)), events.append, 0.0)
    for _ in range(10):
        engine.step()
    engine.cancel(1)
    assert not engine.busy
    assert engine.pool.used == 0
    assert isinstance(events[-1], Finished)
    assert events[-1].reason == "cancelled"
    assert events[-1].usage.completion_tokens == 10
    assert events[-1].text == engine.tokenizer.decode(events[-1].token_ids)
    engine.cancel(1)
    engine.cancel(99)


def test_cancel_in_the_middle_of_a_long_prompt(engine, monkeypatch):
    events = []
    monkeypatch.setattr(engine.scheduler, "chunk_tokens", 16)
    monkeypatch.setattr(engine.scheduler, "step_tokens", 16)
    engine.submit_tokens(
        1, [5] * 200, GenerationRequest((), SamplingParams()), events.append, time.monotonic()
    )
    engine.step()
    engine.step()
    engine.cancel(1)
    assert [event.done for event in events if isinstance(event, PrefillProgress)] == [16, 32]
    assert events[-1].reason == "cancelled"
    assert events[-1].text == ""
    assert engine.pool.used == 0


@pytest.fixture
def engine_ahead(engine, run_ahead):
    """The engine, its host one step behind its device."""
    run_ahead(engine)
    engine.pool.forget()
    return engine


def test_tokens_of_a_request_that_ended_meanwhile_are_dropped(engine_ahead):
    """Cancelled, or at an end of turn that the device did not know: the step in flight changes nothing."""
    engine, events = engine_ahead, []
    request = GenerationRequest((), SamplingParams(temperature=0))
    for number in range(2):
        engine.submit_tokens(number, [*PROMPT, number], request, events.append, time.monotonic())
    for _ in range(10):
        engine.step()
    assert [len(sequence.tokens) for sequence in engine.scheduler.sequences] == [6 + 9, 6 + 9]
    assert [sequence.in_flight for sequence in engine.scheduler.sequences] == [1, 1]
    engine.cancel(0)
    engine.tokenizer.eos_ids = frozenset(range(384))
    engine.step()  # the next token of the other one ends it, with one more in flight
    engine.tokenizer.eos_ids = frozenset()
    seen = list(events)
    assert [(event.request_id, event.reason) for event in seen if isinstance(event, Finished)] == [
        (0, "cancelled"),
        (1, "stop"),
    ]
    assert seen[-1].usage.completion_tokens == 10
    assert engine.pool.used == 0
    assert engine.busy
    engine.step()
    assert not engine.busy
    assert events == seen


def test_nothing_is_told_of_a_prompt_that_was_cancelled_in_flight(engine_ahead):
    engine, events = engine_ahead, []
    request = GenerationRequest((), SamplingParams())
    engine.submit_tokens(1, list(PROMPT), request, events.append, time.monotonic())
    engine.step()
    engine.cancel(1)
    while engine.busy:
        engine.step()
    assert [type(event) for event in events] == [Queued, Finished]
    assert events[-1].token_ids == ()


def test_a_failing_step_ends_all_with_a_step_in_flight(engine_ahead, monkeypatch, run):
    engine, events = engine_ahead, []
    request = GenerationRequest((), SamplingParams(temperature=0, max_new_tokens=50))
    for number in range(2):
        engine.submit_tokens(number, [number] * 40, request, events.append, time.monotonic())
    for _ in range(6):
        engine.step()
    with monkeypatch.context() as patch:
        patch.setattr(engine.runner, "launch", lambda batch: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            engine.step()
    engine.fail_all("broken")
    assert [(type(event), event.request_id) for event in events[-2:]] == [(Failed, 0), (Failed, 1)]
    assert not engine.busy
    assert engine.pool.free == engine.pool.total  # nothing cached: it may never have been computed
    (reply,) = run(engine, [[1] * 40], SamplingParams(temperature=0, max_new_tokens=5))
    assert reply.usage.cached_prompt_tokens == 0


def test_the_context_is_the_limit(tiny_model, run):
    engine = Engine.load(
        tiny_model("Qwen3ForCausalLM").checkpoint,
        EngineOptions(device="cpu", dtype="float32", max_context=600),
    )
    engine.tokenizer.eos_ids = frozenset()
    (reply,) = run(engine, [[5] * 590], SamplingParams(temperature=0))
    assert reply.reason == "length"
    assert reply.usage.completion_tokens == 10
    with pytest.raises(UserError, match=r"600 tokens and tiny can hold 600: start a new chat"):
        run(engine, [[5] * 600], SamplingParams())
    assert engine.pool.used == 0


def test_the_chat_template_is_the_checkpoints(engine):
    messages = (Message("system", "Be brief."), Message("user", "Hi"), Message("assistant", "Hello, wor"))
    text = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
    assert engine.tokenizer.encode_chat(messages[:2]) == engine.tokenizer.encode(
        text + "<|im_start|>assistant\n"
    )
    assert engine.tokenizer.encode_chat(messages, continue_last=True) == engine.tokenizer.encode(
        text + "<|im_start|>assistant\nHello, wor"
    )
    assert engine.count_tokens(messages[:2]) == len(engine.tokenizer.encode_chat(messages[:2]))


@pytest.mark.parametrize(
    ("name", "value"),
    [("temperature", -1), ("top_p", 0), ("top_k", -2), ("min_p", 1), ("max_new_tokens", 0), ("stop", ("",))],
)
def test_parameters_out_of_bounds_are_refused_by_name(name, value):
    with pytest.raises(ValueError, match=name.split("_tokens")[0]):
        SamplingParams(**{name: value})
