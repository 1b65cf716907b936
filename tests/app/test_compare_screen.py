"""The comparison on the screen: sent, stopped, failed, kept; and what it looks like."""

from functools import partial

import pytest
from PIL import Image as pillow
from textual import events
from textual.widgets import Select, Static

from lite_llama.app.compare import Side
from lite_llama.app.database import Database
from lite_llama.app.screens.chat import ChatScreen
from lite_llama.app.screens.compare import CompareScreen
from lite_llama.app.screens.images import ImagesScreen
from lite_llama.app.widgets.attachments import AttachedChip, Chip
from lite_llama.app.widgets.markdown import ReplyMarkdown
from lite_llama.app.widgets.prompt import PromptInput
from lite_llama.app.widgets.side import SideView

from .test_chat_snapshots import DARK, LARGE, LIGHT, REPLY, SMALL

SETTINGS = 'model = "tiny"\n[presets.greedy]\ntemperature = 0.0\n'
MODEL = "SmolLM2-135M-Instruct"
OTHER = """\
A llama is a **camelid** of the Andes.

1. It hums.
2. It spits when annoyed.

> It carries 25 kg.
"""


class Compare:
    """The comparison of a running app as a user sees it."""

    def __init__(self, chat):
        self.chat, self.app, self.pilot, self.until = chat, chat.app, chat.pilot, chat.until

    async def open(self):
        await self.pilot.press("ctrl+s")
        await self.chat.screen(CompareScreen)
        self.prompt = self.app.screen.query_one(PromptInput)
        self.prompt.cursor_blink = False
        await self.until(lambda: "Compare" in self.plan)

    async def choose(self, number, model=None, preset=None):
        selects = list(self.sides[number].query(Select))
        for select, value in zip(selects, (model, preset), strict=True):
            if value:
                select.value = value
        await self.pilot.pause()

    async def send(self, text):
        self.prompt.text = text
        await self.pilot.press("enter")

    async def ask(self, text):
        before = self.comparison._conversation
        await self.send(text)
        await self.until(lambda: self.comparison._conversation is not before)
        await self.ended()

    async def have_both_begin(self, engine):
        """Both sides have written a word, and go on when the engine is released."""
        await self.choose(1, "tiny", "greedy")
        engine.reply("One", " two", hold_after=1)
        engine.reply("Three", " four", hold_after=1)
        await self.send("Count.")
        await self.until(lambda: self.comparison.running and self.replies() == ["One", "Three"])

    async def ended(self):
        await self.until(lambda: not self.comparison.running)

    async def closed(self):
        await self.chat.screen(ChatScreen)
        await self.until(lambda: self.app._comparison is None and not self.app.controller.loader.loading)

    @property
    def comparison(self):
        return self.app._comparison

    @property
    def sides(self):
        return list(self.app.screen.query(SideView))

    @property
    def plan(self):
        return self.says("#plan")

    def says(self, selector):
        return str(self.app.screen.query_one(selector, Static).render())

    def chips(self):
        return [chip.attachment.name for chip in self.app.screen.query(AttachedChip)]

    def replies(self):
        return [side.query_one(ReplyMarkdown).source for side in self.sides]

    def outcomes(self):
        return [str(side.query_one(".outcome", Static).render()) for side in self.sides]

    def figures(self):
        return [str(side.query_one("#telemetry", Static).render()) for side in self.sides]


@pytest.fixture
def compare(chat, make_model):
    """`async with compare() as c:` opens the comparison over the chat with `tiny`; `other` is there too."""

    class Running:
        def __init__(self, size=(100, 30)):
            make_model("other")
            self._chat = chat(size=size, settings=SETTINGS)

        async def __aenter__(self):
            running = Compare(await self._chat.__aenter__())
            await running.open()
            return running

        async def __aexit__(self, *error):
            await self._chat.__aexit__(*error)

    return Running


async def test_two_replies_stream_side_by_side_with_their_figures(compare, engine):
    async with compare() as c:
        assert [side.side for side in c.sides] == [Side("tiny", "default"), Side("other", "default")]
        assert "In turn" in c.plan
        await c.choose(1, "tiny", "greedy")
        await c.until(lambda: "Both at once" in c.plan)
        engine.reply("**Llamas**", " hum", ".", hold_after=2)
        engine.reply("They", " hum", " too.", hold_after=2)
        await c.send("Do llamas hum?")
        await c.until(lambda: c.comparison.running and c.replies() == ["**Llamas** hum", "They hum"])
        assert [figures.split("\n")[0][:22] for figures in c.figures()] == ["20.0 tok/s · 2 tokens"] * 2
        await c.until(lambda: engine.release() or not c.comparison.running)
        await c.until(lambda: c.replies() == ["**Llamas** hum.", "They hum too."])
        for figures in c.figures():
            assert "3 tokens · 20.0 tok/s · first token 0.25 s" in figures
            assert "363 MB of memory and steps shared" in figures.replace("\n", " ")
        assert c.prompt.text == ""
        await c.pilot.press("escape")
        await c.closed()
        assert c.chat.shown() == []
        assert engine.loads[1:] == []


async def test_both_sides_see_an_image_that_was_dropped(compare, engine, second_engine, make_model, tmp_path):
    """It becomes a chip; the panel shows it; a refusal gives it back, a reply takes it."""
    make_model("llava")
    pillow.new("RGB", (40, 30)).save(tmp_path / "cat.png")
    async with compare() as c:
        c.prompt.post_message(events.Paste(str(tmp_path / "cat.png")))
        await c.until(lambda: c.chips() == ["cat.png"])
        await c.pilot.press("f4")
        await c.chat.screen(ImagesScreen)
        assert [image.name for image in c.app.screen.images] == ["cat.png"]
        await c.pilot.press("s", "escape")  # there is no one model to choose another one for
        await c.chat.screen(CompareScreen)
        await c.choose(1, "tiny", "greedy")
        await c.send("What is it?")
        await c.until(lambda: c.prompt.text == "What is it?" and c.chips() == ["cat.png"])
        assert ["reads text only" in outcome for outcome in c.outcomes()] == [True, True]

        await c.choose(0, "llava")
        await c.choose(1, "llava", "greedy")
        for reply in ("A cat.", "A dog."):
            second_engine.reply(reply)
            engine.reply(reply)
        await c.ask("What is it?")
        assert sorted(c.replies()) == ["A cat.", "A dog."]
        assert c.chips() == []
        asked = c.app.screen.query_one("#asked").query(Chip)
        assert [chip.attachment.name for chip in asked] == ["cat.png"]
        requests = engine.requests + second_engine.requests
        assert [[image.name for image in each.messages[-1].images] for each in requests] == [["cat.png"]] * 2


async def test_keeping_a_side_goes_on_with_its_model_and_settings(compare, engine, second_engine):
    async with compare() as c:
        await c.choose(1, preset="greedy")
        engine.reply("From tiny.")
        second_engine.reply("From other.")
        await c.ask("Who are you?")
        assert c.replies() == ["From tiny.", "From other."]
        await c.pilot.press("ctrl+r")
        await c.closed()
        assert c.chat.shown() == ["Who are you?", "From other."]
        assert c.app.controller.loader.name == "other"
        assert c.app.controller.own_settings == {"temperature": 0.0}
        assert [load.path.name for load in engine.loads] == ["tiny", "other"]
        assert "2/2" in c.chat.text_of(".branch")
        await c.chat.ask("And now?")
        assert engine.requests[-1].params.temperature == 0.0
        assert [message.content for message in engine.requests[-1].messages] == [
            "Who are you?",
            "From other.",
            "And now?",
        ]


async def test_escape_stops_both_and_then_closes(compare, engine):
    async with compare() as c:
        await c.have_both_begin(engine)
        await c.send("More.")  # not while they are written
        assert c.prompt.text == "More."
        await c.pilot.press("escape")
        await c.ended()
        await c.until(lambda: c.outcomes() == ["Stopped", "Stopped"])
        assert isinstance(c.app.screen, CompareScreen)
        await c.pilot.press("escape")
        await c.closed()
        (summary,) = await c.app.controller.archive.summaries()
        assert summary.title == "Count."


@pytest.mark.parametrize("text", ["/settings", "/serch llamas"])
async def test_a_command_is_not_sent(compare, engine, text):
    async with compare() as c:
        await c.send(text)
        await c.until(lambda: c.chat.notices() == ["Commands are for the chat: Esc leads back to it."])
        assert c.prompt.text == text
        assert engine.requests == []


async def test_a_failure_is_told_in_its_column(compare, engine, second_engine):
    second_engine.unloadable["other"] = "other does not fit: 3 GB needed, 1 GB free."
    async with compare() as c:
        await c.ask("Hello?")
        await c.until(lambda: c.outcomes() == ["", "other does not fit: 3 GB needed, 1 GB free."])
        assert c.replies() == ["Fine.", ""]
        await c.pilot.press("ctrl+r")
        await c.until(lambda: c.chat.notices())
        assert c.chat.notices() == ["There is no reply on that side to keep."]
        engine.reply(refuse="The prompt is too long: shorten it.")
        await c.ask("And again?")
        await c.until(lambda: c.prompt.text == "And again?")  # nobody answered
        assert c.outcomes()[0] == "The prompt is too long: shorten it."


async def test_the_chats_model_is_put_back(compare, engine, monkeypatch):
    monkeypatch.setattr("lite_llama.engine.memory.available_memory", lambda _: -(10**9))
    async with compare() as c:
        await c.until(lambda: "memory is too short" in c.plan)
        await c.ask("Hello?")
        assert [load.path.name for load in engine.loads] == ["tiny", "other"]
        await c.pilot.press("escape")
        await c.closed()
        assert [load.path.name for load in engine.loads] == ["tiny", "other", "tiny"]
        assert c.app.controller.loader.model.name == "tiny"
        assert c.app.settings.model == "tiny"


async def test_a_kept_model_that_no_longer_loads_leaves_the_chats_own(compare, engine, monkeypatch):
    monkeypatch.setattr("lite_llama.engine.memory.available_memory", lambda _: -(10**9))
    async with compare() as c:
        await c.ask("Hello?")
        engine.unloadable["other"] = "other is damaged: convert it again."
        await c.pilot.press("ctrl+r")
        await c.closed()
        assert c.chat.notices() == ["other: other is damaged: convert it again. Going back to tiny."]
        assert c.app.controller.loader.model.name == "tiny"
        assert c.chat.shown() == ["Hello?", "Fine."]


@pytest.mark.parametrize("size", [(20, 5), (50, 20)])
async def test_it_bears_a_small_terminal(compare, engine, size):
    async with compare() as c:
        await c.pilot.resize_terminal(*size)
        await c.ask("Hello?")
        await c.pilot.resize_terminal(80, 24)
        await c.until(lambda: all("first token" in figures for figures in c.figures()))


async def test_it_opens_by_command_and_waits_for_the_chats_reply(compare, engine):
    async with compare() as c:
        await c.pilot.press("escape")
        await c.closed()
        engine.reply("Slow", hold_after=1)
        await c.chat.send("Hello?")
        await c.until(lambda: c.chat.shown() == ["Hello?", "Slow"])
        await c.chat.send("/compare")
        await c.until(lambda: c.chat.notices())
        assert isinstance(c.app.screen, ChatScreen)
        engine.release()
        await c.chat.replied()
        await c.chat.send("/compare")
        await c.chat.screen(CompareScreen)


async def test_leaving_the_app_saves_what_was_written(compare, engine, paths):
    async with compare() as c:
        await c.have_both_begin(engine)
        await c.pilot.press("ctrl+q")
        await c.until(lambda: c.app._exit)
    database = await Database.open(paths.database)
    (summary,) = await database.summaries()
    replies = (await database.load(summary.id)).all_turns[1:]
    await database.close()
    assert [(turn.text, turn.status) for turn in replies] == [("One", "stopped"), ("Three", "stopped")]


def shows(widget, text):
    return text in str(widget.render())


@pytest.mark.parametrize(
    ("state", "size", "theme"),
    [
        (state, size, theme)
        for state in ("empty", "streaming", "finished")
        for size in (SMALL, LARGE)
        for theme in (DARK, LIGHT)
        if state == "finished" or (size, theme) in ((SMALL, DARK), (LARGE, LIGHT))
    ],
    ids=lambda value: value if isinstance(value, str) else f"{value[0]}x{value[1]}",
)
def test_looks_as_accepted(
    snap_compare, make_app, make_model, engine, second_engine, until, state, size, theme
):
    make_model("Qwen3-0.6B")
    app = make_app(model=MODEL, settings=f'theme = "{theme}"\nmodel = "{MODEL}"\n')
    app.animation_level = "none"
    pieces = [[text[i : i + 6] for i in range(0, len(text), 6)] for text in (REPLY, OTHER)]
    engine.reply(*pieces[0], hold_after=20 if state == "streaming" else None)
    (engine if state == "streaming" else second_engine).reply(
        *pieces[1], hold_after=12 if state == "streaming" else None
    )

    async def come_there(pilot):
        await until(pilot, lambda: app.controller.loader.model)
        await pilot.press("ctrl+s")
        await until(pilot, lambda: isinstance(app.screen, CompareScreen))
        app.screen.query_one(PromptInput).cursor_blink = False
        left, right = app.screen.query(SideView)
        if state == "streaming":
            right.query(Select).first().value = MODEL
            right.query(Select).last().value = "creative"
        await until(pilot, lambda: "Compare" in str(app.screen.query_one("#plan", Static).render()))
        if state == "empty":
            return
        app.screen.query_one(PromptInput).text = "Tell me about llamas."
        await pilot.press("enter")
        for side, tokens in ((left, "20 tokens"), (right, "12 tokens")):
            told = tokens if state == "streaming" else "first token"
            await until(pilot, partial(shows, side.query_one("#telemetry", Static), told))
        await pilot.press("ctrl+home")

    assert snap_compare(app, terminal_size=size, run_before=come_there)
