"""The conversation controller with a scripted engine and a real database; Textual plays no part here."""

import asyncio
import sqlite3
import threading
import time

import pytest

from lite_llama.app import controller, meter, replies
from lite_llama.app.archive import Archive
from lite_llama.app.controller import STILL_WRITING, Controller
from lite_llama.app.conversation import Conversation, Turn
from lite_llama.app.database import Database
from lite_llama.app.events import (
    BranchShown,
    ContextUsed,
    ConversationShown,
    ModelFailed,
    ModelGone,
    ModelLoading,
    ModelOffered,
    ModelReady,
    PromptReturned,
    QueueChanged,
    TextAdded,
    ThinkingAdded,
    Told,
    TurnAdded,
    TurnChanged,
)
from lite_llama.app.log import INTERNAL_ERROR
from lite_llama.app.remote.endpoint import Endpoints
from lite_llama.app.settings import Settings
from lite_llama.engine.events import Failed, Queued, Thinking
from lite_llama.engine.request import Message


class Desk:
    """A controller with all that it told."""

    def __init__(self, database, engine, paths, settings):
        self.told = []
        self.controller = Controller(
            settings, paths.models, lambda: engine, self._listen, Endpoints(paths.endpoints)
        )
        self.controller.archive, self.controller._open = Archive(database, self._listen), True

    async def _listen(self, event):
        self.told.append(event)

    def of(self, kind):
        return [event for event in self.told if isinstance(event, kind)]

    async def until(self, true, timeout=5.0):
        """Wait for a condition on what was told."""
        async with asyncio.timeout(timeout):
            while not true():
                await asyncio.sleep(0.005)

    async def replied(self):
        await self.until(lambda: not self.controller.replying)

    @property
    def turns(self):
        return [(turn.role, turn.text, turn.status) for turn in self.controller.conversation.turns]

    async def stored(self):
        """What another program would read from the file now."""
        return await self.controller.archive.database.load(self.controller.conversation.id)

    async def same_stored(self):
        """Whether the file has the same turns in the same branches."""
        stored, current = await self.stored(), self.controller.conversation
        return (stored.turns, stored.all_turns) == (current.turns, current.all_turns)


@pytest.fixture(autouse=True)
def no_fault_of_ours(caplog):
    """The controller logs what should never happen; a test that causes it clears caplog."""
    yield
    assert [r for r in caplog.get_records("call") if r.levelname == "ERROR"] == []


@pytest.fixture
async def database(paths):
    opened = await Database.open(paths.database)
    yield opened
    await opened.close()


@pytest.fixture
def make_desk(database, engine, paths):
    """`make_desk(**settings)`: a controller whose engine has no model yet."""
    return lambda **settings: Desk(database, engine, paths, Settings.model_validate(settings))


@pytest.fixture
async def desk(make_desk, engine, database):
    """A controller whose model `tiny` is loaded."""
    made = make_desk()
    engine.use("tiny")
    await made.controller.loader.start_engine()
    await made.controller.start(database)
    await made.controller.loader.changed("tiny")
    return made


async def test_a_reply_streams_and_is_saved_with_its_figures(desk, engine):
    engine.reply("Hel", "lo", " there", delay=0.15)
    await desk.controller.send("Hi")
    await desk.replied()
    assert desk.turns == [("user", "Hi", "complete"), ("assistant", "Hello there", "complete")]
    added = desk.of(TextAdded)
    assert "".join(event.text for event in added) in "Hello there"
    assert len(added) >= 2
    assert added[-1].tokens_per_s == 20.0
    assert desk.controller.last_reply.figures.completion_tokens == 3
    stored = await desk.stored()
    assert stored.turns == desk.controller.conversation.turns
    assert (stored.title, stored.model) == ("Hi", "tiny")


async def test_text_is_told_at_most_ten_times_a_second(desk, engine):
    engine.reply(*["x"] * 200, delay=0.003)
    began = time.monotonic()
    await desk.controller.send("Hi")
    await desk.replied()
    took = time.monotonic() - began
    assert len(desk.of(TextAdded)) <= took / replies.TELL_EVERY_S + 1
    assert desk.turns[-1] == ("assistant", "x" * 200, "complete")


@pytest.mark.parametrize(("cost", "pause"), [(0.0, 0.1), (0.04, 0.16), (0.2, 0.25)])
async def test_what_takes_long_to_show_is_told_less_often(cost, pause):
    inbox, ended, pauses = replies.Inbox(), 0.0, []
    inbox.sink(Queued(1, 1))
    async for events in inbox.batches():
        pauses.append(time.monotonic() - ended)
        begin = time.thread_time()
        while time.thread_time() < begin + cost:
            pass
        inbox.sink(Queued(1, 1) if len(pauses) < 3 else Failed(1, "", ""))
        ended = time.monotonic()
        if isinstance(events[-1], Failed):
            break
    assert 0.95 * pause < min(pauses[1:3]) < 2 * pause


async def test_the_users_turn_is_on_disk_before_the_engine_is_asked(desk, engine, paths, monkeypatch):
    seen = []
    submit = engine.submit

    def spy(request, sink):
        with sqlite3.connect(paths.database) as other:
            seen.extend(other.execute("SELECT role, content, status FROM messages ORDER BY position"))
        return submit(request, sink)

    monkeypatch.setattr(engine, "submit", spy)
    await desk.controller.send("Hi")
    await desk.replied()
    assert seen == [("user", "Hi", "complete"), ("assistant", "", "streaming")]


async def test_a_partial_reply_is_saved_while_it_streams(desk, engine, monkeypatch):
    monkeypatch.setattr(replies, "SAVE_EVERY_S", 0.0)
    engine.reply("Half an", " answer", hold_after=1)
    await desk.controller.send("Hi")
    await desk.until(lambda: desk.of(TextAdded))
    await asyncio.sleep(0.05)
    stored = await desk.stored()
    assert (stored.turns[-1].text, stored.turns[-1].status) == ("Half an", "streaming")
    await desk.controller.cancel()


async def test_cancel_keeps_the_part_and_continue_goes_on_from_it(desk, engine):
    engine.reply("One, ", "two, ", "never", hold_after=2)
    await desk.controller.send("Count")
    await desk.until(lambda: desk.of(TextAdded))
    await asyncio.sleep(replies.TELL_EVERY_S + 0.05)
    assert not desk.controller.can_continue
    await desk.controller.cancel()
    assert desk.turns[-1] == ("assistant", "One, two, ", "stopped")
    assert (await desk.stored()).turns[-1].text == "One, two, "
    assert desk.controller.can_continue

    engine.reply("three.")
    await desk.controller.continue_reply()
    await desk.replied()
    assert engine.requests[-1].continue_last
    assert engine.requests[-1].messages == (Message("user", "Count"), Message("assistant", "One, two, "))
    assert desk.turns == [("user", "Count", "complete"), ("assistant", "One, two, three.", "complete")]
    assert (await desk.stored()).turns == desk.controller.conversation.turns
    assert not desk.controller.can_continue


async def test_an_engine_failure_is_told_on_the_reply_and_retry_stands_beside_it(desk, engine):
    engine.reply("Half", error="The GPU fell over.")
    await desk.controller.send("Hi")
    await desk.replied()
    assert desk.turns[-1] == ("assistant", "Half", "error")
    assert desk.controller.last_reply.note == "The GPU fell over."
    assert (await desk.stored()).turns[-1].note == "The GPU fell over."

    engine.reply("Whole")
    await desk.controller.regenerate()
    await desk.replied()
    assert engine.requests[-1].messages == (Message("user", "Hi"),)
    assert not engine.requests[-1].continue_last
    assert desk.turns == [("user", "Hi", "complete"), ("assistant", "Whole", "complete")]
    assert desk.controller.last_reply.note == ""


async def test_a_prompt_that_is_refused_goes_back_and_leaves_no_trace(desk, engine):
    engine.reply(refuse="The prompt has 9,000 tokens, the context 2,048: shorten it.")
    await desk.controller.send("Very long")
    await desk.replied()
    await desk.until(lambda: desk.of(PromptReturned))
    assert desk.of(PromptReturned) == [PromptReturned("Very long")]
    assert [event.text for event in desk.of(Told)] == [
        "The prompt has 9,000 tokens, the context 2,048: shorten it."
    ]
    assert len(desk.of(BranchShown)) == 1
    assert desk.turns == []
    assert await desk.controller.archive.summaries() == []


async def test_a_refused_continue_or_retry_leaves_the_reply_as_it_was(desk, engine):
    engine.reply("All there is", reason="length")
    await desk.controller.send("Hi")
    await desk.replied()
    before = desk.turns
    for again in (desk.controller.continue_reply, desk.controller.regenerate):
        engine.reply(refuse="The context is full.")
        await again()
        await desk.replied()
        assert desk.turns == before
        assert (await desk.stored()).turns == desk.controller.conversation.turns
    assert len(desk.of(Told)) == 2


@pytest.mark.parametrize(
    ("max_context", "sentence"),
    [(2048, "The reply reached its limit of 2 tokens."), (7, "The context of 7 tokens is full")],
)
async def test_the_length_limit_is_explained(desk, engine, max_context, sentence):
    engine.max_context = max_context
    engine.use("tiny")
    engine.reply("a ", "b", reason="length")
    await desk.controller.send("Hi")
    await desk.replied()
    assert desk.turns[-1] == ("assistant", "a b", "length")
    assert desk.controller.last_reply.note.startswith(sentence)
    assert desk.controller.can_continue


async def test_the_request_holds_the_history_and_the_settings(make_desk, engine, database):
    engine.use("tiny")
    desk = make_desk(system_prompt="Be brief.", temperature=0.1, max_gen_len=5)
    await desk.controller.loader.start_engine()
    await desk.controller.start(database)
    await desk.controller.loader.changed("tiny")
    engine.reply("1")
    await desk.controller.send("a")
    await desk.replied()
    engine.reply("", error="Broken before the first word.")
    await desk.controller.send("b")
    await desk.replied()
    await desk.controller.send("c")
    await desk.replied()
    request = engine.requests[-1]
    assert request.messages == (
        Message("system", "Be brief."),
        Message("user", "a"),
        Message("assistant", "1"),
        Message("user", "b"),
        Message("user", "c"),
    )
    assert (request.params.temperature, request.params.max_new_tokens) == (0.1, 5)


async def test_a_changed_system_prompt_counts_for_this_conversation_and_new_ones(desk, engine):
    await desk.controller.send("a")
    await desk.replied()
    old = desk.controller.conversation.id
    await desk.controller.new_conversation()
    desk.controller.set_settings(Settings.model_validate({"system_prompt": "New."}))
    await desk.controller.send("b")
    await desk.replied()
    assert engine.requests[-1].messages[0] == Message("system", "New.")
    await desk.controller.open_conversation(old)
    await desk.controller.send("c")
    await desk.replied()
    assert engine.requests[-1].messages[0] == Message("user", "a")


async def test_opening_a_conversation_stops_the_reply_and_saves_it(desk, engine):
    await desk.controller.send("first")
    await desk.replied()
    first = desk.controller.conversation.id
    await desk.controller.new_conversation()
    engine.reply("half", "never", hold_after=1)
    await desk.controller.send("second")
    await desk.until(lambda: desk.of(TextAdded) and desk.of(TextAdded)[-1].text == "half")
    second = desk.controller.conversation.id
    await desk.controller.open_conversation(first)
    assert desk.turns[0] == ("user", "first", "complete")
    assert (await desk.controller.archive.database.load(second)).turns[-1].status == "stopped"
    assert [summary.id for summary in await desk.controller.archive.summaries()] == [second, first]


async def test_deleting_the_open_conversation_leaves_an_empty_one(desk):
    await desk.controller.send("gone")
    await desk.replied()
    gone = desk.controller.conversation.id
    await desk.controller.rename_conversation(gone, "  renamed\x1b[2J \n title ")
    assert [summary.title for summary in await desk.controller.archive.summaries()] == ["renamed[2J title"]
    await desk.controller.delete_conversation(gone)
    assert desk.turns == []
    assert await desk.controller.archive.summaries() == []


async def test_a_reply_cut_off_by_a_crash_is_shown_and_can_go_on(desk, engine, database):
    crashed = Conversation(title="t", turns=[Turn("user", "q"), Turn("assistant", "half", "streaming")])
    await database.save(crashed, crashed.turns)
    desk.told.clear()
    await desk.controller.start(database)
    assert desk.of(ConversationShown)[0].conversation.id == crashed.id
    assert desk.turns[-1] == ("assistant", "half", "stopped")
    assert desk.controller.can_continue
    engine.reply(" done")
    await desk.controller.continue_reply()
    await desk.replied()
    assert desk.turns[-1] == ("assistant", "half done", "complete")


def queued(desk):
    """What was told of the queue last: the texts, and whether they wait for the user."""
    told = desk.of(QueueChanged)[-1]
    return texts(told.messages), told.paused


async def test_messages_sent_during_a_reply_are_queued_and_sent_in_turn(desk, engine):
    engine.reply("a", "b", hold_after=1)
    await desk.controller.send("one")
    for text in ("two", "three", "four"):
        await desk.controller.send(text)
    assert queued(desk) == (["two", "three", "four"], False)
    assert texts((await desk.stored()).queue) == ["two", "three", "four"]
    assert (await desk.controller.unqueue()).text == "four"
    assert await desk.controller.unqueue(7) is None
    engine.release()
    await desk.replied()
    assert texts(desk.controller.conversation.turns) == ["one", "ab", "two", "Fine.", "three", "Fine."]
    assert queued(desk)[0] == []
    assert (await desk.stored()).queue == []


async def test_a_stopped_reply_pauses_the_queue_until_it_is_resumed(desk, engine):
    engine.reply("a", "b", hold_after=1)
    await desk.controller.send("one")
    await desk.controller.send("two")
    await desk.controller.send("three")
    await desk.controller.cancel()
    assert queued(desk) == (["two", "three"], True)
    await desk.controller.send("between")
    await desk.replied()
    assert texts(desk.controller.conversation.turns)[2:] == ["between", "Fine."]
    await desk.controller.resume_queue()
    await desk.replied()
    assert texts(desk.controller.conversation.turns)[4:] == ["two", "Fine.", "three", "Fine."]


@pytest.mark.parametrize("failure", [{"error": "Broken."}, {"refuse": "Too long."}])
async def test_a_failure_pauses_the_queue(desk, engine, failure):
    engine.reply("a", hold_after=0)
    engine.reply("b", **failure)
    await desk.controller.send("one")
    await desk.controller.send("two")
    await desk.controller.send("three")
    engine.release()
    await desk.replied()
    assert texts(desk.controller.conversation.queue) == ["three"]
    assert queued(desk) == (["three"], True)
    assert len(engine.requests) == 2


async def test_a_reopened_conversation_has_its_queue(desk, engine):
    engine.reply("a", "b", hold_after=1)
    await desk.controller.send("one")
    await desk.controller.send("two")
    await desk.until(lambda: engine.requests)
    asked = desk.controller.conversation.id
    await desk.controller.new_conversation()
    assert queued(desk) == ([], True)
    await desk.controller.open_conversation(asked)
    assert queued(desk) == (["two"], True)
    await desk.controller.resume_queue()
    await desk.replied()
    assert texts(desk.controller.conversation.turns)[2:] == ["two", "Fine."]


async def test_without_a_model_nothing_is_sent(make_desk, engine):
    desk = make_desk()
    await desk.controller.loader.start_engine()
    await desk.controller.loader.changed(None)
    assert desk.of(ModelGone)
    await desk.controller.send("Hi")
    assert desk.of(PromptReturned) == [PromptReturned("Hi")]
    assert desk.of(Told)
    assert engine.requests == []


async def test_loading_tells_progress_and_a_waiting_prompt_is_answered(make_desk, engine, make_model):
    path = make_model("tiny")
    desk = make_desk(device="cpu", dtype="float32")
    engine.load_hold.clear()
    await desk.controller.load_model("tiny")
    await desk.until(lambda: any(event.done == 50 for event in desk.of(ModelLoading)))
    await desk.controller.send("Hi")
    await asyncio.sleep(0.05)
    assert engine.requests == []
    assert (await desk.stored()).turns[0].text == "Hi"
    engine.load_hold.set()
    await desk.replied()
    assert desk.turns[-1] == ("assistant", "Fine.", "complete")
    assert desk.of(ModelReady)[0].name == desk.of(ModelReady)[0].info.name == "tiny"
    options = engine.loads[0]
    assert (options.path, options.device, options.dtype) == (path, "cpu", "float32")


async def test_a_failed_load_gives_the_waiting_prompt_back(make_desk, engine):
    desk = make_desk()
    engine.load_error = "tiny does not fit: 3 GB needed, 1 GB free."
    engine.load_hold.clear()
    await desk.controller.load_model("tiny")
    await desk.controller.send("Hi")
    engine.load_hold.set()
    await desk.replied()
    assert desk.of(ModelFailed) == [ModelFailed("tiny", engine.load_error)]
    assert desk.of(PromptReturned) == [PromptReturned("Hi")]
    assert desk.turns == []


async def test_a_reply_that_waits_for_the_model_can_be_stopped(make_desk, engine):
    desk = make_desk()
    engine.load_hold.clear()
    await desk.controller.load_model("tiny")
    await desk.controller.send("Hi")
    await desk.controller.cancel()
    assert desk.turns[-1] == ("assistant", "", "stopped")
    engine.load_hold.set()
    await desk.until(lambda: desk.of(ModelReady))
    assert engine.requests == []


async def test_another_load_replaces_the_one_in_progress(make_desk, engine):
    desk = make_desk()
    engine.load_hold.clear()
    await desk.controller.load_model("first")
    await desk.until(lambda: engine.loads)
    await desk.controller.load_model("second")
    await desk.until(lambda: len(engine.loads) == 2)
    engine.load_hold.set()
    await desk.until(lambda: desk.of(ModelReady))
    assert desk.of(ModelReady)[-1].info.name == "second"
    assert desk.of(ModelFailed) == []


async def test_the_engine_is_created_off_the_event_loop(database, engine, paths):
    threads = []

    def create():
        threads.append(threading.current_thread())
        return engine

    desk = Desk(database, engine, paths, Settings.model_validate({}))
    desk.controller.loader._create_engine = create
    await asyncio.gather(desk.controller.loader.start_engine(), desk.controller.loader.start_engine())
    assert len(threads) == 1
    assert threads[0] is not threading.main_thread()


async def test_an_engine_that_cannot_be_created_fails_the_load(make_desk, caplog):
    desk = make_desk()

    def broken():
        raise OSError("libcuda.so is missing")

    desk.controller.loader._create_engine = broken
    await desk.controller.load_model("tiny")
    await desk.until(lambda: desk.of(ModelFailed))
    assert desk.of(ModelFailed)[0].message == INTERNAL_ERROR
    assert "libcuda.so is missing" in caplog.text
    caplog.clear()


async def test_the_context_meter_counts_the_conversation_and_the_draft(desk, engine, monkeypatch):
    monkeypatch.setattr(meter, "COUNT_AFTER_S", 0.01)
    desk.controller.set_draft("two words")
    await desk.until(lambda: desk.of(ContextUsed))
    assert desk.of(ContextUsed)[-1] == ContextUsed(4 + 2, 2048)
    desk.controller.set_draft("")
    engine.reply("one ", "two", delay=0.12)
    await desk.controller.send("three little words")
    await desk.replied()
    assert ContextUsed(7 + 1, 2048) in desk.of(ContextUsed)  # while it streams: prompt and reply so far
    await desk.until(lambda: desk.of(ContextUsed)[-1] == ContextUsed(7 + 6, 2048))
    await desk.controller.new_conversation()
    await desk.until(lambda: desk.of(ContextUsed)[-1] == ContextUsed(0, 2048))


async def test_a_disk_that_fails_is_told_once_and_the_reply_goes_on(desk, engine, paths, monkeypatch):
    monkeypatch.setattr(replies, "SAVE_EVERY_S", 0.0)
    await desk.controller.archive.database._connection.execute("PRAGMA busy_timeout = 10")
    locker = sqlite3.connect(paths.database)
    locker.execute("BEGIN IMMEDIATE")
    engine.reply("a", "b", "c", delay=0.12)
    await desk.controller.send("Hi")
    await desk.replied()
    assert desk.turns[-1] == ("assistant", "abc", "complete")
    assert [event.severity for event in desk.of(Told)] == ["error"]
    assert "locked" in desk.of(Told)[0].text
    locker.rollback()
    locker.close()
    await desk.controller.send("again")
    await desk.replied()
    assert (await desk.stored()).turns == desk.controller.conversation.turns


async def test_a_listener_that_fails_does_not_spoil_the_reply(desk, caplog):
    async def broken(event):
        if isinstance(event, TurnAdded | TextAdded | TurnChanged):
            raise RuntimeError("the screen is gone")

    desk.controller._listener = broken
    await desk.controller.send("Hi")
    await desk.replied()
    assert (await desk.stored()).turns[-1].text == "Fine."
    caplog.clear()


async def test_close_stops_and_saves(desk, engine, paths):
    engine.reply("half", "never", hold_after=1)
    await desk.controller.send("Hi")
    await desk.until(lambda: desk.of(TextAdded))
    await desk.controller.close()
    again = await Database.open(paths.database)
    stored = await again.load(desk.controller.conversation.id)
    await again.close()
    assert (stored.turns[-1].text, stored.turns[-1].status) == ("half", "stopped")


async def test_close_does_not_wait_for_an_engine_that_hangs(desk, engine, paths, monkeypatch):
    monkeypatch.setattr(controller, "CLOSE_TIMEOUT_S", 0.05)
    monkeypatch.setattr(engine, "cancel", lambda request_id: None)
    engine.reply("half", "never", hold_after=1)
    await desk.controller.send("Hi")
    await desk.until(lambda: desk.of(TextAdded))
    await desk.controller.close()
    again = await Database.open(paths.database)
    stored = await again.load(desk.controller.conversation.id)
    await again.close()
    assert (stored.turns[-1].text, stored.turns[-1].status) == ("half", "stopped")


# Thinking


async def test_thinking_is_told_kept_and_saved_apart_from_the_answer(desk, engine):
    engine.reply("Yes", ".", thinking=("Hm", ", well"), delay=0.06)
    await desk.controller.send("Hi")
    await desk.replied()
    reply = desk.controller.last_reply
    assert (reply.text, reply.thinking) == ("Yes.", Thinking("Hm, well", 2, 1.0))
    kinds = [type(event) for event in desk.told if isinstance(event, ThinkingAdded | TextAdded)]
    assert kinds == sorted(kinds, key=[ThinkingAdded, TextAdded].index)
    assert set(kinds) == {ThinkingAdded, TextAdded}
    assert desk.of(ThinkingAdded)[-1].tokens_per_s == 20.0
    assert "".join(event.text for event in desk.of(TextAdded)) in "Yes."
    assert (await desk.stored()).turns == desk.controller.conversation.turns


async def test_the_next_request_holds_the_answers_only(desk, engine):
    engine.reply("Yes.", thinking=("Hm",))
    await desk.controller.send("a")
    await desk.replied()
    engine.reply("never", thinking=("Hm", "m"), hold_after=1)
    await desk.controller.send("b")
    await desk.until(lambda: desk.controller.last_reply.thinking.text == "Hm")
    await desk.controller.cancel()
    await desk.controller.send("c")
    await desk.replied()
    assert engine.requests[-1].messages == (
        Message("user", "a"),
        Message("assistant", "Yes."),
        Message("user", "b"),
        Message("user", "c"),
    )


async def test_thinking_that_was_stopped_goes_on(desk, engine):
    engine.reply("never", thinking=("Hm", ", well", "never"), hold_after=2)
    await desk.controller.send("Hi")
    await desk.until(lambda: desk.controller.last_reply.thinking.text == "Hm, well")
    await desk.controller.cancel()
    assert desk.turns[-1] == ("assistant", "", "stopped")
    assert (await desk.stored()).turns[-1].thinking == Thinking("Hm, well", 2, 1.0)
    assert desk.controller.can_continue

    engine.reply("Ye", "never", thinking=(", so",), hold_after=2)
    await desk.controller.continue_reply()
    await desk.until(lambda: desk.controller.last_reply.text == "Ye")
    await desk.controller.cancel()
    assert engine.requests[-1].continue_last
    assert engine.requests[-1].messages[1:] == (Message("assistant", "", "Hm, well"),)
    assert desk.controller.last_reply.thinking == Thinking("Hm, well, so", 3, 1.5)

    engine.reply("s.")
    await desk.controller.continue_reply()
    await desk.replied()
    assert engine.requests[-1].messages[1:] == (Message("assistant", "Ye", "Hm, well, so"),)
    reply = desk.controller.last_reply
    assert (reply.text, reply.status, reply.thinking) == (
        "Yes.",
        "complete",
        Thinking("Hm, well, so", 3, 1.5),
    )
    assert (await desk.stored()).turns == desk.controller.conversation.turns


async def test_a_retry_thinks_anew_and_a_refused_one_leaves_the_thinking(desk, engine):
    engine.reply("Yes.", thinking=("Hm",), error="The GPU fell over.")
    await desk.controller.send("Hi")
    await desk.replied()
    before = desk.controller.last_reply.thinking
    assert before == Thinking("Hm", 1, 0.5)
    engine.reply(refuse="The context is full.")
    await desk.controller.regenerate()
    await desk.replied()
    assert desk.controller.last_reply.thinking == before
    assert (await desk.stored()).turns[-1].thinking == before
    engine.reply("No.")
    await desk.controller.regenerate()
    await desk.replied()
    assert desk.controller.last_reply.thinking == Thinking()
    assert (await desk.stored()).turns[-1].thinking == Thinking()


@pytest.mark.parametrize(("setting", "wish"), [("auto", None), ("on", True), ("off", False)])
async def test_the_setting_switches_thinking(desk, engine, setting, wish):
    desk.controller.set_settings(Settings.model_validate({"thinking": setting}))
    await desk.controller.send("Hi")
    await desk.replied()
    assert engine.requests[-1].thinking is wish


# Branches


async def ask(desk, engine, question, answer):
    engine.reply(answer)
    await desk.controller.send(question)
    await desk.replied()


def texts(turns):
    return [turn.text for turn in turns]


async def test_an_edited_message_begins_a_branch_beside_the_old_one(desk, engine):
    await ask(desk, engine, "a", "1")
    await ask(desk, engine, "b", "2")
    engine.reply("3")
    await desk.controller.edit(desk.controller.conversation.turns[2], "c")
    await desk.replied()
    conversation = desk.controller.conversation
    assert texts(conversation.turns) == ["a", "1", "c", "3"]
    assert [message.content for message in engine.requests[-1].messages] == ["a", "1", "c"]
    assert await desk.same_stored()

    old = await desk.controller.switch_branch(conversation.turns[2], -1)
    assert old.text == "b"
    assert texts(conversation.turns) == ["a", "1", "b", "2"]
    assert texts((await desk.stored()).turns) == ["a", "1", "b", "2"]
    assert await desk.controller.switch_branch(old, -1) is old  # there is none before it
    await ask(desk, engine, "d", "4")
    await desk.controller.switch_branch(conversation.turns[2], 1)
    assert texts(conversation.turns) == ["a", "1", "c", "3"]
    await desk.controller.switch_branch(conversation.turns[2], -1)
    assert texts(conversation.turns) == ["a", "1", "b", "2", "d", "4"]
    assert await desk.same_stored()


async def test_a_retry_keeps_the_reply_before(desk, engine):
    await ask(desk, engine, "a", "1")
    await ask(desk, engine, "b", "2")
    engine.reply("1b")
    await desk.controller.regenerate(desk.controller.conversation.turns[1])
    await desk.replied()
    conversation = desk.controller.conversation
    assert texts(conversation.turns) == ["a", "1b"]
    engine.reply("1c")
    await desk.controller.regenerate(conversation.turns[0])
    await desk.replied()
    assert texts(conversation.turns) == ["a", "1c"]
    assert texts(conversation.siblings(conversation.turns[1])) == ["1", "1b", "1c"]
    assert await desk.same_stored()


async def test_an_edited_reply_stands_and_is_what_the_model_sees(desk, engine):
    await ask(desk, engine, "a", "wrong")
    await desk.controller.edit(desk.controller.conversation.turns[1], "right")
    assert desk.turns == [("user", "a", "complete"), ("assistant", "right", "complete")]
    assert await desk.same_stored()
    await ask(desk, engine, "b", "2")
    assert [message.content for message in engine.requests[-1].messages] == ["a", "right", "b"]


async def test_a_refused_edit_shows_the_old_branch_and_returns_the_text(desk, engine):
    await ask(desk, engine, "a", "1")
    user = desk.controller.conversation.turns[0]
    engine.reply(refuse="Too long.")
    await desk.controller.edit(user, "much longer")
    await desk.replied()
    await desk.until(lambda: desk.of(PromptReturned))
    assert desk.of(PromptReturned) == [PromptReturned("much longer", user)]
    assert texts(desk.controller.conversation.all_turns) == ["a", "1"]
    assert await desk.same_stored()


async def test_during_a_reply_branches_stay_as_they_are(desk, engine):
    await ask(desk, engine, "a", "1")
    first = desk.controller.conversation.turns[1]
    engine.reply("2")
    await desk.controller.regenerate()
    await desk.replied()
    engine.reply("half", "never", hold_after=1)
    await desk.controller.send("b")
    await desk.controller.regenerate(first)
    await desk.controller.edit(first, "x")
    second = desk.controller.conversation.turns[1]
    assert await desk.controller.switch_branch(second, -1) is second
    assert [told.text for told in desk.of(Told)] == [STILL_WRITING] * 3
    await desk.controller.cancel()
    assert texts(desk.controller.conversation.turns)[:3] == ["a", "2", "b"]


# A conversation's own model and settings


async def test_own_settings_count_in_their_conversation_alone(desk, engine):
    await desk.controller.override("temperature 0.25")
    await desk.controller.override("thinking off")
    await desk.controller.set_system_prompt("Be a pirate.")
    await ask(desk, engine, "a", "1")
    assert engine.requests[-1].params.temperature == 0.25
    assert engine.requests[-1].thinking is False
    assert engine.requests[-1].messages[0] == Message("system", "Be a pirate.")
    own = desk.controller.conversation.id
    await desk.controller.new_conversation()
    await ask(desk, engine, "b", "2")
    assert engine.requests[-1].params.temperature == 0.7
    assert engine.requests[-1].messages[0].role == "user"
    await desk.controller.open_conversation(own)
    await desk.controller.override("temperature default")
    assert (await desk.stored()).overrides == {"thinking": "off"}
    assert desk.of(Told)[-1].text == "In this chat: thinking off."


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("temperature 9", "temperature must be a number from 0 to 2"),
        ("device cpu", "A chat can set temperature, top_p"),
    ],
)
async def test_a_wrong_setting_is_told(desk, text, sentence):
    await desk.controller.override(text)
    assert desk.of(Told)[-1].text.startswith(sentence)
    assert desk.controller.conversation.overrides == {}


async def test_a_reopened_conversation_offers_its_model(desk, engine, make_model):
    make_model("tiny")
    make_model("other")
    await ask(desk, engine, "a", "1")
    first = desk.controller.conversation.id
    await desk.controller.load_model("other")
    await desk.until(lambda: desk.of(ModelReady)[-1].name == "other")
    await desk.controller.new_conversation()
    assert desk.of(ModelOffered)[-1] == ModelOffered(None)
    await desk.controller.open_conversation(first)
    assert desk.of(ModelOffered)[-1] == ModelOffered("tiny")
    await desk.controller.use_own_model()
    await desk.until(lambda: desk.of(ModelReady)[-1].name == "tiny")
    await desk.until(lambda: desk.of(ModelOffered)[-1] == ModelOffered(None))


async def test_a_model_that_is_gone_is_not_offered(desk, engine):
    await ask(desk, engine, "a", "1")
    desk.controller.loader.name = "other"
    await desk.controller.open_conversation(desk.controller.conversation.id)
    assert desk.of(ModelOffered)[-1] == ModelOffered(None)
