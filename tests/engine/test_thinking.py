"""Thinking: which models do it, how prompts switch it, how a reply is split into thinking and answer."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from lite_llama.engine.engine import Engine
from lite_llama.engine.events import Failed, Finished, TextDelta, Thinking, ThinkingDelta
from lite_llama.engine.options import EngineOptions
from lite_llama.engine.reply import Part, ReplyText, ThinkingTags
from lite_llama.engine.request import GenerationRequest, Message, SamplingParams

# The splitter alone. Its tokens are bytes, the worst case for half characters, and two tags.

TAGS = ThinkingTags(open=256, close=257)


def decode_bytes(ids: Sequence[int]) -> str:
    tags = {TAGS.open: b"<think>", TAGS.close: b"</think>"}
    return b"".join(tags.get(id) or bytes([id]) for id in ids).decode("utf-8", errors="replace")


def tokens_of(text: str) -> list[int]:
    """Tags as one token each, everything else as bytes."""
    tokens: list[int] = []
    while text:
        for tag, token in (("<think>", TAGS.open), ("</think>", TAGS.close)):
            if text.startswith(tag):
                tokens.append(token)
                text = text.removeprefix(tag)
                break
        else:
            tokens += text[0].encode()
            text = text[1:]
    return tokens


def read(reply: ReplyText, tokens: Sequence[int]) -> tuple[str, str]:
    """Feed all tokens, a second each; what was streamed, which is what there is in the end."""
    thought = answer = ""
    pieces = (reply.add(token, float(second)) for second, token in enumerate(tokens))
    for new_thought, new_answer in pieces:
        thought, answer = thought + new_thought, answer + new_answer
        assert "\ufffd" not in new_thought + new_answer
        if reply.stopped:
            break
    new_thought, new_answer = reply.flush()
    thought, answer = thought + new_thought, answer + new_answer
    assert (reply.thinking.text, reply.text) == (thought, answer)
    return thought, answer


@pytest.mark.parametrize(
    ("part", "text", "thinking", "answer"),
    [
        ("start", "<think>\nHm, 🙂.\n</think>\n\nYes.", "Hm, 🙂.", "Yes."),
        ("start", "Yes.", "", "Yes."),
        ("start", "\n\nYes.", "", "\n\nYes."),
        ("start", "<think>\n\n</think>\n\nYes.", "", "Yes."),
        ("start", "<think></think>Yes.", "", "Yes."),
        ("start", "<think>\nHm\n\nso\n", "Hm\n\nso\n", ""),  # cut off: what comes next is to be joined to it
        ("start", "<think>", "", ""),
        ("start", "<think>\nHm\n</think>\n\n", "Hm", ""),
        ("start", "", "", ""),
        ("start", "Write <think>x</think>.", "", "Write <think>x</think>."),
        ("start", "<think>a <think> b</think>\nc</think>", "a <think> b", "c</think>"),
        ("start", "<think>\n    a\n</think>\n    b", "    a", "    b"),
        ("thinking", "Hm.\n</think>\n\nYes.", "Hm.", "Yes."),
        ("thinking", "\n\nso", "\n\nso", ""),  # continued: it was broken off before a paragraph
        ("thinking", "</think>\n\nYes.", "", "Yes."),
        ("answer", "\n\nYes.", "", "\n\nYes."),
        ("answer", "<think>Hm</think>", "", "<think>Hm</think>"),
    ],
)
def test_thinking_and_answer_are_told_apart(part: Part, text: str, thinking: str, answer: str):
    reply = ReplyText(decode_bytes, (), TAGS, part)
    assert read(reply, tokens_of(text)) == (thinking, answer)


def test_without_tags_all_is_answer():
    text = "<think>\nHm.\n</think>\n\nYes."
    for part in ("start", "thinking", "answer"):
        reply = ReplyText(decode_bytes, (), None, part)
        assert read(reply, tokens_of(text)) == ("", text)
        assert reply.thinking == Thinking()


def test_the_clock_and_the_count_are_those_between_the_tags():
    reply = ReplyText(decode_bytes, (), TAGS)
    read(reply, tokens_of("<think>\nabcd\n</think>\n\nYes."))
    assert reply.thinking == Thinking("abcd", 6, 7.0)
    cut = ReplyText(decode_bytes, (), TAGS)
    read(cut, tokens_of("<think>\nabc"))
    assert cut.thinking == Thinking("abc", 4, 4.0)
    opened = ReplyText(decode_bytes, (), TAGS, "thinking")
    read(opened, tokens_of("abc</think>Yes"))
    assert opened.thinking == Thinking("abc", 3, 3.0)


def test_stop_strings_count_in_the_answer_only():
    reply = ReplyText(decode_bytes, ("STOP", "\n\n"), TAGS)
    assert read(reply, tokens_of("<think>\nA STOP\n\nhere\n</think>\n\nYes STOP no")) == (
        "A STOP\n\nhere",
        "Yes ",
    )
    assert reply.stopped
    later = ReplyText(decode_bytes, ("\n\n",), TAGS)
    assert read(later, tokens_of("<think>\nHm\n</think>\n\nYes\n\nno")) == ("Hm", "Yes")


def test_half_a_character_at_the_closing_tag_is_not_lost():
    reply = ReplyText(decode_bytes, (), TAGS, "thinking")
    pieces = [reply.add(token, 0.0) for token in [*"a🙂".encode()[:-1], TAGS.close, ord("b")]]
    assert pieces[-2:] == [("\ufffd", ""), ("", "b")]
    assert reply.thinking.text == "a\ufffd"


def test_any_tokens_of_a_reply_read_the_same():
    """However the vocabulary cuts the text between the tags, in the middle of characters too."""
    seed = random.randrange(10**6)
    rng = random.Random(seed)
    for _ in range(500):
        thought, answer = (
            "".join(rng.choice("ab \n🙂é") for _ in range(rng.randint(0, 20))) for _ in range(2)
        )
        stop = "".join(rng.choice("ab\n🙂") for _ in range(rng.randint(1, 3)))
        vocabulary: list[bytes] = []

        def cut(text: str, vocabulary: list[bytes] = vocabulary) -> list[int]:
            rest, first = text.encode(), len(vocabulary)
            while rest:
                size = rng.randint(1, 6)
                vocabulary.append(rest[:size])
                rest = rest[size:]
            return list(range(first, len(vocabulary)))

        def decode(ids: Sequence[int], vocabulary: list[bytes] = vocabulary) -> str:
            return b"".join(vocabulary[id] for id in ids).decode("utf-8", errors="replace")

        tags = ThinkingTags(-1, -2)
        tokens = [tags.open, *cut(f"\n{thought}\n"), tags.close, *cut(f"\n\n{answer}")]
        reply = ReplyText(decode, (stop,), tags)
        expected = thought.strip("\n"), answer.lstrip("\n").split(stop)[0]
        assert read(reply, tokens) == expected, (seed, tokens, vocabulary, stop)
        count = len(tokens[: tokens.index(tags.close)]) - 1
        assert reply.thinking.tokens == (count if expected[0] else 0)


def test_any_cut_of_any_reply_goes_on_as_if_it_had_not_been_cut():
    """Read in two goes, as stopped and continued, a reply is the same as read in one."""
    seed = random.randrange(10**6)
    rng = random.Random(seed)
    for _ in range(300):
        thought, answer = (
            "".join(rng.choice("ab \n🙂") for _ in range(rng.randint(1, 12))) for _ in range(2)
        )
        tokens = tokens_of(f"<think>\n{thought}\n</think>\n\n{answer}")
        expected = thought.strip("\n"), answer.lstrip("\n")
        assert read(ReplyText(decode_bytes, (), TAGS), tokens) == expected, (seed, tokens)

        # The prompt of what is continued ends with the text so far: only whole characters can be there.
        cut = len(tokens_of(decode_bytes(tokens[: rng.randrange(len(tokens))]).rstrip("\ufffd")))
        first = ReplyText(decode_bytes, (), TAGS)
        begun = read(first, tokens[:cut])
        if not any(begun):
            continue
        part = "answer" if begun[1] else "thinking"
        rest = tokens[cut:]
        if part == "thinking" and TAGS.close in tokens[:cut]:
            rest = [TAGS.close, *rest]  # the prompt leaves that to the model
        more = read(ReplyText(decode_bytes, (), TAGS, part), rest)
        joined = begun[0] + more[0], begun[1] + more[1]
        assert tuple(text.strip("\n") for text in joined) == tuple(text.strip("\n") for text in expected), (
            seed,
            tokens,
            cut,
        )


# Prompts, with the template as the oracle.


@dataclass(frozen=True)
class Thinker:
    """A model that thinks, and transformers' tokenizer of the same checkpoint."""

    engine: Engine
    theirs: PreTrainedTokenizerFast

    def ids(self, messages: list[dict[str, str]], **options: Any) -> list[int]:
        text = self.theirs.apply_chat_template(messages, tokenize=False, **options)
        assert isinstance(text, str)
        return self.theirs(text, add_special_tokens=False)["input_ids"]  # type: ignore[return-value]


@pytest.fixture(scope="module")
def make_thinker(tiny_model) -> Callable[[str | None], Thinker]:
    def make(thinking: str | None) -> Thinker:
        model = tiny_model("Qwen3ForCausalLM", thinking=thinking)
        engine = Engine.load(model.checkpoint, EngineOptions(device="cpu", dtype="float32"))
        return Thinker(engine, PreTrainedTokenizerFast.from_pretrained(model.source))

    return make


@pytest.fixture(scope="module")
def thinker(make_thinker) -> Thinker:
    """A model whose template switches thinking, as Qwen3's does."""
    return make_thinker("optional")


@pytest.fixture(scope="module")
def always(make_thinker) -> Thinker:
    """A model whose template opens the thinking of every reply."""
    return make_thinker("always")


USER, AGAIN = Message("user", "What does <think> mean?"), Message("user", "And then?")


@pytest.mark.parametrize("mode", [None, "optional", "always"])
def test_what_a_model_can_do_is_told(make_thinker, mode):
    assert make_thinker(mode).engine.info.thinking == (mode or "never")


def test_tags_without_a_template_that_uses_them_mean_no_thinking(thinker, monkeypatch):
    tokenizer = thinker.engine.tokenizer
    monkeypatch.setattr(tokenizer._tokenizer, "chat_template", "{{ messages[0].content }}")
    assert tokenizer._thinking_mode() == "never"
    monkeypatch.setattr(tokenizer._tokenizer, "chat_template", "{{ raise_exception('no') }}")
    assert tokenizer._thinking_mode() == "never"


@pytest.mark.parametrize("thinking", [None, True, False])
def test_the_switch_is_the_templates(thinker, thinking):
    switch = {} if thinking is None else {"enable_thinking": thinking}
    ours = thinker.engine.tokenizer.encode_chat([USER], thinking=thinking)
    assert ours == thinker.ids(
        [{"role": "user", "content": USER.content}], add_generation_prompt=True, **switch
    )
    assert thinker.engine.tokenizer.decode(ours).endswith("</think>\n\n") == (thinking is False)


@pytest.mark.parametrize("mode", [None, "always"])
@pytest.mark.parametrize("thinking", [True, False])
def test_a_template_without_the_switch_is_not_given_it(make_thinker, mode, thinking, monkeypatch):
    tokenizer = make_thinker(mode).engine.tokenizer
    template = tokenizer._tokenizer.chat_template + "{{ enable_thinking }}"
    expected = tokenizer.encode_chat([USER])
    monkeypatch.setattr(tokenizer._tokenizer, "chat_template", template)
    assert tokenizer.encode_chat([USER], thinking=thinking) == expected


def test_the_next_turns_context_holds_answers_only(thinker):
    """What we send, without thinking, is what the template makes of turns with it, however they are given."""
    ours = thinker.engine.tokenizer.encode_chat([USER, Message("assistant", "It thinks."), AGAIN])
    ask, again = ({"role": "user", "content": message.content} for message in (USER, AGAIN))
    separate = {"role": "assistant", "reasoning_content": "Hm.\nWell.", "content": "It thinks."}
    together = {"role": "assistant", "content": "<think>\nHm.\nWell.\n</think>\n\nIt thinks."}
    for reply in (separate, together):
        assert ours == thinker.ids([ask, reply, again], add_generation_prompt=True)
    stored = Message("assistant", "It thinks.", thinking="Hm.\nWell.")
    assert ours == thinker.engine.tokenizer.encode_chat([USER, stored, AGAIN])


def test_an_answer_is_continued_as_the_template_would_render_it(thinker):
    begun = Message("assistant", "It thi", thinking="Hm.\nWell.")
    ours = thinker.engine.tokenizer.encode_chat([USER, begun], continue_last=True)
    assert ours == thinker.ids(
        [
            {"role": "user", "content": USER.content},
            {"role": "assistant", "reasoning_content": begun.thinking, "content": begun.content},
        ],
        continue_final_message=True,
    )


@pytest.mark.parametrize(
    ("content", "thinking", "tail"),
    [
        ("", "Hm.\n", "<think>\nHm.\n"),
        ("It thi", "Hm.", "<think>\nHm.\n</think>\n\nIt thi"),
        ("It thi", "", "<think>\n\n</think>\n\nIt thi"),
    ],
)
@pytest.mark.parametrize("switch", [None, True, False])
def test_a_reply_is_continued_as_it_began(thinker, always, content, thinking, tail, switch):
    """Whatever the switch says by now; and in either kind of model."""
    reply = Message("assistant", content, thinking)
    for model in (thinker, always):
        tokenizer = model.engine.tokenizer
        ids = tokenizer.encode_chat([USER, reply], thinking=switch, continue_last=True)
        assert tokenizer.decode(ids).endswith("assistant\n" + tail)


def test_a_reply_of_a_thinking_model_is_continued_by_one_that_does_not_think(make_thinker):
    tokenizer = make_thinker(None).engine.tokenizer
    for content in ("", "It thi"):
        ids = tokenizer.encode_chat([USER, Message("assistant", content, "Hm.")], continue_last=True)
        assert ids == [*tokenizer.encode_chat([USER]), *tokenizer.encode(content)]


# Replies of the engine. Random weights close no tag: a script says which tokens are drawn.


@pytest.fixture
def play(monkeypatch) -> Callable[..., list]:
    """`play(thinker, request, text)`: the events of a reply whose tokens are those of `text`.

    `end` is what comes after them: an end of turn, `cancel`, or `fail`.
    """

    @dataclass
    class Drawn:
        token: int

        def tokens(self) -> list[int]:
            return [self.token]

    def run(thinker: Thinker, request: GenerationRequest, text: str, end: str = "<|im_end|>") -> list:
        engine, events = thinker.engine, []
        script = iter(engine.tokenizer.encode(text if end in ("cancel", "fail") else text + end))

        def launch(batch):
            return Drawn(next(script))

        with monkeypatch.context() as patch:
            patch.setattr(engine.runner, "launch", launch)
            engine.submit(1, request, events.append, time.monotonic())
            try:
                while engine.busy:
                    engine.step()
            except StopIteration:
                engine.cancel(1) if end == "cancel" else engine.fail_all("Broken.")
        assert not engine.busy
        engine.pool.forget()  # what was "computed" never was
        return events

    return run


ASK = GenerationRequest((USER,), SamplingParams(temperature=0))


def parts(events: list) -> tuple[str, str]:
    thought = "".join(event.text for event in events if isinstance(event, ThinkingDelta))
    return thought, "".join(event.text for event in events if isinstance(event, TextDelta))


def test_thinking_has_events_of_its_own(thinker, play):
    text = "<think>\nThe quick fox?\n</think>\n\nIt is Paris."
    events = play(thinker, ASK, text)
    last = events[-1]
    assert isinstance(last, Finished)
    assert (last.reason, last.text, last.thinking.text) == ("stop", "It is Paris.", "The quick fox?")
    assert parts(events) == (last.thinking.text, last.text)
    encode = thinker.engine.tokenizer.encode
    assert last.token_ids == tuple(encode(text + "<|im_end|>"))
    assert last.usage.completion_tokens == len(last.token_ids)
    assert last.thinking.tokens == len(encode("\nThe quick fox?\n"))
    assert 0 < last.thinking.seconds <= last.usage.total_s

    deltas = [event for event in events if isinstance(event, ThinkingDelta)]
    assert [type(event) for event in events[2:-1]] == [ThinkingDelta] * len(deltas) + [TextDelta] * (
        len(events) - 3 - len(deltas)
    )
    for figure in ("thinking_tokens", "thinking_s", "completion_tokens", "time"):
        values = [getattr(delta, figure) for delta in deltas]
        assert values == sorted(values)
    # The opening tag and the newline after it were drawn before the first word.
    assert [delta.completion_tokens - delta.thinking_tokens for delta in deltas] == [1] * len(deltas)
    assert deltas[0].thinking_tokens == 2
    assert deltas[-1].thinking_s <= last.thinking.seconds


@pytest.mark.parametrize("end", ["cancel", "fail"])
@pytest.mark.parametrize(
    ("text", "thinking", "answer"),
    [("<think>\nThe quick\n\n", "The quick\n\n", ""), ("<think>\nHm\n</think>\n\nIt is", "Hm", "It is")],
)
def test_a_reply_that_is_cut_off_has_what_there_was(thinker, play, text, thinking, answer, end):
    events = play(thinker, ASK, text, end)
    assert isinstance(events[-1], Finished if end == "cancel" else Failed)
    assert (events[-1].thinking.text, events[-1].text) == (thinking, answer)
    assert parts(events) == (thinking, answer)


def test_the_length_limit_may_fall_into_the_thinking(thinker, play):
    params = SamplingParams(temperature=0, max_new_tokens=4)
    *_, last = play(thinker, replace(ASK, params=params), "<think>\nThe quick brown fox")
    assert (last.reason, last.text) == ("length", "")
    assert last.thinking.tokens == 3
    assert "\nThe quick".startswith("\n" + last.thinking.text)


def test_stop_strings_end_the_answer_and_not_the_thinking(thinker, play):
    params = SamplingParams(temperature=0, stop=("fox", "\n\n"))
    text = "<think>\nThe quick fox\n\njumps.\n</think>\n\nOver the fox it jumps"
    *_, last = play(thinker, replace(ASK, params=params), text)
    assert (last.reason, last.text) == ("stop", "Over the ")
    assert last.thinking.text == "The quick fox\n\njumps."


def test_switched_off_the_reply_is_an_answer(thinker, play):
    *_, last = play(thinker, replace(ASK, thinking=False), "It is <think>.")
    assert (last.text, last.thinking) == ("It is <think>.", Thinking())


def test_a_template_that_opens_the_thinking(always, play):
    *_, last = play(always, ASK, "The fox.\n</think>\n\nIt is Paris.")
    assert (last.thinking.text, last.text) == ("The fox.", "It is Paris.")


def test_a_question_about_tags_opens_nothing(thinker, play):
    *_, last = play(thinker, replace(ASK, messages=(Message("user", "Say <think>"),)), "It is Paris.")
    assert (last.thinking, last.text) == (Thinking(), "It is Paris.")


def test_thinking_that_was_stopped_goes_on(thinker, always, play):
    for model in (thinker, always):
        begun = Message("assistant", "", thinking="The quick")
        request = replace(ASK, messages=(USER, begun), continue_last=True)
        *_, last = play(model, request, "\n\nbrown fox\n</think>\n\nIt is Paris.")
        assert begun.thinking + last.thinking.text == "The quick\n\nbrown fox"
        assert last.text == "It is Paris."


def test_an_answer_that_was_stopped_goes_on(thinker, always, play):
    begun = Message("assistant", "It is", thinking="The quick fox.")
    for model in (thinker, always):
        *_, last = play(model, replace(ASK, messages=(USER, begun), continue_last=True), "\n\nParis.")
        assert (last.thinking, last.text) == (Thinking(), "\n\nParis.")


def test_a_real_run_of_random_weights_thinks_until_its_limit(always):
    events = []
    params = SamplingParams(temperature=0, max_new_tokens=20)
    always.engine.submit(1, replace(ASK, params=params), events.append, time.monotonic())
    while always.engine.busy:
        always.engine.step()
    last = events[-1]
    assert last.reason in ("length", "stop")
    assert last.text == ""
    assert last.thinking.text == parts(events)[0]
    assert last.thinking.tokens == len(list(itertools.takewhile(lambda id: id != 2, last.token_ids)))
