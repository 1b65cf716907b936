"""The worker thread: loading, streaming, cancelling, failing and going on."""

from __future__ import annotations

import queue
import threading

import pytest

from lite_llama.engine.events import (
    Failed,
    Finished,
    Loaded,
    LoadFailed,
    LoadProgress,
    PrefillProgress,
    Queued,
    TextDelta,
)
from lite_llama.engine.request import GenerationRequest, Message, SamplingParams
from lite_llama.engine.thread import EngineThread, LoadOptions

HELLO = (Message("user", "Hello there, how are you?"),)


def ask(tokens: int | None = 12, **params) -> GenerationRequest:
    return GenerationRequest(HELLO, SamplingParams(temperature=0, max_new_tokens=tokens, **params))


def load_events(thread: EngineThread, options: LoadOptions) -> list:
    """Load a model and wait; every event, the last of which is Loaded or LoadFailed."""
    events = queue.SimpleQueue()
    thread.load(options, events.put)
    seen = []
    while not seen or not isinstance(seen[-1], Loaded | LoadFailed):
        seen.append(events.get(timeout=60))
    return seen


def stream(thread: EngineThread, request: GenerationRequest) -> list:
    """Submit a request and wait; every event, the last of which is Finished or Failed."""
    events = queue.SimpleQueue()
    thread.submit(request, events.put)
    seen = []
    while not seen or not isinstance(seen[-1], Finished | Failed):
        seen.append(events.get(timeout=60))
    return seen


@pytest.fixture
def options(tiny_model) -> LoadOptions:
    return LoadOptions(tiny_model("Qwen2ForCausalLM").checkpoint.path, device="cpu")


@pytest.fixture
def thread():
    thread = EngineThread()
    yield thread
    thread.close()


@pytest.fixture
def loaded(thread, options) -> EngineThread:
    *progress, last = load_events(thread, options)
    assert isinstance(last, Loaded), last
    assert progress
    assert all(isinstance(event, LoadProgress) and event.done <= event.total for event in progress)
    assert thread._engine
    thread._engine.tokenizer.eos_ids = frozenset()
    return thread


def test_load_and_stream(loaded):
    assert loaded.model
    assert loaded.model.name == "tiny"
    assert loaded.model.family == "Qwen2.5"
    assert loaded.model.dtype == "float32"
    events = stream(loaded, ask())
    assert isinstance(events[0], Queued)
    assert events[0].prompt_tokens == loaded.count_tokens(HELLO)
    assert isinstance(events[1], PrefillProgress)
    assert isinstance(events[-1], Finished)
    assert events[-1].usage.completion_tokens == 12
    assert "".join(event.text for event in events if isinstance(event, TextDelta)) == events[-1].text


def test_figures_tell_pages_and_requests(loaded):
    assert loaded.model
    before = loaded.figures
    assert (before.pages_used, before.running, before.waiting) == (0, 0, 0)
    assert before.pages_total == loaded.model.kv_pages
    during = []
    events = queue.SimpleQueue()
    loaded.submit(ask(40), lambda event: (during.append(loaded.figures), events.put(event)))
    seen = []
    while not seen or not isinstance(seen[-1], Finished):
        seen.append(events.get(timeout=60))
    assert max(figures.running for figures in during) == 1
    assert max(figures.pages_used for figures in during) >= 3
    prefill = next(event for event in seen if isinstance(event, PrefillProgress))
    assert prefill.tokens_per_s > 0
    after = loaded.figures
    assert (after.pages_used, after.running) == (0, 0)
    assert after.pages_cached > 0


def test_many_requests_from_many_threads(loaded):
    (expected,) = [event for event in stream(loaded, ask(30)) if isinstance(event, Finished)]
    texts = queue.SimpleQueue()

    def work():
        *_, last = stream(loaded, ask(30))
        texts.put(last.text)

    workers = [threading.Thread(target=work) for _ in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [texts.get() for _ in workers] == [expected.text] * 6


def test_cancel_keeps_the_partial_text(loaded):
    events = queue.SimpleQueue()
    request_id = loaded.submit(ask(None), events.put)
    text = ""
    while len(text) < 5:
        event = events.get(timeout=30)
        text += event.text if isinstance(event, TextDelta) else ""
    loaded.cancel(request_id)
    while not isinstance(event := events.get(timeout=30), Finished):
        text += event.text
    assert event.reason == "cancelled"
    assert event.text == text


def test_without_a_model_the_request_fails_in_words(thread):
    (event,) = stream(thread, ask())
    assert isinstance(event, Failed)
    assert "No model is loaded" in event.message
    assert thread.model is None
    assert thread.count_tokens(HELLO) == 0


def test_a_failing_step_reaches_every_request_and_the_thread_goes_on(loaded, monkeypatch):
    runner = loaded._engine.runner
    good = runner.launch
    calls = []

    def fail_at_the_fourth(batch):
        calls.append(batch)
        if len(calls) == 4:
            raise RuntimeError("injected")
        return good(batch)

    monkeypatch.setattr(runner, "launch", fail_at_the_fourth)
    events = stream(loaded, ask(50))
    assert isinstance(events[-1], Failed)
    assert "injected" in events[-1].message
    assert events[-1].text == "".join(event.text for event in events if isinstance(event, TextDelta))
    *_, last = stream(loaded, ask(5))
    assert isinstance(last, Finished)
    assert last.usage.cached_prompt_tokens == 0
    assert loaded._engine.pool.used == 0


def test_idle_moments_are_used_and_nobody_waits_for_more_than_one(loaded, monkeypatch):
    """What a later message needs is prepared piece by piece, also when one cannot be."""
    begun, go_on = queue.SimpleQueue(), queue.SimpleQueue()
    left = [3, 2, 1]

    def prepare():
        begun.put(left.pop(0))
        if go_on.get(timeout=60) == "fail":
            raise RuntimeError("injected")

    monkeypatch.setattr(loaded._engine, "prepare", prepare)
    monkeypatch.setattr(type(loaded._engine), "prepared", property(lambda _: not left))
    loaded.cancel(0)  # wakes the thread
    assert begun.get(timeout=60) == 3
    answer = queue.SimpleQueue()
    loaded.submit(ask(3), answer.put)
    go_on.put("go")
    while not isinstance(event := answer.get(timeout=60), Finished):
        assert not isinstance(event, Failed)
    assert begun.get(timeout=60) == 2
    go_on.put("fail")
    assert begun.get(timeout=60) == 1
    go_on.put("go")
    *_, last = stream(loaded, ask(3))
    assert isinstance(last, Finished)
    assert begun.empty()


def test_a_failing_sink_does_not_stop_the_thread(loaded):
    def sink(event):
        raise RuntimeError("broken sink")

    loaded.submit(ask(3), sink)
    *_, last = stream(loaded, ask(3))
    assert isinstance(last, Finished)


def test_unload_fails_what_runs_and_a_new_load_works(loaded, options):
    events = queue.SimpleQueue()
    loaded.submit(ask(None), events.put)
    while not isinstance(events.get(timeout=30), TextDelta):
        pass
    loaded.unload()
    while not isinstance(event := events.get(timeout=30), Failed):
        pass
    assert "unloaded" in event.message
    *_, last = load_events(loaded, options)
    assert isinstance(last, Loaded)


def test_load_failures_are_sentences(thread, options, tmp_path):
    from dataclasses import replace

    for wrong, words in [
        (replace(options, path=tmp_path), "no converted model"),
        (replace(options, device="tpu"), "choose auto, cpu or cuda"),
        (replace(options, dtype="int3"), "choose auto, float32"),
    ]:
        (event,) = load_events(thread, wrong)
        assert isinstance(event, LoadFailed)
        assert words in event.message
    *_, last = load_events(thread, options)
    assert isinstance(last, Loaded)


def test_not_enough_memory_is_said_with_numbers(thread, options, monkeypatch):
    monkeypatch.setattr("lite_llama.engine.memory.available_memory", lambda device: 10**6)
    *_, last = load_events(thread, options)
    assert isinstance(last, LoadFailed)
    assert "1 MB are free" in last.message


def test_a_load_can_be_cancelled(thread, options, monkeypatch):
    events = []

    def sink(event):
        events.append(event)
        thread.cancel_load()

    done = threading.Event()
    thread.load(options, lambda event: (sink(event), isinstance(event, LoadFailed | Loaded) and done.set()))
    assert done.wait(30)
    assert isinstance(events[-1], LoadFailed)
    assert "cancelled" in events[-1].message
    *_, last = load_events(thread, options)
    assert isinstance(last, Loaded)


def test_damaged_weights_are_refused(thread, tiny_model, tmp_path):
    import shutil

    damaged = shutil.copytree(tiny_model("Qwen2ForCausalLM").checkpoint.path, tmp_path / "damaged")
    weights = damaged / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1000] ^= 0x40
    weights.write_bytes(data)
    *_, last = load_events(thread, LoadOptions(damaged, device="cpu"))
    assert isinstance(last, LoadFailed)
    assert "checksum" in last.message
    weights.write_bytes(data[:-7])
    (last,) = load_events(thread, LoadOptions(damaged, device="cpu"))
    assert isinstance(last, LoadFailed)
    assert "bytes instead of" in last.message
