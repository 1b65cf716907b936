"""The chat: shows what the controller tells, and hands the user's wishes to it."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from pathlib import Path
from typing import ClassVar

from textual import on, work
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Horizontal, Vertical
from textual.screen import Screen
from textual.widgets import Footer, TextArea

from ...models.errors import UserError
from ..actions import ACTIONS, slash_command
from ..attachments import Attachments
from ..controller import (
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
)
from ..incoming import command_paths, image_paths
from ..text import one_line
from ..widgets.attachments import AttachedChip, AttachmentBar
from ..widgets.prompt import PromptInput
from ..widgets.status import ContextLabel, ContextMeter, Header, Telemetry
from ..widgets.transcript import Transcript
from .tokens import TokensScreen


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
        self.attachments = Attachments(lambda: self.call_later(self._show_attachments))
        self._without_model = False  # told so; at the start it is only not known yet
        self._header = Header()
        self._transcript = Transcript(id="transcript")
        self._attachment_bar = AttachmentBar()
        self._prompt = PromptInput()
        self._telemetry = Telemetry()
        self._meter_label = ContextLabel()
        self._meter = ContextMeter()

    def compose(self) -> ComposeResult:
        yield self._header
        yield self._transcript
        with Vertical(id="composer"):
            yield self._attachment_bar
            yield self._prompt
            with Horizontal(id="status"):
                yield self._telemetry
                yield self._meter_label
                yield self._meter
        yield Footer(compact=True)

    def on_mount(self) -> None:
        self._prompt.focus()

    # What the controller tells

    async def handle(self, event: ControllerEvent) -> None:
        match event:
            case ConversationShown(conversation):
                self._header.show_title(conversation.title)
                await self._transcript.show(conversation.turns)
                self._show_idle()
            case TurnAdded(turn):
                self._header.show_title(self.controller.conversation.title)
                await self._transcript.add(turn)
                if turn.role == "assistant" and self.controller.loading:
                    return  # the load's progress stays in view
                self._telemetry.show("Waiting for the engine")
            case ThinkingAdded(turn, tokens, rate):
                if reply := self._transcript.reply(turn):
                    reply.think()
                self._telemetry.show_decode(tokens, rate)
            case TextAdded(turn, text, tokens, rate):
                if reply := self._transcript.reply(turn):
                    await reply.append(text)
                self._telemetry.show_decode(tokens, rate)
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
            case PromptRead(done, total):
                self._telemetry.show_prefill(done, total)
            case PromptReturned(text, images):
                self._prompt.give_back(text)
                self.attachments.put(*images, *self.attachments.items)
            case ContextUsed(used, limit):
                self._meter_label.show(used, limit)
                self._meter.show(used, limit)
            case ModelLoading(name, done, total, text):
                self._without_model = False
                self._header.show_model(None)
                self._telemetry.show_loading(name, text, done, total)
            case ModelReady(_, info):
                self._without_model = False
                self._header.show_model(info)
                await self._show_attachments()
                if not self.controller.replying:
                    self._show_idle()
            case ModelFailed() | ModelGone():
                self._without_model = True
                self._header.show_model(None)
                await self._show_attachments()
                self._show_idle()

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
        self._count_draft()

    def _count_draft(self) -> None:
        self.controller.set_draft(self._prompt.text, self.attachments.items)

    @on(PromptInput.Submitted)
    async def _submit(self, event: PromptInput.Submitted) -> None:
        images = self.attachments.items
        # Images first: a path begins with a slash as a command does.
        if paths := command_paths(event.text) or image_paths(event.text):
            event.prompt.text = ""
            self._attach_written(paths, event.text)
        elif not event.text and not images:
            return
        elif action := slash_command(event.text):
            event.prompt.text = ""
            await self.run_action(action.name)
        elif self.controller.replying:
            self.notify(
                "The last reply is still being written: wait, or stop it with Esc.", severity="warning"
            )
        elif self.attachments.reading:
            self.notify("An image is still being read: send the message in a moment.", severity="warning")
        else:
            event.prompt.sent(event.text)
            self.attachments.put()
            await self.controller.send(event.text, images)

    # Images

    async def attach(self, paths: Sequence[Path]) -> bool:
        """Attach image files, and say what is wrong with those that are none; False if there were any."""
        return all([await self._add(self.attachments.add(path)) for path in paths])

    async def attach_from_clipboard(self) -> bool:
        return await self._add(self.attachments.add_from_clipboard())

    async def _add(self, adding: Awaitable[str]) -> bool:
        try:
            remark = await adding
        except UserError as error:
            self.notify(one_line(str(error)), title="Not attached", severity="error", markup=False)
            return False
        if remark:
            self.notify(one_line(remark), markup=False)
        return True

    @on(PromptInput.ImagesDropped)
    @work
    async def _images_dropped(self, event: PromptInput.ImagesDropped) -> None:
        await self.attach(event.paths)

    @work
    async def _attach_written(self, paths: Sequence[Path], text: str) -> None:
        """`text` named the paths; it goes back where they cannot be attached."""
        if not await self.attach(paths):
            self._prompt.give_back(text)

    @on(PromptInput.PasteAsked)
    @work
    async def _paste(self, event: PromptInput.PasteAsked) -> None:
        """An image on the clipboard goes before text that was copied here, perhaps long ago."""
        try:
            await self.attachments.add_from_clipboard()
        except UserError as error:
            if self.app.clipboard:
                event.prompt.paste_text()
            else:
                self.notify(one_line(str(error)), markup=False)

    @on(AttachedChip.Removed)
    def _chip_removed(self, event: AttachedChip.Removed) -> None:
        self.attachments.remove(event.chip.attachment)

    async def _show_attachments(self) -> None:
        await self._attachment_bar.show(
            self.attachments.items, self.attachments.reading, self.controller.model
        )
        if self.focused is None:  # it was on a chip that is no longer there
            self._prompt.focus()
        self._count_draft()

    # Keys and commands

    async def action_cancel(self) -> None:
        await self.controller.cancel()

    async def action_continue_reply(self) -> None:
        if self.controller.can_continue:
            await self.controller.continue_reply()
        else:
            self.notify("There is no reply that was cut off.")

    async def action_regenerate(self) -> None:
        await self.controller.regenerate()

    @work
    async def action_tokens(self) -> None:
        """How likely the last reply's tokens were, and to go on from another one."""
        turn = self.controller.last_reply
        if self.controller.replying or turn is None or not turn.has_begun:
            self.notify("There is no reply yet whose tokens could be shown.")
        elif ids := await self.app.push_screen_wait(TokensScreen(self.controller, turn)):
            await self.controller.resample(turn, ids)

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
