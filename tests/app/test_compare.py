"""Comparing without a screen: what is loaded where and when, what is answered at once, what is saved."""

import asyncio
import io

import pytest
from PIL import Image as pillow

from lite_llama.app.archive import Archive
from lite_llama.app.attachments import attachment_of
from lite_llama.app.compare import AS_CHAT, Comparison, Side
from lite_llama.app.compare_models import SHORT_CONTEXT, CompareModels
from lite_llama.app.database import Database
from lite_llama.app.events import PromptReturned, TextAdded, Told, TurnAdded, TurnChanged
from lite_llama.app.fit import fit_together
from lite_llama.app.library import last_speed
from lite_llama.app.loader import ModelLoader
from lite_llama.app.remote.endpoint import Endpoint, Endpoints
from lite_llama.app.settings import Settings
from lite_llama.engine.images import image_of
from lite_llama.engine.thread import LoadOptions
from lite_llama.models.errors import UserError

ROOM, SQUEEZED, NONE_AT_ALL = 10**9, 0, -(10**9)
"""Of free memory: enough, none unless the model that is loaded goes, not even then."""
SETTINGS = Settings(
    presets={"greedy": {"temperature": 0.0}, "brief": {"max_gen_len": 5, "system_prompt": "Be brief."}}
)


class Bench:
    """A comparison with all that it told."""

    def __init__(self, loader, archive, engines, endpoints):
        self.loader, self.archive, self.endpoints = loader, archive, endpoints
        self.told = ([], [])
        self.notices = []
        models = CompareModels(loader, SETTINGS, iter(engines).__next__, endpoints)
        self.comparison = Comparison(models, archive, SETTINGS, {})

    async def listen(self, number, event):
        self.told[number].append(event)

    def start(self, *sides, prompt="Hi", images=()):
        left, right = (Side(*side) for side in sides)
        return self.comparison.start(prompt, images, (left, right), self.listen)

    async def ended(self):
        await self.until(lambda: not self.comparison.running)

    async def run(self, *sides):
        self.start(*sides)
        await self.ended()

    async def until(self, condition):
        async with asyncio.timeout(5):
            while not condition():
                await asyncio.sleep(0.005)

    def of(self, number, kind):
        return [event for event in self.told[number] if isinstance(event, kind)]

    @property
    def replies(self):
        """Text and status of both, as they were told last."""
        return [(turn.text, turn.status) for turn in (self.of(n, TurnChanged)[-1].turn for n in (0, 1))]

    async def stored(self):
        database = self.archive.database
        return [await database.load(each.id) for each in await database.summaries()]

    async def why(self, *names):
        return (await self.comparison.models.plan(names)).why


@pytest.fixture(autouse=True)
def no_fault_of_ours(caplog):
    yield
    assert [r for r in caplog.get_records("call") if r.levelname == "ERROR"] == []


@pytest.fixture
def memory(monkeypatch):
    """`memory(free)`: so many bytes are free."""

    def set_free(free):
        monkeypatch.setattr("lite_llama.engine.memory.available_memory", lambda _: free)

    set_free(ROOM)
    return set_free


@pytest.fixture
def third_engine(engine):
    fake = type(engine)()
    yield fake
    fake.close()


@pytest.fixture
async def bench(engine, second_engine, third_engine, paths, make_model, memory):
    """The chat has `tiny` loaded; `other` and `third` are there too."""
    for name in ("tiny", "other", "third"):
        make_model(name)
    endpoints = Endpoints(paths.endpoints)

    told = []

    async def tell(event):
        told.append(event)

    engine.use("tiny")
    loader = ModelLoader(paths.models, endpoints, lambda: engine, tell)
    await loader.start_engine()
    await loader.changed("tiny")
    database = await Database.open(paths.database)
    made = Bench(loader, Archive(database, tell), (second_engine, third_engine), endpoints)
    made.notices = told
    yield made
    await made.comparison.close()
    await database.close()


def loads(engine):
    return [(load.path.name, load.max_context) for load in engine.loads]


async def test_two_settings_are_two_requests_in_one_engine_at_once(bench, engine, second_engine):
    engine.reply("Cold", " and", " calm.", hold_after=1)
    engine.reply("Warm.", hold_after=0)
    bench.start(("tiny", "greedy"), ("tiny", "creative"))
    await bench.until(lambda: len(engine.requests) == 2 and bench.of(0, TextAdded))
    assert bench.comparison.running
    left, right = engine.requests
    assert (left.params.temperature, right.params.temperature) == (0.0, 1.1)
    assert left.messages == right.messages
    await bench.until(lambda: engine.release() or not bench.comparison.running)
    assert bench.replies == [("Cold and calm.", "complete"), ("Warm.", "complete")]
    assert last_speed(bench.loader.models_dir / "tiny") is None  # it was that of two together
    assert [type(events[0]) for events in bench.told] == [TurnAdded, TurnAdded]
    assert engine.loads == second_engine.loads == []
    assert "Both at once" in await bench.why("tiny", "tiny")
    await bench.comparison.close()
    assert engine.model
    assert not bench.comparison.models.displaced


async def test_both_replies_are_saved_as_branches_of_one_conversation(bench, engine):
    engine.reply("Left.")
    engine.reply("Right.")
    await bench.run(("tiny", "greedy"), ("tiny", "brief"))
    (stored,) = await bench.stored()
    assert stored.title == "Hi"
    assert [turn.text for turn in stored.turns] == ["Hi", "Left."]
    assert [turn.text for turn in stored.siblings(stored.turns[1])] == ["Left.", "Right."]
    assert (stored.model, stored.overrides, stored.system_prompt) == ("tiny", {"temperature": 0.0}, "")
    assert [message.role for message in engine.requests[1].messages] == ["system", "user"]

    kept = bench.comparison.keep(1)
    assert [turn.text for turn in kept.turns] == ["Hi", "Right."]
    assert (kept.model, kept.overrides, kept.system_prompt) == ("tiny", {"max_gen_len": 5}, "Be brief.")


async def test_a_side_can_be_as_the_chat_is(bench, engine):
    assert AS_CHAT not in bench.comparison.presets
    own = {"temperature": 0.3, "system_prompt": "Hum."}
    bench.comparison = Comparison(bench.comparison.models, bench.archive, SETTINGS, own)
    assert bench.comparison.presets[:2] == [AS_CHAT, "default"]
    await bench.run(("tiny", AS_CHAT), ("tiny", "greedy"))
    left, right = engine.requests
    assert (left.params.temperature, left.messages[0].content) == (0.3, "Hum.")
    assert (right.params.temperature, right.messages[0].content) == (0.0, "Hum.")  # as /preset does
    await bench.run(("tiny", "default"), ("tiny", "default"))
    assert engine.requests[-1].params.temperature == Settings().temperature
    assert [message.role for message in engine.requests[-1].messages] == ["user"]


@pytest.fixture
def cat():
    content = io.BytesIO()
    pillow.new("RGB", (40, 30)).save(content, "PNG")
    return attachment_of(image_of("cat.png", content.getvalue()))


async def test_images_are_for_a_side_that_sees(bench, second_engine, make_model, cat):
    make_model("llava")
    second_engine.reply("A cat.")
    bench.start(("tiny", "default"), ("llava", "default"), images=(cat,))
    await bench.ended()
    assert [turn.turn.note for turn in bench.of(0, TurnChanged)] == [
        "tiny reads text only: choose a model that sees images on this side."
    ]
    assert bench.replies[1] == ("A cat.", "complete")
    (request,) = second_engine.requests
    assert [image.name for image in request.messages[-1].images] == ["cat.png"]
    (stored,) = await bench.stored()
    assert [(turn.text, [image.name for image in turn.images]) for turn in stored.turns] == [
        ("Hi", ["cat.png"]),
        ("A cat.", []),
    ]
    assert bench.comparison.can_keep(1)
    assert not bench.comparison.can_keep(0)


async def test_images_that_nobody_sees_come_back_with_the_prompt(bench, engine, cat):
    bench.start(("tiny", "default"), ("tiny", "greedy"), prompt="", images=(cat,))
    await bench.ended()
    assert bench.of(0, PromptReturned) == [PromptReturned("", images=(cat,))]
    assert engine.requests == []
    assert await bench.stored() == []


async def test_two_models_that_fit_stay_loaded_and_answer_in_turn(bench, engine, second_engine):
    engine.reply("From ", "tiny.", hold_after=0)
    second_engine.reply("From ", "other.")
    bench.start(("other", "default"), ("tiny", "default"))
    await bench.until(lambda: engine.requests)  # the one that is loaded goes first
    await asyncio.sleep(0.05)
    assert second_engine.requests == second_engine.loads == []
    engine.release()
    await bench.ended()
    assert bench.replies == [("From other.", "complete"), ("From tiny.", "complete")]
    assert [last_speed(bench.loader.models_dir / name) for name in ("tiny", "other")] == [20.0, 20.0]
    assert loads(engine) == []
    assert loads(second_engine) == [("other", None)]
    await bench.run(("other", "default"), ("tiny", "default"))
    assert len(second_engine.loads) == 1
    assert "both stay loaded" in await bench.why("other", "tiny")
    await bench.comparison.close()
    assert second_engine.closed
    assert engine.model
    assert not bench.comparison.models.displaced


async def test_the_chats_model_makes_room_when_it_is_not_compared(bench, engine, second_engine, memory):
    memory(SQUEEZED)
    await bench.run(("other", "default"), ("third", "default"))
    assert (loads(engine), loads(second_engine)) == ([("other", None)], [("third", None)])
    assert bench.comparison.models.displaced
    await bench.comparison.close()
    assert second_engine.closed


async def test_the_chats_model_stays_where_there_is_room_for_three(
    bench, engine, second_engine, third_engine
):
    await bench.run(("other", "default"), ("third", "default"))
    assert (loads(second_engine), loads(third_engine)) == ([("other", None)], [("third", None)])
    await bench.run(("tiny", "default"), ("other", "default"))
    assert engine.loads == []
    await bench.comparison.close()
    assert second_engine.closed
    assert third_engine.closed
    assert not bench.comparison.models.displaced


async def test_both_are_loaded_with_a_shorter_context_where_that_leaves_room(
    bench, engine, second_engine, memory
):
    memory(SQUEEZED)
    assert "both stay loaded" in await bench.why("tiny", "other")
    await bench.run(("tiny", "default"), ("other", "default"))
    assert loads(engine) == [("tiny", SHORT_CONTEXT)]
    assert loads(second_engine) == [("other", SHORT_CONTEXT)]
    assert [status for _, status in bench.replies] == ["complete", "complete"]
    assert bench.comparison.models.displaced  # it has less context than the chat had


async def test_without_room_each_is_loaded_for_its_turn(bench, engine, second_engine, memory):
    memory(NONE_AT_ALL)
    assert "memory is too short" in await bench.why("tiny", "other")
    await bench.run(("other", "default"), ("tiny", "default"))
    assert loads(engine) == [("other", None)]  # after tiny, which was there, has answered
    await bench.run(("tiny", "default"), ("other", "default"))
    assert loads(engine) == [("other", None), ("tiny", None)]
    assert second_engine.loads == []
    assert [status for _, status in bench.replies] == ["complete", "complete"]
    assert bench.comparison.models.displaced


async def test_two_that_fit_alone_need_not_fit_together(paths, make_model, memory):
    loads = [LoadOptions(make_model(name)) for name in ("tiny", "other")]
    memory(2_000_000)
    assert [fit_together([load], 0) for load in loads] == [True, True]
    assert not fit_together(loads, 0)
    assert fit_together(loads, 5_000_000)
    assert not fit_together([LoadOptions(paths.models / "gone")], 0)


async def test_a_model_that_its_engine_had_to_drop_is_loaded_again(bench, engine):
    engine.unload()
    await bench.run(("tiny", "default"), ("tiny", "greedy"))
    assert loads(engine) == [("tiny", None)]
    assert bench.replies == [("Fine.", "complete"), ("Fine.", "complete")]


async def test_stopping_keeps_what_there_is(bench, engine):
    engine.reply("One", " two", hold_after=1)
    engine.reply("Three", hold_after=0)
    bench.start(("tiny", "default"), ("tiny", "greedy"))
    await bench.until(lambda: bench.of(0, TextAdded) and len(engine.requests) == 2)
    await bench.comparison.stop()
    assert bench.replies == [("One", "stopped"), ("", "stopped")]
    (stored,) = await bench.stored()
    assert [turn.text for turn in stored.all_turns] == ["Hi", "One"]  # what never began is left out
    assert bench.comparison.keep(0).leaf.text == "One"
    assert not bench.comparison.can_keep(1)
    assert not bench.of(0, PromptReturned)


async def test_stopping_a_load_gives_the_prompt_back(bench, engine, second_engine, memory):
    memory(NONE_AT_ALL)
    engine.load_hold.clear()
    bench.start(("other", "default"), ("third", "default"), prompt="Which?")
    await bench.until(lambda: engine.loads)
    await bench.comparison.stop()
    assert bench.replies == [("", "stopped"), ("", "stopped")]
    assert loads(engine) == [("other", None)]
    assert [event.text for event in bench.of(0, PromptReturned)] == ["Which?"]
    assert await bench.stored() == []


async def test_stopping_before_a_load_begins_leaves_it_out(bench, engine, second_engine, monkeypatch):
    started = asyncio.Event()

    async def slow(self):
        started.set()
        await asyncio.sleep(0.05)
        return second_engine

    monkeypatch.setattr(CompareModels, "_free_engine", slow)
    bench.start(("other", "default"), ("third", "default"))
    await started.wait()
    await bench.comparison.stop()
    assert second_engine.loads == []
    assert bench.replies == [("", "stopped"), ("", "stopped")]


async def test_one_side_fails_and_the_other_answers(bench, engine, second_engine):
    second_engine.unloadable["other"] = "other is damaged: convert it again."
    await bench.run(("other", "default"), ("tiny", "default"))
    await bench.comparison.close()
    assert second_engine.closed
    assert bench.replies == [("", "error"), ("Fine.", "complete")]
    assert bench.of(0, TurnChanged)[-1].turn.note == "other is damaged: convert it again."
    (stored,) = await bench.stored()
    assert [turn.text for turn in stored.turns] == ["Hi", "Fine."]
    assert stored.model == "tiny"
    assert not bench.comparison.can_keep(0)


async def test_an_engine_that_fails_in_mid_answer_is_told_of(bench, engine):
    engine.reply("Half", error="The GPU ran out of memory: load a smaller model.")
    engine.reply(refuse="The prompt has too many tokens: shorten it.")
    await bench.run(("tiny", "default"), ("tiny", "greedy"))
    assert bench.replies == [("Half", "error"), ("", "error")]
    notes = [bench.of(number, TurnChanged)[-1].turn.note for number in (0, 1)]
    assert notes == [
        "The GPU ran out of memory: load a smaller model.",
        "The prompt has too many tokens: shorten it.",
    ]


async def test_what_cannot_be_saved_is_told_once_and_answered(bench, engine, monkeypatch):
    async def full(*_):
        raise UserError("The disk is full: free some space.")

    monkeypatch.setattr(bench.archive.database, "save", full)
    await bench.run(("tiny", "default"), ("tiny", "greedy"))
    told = [event.text for event in bench.notices if isinstance(event, Told)]
    assert told == ["The conversation is not saved. The disk is full: free some space."]
    assert bench.replies == [("Fine.", "complete"), ("Fine.", "complete")]


async def test_a_fault_of_ours_is_told_on_both_sides(bench, monkeypatch, caplog):
    async def broken(_):
        raise RuntimeError("a fault")

    monkeypatch.setattr(bench.comparison.models, "plan", broken)
    await bench.run(("tiny", "default"), ("tiny", "greedy"))
    assert bench.replies == [("", "error"), ("", "error")]
    assert [event.text for event in bench.of(0, PromptReturned)] == ["Hi"]
    caplog.clear()


async def test_closing_in_mid_answer_stops_and_saves(bench, engine):
    engine.reply("One", " two", hold_after=1)
    engine.reply("Three", " four", hold_after=1)
    bench.start(("tiny", "default"), ("tiny", "greedy"))
    await bench.until(lambda: bench.of(0, TextAdded) and bench.of(1, TextAdded))
    await bench.comparison.close()
    (stored,) = await bench.stored()
    assert [(turn.text, turn.status) for turn in stored.all_turns[1:]] == [
        ("One", "stopped"),
        ("Three", "stopped"),
    ]


async def test_a_server_answers_at_once_beside_a_model_here(bench, engine):
    bench.endpoints.save(Endpoint("cluster", "http://127.0.0.1:1/v1", "big"))
    assert await bench.comparison.models.names() == ["other", "third", "tiny", "cluster"]
    assert "on a server" in await bench.why("tiny", "cluster")
    assert "on one server" in await bench.why("cluster", "cluster")
    await bench.run(("cluster", "default"), ("tiny", "default"))
    assert bench.replies == [("", "error"), ("Fine.", "complete")]  # nobody listens on that port
    assert "127.0.0.1:1" in bench.of(0, TurnChanged)[-1].turn.note
    assert not bench.comparison.models.displaced


async def test_what_is_offered_first(bench):
    names = await bench.comparison.models.names()
    first = bench.comparison.first_sides
    assert first(names, "tiny") == (Side("tiny", "default"), Side("other", "default"))
    assert first(["tiny"], "tiny") == (Side("tiny", "default"), Side("tiny", "precise"))
    assert first(["tiny"], None) == first(["tiny"], "gone") == first(["tiny"], "tiny")
