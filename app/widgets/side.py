"""One side of a comparison: what answers, its reply, and the figures of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from textual import on
from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.content import Content
from textual.message import Message
from textual.widgets import Select

from ...engine.events import ModelInfo
from ...models.units import format_bytes
from ..compare import Side
from ..conversation import Conversation, Turn
from ..events import (
    ControllerEvent,
    ModelLoading,
    ModelReady,
    PromptRead,
    TextAdded,
    ThinkingAdded,
    TurnChanged,
)
from ..pace import Pace
from ..text import one_line
from .message import ReplyMessage
from .telemetry import Telemetry


class SideView(Vertical):
    """Shows what Comparison tells of one side."""

    @dataclass
    class Changed(Message):
        """Another model or preset was chosen."""

    def __init__(self, side: Side, models: Sequence[str], presets: Sequence[str]) -> None:
        super().__init__()
        self._model = _select(models, side.model)
        self._preset = _select(presets, side.preset)
        self._preset.add_class("preset")
        self._scroll = VerticalScroll(can_focus=False)
        self._reply: ReplyMessage | None = None
        self._telemetry = Telemetry()
        self._shared = False

    def compose(self) -> ComposeResult:
        with Horizontal(classes="choice"):
            yield self._model
            yield self._preset
        yield self._scroll
        yield self._telemetry

    @property
    def side(self) -> Side:
        """What is chosen."""
        return Side(str(self._model.value), str(self._preset.value))

    @on(Select.Changed)
    def _changed(self, event: Select.Changed) -> None:
        event.stop()
        self.post_message(self.Changed())

    async def begin(self, reply: Turn, *, shared: bool) -> None:
        """Show a new reply; `shared`: the other side's is written in the same steps."""
        self._shared = shared
        self._reply = ReplyMessage(Conversation(), reply, offers=False)
        self._telemetry.show_also("")
        self._telemetry.show("Waiting for its turn")
        with self.app.batch_update():
            await self._scroll.remove_children()
            await self._scroll.mount(self._reply)
        self._scroll.anchor(False)

    async def handle(self, event: ControllerEvent, pace: Pace) -> None:
        assert self._reply is not None
        match event:
            case ModelLoading(name, done, total, text):
                self._telemetry.show_loading(name, text, done, total)
            case ModelReady(_, info):
                self._telemetry.show_also(self._memory(info))
                self._telemetry.show("Waiting for the engine")
            case PromptRead(done, total, rate):
                self._telemetry.show_prefill(done, total, rate)
            case ThinkingAdded(_, tokens, rate):
                self._reply.think()
                self._telemetry.show_decode(tokens, rate, pace)
            case TextAdded(_, text, tokens, rate):
                await self._reply.append(text)
                self._follow()
                self._telemetry.show_decode(tokens, rate, pace)
            case TurnChanged(turn):
                await self._reply.refresh_turn()
                if turn.figures is not None:
                    self._telemetry.show_usage(turn.figures)
                else:
                    self._telemetry.show("")

    def _follow(self) -> None:
        """Stay at the end of a reply that is longer than the view, until the user scrolls away."""
        # Before that, an anchor would draw it down, and the two would begin at different heights.
        if self._scroll.max_scroll_y > 0 and not self._scroll.is_anchored:
            self._scroll.anchor()

    def _memory(self, info: ModelInfo) -> str:
        """What the model takes, and what it shares."""
        if info.device == "remote":
            return "memory elsewhere"
        memory = f"{format_bytes(info.weight_bytes + info.kv_bytes)} of memory"
        return f"{memory} and steps shared" if self._shared else memory

    def scroll_reply(self, where: str) -> None:
        """`where`: page_up, page_down, home or end."""
        getattr(self._scroll, f"scroll_{where}")(animate=False)


def _select(names: Sequence[str], chosen: str) -> Select[str]:
    options = [(Content(one_line(name)), name) for name in names]
    return Select(options, value=chosen, allow_blank=False, compact=True)
