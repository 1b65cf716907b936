"""The chat: shows what the controller tells, and hands the user's wishes to it."""

from __future__ import annotations

import asyncio
from typing import ClassVar

from textual import on, work
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Horizontal, Vertical
from textual.screen import Screen
from textual.widgets import Footer, TextArea

from ...engine.events import EngineFigures
from ..actions import ACTIONS, slash_command
from ..context import Overflow
from ..controller import (
    ContextFull,
    ContextUsed,
    Controller,
    ControllerEvent,
    ConversationShown,
    ModelFailed,
    ModelGone,
    ModelLoading,
    ModelReady,
    PromptRead,
    PromptReturned,
    TextAdded,
    ThinkingAdded,
    TurnAdded,
    TurnChanged,
    TurnRemoved,
    TurnsLeftOut,
)
from ..incoming import image_paths, title_of
from ..machine import Machine, MachineLoad
from ..text import one_line
from ..widgets.prompt import PromptInput
from ..widgets.status import NEARLY_FULL, ContextLabel, ContextMeter, Header
from ..widgets.telemetry import Telemetry
from ..widgets.transcript import Transcript
from . import images
from .context_full import SHOWN_QUESTIONS, ContextFullScreen

LOAD_EVERY_S = 1.0


class ChatScreen(Screen[None]):
    """Transcript, prompt and status lines. Generation, saving and loading are the controller's."""

    BINDINGS: ClassVar[list[BindingType]] = [
        action.binding
        for action in ACTIONS
        if action.keys and action.name != "app.quit"  # everywhere
    ]
    VERTICAL_BREAKPOINTS = [(0, "-short"), (12, "-tall")]  # noqa: RUF012 - declared so by Textual
    HORIZONTAL_BREAKPOINTS = [(0, "-tiny"), (50, "-narrow"), (100, "-wide")]  # noqa: RUF012

    def __init__(self, controller: Controller) -> None:
        super().__init__()
        self.controller = controller
        self._without_model = False  # told so; at the start it is only not known yet
        self._header = Header()
        self._transcript = Transcript(id="transcript")
        self._prompt = PromptInput()
        self._telemetry = Telemetry()
        self._meter_label = ContextLabel()
        self._meter = ContextMeter()
        self._machine = Machine()

    def compose(self) -> ComposeResult:
        yield self._header
        yield self._transcript
        with Vertical(id="composer"):
            yield self._prompt
            with Horizontal(id="status"):
                yield self._telemetry
                yield self._meter_label
                yield self._meter
        yield Footer(compact=True)

    def on_mount(self) -> None:
        self._prompt.focus()
        self.set_interval(LOAD_EVERY_S, self._show_load)

    @work(exclusive=True, group="load")
    async def _show_load(self) -> None:
        if self._telemetry.is_wide:
            load, figures = await self.load()
            self._telemetry.show_load(load, figures)

    async def load(self) -> tuple[MachineLoad, EngineFigures | None]:
        """What the machine and the engine carry now."""
        engine, model = self.controller.engine, self.controller.model
        load = await asyncio.to_thread(self._machine.sample, gpu=model is not None and model.device == "cuda")
        return load, engine.figures if engine else None

    # What the controller tells

    async def handle(self, event: ControllerEvent) -> None:
        match event:
            case ConversationShown(conversation):
                self._header.show_title(conversation.title)
                await self._transcript.show(conversation.turns)
                await self._show_left_out()
                self._show_idle()
            case TurnAdded(turn):
                self._header.show_title(self.controller.conversation.title)
                await self._transcript.add(turn)
                await self._show_left_out()
                if turn.role == "assistant" and self.controller.loading:
                    return  # the load's progress stays in view
                self._telemetry.show("Waiting for the engine")
            case ThinkingAdded(turn, tokens, rate):
                if reply := self._transcript.reply(turn):
                    reply.think()
                self._telemetry.show_decode(tokens, rate, self.controller.pace)
            case TextAdded(turn, text, tokens, rate):
                if reply := self._transcript.reply(turn):
                    await reply.append(text)
                self._telemetry.show_decode(tokens, rate, self.controller.pace)
            case TurnChanged(turn):
                if reply := self._transcript.reply(turn):
                    await reply.refresh_turn()
                if turn.status != "streaming":
                    self._show_idle()
            case TurnRemoved(turn):
                await self._transcript.remove_turn(turn)
                if not self.controller.conversation.turns:
                    await self._transcript.show([])
                self._show_idle()
            case PromptRead(done, total, rate):
                self._telemetry.show_prefill(done, total, rate)
            case PromptReturned(text):
                self._prompt.give_back(text)
            case ContextFull(overflow):
                self._ask_what_to_leave_out(overflow)
            case TurnsLeftOut():
                await self._show_left_out()
            case ContextUsed(used, limit):
                self._meter_label.show(used, limit)
                self._meter.show(used, limit)
                self._meter.tooltip = self._what_goes_first() if used >= NEARLY_FULL * limit else None
            case ModelLoading(name, done, total, text):
                self._without_model = False
                self._header.show_model(None)
                self._telemetry.show_loading(name, text, done, total)
            case ModelReady(_, info):
                self._without_model = False
                self._header.show_model(info)
                self._show_load()
                if not self.controller.replying:
                    self._show_idle()
            case ModelFailed() | ModelGone():
                self._without_model = True
                self._header.show_model(None)
                self._show_idle()

    def _what_goes_first(self) -> str:
        """Which turns can be left out when the context is full."""
        conversation = self.controller.conversation
        read = conversation.turns[conversation.left_out :]
        questions = [f"“{title_of(turn.text)}”" for turn in read if turn.role == "user"][:-1]
        first = f" First in line: {', '.join(questions[:SHOWN_QUESTIONS])}." if questions else ""
        return f"When the context is full, you choose what the model no longer reads.{first}"

    async def _show_left_out(self) -> None:
        conversation = self.controller.conversation
        first = conversation.turns[conversation.left_out :][:1] if conversation.left_out else []
        await self._transcript.show_left_out(first[0] if first else None)

    @work
    async def _ask_what_to_leave_out(self, overflow: Overflow) -> None:
        controller, model = self.controller, self.controller.model_name or "the model"
        choice = await self.app.push_screen_wait(ContextFullScreen(overflow, one_line(model)))
        if choice == "shorten":
            return
        if choice == "new":
            await controller.new_conversation()
        else:
            await controller.leave_out(overflow.left_out)
        if overflow.prompt is not None:
            self._prompt.sent(overflow.prompt)
            await controller.send(overflow.prompt)
        elif choice == "leave_out":
            await (controller.continue_reply() if controller.can_continue else controller.regenerate())

    def _show_idle(self) -> None:
        """Nothing goes on: the last reply's figures, or what the user can do."""
        reply = self.controller.last_reply
        if self._without_model:
            self._telemetry.show("No model is loaded · F3 to choose one", "$text-warning")
        elif reply is not None and reply.figures is not None:
            self._telemetry.show_usage(reply.figures)
        elif self.controller.model is not None:
            self._telemetry.show("Ready")
        elif not self.controller.loading:
            self._telemetry.show("Starting")

    # What the user does

    @on(TextArea.Changed)
    def _draft_changed(self, event: TextArea.Changed) -> None:
        self.controller.set_draft(event.text_area.text)

    @on(PromptInput.ImagesDropped)
    def _images_dropped(self) -> None:
        self._notify_images()

    @on(PromptInput.Submitted)
    async def _submit(self, event: PromptInput.Submitted) -> None:
        # Images first: a path begins with a slash as a command does.
        if image_paths(event.text):
            self._notify_images()
        elif action := slash_command(event.text):
            event.prompt.text = ""
            await self.run_action(action.name)
        elif self.controller.replying:
            self.notify(
                "The last reply is still being written: wait, or stop it with Esc.", severity="warning"
            )
        else:
            event.prompt.sent(event.text)
            await self.controller.send(event.text)

    def _notify_images(self) -> None:
        self.notify(images.NOT_YET, title="Image", markup=False)

    async def action_cancel(self) -> None:
        await self.controller.cancel()

    async def action_continue_reply(self) -> None:
        if self.controller.can_continue:
            await self.controller.continue_reply()
        else:
            self.notify("There is no reply that was cut off.")

    async def action_regenerate(self) -> None:
        await self.controller.regenerate()

    async def action_new_conversation(self) -> None:
        await self.controller.new_conversation()

    async def action_show_earlier(self) -> None:
        await self._transcript.show_earlier()

    def action_scroll_transcript(self, where: str) -> None:
        transcript = self._transcript
        {
            "page_up": transcript.scroll_page_up,
            "page_down": transcript.scroll_page_down,
            "home": transcript.scroll_home,
            "end": transcript.scroll_end,
        }[where](animate=False)
