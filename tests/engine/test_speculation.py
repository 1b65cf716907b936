"""Prompt-lookup speculative decoding: when it drafts, and that nobody can tell from the reply."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import pytest
import torch

from lite_llama.engine import prompt_lookup
from lite_llama.engine.engine import Engine
from lite_llama.engine.events import Failed, Finished, TextDelta
from lite_llama.engine.kv_cache import PagePool, pages_for
from lite_llama.engine.options import EngineOptions
from lite_llama.engine.prompt_lookup import PromptLookup, count_accepted
from lite_llama.engine.request import GenerationRequest, Message, SamplingParams
from lite_llama.kernels import PAGE_SIZE
from lite_llama.models.checkpoint import Checkpoint

PROMPT = [5, 9, 100, 42, 17]


# The policy, without a model.


def follow(prompt: list[int], reply: list[int]) -> list[list[int]]:
    """What is proposed after each token of the reply."""
    tokens = list(prompt)
    lookup = PromptLookup(tokens, len(prompt))
    lookup.propose(3)
    proposed = []
    for token in reply:
        tokens.append(token)
        proposed.append(lookup.propose(3))
    return proposed


def test_drafts_begin_after_a_streak_of_right_predictions():
    # 2, 3 is a 2-gram of the prompt; 4, 5 and 6 are then predicted.
    proposed = follow([1, 2, 3, 4, 5, 6, 7, 8, 9, 0], [2, 3, 4, 5, 6, 7])
    assert proposed == [[], [], [], [], [7, 8, 9], [8, 9, 0]]


def test_a_copy_is_followed_past_a_more_recent_match():
    # 2, 3 was seen once; 4, 5, 6 is what followed it, though since then 4, 5, 6 was followed by 99.
    proposed = follow([1, 2, 3, 4, 5, 6, 7, 8, 50, 4, 5, 6, 99, 0], [2, 3, 4, 5, 6])
    assert proposed == [[], [], [], [], [7, 8, 50]]


def test_a_3_gram_goes_before_a_2_gram_and_the_last_occurrence_before_others():
    # After 1, 2 it expects an 8; then 1, 2, 3 says 5 and 2, 3 says 6.
    prompt = [1, 2, 3, 5, 20, 21, 22, 23, 9, 2, 3, 6, 1, 2, 8, 0]
    assert follow(prompt, [1, 2, 3, 5, 20, 21]) == [[], [], [], [], [], [22, 23, 9]]


def test_a_period_goes_on():
    proposed = follow([8, 9], [1, 2, 1, 2, 1, 2, 1])
    assert proposed[-1] == [2, 1, 2]
    assert follow([8, 9], [4] * 6)[-1] == [4, 4, 4]


def test_what_repeats_within_the_prompt_is_no_streak():
    template = [1, 2, 3, 4, 5, 6]
    assert follow([*template, 7, 8, *template], [7, 8, 20, 21]) == [[], [], [], []]


def test_drafting_ends_with_bad_rounds_and_needs_another_streak():
    tokens = [1, 2, 3, 4, 5]
    lookup = PromptLookup(tokens, 0)
    tokens.extend([1, 2, 3, 4, 5])
    assert lookup.propose(1) == [1]
    rounds = 0
    while lookup.propose(1):
        lookup.judge(accepted=0)
        rounds += 1
    assert rounds == 3
    for token, draft in (1, []), (2, []), (3, [4]):
        tokens.append(token)
        assert lookup.propose(1) == draft


def test_drafting_goes_on_while_it_pays_and_ends_where_there_is_no_match():
    tokens = [1, 2, 3, 4, 5, 6, 7, 8]
    lookup = PromptLookup(tokens, 0)
    tokens.extend([1, 2, 3, 4, 5])
    assert lookup.propose(2) == [6, 7]
    lookup.judge(accepted=1)
    tokens.extend([6, 2, 3])  # not 7, but a match again
    assert lookup.propose(2) == [4, 5]
    tokens.append(70)
    assert lookup.propose(2) == []
    tokens.extend([2, 3])
    assert lookup.propose(2) == []


def test_a_long_prompt_is_read_over_several_steps():
    size = prompt_lookup.READ_TOKENS
    tokens = [*range(2 * size), 0, 1, 2, 3, 4]
    lookup = PromptLookup(tokens, 2 * size)
    assert [lookup.propose(1) for _ in range(3)] == [[], [], [5]]


def test_nothing_is_drafted_from_what_is_not_the_newest():
    lookup = PromptLookup([1, 2] * prompt_lookup.READ_TOKENS, 0)
    assert [lookup.propose(2) for _ in range(2)] == [[], [1, 2]]


def test_a_random_text_is_left_alone():
    draw = random.Random(1)
    assert not any(follow(draw.choices(range(300), k=300), draw.choices(range(300), k=300)))


def test_accepted_are_the_drafts_before_the_first_difference():
    assert count_accepted([1, 2, 3], [1, 2, 3, 4]) == 3
    assert count_accepted([1, 2, 3], [1, 7, 3, 4]) == 1
    assert count_accepted([1, 2, 3], [7, 2, 3, 4]) == 0


# The engine. In fp32 and with logits as far apart as a tiny model's, rows that PyTorch computes together give
# the tokens of rows computed alone.


class Rounds(list[tuple[list[int], list[int]]]):
    """Drafts and verified tokens of each verification."""

    @property
    def accepted(self) -> int:
        return sum(count_accepted(drafts, verified) for drafts, verified in self)


@pytest.fixture(scope="module")
def loaded(tiny_model) -> Engine:
    engine = Engine.load(
        tiny_model("Qwen3ForCausalLM").checkpoint, EngineOptions(device="cpu", dtype="float32")
    )
    engine.tokenizer.eos_ids = frozenset()
    return engine


@pytest.fixture(scope="module")
def loaded_looping(tiny_model) -> Engine:
    """A model whose layers say so little that the next token hangs on the last one: it repeats itself."""
    engine = Engine.load(
        tiny_model("LlamaForCausalLM").checkpoint, EngineOptions(device="cpu", dtype="float32")
    )
    engine.tokenizer.eos_ids = frozenset()
    with torch.no_grad():
        for name, weight in engine.runner.model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weight *= 0.01
    return engine


def watch(engine: Engine, monkeypatch) -> Rounds:
    rounds, verify = Rounds(), engine.runner.verify

    def watched(sequence, drafts):
        assert not engine._pending
        verified = verify(sequence, drafts)
        rounds.append((list(drafts), verified))
        return verified

    monkeypatch.setattr(engine.runner, "verify", watched)
    return rounds


@pytest.fixture(params=[False, True], ids=["in step", "one step ahead"])
def engine(loaded, request, run_ahead) -> Engine:
    if request.param:
        run_ahead(loaded)
    loaded.pool.forget()
    return loaded


@pytest.fixture
def rounds(engine, monkeypatch) -> Rounds:
    """Switches speculation on, and tells what it did."""
    monkeypatch.setattr(engine, "_speculate", True)
    return watch(engine, monkeypatch)


@pytest.fixture
def draft(monkeypatch) -> Callable[..., None]:
    """Has the tokens of a known reply drafted, every `wrong`-th of them spoilt, from its first token on."""

    def use(reply: tuple[int, ...], wrong: int = 5) -> None:
        def propose(self: PromptLookup, most: int) -> list[int]:
            at = len(self._tokens) - self._prompt_len
            drafts = [(token + (place % wrong == 0)) % 384 for place, token in enumerate(reply)]
            return drafts[at : at + max(most, 0)] if at else []

        monkeypatch.setattr(PromptLookup, "propose", propose)
        monkeypatch.setattr(PromptLookup, "judge", lambda self, accepted: None)

    return use


def free(engine: Engine, run, monkeypatch, params: SamplingParams) -> Finished:
    """The reply without speculation."""
    with monkeypatch.context() as patch:
        patch.setattr(engine, "_speculate", False)
        (reply,) = run(engine, [PROMPT], params)
    engine.pool.forget()
    return reply


@pytest.mark.parametrize("temperature", [0, 0.1])
@pytest.mark.parametrize("ahead", [False, True])
def test_a_reply_that_repeats_itself_takes_fewer_passes(
    loaded_looping, run, run_ahead, monkeypatch, temperature, ahead
):
    engine = loaded_looping
    if ahead:
        run_ahead(engine)
    params = SamplingParams(temperature=temperature, top_p=1, seed=5, max_new_tokens=120)
    expected = free(engine, run, monkeypatch, params)
    monkeypatch.setattr(engine, "_speculate", True)
    rounds, launched, launch = watch(engine, monkeypatch), [], engine.runner.launch
    monkeypatch.setattr(engine.runner, "launch", lambda batch: (launched.append(batch), launch(batch))[1])
    judged, judge = [], PromptLookup.judge
    monkeypatch.setattr(
        PromptLookup, "judge", lambda self, accepted: (judged.append(accepted), judge(self, accepted))[1]
    )
    (reply,) = run(engine, [PROMPT], params)
    engine.pool.forget()
    assert reply.token_ids == expected.token_ids
    assert reply.text == expected.text
    assert engine.pool.used == 0
    assert len(launched) + len(rounds) + rounds.accepted == 120  # no pass was for nothing
    assert len(judged) >= len(rounds) - 1  # the one that ended the reply does not count
    assert judged == [count_accepted(*each) for each in rounds][: len(judged)]
    if temperature == 0:
        assert rounds.accepted > 2 * len(rounds)
    else:  # copied in part: some drafts are right, and some are not
        assert 0 < rounds.accepted < sum(len(drafts) for drafts, _ in rounds)


@pytest.mark.parametrize("temperature", [0, 1.5])
def test_a_reply_that_does_not_repeat_itself_is_never_verified(engine, rounds, run, temperature):
    prompt = random.Random(2).choices(range(3, 380), k=50)
    run(engine, [prompt], SamplingParams(temperature=temperature, top_p=1, seed=1, max_new_tokens=60))
    assert rounds == []


def test_it_is_off_on_a_cpu(loaded_looping, run, monkeypatch):
    rounds = watch(loaded_looping, monkeypatch)
    run(loaded_looping, [PROMPT], SamplingParams(temperature=0, max_new_tokens=40))
    loaded_looping.pool.forget()
    assert rounds == []


@pytest.mark.parametrize("params", [{"temperature": 0}, {"temperature": 1.5, "top_k": 50, "seed": 9}])
@pytest.mark.parametrize("wrong", [1, 2, 5, 1000])
def test_right_and_wrong_drafts_give_the_same_reply(engine, rounds, draft, run, monkeypatch, params, wrong):
    params = SamplingParams(max_new_tokens=50, **params)
    expected = free(engine, run, monkeypatch, params)
    draft(expected.token_ids, wrong)
    (reply,) = run(engine, [PROMPT], params)
    assert (reply.token_ids, reply.text, reply.reason) == (expected.token_ids, expected.text, "length")
    assert "".join(event.text for event in run.events if isinstance(event, TextDelta)) == reply.text
    assert (rounds.accepted > 15) is (wrong > 1)


def test_the_limit_of_tokens_is_kept_at_each_offset_of_a_round(engine, rounds, draft, run, monkeypatch):
    whole = free(engine, run, monkeypatch, SamplingParams(temperature=0, max_new_tokens=30)).token_ids
    draft(whole, wrong=1000)
    for limit in range(1, 14):
        (reply,) = run(engine, [PROMPT], SamplingParams(temperature=0, max_new_tokens=limit))
        assert (reply.token_ids, reply.reason) == (whole[:limit], "length")
    assert rounds.accepted
    assert engine.pool.used == 0


def test_an_end_of_turn_ends_it_at_each_offset_of_a_round(engine, rounds, draft, run, monkeypatch):
    greedy = SamplingParams(temperature=0, max_new_tokens=30)
    whole = free(engine, run, monkeypatch, greedy).token_ids
    draft(whole, wrong=1000)
    ends = [at for at, token in enumerate(whole[:16]) if token not in whole[:at]]
    assert len(ends) > 8
    for at in ends:
        monkeypatch.setattr(engine.tokenizer, "eos_ids", frozenset({whole[at]}))
        (reply,) = run(engine, [PROMPT], greedy)
        assert (reply.token_ids, reply.reason) == (whole[: at + 1], "stop")
        assert reply.text == engine.tokenizer.decode(whole[:at])
        assert engine.pool.used == 0
    assert rounds.accepted


def test_a_stop_string_ends_it_in_mid_round(engine, rounds, draft, run, monkeypatch):
    greedy = SamplingParams(temperature=0, max_new_tokens=30)
    whole = free(engine, run, monkeypatch, greedy)
    draft(whole.token_ids, wrong=1000)
    for start in range(4, 16):
        params = SamplingParams(temperature=0, max_new_tokens=30, stop=(whole.text[start : start + 3],))
        expected = free(engine, run, monkeypatch, params)
        (reply,) = run(engine, [PROMPT], params)
        assert (reply.token_ids, reply.text, reply.reason) == (expected.token_ids, expected.text, "stop")
    assert rounds.accepted


def test_the_context_is_the_limit_of_drafts_too(tiny_model, draft, run, monkeypatch):
    checkpoint = tiny_model("Qwen3ForCausalLM").checkpoint
    engine = Engine.load(checkpoint, EngineOptions(device="cpu", dtype="float32", max_context=520))
    engine.tokenizer.eos_ids = frozenset()
    pool = PagePool(1 + pages_for(520))
    engine.pool = engine.scheduler.pool = pool  # not a page to spare
    (expected,) = run(engine, [[5] * 500], SamplingParams(temperature=0))
    pool.forget()
    draft(expected.token_ids, wrong=4)
    monkeypatch.setattr(engine, "_speculate", True)
    rounds = watch(engine, monkeypatch)
    (reply,) = run(engine, [[5] * 500], SamplingParams(temperature=0))
    assert rounds.accepted
    assert reply.token_ids == expected.token_ids
    assert pool.used == 0


def start(engine: Engine, number: int, prompt: list[int], params: SamplingParams, events: list) -> None:
    engine.submit_tokens(number, list(prompt), GenerationRequest((), params), events.append, time.monotonic())


def step_to_end(engine: Engine) -> None:
    while engine.busy:
        engine.step()


def test_cancel_between_rounds(engine, rounds, draft, run, monkeypatch):
    params = SamplingParams(temperature=0, max_new_tokens=40)
    whole = free(engine, run, monkeypatch, params).token_ids
    draft(whole)
    events: list = []
    start(engine, 1, PROMPT, params, events)
    while len(rounds) < 5:
        engine.step()
        for sequence in engine.scheduler.running:
            assert sequence.computed == sequence.length - 1
            assert len(sequence.pages) >= pages_for(sequence.computed)
    engine.cancel(1)
    assert not engine.busy
    assert engine.pool.used == 0
    assert events[-1].reason == "cancelled"
    count = events[-1].usage.completion_tokens
    assert count > 10
    assert events[-1].token_ids == whole[:count]
    assert run(engine, [PROMPT], params)[0].token_ids == whole


def test_a_request_that_arrives_ends_speculation_until_it_is_done(engine, rounds, draft, run, monkeypatch):
    params = SamplingParams(temperature=1.2, seed=4, max_new_tokens=50)
    other = SamplingParams(temperature=0, max_new_tokens=8)
    whole = free(engine, run, monkeypatch, params).token_ids
    with monkeypatch.context() as patch:
        patch.setattr(engine, "_speculate", False)
        (expected,) = run(engine, [[7] * 20], other)
    draft(whole)
    events: list = []
    start(engine, 1, PROMPT, params, events)
    while len(rounds) < 4:
        engine.step()
    start(engine, 2, [7] * 20, other, events)
    while not any(isinstance(event, Finished) for event in events):
        engine.step()
        assert len(rounds) == 4
    step_to_end(engine)
    assert len(rounds) > 6
    second, first = (event for event in events if isinstance(event, Finished))
    assert (second.request_id, second.token_ids) == (2, expected.token_ids)
    assert (first.request_id, first.token_ids) == (1, whole)
    assert engine.pool.used == 0


def test_what_was_verified_serves_the_next_turn(engine, rounds, draft, run, monkeypatch):
    params = SamplingParams(temperature=0, max_new_tokens=60)
    whole = free(engine, run, monkeypatch, params).token_ids
    draft(whole)
    assert run(engine, [PROMPT], params)[0].token_ids == whole
    assert rounds.accepted
    monkeypatch.setattr(engine, "_speculate", False)
    turn = [*PROMPT, *whole, 11, 12]
    (cached,) = run(engine, [turn], params)
    # All but the last token of the reply is computed, and what does not fill a page is not kept.
    assert cached.usage.cached_prompt_tokens == (len(PROMPT) + 59) // PAGE_SIZE * PAGE_SIZE
    engine.pool.forget()
    assert run(engine, [turn], params)[0].token_ids == cached.token_ids


def test_a_repetition_penalty_is_never_speculated_with(engine, rounds, draft, run):
    params = SamplingParams(temperature=0, repetition_penalty=1.2, max_new_tokens=10)
    draft((7,) * 10)
    run(engine, [PROMPT], params)
    assert rounds == []


def test_a_verification_that_fails_leaks_nothing(engine, rounds, draft, run, monkeypatch):
    params = SamplingParams(temperature=0, max_new_tokens=30)
    whole = free(engine, run, monkeypatch, params).token_ids
    draft(whole)
    events: list = []
    start(engine, 1, PROMPT, params, events)
    with monkeypatch.context() as patch:
        patch.setattr(engine.runner, "verify", lambda sequence, drafts: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            step_to_end(engine)
    engine.fail_all("broken")
    assert isinstance(events[-1], Failed)
    assert not engine.busy
    assert engine.pool.free == engine.pool.total
    assert run(engine, [PROMPT], params)[0].token_ids == whole


@pytest.mark.gpu
@pytest.mark.parametrize("params", [{"temperature": 0}, {"temperature": 0.7, "seed": 3}])
def test_on_a_gpu_the_reply_is_the_same_bit_for_bit(demo_model, run, monkeypatch, params):
    text = "Repeat this list three times: " + ", ".join(f"item {number}" for number in range(20))
    replies, rounds = [], Rounds()
    for speculate in (False, True):
        options = EngineOptions(device="cuda", dtype="bfloat16", speculate=speculate, prefix_cache=False)
        engine = Engine.load(Checkpoint.open(demo_model), options)
        engine.tokenizer.eos_ids = frozenset()
        rounds = watch(engine, monkeypatch)
        prompt = engine.tokenizer.encode_chat([Message("user", text)])
        replies += run(engine, [prompt], SamplingParams(max_new_tokens=400, **params))
        assert bool(rounds) is speculate
    assert replies[1].token_ids == replies[0].token_ids
    assert rounds.accepted
