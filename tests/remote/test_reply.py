"""Replies of a real server process on loopback, which runs our engine with the demo model."""

import base64
import io
import queue
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from PIL import Image as pillow

from lite_llama.app.remote.endpoint import Endpoint
from lite_llama.app.remote.engine import NO_SCORES
from lite_llama.app.remote.estimate import Estimate
from lite_llama.app.remote.payload import payload
from lite_llama.engine.events import Failed, Finished, LoadFailed, Queued, TextDelta, Thinking, ThinkingDelta
from lite_llama.engine.images import image_of
from lite_llama.engine.request import GenerationRequest, Message, SamplingParams, ScoreRequest
from lite_llama.models.errors import UserError

CAPITAL = "What is the capital of France?"


def test_no_import_of_it_needs_torch():
    code = "import sys, lite_llama.app.remote.engine, lite_llama.app.backend; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_the_demo_model_answers_through_the_server(talk, demo_server):
    cluster = talk(demo_server, "demo")
    info = cluster.engine.model
    assert (info.name, info.max_context, info.device) == ("cluster", 1024, "remote")
    queued, *deltas, finished = cluster.ask(CAPITAL, temperature=0, max_new_tokens=20)
    assert isinstance(queued, Queued)
    assert isinstance(queued.prompt_tokens, Estimate)
    assert all(isinstance(delta, TextDelta) for delta in deltas)
    assert "Paris" in finished.text
    assert "".join(delta.text for delta in deltas) == finished.text
    usage = finished.usage
    assert finished.reason == "stop"
    assert usage.remote
    assert usage.prompt_tokens > 30  # the template's own system prompt is counted
    assert not isinstance(usage.prompt_tokens, Estimate)
    assert 1 < usage.completion_tokens < 20
    assert 0 < usage.ttft_s < usage.total_s
    assert usage.decode_tokens_per_s > 0


def test_tokens_are_not_looked_at(talk, server):
    cluster = talk(server, "vllm")
    events = queue.SimpleQueue()
    read = ScoreRequest((Message("user", "Hi"), Message("assistant", "Hello")), ())
    request_id = cluster.engine.score(read, events.put)
    assert events.get(timeout=60) == Failed(request_id, NO_SCORES, "")


def test_parameters_reach_the_server(talk, demo_server):
    cluster = talk(demo_server, "demo")
    sampling = {
        "temperature": 0.5,
        "top_p": 0.8,
        "top_k": 20,
        "min_p": 0.05,
        "repetition_penalty": 1.1,
        "seed": 5,
        "stop": ("\n\n",),
    }
    *_, finished = cluster.ask("Tell me a story.", max_new_tokens=12, **sampling)
    assert (finished.reason, finished.usage.seed) == ("length", 5)
    asked = demo_server.log()["asked"][-1]
    expected = sampling | {"max_tokens": 12, "stop": ["\n\n"], "stream_options": {"include_usage": True}}
    assert {name: asked[name] for name in expected} == expected
    assert "chat_template_kwargs" not in asked
    assert cluster.ask("Tell me a story.", max_new_tokens=12, **sampling)[-1].text == finished.text


def test_what_is_off_is_not_sent_but_a_seed_is_drawn_and_told(talk, demo_server):
    *_, finished = talk(demo_server, "demo").ask(CAPITAL, max_new_tokens=4)
    asked = demo_server.log()["asked"][-1]
    assert not {"top_k", "min_p", "repetition_penalty", "stop"} & asked.keys()
    assert asked["seed"] == finished.usage.seed


def test_cancel_closes_the_connection_within_a_moment(talk, demo_server):
    cluster = talk(demo_server, "demo")
    request_id, events = cluster.submit("Write a long story.", max_new_tokens=900)
    while not isinstance(events.get(timeout=60), TextDelta):
        pass
    before, began = demo_server.log()["cancelled"], time.monotonic()
    cluster.engine.cancel(request_id)
    *_, finished = cluster.rest(events)
    assert time.monotonic() - began < 1
    assert (finished.reason, bool(finished.text)) == ("cancelled", True)
    while demo_server.log()["cancelled"] == before:  # the server has noticed: it generates no more
        assert time.monotonic() - began < 10
        time.sleep(0.05)


@pytest.mark.parametrize("how", ["stall", "silent"])
def test_a_server_that_says_nothing_can_be_left(talk, server, how):
    cluster = talk(server, how)
    request_id, events = cluster.submit("Hi")
    time.sleep(0.5)
    cluster.engine.cancel(request_id)
    finished = cluster.rest(events)[-1]
    assert isinstance(finished, Finished)
    assert (finished.reason, finished.text) == ("cancelled", "Once upon a time" if how == "stall" else "")
    end = time.monotonic() + 5
    while how not in server.log()["cancelled"]:
        assert time.monotonic() < end
        time.sleep(0.05)


def test_cancel_right_after_submit_still_ends_it(talk, demo_server):
    cluster = talk(demo_server, "demo")
    request_id, events = cluster.submit(CAPITAL)
    cluster.engine.cancel(request_id)
    assert cluster.rest(events)[-1].reason == "cancelled"


def test_leaving_the_endpoint_fails_what_runs(talk, server):
    cluster = talk(server, "stall")
    _, events = cluster.submit("Hi")
    while not isinstance(events.get(timeout=20), TextDelta):
        pass
    cluster.engine.unload()
    failed = cluster.rest(events)[-1]
    assert isinstance(failed, Failed)
    assert failed.message == "The endpoint was left before the reply was finished."
    assert cluster.engine.model is None
    assert cluster.fails() == ("No endpoint is connected: choose a model first.", False, "")


def test_several_requests_at_once(talk, demo_server):
    cluster = talk(demo_server, "demo")
    first = cluster.submit(CAPITAL, temperature=0, max_new_tokens=8)[1]
    second = cluster.submit("What is 1 + 1?", temperature=0, max_new_tokens=8)[1]
    assert "Paris" in cluster.rest(first)[-1].text
    assert cluster.rest(second)[-1].text


def test_a_cut_reply_goes_on_where_it_stopped(talk, demo_server):
    cluster = talk(demo_server, "demo")
    whole = cluster.ask(CAPITAL, temperature=0, max_new_tokens=20)[-1].text
    begun = Message("assistant", whole[: whole.index(" of")])
    request = GenerationRequest(
        (Message("user", CAPITAL), begun),
        SamplingParams(temperature=0, max_new_tokens=20),
        continue_last=True,
    )
    rest = cluster.ask(request)[-1].text
    assert begun.content + rest == whole
    asked = demo_server.log()["asked"][-1]
    assert (asked["continue_final_message"], asked["add_generation_prompt"]) == (True, False)
    thought = replace(request, messages=(Message("user", CAPITAL), Message("assistant", "", "Hm")))
    assert cluster.fails(thought)[0].startswith(
        "A server cannot take up a reply that was stopped in its thinking"
    )


def test_tokens_are_counted_by_the_server_or_estimated_and_said_so(talk, demo_server, server):
    question = (Message("user", CAPITAL),)
    cluster = talk(demo_server, "demo")
    counted = cluster.engine.count_tokens(question)
    assert not isinstance(counted, Estimate)
    *_, finished = cluster.ask(CAPITAL, temperature=0, max_new_tokens=20)
    assert counted == finished.usage.prompt_tokens

    other = talk(server, "vllm-0.8")  # without /tokenize
    assert isinstance(other.engine.count_tokens(question), Estimate)
    assert 5 < other.engine.count_tokens(question) < 40


def test_after_a_reply_the_server_s_figures_count(talk, demo_server):
    cluster = talk(demo_server, "demo")
    *_, finished = cluster.ask(CAPITAL, temperature=0, max_new_tokens=20)
    said = (Message("user", CAPITAL), Message("assistant", finished.text))
    tokens = finished.usage.prompt_tokens + finished.usage.completion_tokens
    before = len(demo_server.log()["asked"])
    assert cluster.engine.count_tokens(said) == tokens
    assert not isinstance(cluster.engine.count_tokens(said), Estimate)
    more = cluster.engine.count_tokens((*said, Message("user", "And of Spain?")))
    assert isinstance(more, Estimate)
    assert more > tokens
    assert len(demo_server.log()["asked"]) == before


RECORDED = ["vllm", "vllm-0.8", "sglang", "llamacpp", "ollama", "no-parser"]


@pytest.mark.parametrize("shape", RECORDED)
def test_chunks_of_every_server_come_to_the_same(talk, server, shape):
    """As documented: vLLM's `reasoning`, SGLang's nulls, llama.cpp's timings, Ollama's empty texts."""
    events = talk(server, shape).ask("Nine or ten?")
    finished = events[-1]
    assert isinstance(finished, Finished)
    assert (finished.reason, finished.text) == ("stop", "Ten.")
    assert finished.thinking.text == "Nine or ten?"
    assert finished.thinking.tokens > 0
    assert (finished.usage.prompt_tokens, finished.usage.completion_tokens) == (21, 12)
    assert finished.usage.cached_prompt_tokens == (16 if shape == "vllm" else 0)
    deltas = [event for event in events if isinstance(event, ThinkingDelta | TextDelta)]
    assert "".join(event.text for event in deltas if isinstance(event, ThinkingDelta)) == "Nine or ten?"
    assert "".join(event.text for event in deltas if isinstance(event, TextDelta)) == "Ten."
    assert [type(event) for event in deltas] == sorted(
        (type(event) for event in deltas), key=lambda kind: kind is TextDelta
    )


@pytest.mark.parametrize("strict", ["strict-openai", "strict-fastapi"])
def test_fields_that_a_server_refuses_are_left_out_from_then_on(talk, server, strict):
    cluster = talk(server, strict)
    request = GenerationRequest(
        (Message("user", "Hi"),), SamplingParams(top_k=5, min_p=0.1, seed=3), thinking=True
    )
    assert cluster.ask(request)[-1].text == "Once upon a time"
    asked = [body for body in server.log()["asked"] if body["model"] == strict and "stream" in body]
    assert {"top_k", "min_p", "seed", "chat_template_kwargs", "stream_options"} <= asked[0].keys()
    assert asked[-1].keys() & {"top_k", "min_p", "seed", "chat_template_kwargs", "stream_options"} == set()
    cluster.ask(request)
    again = [body for body in server.log()["asked"] if body["model"] == strict and "stream" in body]
    assert len(again) == len(asked) + 1


def test_thinking_is_switched_only_where_it_is_set():
    request = GenerationRequest((Message("user", "Hi"),), SamplingParams(repetition_penalty=1.2))
    assert "chat_template_kwargs" not in payload("m", request, 1, llama_cpp=False)
    for wish in (True, False):
        body = payload("m", replace(request, thinking=wish), 1, llama_cpp=False)
        assert body["chat_template_kwargs"] == {"enable_thinking": wish}
    assert payload("m", request, 1, llama_cpp=True)["repeat_penalty"] == 1.2
    assert "repetition_penalty" not in payload("m", request, 1, llama_cpp=True)


def test_images_go_as_data_urls_and_look_the_same_to_every_server():
    def encoded(kind, **more):
        buffer = io.BytesIO()
        pillow.new("RGB", (40, 20), "#c03020").save(buffer, kind, **more)
        return buffer.getvalue()

    turned = pillow.Exif()
    turned[0x0112] = 6  # a camera held upright
    png, photo = encoded("PNG"), encoded("JPEG", exif=turned)
    images = tuple(
        image_of(name, content) for name, content in (("a", png), ("b", photo), ("c", encoded("BMP")))
    )
    messages = (Message("system", "Look."), Message("user", "What is it?", images=images))
    system, user = payload("m", GenerationRequest(messages), 1, llama_cpp=False)["messages"]
    assert system == {"role": "system", "content": "Look."}
    *pictures, text = user["content"]
    assert text == {"type": "text", "text": "What is it?"}
    heads, contents = zip(*(part["image_url"]["url"].split(";base64,") for part in pictures), strict=True)
    assert heads == ("data:image/png",) * 3
    first, second, third = (base64.b64decode(content) for content in contents)
    assert first == png
    assert pillow.open(io.BytesIO(second)).size == (20, 40)  # upright
    assert pillow.open(io.BytesIO(third)).format == "PNG"


def test_a_model_that_the_server_has_not_is_told_with_those_it_has(talk, demo_server):
    cluster = talk(demo_server, "demo")
    outcome = cluster.connect(Endpoint("cluster", demo_server.url, "nothing"))
    assert isinstance(outcome, LoadFailed)
    assert outcome.message.startswith("cluster has no model 'nothing': it has demo, forbidden, ")
    assert cluster.engine.model is None


def test_thinking_is_no_part_of_the_conversation_s_tokens(talk, server):
    cluster = talk(server, "ollama")
    cluster.ask("Nine or ten?")
    said = (Message("user", "Nine or ten?"), Message("assistant", "Ten."))
    tokens = cluster.engine.count_tokens(said)
    assert isinstance(tokens, Estimate)  # the server does not say how many were thoughts
    assert 21 < tokens < 33


def test_an_image_needs_no_text():
    content = io.BytesIO()
    pillow.new("RGB", (8, 8)).save(content, "PNG")
    message = Message("user", "", images=(image_of("a.png", content.getvalue()),))
    (said,) = payload("m", GenerationRequest((message,)), 1, llama_cpp=False)["messages"]
    assert [part["type"] for part in said["content"]] == ["image_url"]


def test_what_cannot_be_asked_for_is_refused():
    with pytest.raises(UserError, match="stopped in its thinking"):
        payload(
            "m", GenerationRequest((Message("assistant", "", "Hm"),), continue_last=True), 1, llama_cpp=False
        )


def test_no_thinking_is_an_empty_one(talk, demo_server):
    assert talk(demo_server, "demo").ask(CAPITAL, max_new_tokens=3)[-1].thinking == Thinking()
