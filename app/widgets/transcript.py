"""The conversation, scrolled; it follows the reply until the user scrolls away from its end."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar

from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.geometry import Region
from textual.strip import Strip
from textual.widget import Widget
from textual.widgets import Static

from .. import keymap
from ..actions import ACTIONS
from ..conversation import Conversation, Turn
from .markdown import ReplyMarkdown
from .message import ReplyMessage, UserMessage

SHOWN_TURNS = 20
"""Of a long conversation only so many turns are shown at first, and more on demand."""
MOST_TURNS = 3 * SHOWN_TURNS
"""When a conversation has grown to more than that, only its end stays: what is shown is laid out often."""
DRAWN_TURNS = 4
"""So many turns at the end may be in view and stay drawn when another one comes."""

Shown = UserMessage | ReplyMessage


class Transcript(VerticalScroll, can_focus=False):
    """Shows turns. A turn's widget is found by the turn's id.

    One turn can be selected: then the transcript has the focus, and keys act on that turn.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        *(
            Binding(each.turn_keys, f'turn("{each.name}")', each.title, show="(" not in each.name)
            for each in ACTIONS
            if each.turn_keys
        ),
        Binding("escape", 'turn("leave_turns")', "Back"),
    ]

    def render_lines(self, crop: Region) -> list[Strip]:
        """As for a reply: one line of the background stands for all."""
        return super().render_lines(Region(crop.x, crop.y, crop.width, 1)) * crop.height

    def on_mount(self) -> None:
        self._conversation = Conversation()
        self._earlier: list[Turn] = []
        self.anchor()

    async def show(self, conversation: Conversation) -> None:
        """Replace what is shown by the end of another conversation."""
        self._conversation, turns = conversation, conversation.turns
        self._earlier = list(turns[:-SHOWN_TURNS])
        widgets = [self._widget(turn) for turn in turns[-SHOWN_TURNS:]]
        with self.app.batch_update():
            await self._remove(self.children)
            await self.mount_all(widgets or [Static(_hint(), id="hint")])
            await self._offer_earlier()
            await self.show_left_out()
        self.anchor()

    async def show_branch(self, conversation: Conversation) -> None:
        """Replace the turns from the first one that is another than before."""
        shown, turns = self._shown, conversation.turns[len(self._earlier) :]
        same = 0
        while same < min(len(shown), len(turns)) and shown[same].turn.id == turns[same].id:
            same += 1
        if not same or len(turns) > MOST_TURNS:
            await self.show(conversation)
            return
        with self.app.batch_update():
            await self._remove(shown[same:])
            await self.mount_all([self._widget(turn) for turn in turns[same:]])
            await self.show_left_out()
        self.anchor()

    async def show_earlier(self) -> None:
        """Show turns before those that are shown; what is in view stays there."""
        turns, self._earlier = self._earlier[-SHOWN_TURNS:], self._earlier[:-SHOWN_TURNS]
        first = self._shown[0]
        with self.app.batch_update():
            await self.mount_all([self._widget(turn) for turn in turns], before=first)
            await self._offer_earlier()
            await self.show_left_out()
        self.call_after_refresh(self.scroll_to_widget, first, top=True, animate=False)

    async def show_left_out(self) -> None:
        """Draw a line before the first turn that the model reads, if it does not read all of them."""
        await self.query("#left-out").remove()
        first = self._conversation.read_turns[:1] if self._conversation.left_out else []
        if first and (widget := self._widget_of(first[0])):
            await self.mount(Static("The model no longer reads what is above", id="left-out"), before=widget)

    async def _offer_earlier(self) -> None:
        await self.query("#earlier").remove()
        if self._earlier:
            text = f"[@click=screen.show_earlier]Show earlier turns[/] ({len(self._earlier):,} more)"
            await self.mount(Static(Content.from_markup(text), id="earlier"), before=0)

    async def add(self, turn: Turn) -> None:
        """A turn was added at the end: show it, wherever the user had scrolled to."""
        await self.query("#hint").remove()
        with self.app.batch_update():
            await self.mount(self._widget(turn))
            if len(shown := self._shown) > MOST_TURNS:
                old = shown[:-SHOWN_TURNS]
                self._earlier += [widget.turn for widget in old]
                await self._remove(old)
                await self._offer_earlier()
            await self.show_left_out()
        _forget_drawn(self._shown[-DRAWN_TURNS - 1 : -DRAWN_TURNS])
        self.anchor()

    async def _remove(self, widgets: Sequence[Widget]) -> None:
        _forget_drawn(widgets)
        await self.remove_children(widgets)

    def reply(self, turn: Turn) -> ReplyMessage | None:
        """The widget of a reply, None when it is not shown."""
        widget = self._widget_of(turn)
        return widget if isinstance(widget, ReplyMessage) else None

    # The selection

    @property
    def selected(self) -> Turn | None:
        return next((widget.turn for widget in self._shown if widget.has_class("-selected")), None)

    async def select(self, turn: Turn) -> None:
        """Select a turn of the branch that is shown, and bring it into view."""
        while all(widget.turn.id != turn.id for widget in self._shown) and self._earlier:
            await self.show_earlier()
        self.release_anchor()
        for widget in self._shown:
            widget.set_class(chosen := widget.turn.id == turn.id, "-selected")
            if chosen:
                self.call_after_refresh(self.scroll_to_widget, widget, animate=False)
        self.can_focus = True
        self.focus(scroll_visible=False)

    async def select_step(self, step: int) -> bool:
        """Select the turn `step` before or after; the last one if none was. False: past the end."""
        turns, selected = self._conversation.turns, self.selected
        place = next((i for i, turn in enumerate(turns) if selected and turn.id == selected.id), len(turns))
        if not 0 <= (place := place + step) < len(turns):
            return place < 0  # at the first one it stays
        await self.select(turns[place])
        return True

    async def action_turn(self, name: str) -> None:
        """Let the screen do something about the selected turn."""
        await self.screen.run_action(name)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """The keys for the selected turn count nowhere else, such as in a line of thinking."""
        return self.has_focus if action == "turn" else super().check_action(action, parameters)

    def deselect(self) -> None:
        """No turn is selected any more; the focus is no longer ours."""
        self.can_focus = False
        for widget in self._shown:
            widget.remove_class("-selected")

    # Widgets

    @property
    def _shown(self) -> list[Shown]:
        return [child for child in self.children if isinstance(child, Shown)]

    def _widget_of(self, turn: Turn) -> Shown | None:
        return next((widget for widget in reversed(self._shown) if widget.turn.id == turn.id), None)

    def _widget(self, turn: Turn) -> Shown:
        kind = UserMessage if turn.role == "user" else ReplyMessage
        return kind(self._conversation, turn)


def _forget_drawn(widgets: Iterable[Widget]) -> None:
    """Give up drawn lines that are not in view; Textual 8.2 keeps those of 1,024 widgets, removed or not.

    They are so many objects that the garbage collector would need a tenth of a second to look through them.
    """
    for widget in widgets:
        for each in widget.walk_children(Widget, with_self=True):
            each._styles_cache.clear()
            if isinstance(each, ReplyMarkdown):
                each.forget_drawn()


def _hint() -> Content:
    """What an empty conversation shows."""
    return Content.assemble(
        ("Ask something to begin", "bold $foreground"),
        "\n\n",
        ("Enter", "$text-primary"),
        " sends   ",
        ("Alt+Enter", "$text-primary"),
        " new line\n",
        ("/", "$text-primary"),
        " commands   ",
        (keymap.key("app.help"), "$text-primary"),
        " help",
    )
