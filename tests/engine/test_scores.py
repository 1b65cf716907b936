"""How likely the tokens of a reply were: transformers' log-softmax on the same tokens is the oracle."""

from __future__ import annotations

import queue
import time

import pytest
import torch
from PIL import Image as pillow
from transformers import AutoModelForCausalLM

from lite_llama.engine.engine import Engine
from lite_llama.engine.events import Failed, Finished, PrefillProgress, Queued, Scored
from lite_llama.engine.images import read_image
from lite_llama.engine.options import EngineOptions
from lite_llama.engine.request import GenerationRequest, Message, SamplingParams, ScoreRequest
from lite_llama.engine.thread import EngineThread, LoadOptions

CPU = EngineOptions(device="cpu", dtype="float32")
QUESTION = Message("user", "hello there, how are you today? " * 4)
GREEDY = SamplingParams(temperature=0, max_new_tokens=90)


@pytest.fixture(scope="module", params=["LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"])
def tiny(request, tiny_model):
    return tiny_model(request.param)


@pytest.fixture(scope="module")
def engine(tiny_model):
    engine = Engine.load(tiny_model("Qwen3ForCausalLM").checkpoint, CPU)
    engine.tokenizer.eos_ids = frozenset()
    return engine


def work(engine: Engine, *, most: int = 1000) -> None:
    for _ in range(most):
        if not engine.busy:
            return
        engine.step()
    raise AssertionError("the engine does not come to rest")


def reply_to(engine: Engine, params: SamplingParams = GREEDY, **request) -> Finished:
    events = []
    engine.submit(0, GenerationRequest((QUESTION,), params, **request), events.append, time.monotonic())
    work(engine)
    assert isinstance(events[-1], Finished), events[-1]
    return events[-1]


def score(engine: Engine, text: str, ids=(), top: int = 5, messages=(QUESTION,)) -> Scored:
    events = []
    request = ScoreRequest((*messages, Message("assistant", text)), tuple(ids), top)
    engine.score(1, request, events.append, time.monotonic())
    work(engine)
    assert [type(event) for event in events[:2]] == [Queued, PrefillProgress]
    assert isinstance(events[-1], Scored), events[-1]
    return events[-1]


def check(scored: Scored, oracle, prompt: list[int], ids, tolerance: float) -> None:
    """The scores are those of `oracle`, whose logits are computed in fp32 in one pass."""
    with torch.inference_mode():
        logits = oracle(torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1]
    expected = logits.float().log_softmax(-1)
    assert [token.id for token in scored.tokens] == list(ids)
    for token, row in zip(scored.tokens, expected, strict=True):
        assert token.logprob == pytest.approx(row[token.id].item(), abs=tolerance)
        best = row.topk(len(token.alternatives)).values.tolist()
        assert [other.logprob for other in token.alternatives] == pytest.approx(best, abs=tolerance)
        for other in token.alternatives:
            assert other.logprob == pytest.approx(row[other.id].item(), abs=tolerance)


@pytest.mark.parametrize(("rows", "chunk"), [(64, 256), (7, 256), (64, 16), (5, 48)])
def test_scores_are_transformers_log_softmax(tiny, rows, chunk, monkeypatch):
    monkeypatch.setattr("lite_llama.engine.runner.ROWS", rows)
    engine = Engine.load(tiny.checkpoint, CPU)
    engine.tokenizer.eos_ids = frozenset()
    engine.scheduler.chunk_tokens = chunk
    reply = reply_to(engine, SamplingParams(temperature=1.2, seed=3, max_new_tokens=90))
    scored = score(engine, reply.text, reply.token_ids)
    assert scored.as_generated
    oracle = AutoModelForCausalLM.from_pretrained(tiny.source, dtype=torch.float32)
    check(scored, oracle, engine.tokenizer.encode_chat([QUESTION]), reply.token_ids, 1e-3)


def test_scoring_leaves_no_page_held_and_replies_as_they_were(engine):
    reply = reply_to(engine)
    score(engine, reply.text, reply.token_ids)
    scored = score(engine, reply.text, reply.token_ids)
    assert engine.pool.used == 0
    assert engine.pool.free + engine.pool.cached == engine.pool.total
    assert [token.id for token in scored.tokens] == list(reply.token_ids)
    again = reply_to(engine)
    assert again.token_ids == reply.token_ids
    assert again.usage.cached_prompt_tokens > 0


def test_only_the_reply_is_computed_again(engine):
    reply = reply_to(engine)
    events = []
    request = ScoreRequest((QUESTION, Message("assistant", reply.text)), reply.token_ids, 3)
    engine.score(1, request, events.append, 0.0)
    computed = 0
    while engine.busy:
        batch = engine.scheduler.schedule()
        assert batch
        computed += sum(chunk.count for chunk in batch.prefill)
        engine._finish_step(batch, engine.runner.launch(batch))
    assert isinstance(events[-1], Scored)
    assert computed <= len(reply.token_ids) + 16


@pytest.fixture
def small_steps(engine, monkeypatch):
    """Steps of one token for each reply and 16 tokens of a prompt."""
    monkeypatch.setattr(engine.scheduler, "chunk_tokens", 16)
    monkeypatch.setattr(engine.scheduler, "step_tokens", 16)


@pytest.mark.parametrize("ahead", [False, True])
def test_scores_do_not_depend_on_what_else_runs(engine, run_ahead, ahead, small_steps):
    """Nor do they when the sequence starts over for want of pages, or the host is a step behind."""
    reply = reply_to(engine)
    alone = score(engine, reply.text, reply.token_ids)
    if ahead:
        run_ahead(engine)
    events, beside = [], []
    engine.submit(5, GenerationRequest((QUESTION,), GREEDY), beside.append, 0.0)
    engine.step()
    request = ScoreRequest((QUESTION, Message("assistant", reply.text)), reply.token_ids, 5)
    engine.score(6, request, events.append, 0.0)
    for _ in range(4):
        engine.step()
    sequence = next(sequence for sequence in engine.scheduler.running if sequence.scores)
    assert sequence.first_token is None
    assert sequence.scores._parts
    engine.scheduler._preempt(sequence)
    work(engine)
    assert beside[-1].token_ids == reply.token_ids
    assert isinstance(events[-1], Scored)
    for token, other in zip(events[-1].tokens, alone.tokens, strict=True):
        assert token.id == other.id
        assert token.logprob == pytest.approx(other.logprob, abs=1e-4)
    assert engine.pool.used == 0


def test_scoring_is_stopped_halfway(engine, small_steps):
    reply = reply_to(engine)
    events = []
    request = ScoreRequest((QUESTION, Message("assistant", reply.text)), reply.token_ids)
    engine.score(7, request, events.append, 0.0)
    engine.step()
    engine.cancel(7)
    work(engine)
    assert [type(event) for event in events] == [Queued, PrefillProgress, Failed]
    assert events[1].done < events[1].total
    assert engine.pool.used == 0


def test_text_without_its_tokens_is_encoded_anew(engine):
    reply = reply_to(engine)
    text = "It is Paris. 12345"
    for ids in ((), reply.token_ids, (5, 10_000_000), (5, 1 << 70), (-1,)):
        scored = score(engine, text, ids)
        assert not scored.as_generated
        assert "".join(token.text for token in scored.tokens) == text
    own = engine.tokenizer.encode("It is Paris. 12345 and more")
    assert score(engine, text, own).as_generated  # a stop string was cut off


def test_a_reply_begins_with_the_tokens_it_is_given(engine):
    whole = reply_to(engine)
    begin = whole.token_ids[:11]
    again = reply_to(engine, begin=begin)
    assert (*begin, *again.token_ids)[:90] == whole.token_ids  # greedy: it goes on as it did
    assert again.text.startswith(engine.tokenizer.decode(begin[:10]))
    other = next(id for id in range(100, 384) if id != whole.token_ids[11])
    forced = reply_to(engine, begin=(*begin, other))
    assert forced.text == engine.tokenizer.decode((*begin, other, *forced.token_ids))
    assert forced.usage.completion_tokens == 90 == len(forced.token_ids)
    scored = score(engine, forced.text, (*begin, other, *forced.token_ids))
    assert scored.as_generated
    assert scored.tokens[11].id == other


def test_a_reply_that_begins_with_its_end_is_complete(engine):
    begin = reply_to(engine).token_ids[:5]
    engine.tokenizer.eos_ids = frozenset({2})
    try:
        ended = reply_to(engine, begin=(*begin, 2))
    finally:
        engine.tokenizer.eos_ids = frozenset()
    assert ended.reason == "stop"
    assert ended.text == engine.tokenizer.decode(begin)
    assert ended.token_ids == ()
    assert not engine.busy
    assert engine.pool.used == 0


def test_pieces_of_characters_and_special_tokens(engine):
    tokenizer = engine.tokenizer
    ids = [*tokenizer.encode("a"), *tokenizer.encode("😀é"), *tokenizer.encode("<|im_end|>")]
    pieces = [tokenizer.piece(ids[max(0, at - 4) : at], id) for at, id in enumerate(ids)]
    assert pieces[0] == "a"
    assert pieces[-1] == "<|im_end|>"
    assert "".join(pieces).replace("\ufffd", "") == "a😀é<|im_end|>"


def test_thinking_is_scored_with_the_answer(tiny_model):
    engine = Engine.load(tiny_model("Qwen3ForCausalLM", thinking="optional", vocab_size=400).checkpoint, CPU)
    tags, encode = engine.tokenizer.tags, engine.tokenizer.encode
    assert tags
    ids = (tags.open, *encode("\nhm\n"), tags.close, *encode("\n\nParis"))
    events = []
    reply = Message("assistant", "Paris", "hm")
    engine.score(1, ScoreRequest((QUESTION, reply), ids), events.append, 0.0)
    work(engine)
    assert events[-1].as_generated
    assert "".join(token.text for token in events[-1].tokens) == "<think>\nhm\n</think>\n\nParis"


def test_images_before_a_reply_count(tiny_llava, tmp_path):
    engine = Engine.load(tiny_llava().checkpoint, CPU)
    images = []
    for name, picture in (("grey", pillow.linear_gradient("L")), ("red", pillow.new("RGB", (70, 70), "red"))):
        picture.save(tmp_path / f"{name}.png")
        images.append(read_image(tmp_path / f"{name}.png"))
    found = []
    for image in images:
        message = Message("user", "What is this?", images=(image,))
        found.append([token.logprob for token in score(engine, "A llama.", messages=(message,)).tokens])
    assert found[0] != found[1]
    message = Message("user", "What is this?", images=(images[0],))
    again = [token.logprob for token in score(engine, "A llama.", messages=(message,)).tokens]
    assert again == pytest.approx(found[0], abs=1e-5)


def test_the_thread_scores_and_refuses(tiny_model):
    thread, events = EngineThread(), queue.Queue()
    try:
        request = ScoreRequest((QUESTION, Message("assistant", "It is Paris.")))
        thread.score(request, events.put)
        assert events.get(timeout=30) == Failed(1, "No model is loaded: choose one first.", "")
        thread.load(LoadOptions(tiny_model("LlamaForCausalLM").checkpoint.path, "cpu"), lambda _: None)
        thread.score(request, events.put)
        kinds = [type(events.get(timeout=30)) for _ in range(3)]
        assert kinds == [Queued, PrefillProgress, Scored]
        thread.score(ScoreRequest((QUESTION, Message("assistant", ""))), events.put)
        assert "empty" in events.get(timeout=30).message
    finally:
        thread.close()
