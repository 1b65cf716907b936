"""A full context: the user chooses, nothing is cut in silence, and the choice lasts."""

import pytest
from PIL import Image as pillow
from textual.widgets import OptionList

from lite_llama.app.attachments import attachment_of
from lite_llama.app.context import plan
from lite_llama.app.conversation import Conversation, Turn
from lite_llama.app.database import Database
from lite_llama.app.screens.chat import ChatScreen
from lite_llama.app.screens.context_full import ContextFullScreen
from lite_llama.app.widgets.message import ReplyMessage, UserMessage
from lite_llama.app.widgets.prompt import PromptInput
from lite_llama.engine.images import read_image

WORDS = "one two three four five six"  # 10 tokens for the fake engine; "Fine." has 5
LIMIT = 54


def conversation(*lengths):
    """Questions of these lengths, each but the last with a reply of 10."""
    turns = []
    for length in lengths:
        turns += [Turn("user", "x" * length), Turn("assistant", "x" * 10)]
    return turns[:-1]


def count(turns):
    return sum(len(turn.text) for turn in turns)


@pytest.mark.parametrize(
    ("lengths", "left_out", "expected"),
    [
        ((30, 30, 30), 0, (2, 70)),  # 110 do not fit into 100; 75 leave a quarter free
        ((30, 30, 30), 2, (4, 30)),
        ((90, 1, 1, 1), 0, (2, 23)),
        ((1, 90), 0, (2, 90)),  # a quarter cannot be had, but it fits
        ((1, 120), 0, None),
        ((120,), 0, None),
        ((10,) * 1000, 0, (2 * 996, 70)),
    ],
)
def test_as_little_is_left_out_as_will_do(lengths, left_out, expected):
    counted = []
    turns = conversation(*lengths)
    assert plan(turns, left_out, 100, lambda some: counted.append(1) or count(some)) == expected
    assert len(counted) <= 24


def test_each_branch_is_read_from_its_own_turn_on():
    tree = Conversation(turns=conversation(1, 2, 3))
    first, reply, *_, leaf = tree.turns
    tree.leave_out(2)
    tree.turns = [first]
    tree.add(Turn("assistant", "another"))
    tree.add(Turn("user", "another"))
    assert (tree.left_out, tree.read_turns) == (0, tree.turns)
    tree.show(leaf)
    assert (tree.left_out, tree.read_turns) == (2, tree.turns[2:])
    tree.turns = [first, reply]
    tree.add(Turn("user", "beside the first one that is read"))
    assert tree.left_out == 2


async def test_what_is_left_out_is_saved(paths):
    database = await Database.open(paths.database)
    saved = Conversation(title="t", turns=conversation(1, 2), settings={"top_k": 3})
    saved.leave_out(2)
    await database.save(saved, saved.turns)
    loaded = await database.load(saved.id)
    assert (loaded.left_out, loaded.settings) == (2, {"top_k": 3})
    await database.close()


@pytest.fixture
def full(make_app, engine, until):
    """`async with full() as (app, pilot):` three exchanges of 15 tokens, and a question that does not fit."""

    class Full:
        def __init__(self, question=WORDS):
            self.question = question

        async def __aenter__(self):
            engine.max_context = LIMIT
            self.app = make_app()
            self.run = self.app.run_test(size=(100, 40))
            pilot = await self.run.__aenter__()
            await until(pilot, lambda: self.app.controller.loader.model)
            for number in range(3):
                await self.app.controller.send(f"{number} two three four five six")
                await until(pilot, lambda: not self.app.controller.replying)
            assert len(self.app.controller.conversation.turns) == 6
            self.app.query_one(PromptInput).text = self.question
            await pilot.press("enter")
            await until(pilot, lambda: isinstance(self.app.screen, ContextFullScreen))
            return self.app, pilot

        async def __aexit__(self, *error):
            await self.run.__aexit__(*error)

    return Full


def shown(app):
    turns = app.screen_stack[0].query("UserMessage, ReplyMessage").results(UserMessage | ReplyMessage)
    return [widget.turn.text for widget in turns]


def options(app):
    choices = app.screen.query_one(OptionList)
    return [choices.get_option_at_index(number).id for number in range(choices.option_count)]


async def choose(app, pilot, until, option):
    app.screen.query_one(OptionList).highlighted = options(app).index(option)
    await pilot.press("enter")
    await until(pilot, lambda: isinstance(app.screen, ChatScreen))


async def test_the_oldest_turns_are_left_out_and_stay_in_view(full, engine, until):
    async with full() as (app, pilot):
        assert options(app) == ["leave_out", "new", "shorten"]
        text = str(app.screen.query_one(OptionList).get_option_at_index(0).prompt)
        assert text.startswith("Leave out the oldest question, with its reply\n“0 two three four five six”\n")
        assert "no longer reads them: 40 of 54 tokens then" in text
        await choose(app, pilot, until, "leave_out")
        await until(pilot, lambda: shown(app)[-2:] == [WORDS, "Fine."])
        asked = [message.content for message in engine.requests[-1].messages]
        assert asked[0] == "1 two three four five six"
        assert asked[-1] == WORDS
        assert shown(app)[0] == "0 two three four five six"
        assert app.query_one(PromptInput).text == ""
        children = list(app.query_one("#transcript").children)
        line = next(number for number, child in enumerate(children) if child.id == "left-out")
        assert children[line + 1].turn.text == "1 two three four five six"
        # It is so too when the conversation is opened again.
        opened = app.controller.conversation.id
        await app.controller.new_conversation()
        assert not app.query("#left-out")
        await app.controller.open_conversation(opened)
        await until(pilot, lambda: app.query("#left-out"))
        assert app.controller.conversation.left_out == 2


async def test_a_new_chat_takes_the_message(full, engine, until):
    async with full() as (app, pilot):
        before = app.controller.conversation.id
        await choose(app, pilot, until, "new")
        await until(pilot, lambda: shown(app) == [WORDS, "Fine."])
        assert app.controller.conversation.id != before
        assert [message.content for message in engine.requests[-1].messages] == [WORDS]


@pytest.mark.parametrize("key", ["escape", "choose"])
async def test_the_message_can_be_shortened(full, until, key):
    async with full() as (app, pilot):
        if key == "escape":
            await pilot.press("escape")
            await until(pilot, lambda: isinstance(app.screen, ChatScreen))
        else:
            await choose(app, pilot, until, "shorten")
        assert app.query_one(PromptInput).text == WORDS
        assert len(shown(app)) == 6
        assert app.controller.conversation.left_out == 0


async def test_a_message_that_never_fits_can_only_be_shortened_or_sent_elsewhere(full):
    async with full(question="word " * 80) as (app, _):
        assert options(app) == ["new", "shorten"]


async def test_a_reply_that_filled_the_context_goes_on_when_something_is_left_out(make_app, engine, until):
    engine.max_context = 30
    app = make_app()
    async with app.run_test(size=(100, 40)) as pilot:
        await until(pilot, lambda: app.controller.loader.model)
        await app.controller.send("a b")
        await until(pilot, lambda: not app.controller.replying)
        engine.reply("x " * 16, reason="length")
        await app.controller.send("c d")
        await until(pilot, lambda: not app.controller.replying)
        await pilot.press("ctrl+g")
        await until(pilot, lambda: isinstance(app.screen, ContextFullScreen))
        assert options(app) == ["leave_out", "new"]
        engine.reply("and on")
        await choose(app, pilot, until, "leave_out")
        await until(pilot, lambda: shown(app)[-1] == "x " * 16 + "and on")
        assert [message.content for message in engine.requests[-1].messages] == ["c d", "x " * 16]


@pytest.mark.parametrize(("choice", "images"), [("leave_out", 2), ("new", 1)])
async def test_images_count_and_are_left_out_with_their_turn(
    make_app, engine, until, tmp_path, choice, images
):
    engine.max_context = 2000  # an image takes 576
    app = make_app("llava")
    pillow.new("RGB", (4, 4)).save(tmp_path / "a.png")
    image = attachment_of(read_image(tmp_path / "a.png"))
    async with app.run_test(size=(100, 40)) as pilot:
        await until(pilot, lambda: app.controller.loader.model)
        for number in range(3):
            await app.controller.send(f"{number}" if number else "", (image,))
            await until(pilot, lambda: not app.controller.replying)
        app.query_one(PromptInput).text = "4"
        app.screen.attachments.put(image)
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(app.screen, ContextFullScreen))
        assert "\n“a.png”, “1”\n" in str(app.screen.query_one(OptionList).get_option_at_index(0).prompt)
        await choose(app, pilot, until, choice)
        await until(pilot, lambda: shown(app)[-2:] == ["4", "Fine."])
        assert sum(len(message.images) for message in engine.requests[-1].messages) == images
        assert app.screen.attachments.items == ()


@pytest.mark.parametrize("choice", ["leave_out", "new"])
async def test_a_new_version_that_does_not_fit_stays_one(full, engine, until, choice):
    longer = " ".join(["word"] * 20)
    async with full() as (app, pilot):
        await pilot.press("escape")
        app.query_one(PromptInput).text = ""
        before = app.controller.conversation
        await pilot.press("alt+up", "up", "e")
        app.query_one(PromptInput).text = longer
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(app.screen, ContextFullScreen))
        assert [turn.text for turn in before.turns[4:]] == ["2 two three four five six", "Fine."]
        await choose(app, pilot, until, choice)
        await until(pilot, lambda: shown(app)[-2:] == [longer, "Fine."])
        asked = [message.content for message in engine.requests[-1].messages]
        if choice == "new":
            assert asked == [longer]
            assert app.controller.conversation.id != before.id
        else:
            assert (asked[0], asked[-1]) == ("1 two three four five six", longer)
            assert len(before.siblings(before.turns[4])) == 2
        assert app.query_one(PromptInput).text == ""


async def test_another_reply_may_need_room_too(make_app, engine, until):
    app = make_app()
    async with app.run_test(size=(100, 40)) as pilot:
        await until(pilot, lambda: app.controller.loader.model)
        for number in range(3):
            await app.controller.send(f"{number} two three four five six")
            await until(pilot, lambda: not app.controller.replying)
        engine.max_context = 40  # of a smaller model that was loaded meanwhile
        engine.use("tiny")
        await pilot.press("ctrl+r")
        await until(pilot, lambda: isinstance(app.screen, ContextFullScreen))
        assert options(app) == ["leave_out", "new"]
        engine.reply("Better.")
        await choose(app, pilot, until, "leave_out")
        await until(pilot, lambda: shown(app)[-1] == "Better.")
        assert len(app.controller.conversation.siblings(app.controller.conversation.turns[-1])) == 2
        assert app.controller.conversation.left_out == 2


async def test_a_full_context_pauses_the_queue(make_app, engine, until):
    engine.max_context = LIMIT
    app = make_app()
    async with app.run_test(size=(100, 40)) as pilot:
        await until(pilot, lambda: app.controller.loader.model)
        for number in range(2):
            await app.controller.send(f"{number} two three four five six")
            await until(pilot, lambda: not app.controller.replying)
        engine.reply("Fine.", hold_after=0)
        for text in ("2 two three four five six", WORDS, "later"):
            await app.controller.send(text)
        engine.release()
        await until(pilot, lambda: isinstance(app.screen, ContextFullScreen))
        await until(pilot, lambda: not app.controller.replying)
        assert app.screen_stack[0].query_one(PromptInput).text == WORDS
        await choose(app, pilot, until, "leave_out")
        await until(pilot, lambda: shown(app)[-2:] == [WORDS, "Fine."])
        await until(pilot, lambda: not app.controller.replying)
        assert [message.text for message in app.controller.conversation.queue] == ["later"]


async def test_other_refusals_are_told_as_ever(make_app, engine, until):
    engine.reply(refuse="The chat template refuses this.")
    app = make_app()
    async with app.run_test() as pilot:
        await until(pilot, lambda: app.controller.loader.model)
        await app.controller.send("Hi")
        await until(pilot, lambda: not app.controller.replying)
        assert isinstance(app.screen, ChatScreen)
        assert [notice.message for notice in app._notifications] == ["The chat template refuses this."]


async def test_from_80_percent_on_the_meter_tells_what_goes_first(make_app, engine, until):
    engine.max_context = 32
    app = make_app()
    async with app.run_test(size=(100, 30)) as pilot:
        await until(pilot, lambda: app.controller.loader.model)
        await app.controller.send("a b")
        await until(pilot, lambda: "11 / 32" in str(app.query_one("#context").render()))
        assert app.query_one("#context").tooltip is None
        await app.controller.send(WORDS)
        await until(pilot, lambda: app.query_one("#context").tooltip)
        assert "First in line: “a b”." in str(app.query_one("#context").tooltip)
        assert "nearly full" in str(app.query_one("#context-label").render())
