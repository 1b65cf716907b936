"""The token view: colours, cursor, alternatives, and going on from one of them."""

from typing import Any

import pytest
from app_chat import Chat
from rich.cells import cell_len
from textual.color import Color
from textual.widgets import OptionList, Static

from lite_llama.app.screens.tokens import TokensScreen
from lite_llama.app.text import visible
from lite_llama.app.theme import THEMES
from lite_llama.app.widgets.tokens import LEVELS, TokenText, lay_out, level, shown
from lite_llama.app.widgets.transcript import Transcript

from .test_theme import contrast

DARK, LIGHT = "lite-llama-dark", "lite-llama-light"
REPLY = (
    "Llamas are domesticated camelids that hum.\n\nThey carry about 25 kg for 20 km a day, and rest at noon."
)


def test_every_character_can_be_seen():
    assert visible("a b\tc\n") == "a·b⇥c⏎"
    assert visible("\x1b[31m\u202e\u200b\ud800") == "<1b>[31m<202e><200b><d800>"
    assert visible("né 你好🙂") == "né·你好🙂"
    assert shown("") == "∅"
    assert cell_len(shown("\u0301")) == 1


@pytest.mark.parametrize("width", [5, 12, 30])
def test_lines_hold_all_tokens_in_order_and_are_not_too_long(width):
    texts = ["The", " quick", " un", "believ", "able", "\n", "\n\n", " " * 40, "x" * 33, " 你好你好你好", ""]
    lines = lay_out(texts, width)
    assert all(line and line[-1].end <= width for line in lines)
    parts = {}
    for line in lines:
        assert [cell.start for cell in line] == [0, *(cell.end for cell in line[:-1])]
        for cell in line:
            parts[cell.token] = parts.get(cell.token, "") + cell.text
    assert list(parts) == list(range(len(texts)))
    assert list(parts.values()) == [shown(text) for text in texts]


def test_a_line_ends_before_a_blank_and_after_a_newline():
    lines = lay_out(["The", " quick", " un", "believ", "able", ".\n", "End"], 16)
    assert ["".join(cell.text for cell in line) for line in lines] == ["The·quick", "·unbelievable.⏎", "End"]


def test_levels_follow_probability():
    assert [level(share) for share in (1, 0.9, 0.6, 0.3, 0.1, 0.01)] == [0, 0, 1, 2, 3, 4]


class View(Chat):
    """The app with one reply, its tokens in view."""

    @property
    def engine(self) -> Any:
        """The scripted one."""
        return self.controller.loader.engine

    async def open(self, reply=REPLY, *, key="f12"):
        self.engine.reply(*reply.split("|"))
        await self.ask("Tell me about llamas.")
        await self.pilot.press(key)
        await self.screen(TokensScreen)

    @property
    def text(self):
        return self.app.screen.query_one(TokenText)

    @property
    def list(self):
        return self.app.screen.query_one(OptionList)

    def says(self, selector):
        return str(self.app.screen.query_one(selector, Static).render())

    @property
    def options(self):
        return [str(self.list.get_option_at_index(at).prompt) for at in range(self.list.option_count)]


@pytest.fixture
async def view(chat):
    async with chat(View, size=(100, 30)) as view:
        yield view


async def test_cursor_shows_alternatives_and_another_token_is_gone_on_from(view):
    await view.open()
    await view.until(lambda: view.options)
    (request,) = view.engine.scored
    assert [message.content for message in request.messages] == ["Tell me about llamas.", REPLY]
    assert request.token_ids == (0,)  # those that the fake engine generated
    assert "Llamas" in view.says("#place")
    assert "99.0%" in view.says("#place")
    await view.pilot.press("n")
    await view.until(lambda: "12.0%" in view.says("#place"))
    assert view.text.cursor == 7
    assert view.list.highlighted == 2
    assert "▸" in view.options[2]
    assert "52.8%" in view.options[0]
    assert "·hum<1b>" in view.options[0]
    await view.pilot.press("enter", "up", "up")
    view.engine.reply("Llamas are", " very", " calm.")
    await view.pilot.press("enter")
    await view.until(lambda: not view.controller.replying and len(view.engine.requests) == 2)
    request = view.engine.requests[-1]
    assert request.begin == (100, 101, 102, 103, 104, 105, 106, 207)
    assert not request.continue_last
    assert [message.content for message in request.messages] == ["Tell me about llamas."]
    reply = view.controller.last_reply
    assert reply.text == "Llamas are very calm."
    assert reply.token_ids == (*request.begin, 0, 1, 2)
    conversation = view.controller.conversation
    assert [turn.text for turn in conversation.siblings(reply)] == [REPLY, reply.text]
    stored = await view.controller.archive.database.load(conversation.id)
    assert [turn.token_ids for turn in stored.all_turns] == [(), (0,), reply.token_ids]


async def test_an_earlier_reply_is_looked_at_when_it_is_selected(view):
    view.engine.reply("First.")
    await view.ask("One?")
    view.engine.reply("Second.")
    await view.ask("Two?")
    await view.pilot.press("alt+up", "alt+up", "alt+up")
    assert view.app.screen.query_one(Transcript).selected.text == "First."
    await view.pilot.press("t")
    await view.until(lambda: isinstance(view.app.screen, TokensScreen) and view.options)
    assert [message.content for message in view.engine.scored[0].messages] == ["One?", "First."]
    view.engine.reply("First as well.")
    await view.pilot.press("enter", "enter")
    await view.until(lambda: view.controller.last_reply.text == "First as well.")
    assert [turn.text for turn in view.controller.conversation.turns] == ["One?", "First as well."]


async def test_keys_and_mouse_move_the_cursor(view):
    await view.open()
    await view.until(lambda: view.options)
    text, last = view.text, len(view.text.tokens) - 1
    for key, expected in (("right", 1), ("l", 2), ("left", 1), ("end", last), ("right", last), ("home", 0)):
        await view.pilot.press(key)
        assert text.cursor == expected
    await view.pilot.press("down")
    assert text.cursor > 0
    below = text.cursor
    await view.pilot.press("up")
    assert text.cursor == 0
    await view.pilot.press("n", "n", "p")
    assert text.cursor == 7
    await view.pilot.click(TokenText, offset=(0, 1))
    assert text.cursor == below
    await view.pilot.press("enter", "escape")
    assert text.has_focus
    await view.pilot.press("escape")
    await view.until(lambda: not isinstance(view.app.screen, TokensScreen))
    assert len(view.engine.requests) == 1
    assert view.controller.last_reply.text == REPLY


async def test_reading_shows_progress_and_is_given_up_when_the_view_is_closed(view):
    view.engine.score_hold.clear()
    await view.open()
    await view.until(lambda: "100 / 200 tokens" in view.says("#remark"))
    await view.pilot.press("enter", "n", "right", "escape")
    await view.until(lambda: view.engine.cancelled == [-1])
    assert not isinstance(view.app.screen, TokensScreen)


async def test_what_goes_wrong_is_said(view):
    view.engine.score_error = "The conversation has too many tokens: start a new chat."
    await view.open()
    await view.until(lambda: "start a new chat" in view.says("#remark"))


async def test_a_reply_whose_tokens_are_not_known_is_said_to_be_encoded_anew(view):
    await view.open("Fine|.")
    await view.until(lambda: view.options)
    assert "not known" not in view.says("#remark")
    await view.pilot.press("escape")
    view.controller.last_reply.token_ids = ()
    view.prompt.text = "/tokens"
    await view.pilot.press("enter")
    await view.until(lambda: isinstance(view.app.screen, TokensScreen) and view.options)
    assert "not known" in view.says("#remark")


async def test_without_a_reply_there_is_nothing_to_show(view):
    await view.pilot.press("f12")
    await view.until(lambda: view.app._notifications)
    assert not isinstance(view.app.screen, TokensScreen)


async def test_a_refused_resampling_leaves_the_reply_as_it_was(view):
    await view.open()
    await view.until(lambda: view.options)
    before = view.controller.last_reply.token_ids
    view.engine.reply(refuse="The conversation is too long.")
    await view.pilot.press("enter", "enter")
    await view.until(lambda: len(view.engine.requests) == 2 and not view.controller.replying)
    assert view.controller.last_reply.text == REPLY
    assert view.controller.last_reply.token_ids == before


@pytest.mark.parametrize("theme", THEMES, ids=lambda theme: theme.name)
async def test_tokens_can_be_read_on_every_colour(view, theme):
    view.app.theme = theme.name
    await view.open()
    await view.until(lambda: view.options)
    grounds = set()
    for name in (
        *(f"token--level-{number}" for number in range(len(LEVELS) + 1)),
        "token--odd",
        "token--cursor",
    ):
        style = view.text.get_component_rich_style(name)
        colors = [Color.from_rich_color(color) for color in (style.color, style.bgcolor)]
        assert contrast(*colors) >= 4.5, name
        grounds.add(colors[1])
    assert len(grounds) == len(LEVELS) + 3


@pytest.mark.parametrize(
    ("state", "size", "theme"),
    [
        ("tokens", (80, 24), DARK),
        ("tokens", (80, 24), LIGHT),
        ("alternatives", (160, 48), DARK),
        ("alternatives", (160, 48), LIGHT),
        ("tokens", (50, 24), DARK),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{value[0]}x{value[1]}",
)
def test_looks_as_accepted(snap_compare, make_app, state, size, theme):
    app = make_app(settings=f'theme = "{theme}"\n')
    app.animation_level = "none"

    async def come_there(pilot):
        view = View(app, pilot)
        await view.until(lambda: app.controller.loader.model)
        await view.open(" ".join([REPLY] * 9))
        await view.until(lambda: view.options)
        await pilot.press("n", "n", "n")
        if state == "alternatives":
            await pilot.press("enter", "up")
        await view.until(lambda: str(view.text.cursor + 1) in view.says("#place"))
        await pilot.pause()

    assert snap_compare(app, terminal_size=size, run_before=come_there)
