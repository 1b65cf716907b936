"""The chat: shows what the controller tells, and hands the user's wishes to it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import ClassVar

from textual import events, on, work
from textual.app import ComposeResult, SuspendNotSupported
from textual.binding import BindingType
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.widgets import Footer, OptionList, Static, TextArea

from ...engine.events import EngineFigures, ModelInfo
from ...engine.request import Role
from ...models.errors import UserError
from .. import editor, keymap
from ..actions import ACTIONS, no_command, slash_command
from ..attachments import Attachment
from ..completion import Completion, completions
from ..controller import STILL_WRITING, Controller
from ..conversation import Turn
from ..draft import Draft
from ..events import (
    BranchShown,
    ContextFull,
    ContextUsed,
    ControllerEvent,
    ConversationShown,
    ModelFailed,
    ModelGone,
    ModelLoading,
    ModelOffered,
    ModelReady,
    PromptRead,
    PromptReturned,
    PromptsKnown,
    QueueChanged,
    TextAdded,
    ThinkingAdded,
    TitleChanged,
    TurnAdded,
    TurnChanged,
    TurnsLeftOut,
)
from ..machine import Machine, MachineLoad
from ..text import inert, one_line
from ..widgets.chat_list import ChatList
from ..widgets.commands import CommandList
from ..widgets.markdown_parser import code_blocks
from ..widgets.message import offer
from ..widgets.prompt import PromptInput
from ..widgets.queue import QueuedMessages
from ..widgets.status import NEARLY_FULL, ContextLabel, ContextMeter, Header
from ..widgets.telemetry import Telemetry
from ..widgets.transcript import Transcript
from .attaching import AttachingScreen
from .code_blocks import CodeBlocksScreen
from .context_full import ContextFullScreen, quoted
from .tokens import TokensScreen

LOAD_EVERY_S = 1.0
DRAFT_EVERY_S = 0.5


class ChatScreen(AttachingScreen[None]):
    """Transcript, prompt and status lines. Generation, saving and loading are the controller's."""

    BINDINGS: ClassVar[list[BindingType]] = [
        action.binding
        for action in ACTIONS
        if action.keys and action.name != "app.quit"  # everywhere
    ]
    VERTICAL_BREAKPOINTS = [(0, "-short"), (12, "-tall"), (20, "-high")]  # noqa: RUF012 - declared so by Textual
    HORIZONTAL_BREAKPOINTS = [(0, "-tiny"), (50, "-narrow"), (100, "-wide")]  # noqa: RUF012

    def __init__(self, controller: Controller, draft: Draft) -> None:
        super().__init__()
        self.controller = controller
        self._unsent = draft
        self._draft_is_read = False
        """Whether its images are attached."""
        self._without_model = False  # told so; at the start it is only not known yet
        self._edited: Turn | None = None
        """The turn whose new version is in the prompt."""
        self._draft = ""
        """What was in the prompt before."""
        self.editing = asyncio.Lock()
        """Held while an editor has the terminal."""
        self._sidebar = ChatList(self.controller)
        self._header = Header()
        self._transcript = Transcript(id="transcript")
        self._offer = Static(id="offer", markup=False)
        self._queue = QueuedMessages()
        self._commands = self._prompt.commands = CommandList(self._completions)
        self._telemetry = Telemetry()
        self._meter_label = ContextLabel()
        self._meter = ContextMeter()
        self._machine = Machine()

    def compose(self) -> ComposeResult:
        yield self._sidebar
        yield self._header
        yield self._transcript
        with Vertical(id="composer"):
            yield self._offer
            yield self._queue
            yield self._attachment_bar
            yield self._commands
            yield self._prompt
            with Horizontal(id="status"):
                yield self._telemetry
                yield self._meter_label
                yield self._meter
        yield Footer(compact=True)

    def on_mount(self) -> None:
        self._prompt.focus()
        self._prompt.show(self._unsent.read())
        self._read_draft()
        self.set_interval(LOAD_EVERY_S, self._show_load)

    @property
    def _typed(self) -> str:
        """What the user would have to type again: the prompt, and what stood there before an edit."""
        if self._edited is None:
            return self._prompt.text
        edit = self._prompt.text if self._prompt.text != self._edited.text else ""
        return "\n\n".join(text for text in (self._draft, edit) if text)

    @work
    async def _read_draft(self) -> None:
        if self._unsent.kept[1]:
            await self.attachments.restore(self._unsent.read_images)
        self._draft_is_read = True
        self.set_interval(DRAFT_EVERY_S, self._keep_draft)

    def _keep_draft(self) -> None:
        draft = self._typed, self.attachments.items
        if draft != self._unsent.kept and not self.editing.locked():  # else it is in the editor
            self.run_worker(asyncio.to_thread(self._unsent.keep, *draft), group="draft", exclusive=True)

    def close_draft(self) -> None:
        """Keep what is in the prompt for the next start."""
        images = self.attachments.items if self._draft_is_read else self._unsent.kept[1]
        self._unsent.close(self._typed, images)

    @work(exclusive=True, group="load")
    async def _show_load(self) -> None:
        if self._telemetry.is_wide:
            load, figures = await self.load()
            self._telemetry.show_load(load, figures)

    async def load(self) -> tuple[MachineLoad, EngineFigures | None]:
        """What the machine and the engine carry now."""
        engine, model = self.controller.loader.engine, self.controller.loader.model
        load = await asyncio.to_thread(self._machine.sample, gpu=model is not None and model.device == "cuda")
        return load, engine.figures if engine else None

    # What the controller tells

    async def handle(self, event: ControllerEvent) -> None:
        match event:
            case ConversationShown(conversation):
                self._header.show_title(conversation.title)
                self._end_edit()
                await self._transcript.show(conversation)
                await self._refresh_sidebar()
                self._show_idle()
            case BranchShown(conversation):
                await self._transcript.show_branch(conversation)
                self._show_idle()
                if self.controller.last_reply and self.controller.last_reply.status == "streaming":
                    self._telemetry.show("Waiting for the engine")
            case TitleChanged(title):
                self._header.show_title(title)
                await self._refresh_sidebar()
            case TurnAdded(turn):
                self._header.show_title(self.controller.conversation.title)
                await self._transcript.add(turn)
                if turn.role == "assistant" and self.controller.loader.loading:
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
                    await self._refresh_sidebar()
                    self._show_idle()
            case PromptRead(done, total, rate):
                self._telemetry.show_prefill(done, total, rate)
            case PromptReturned(text, None, images):
                self._give_back(text, images)
            case PromptReturned(text, Turn() as edited):
                self._begin_edit(edited, text)
            case PromptsKnown(texts):
                self._prompt.remember(texts)
            case QueueChanged(messages, paused):
                self._prompt.queued = bool(messages)
                self._queue.show(messages, paused)
            case ModelOffered(name):
                text = Content(f"This chat was with {one_line(name or '')}   ")
                self._offer.update(text + offer("use it again", "use_own_model"))
                self._offer.set_class(name is not None, "-shown")
            case ContextUsed(used, limit):
                self._meter_label.show(used, limit)
                self._meter.show(used, limit)
                self._meter.tooltip = self._what_goes_first() if used >= NEARLY_FULL * limit else None
            case ContextFull():
                self._ask_what_to_leave_out(event)
            case TurnsLeftOut():
                await self._transcript.show_left_out()
            case ModelLoading(name, done, total, text):
                self._without_model = False
                self._header.show_model(None)
                self._telemetry.show_loading(name, text, done, total)
            case ModelReady(_, info):
                self._without_model = False
                self._header.show_model(info)
                self._show_load()
                await self._show_attachments()
                if not self.controller.replying:
                    self._show_idle()
            case ModelFailed() | ModelGone():
                self._without_model = True
                self._header.show_model(None)
                await self._show_attachments()
                self._show_idle()

    def _what_goes_first(self) -> str:
        """Which turns can be left out when the context is full."""
        read = self.controller.conversation.read_turns
        questions = [turn.label for turn in read if turn.role == "user"][:-1]
        first = f" First in line: {quoted(questions)}." if questions else ""
        return f"When the context is full, you choose what the model no longer reads.{first}"

    @work
    async def _ask_what_to_leave_out(self, full: ContextFull) -> None:
        controller, prompt = self.controller, full.prompt
        model = one_line(controller.loader.name or "the model")
        choice = await self.app.push_screen_wait(
            ContextFullScreen(full.overflow, model, message=prompt is not None)
        )
        if choice == "shorten":
            return
        if choice == "new":
            await controller.new_conversation()
        else:
            await controller.leave_out(full.overflow.left_out)
        if prompt is not None:
            await self._send(prompt.text, prompt.edited.images if prompt.edited else prompt.images)
        elif choice == "leave_out" and full.question is not None:
            await controller.regenerate(full.question)
        elif choice == "leave_out":
            await (controller.continue_reply() if controller.can_continue else controller.regenerate())

    def _show_idle(self) -> None:
        """Nothing goes on: the last reply's figures, or what the user can do."""
        reply = self.controller.last_reply
        if self._without_model:
            key = keymap.key("app.models")
            self._telemetry.show(f"No model is loaded · {key} to choose one", "$text-warning")
        elif reply is not None and reply.figures is not None:
            self._telemetry.show_usage(reply.figures)
        elif self.controller.loader.model is not None:
            self._telemetry.show("Ready")
        elif not self.controller.loader.loading:
            self._telemetry.show("Starting")

    # What the user does

    @on(TextArea.Changed)
    def _count_draft(self) -> None:
        self._commands.look_up(self._prompt.text)
        self.controller.set_draft(self._prompt.text, self.attachments.items)

    @on(PromptInput.Submitted)
    async def _submit(self, event: PromptInput.Submitted) -> None:
        images = self.attachments.items
        if self._attach_instead(event.text):
            return
        if not event.text and not images:
            await self.controller.resume_queue()
        elif action := slash_command(event.text):
            self._prompt.text = ""
            await self.run_action(action)
        elif wrong := no_command(event.text):
            self.notify(wrong, severity="warning", markup=False)
        elif self._edited is not None and self.controller.replying:
            self.notify(STILL_WRITING, severity="warning")
        elif self._edited is not None or not self._still_reading():
            await self._send(event.text, images)

    def _completions(self, text: str) -> list[Completion]:
        controller = self.controller
        return completions(text, controller.settings, controller.own_settings, controller.loader.described)

    @on(OptionList.OptionSelected, "#commands")
    def _completion_clicked(self, event: OptionList.OptionSelected) -> None:
        self._prompt.focus()
        self._prompt.take(self._commands.completed(event.option_index).chosen)

    async def _send(self, text: str, images: tuple[Attachment, ...]) -> None:
        """Send what is in the prompt: a message, or the new version of a turn, whose images stay its own."""
        self._prompt.sent(text)
        if edited := self._edited:
            self._end_edit()
            await self.controller.edit(edited, text)
        else:
            self.attachments.put(*(item for item in self.attachments.items if item not in images))
            await self.controller.send(text, images)

    # Images

    @property
    def asked_model(self) -> ModelInfo | None:
        return self.controller.loader.model

    async def _show_attachments(self) -> None:
        await super()._show_attachments()
        self._count_draft()

    # Keys and commands

    async def action_cancel(self) -> None:
        if self._edited is not None:
            self._end_edit()
        elif self.controller.replying or self.controller.titling:
            await self.controller.cancel()
        else:
            self.controller.loader.cancel()

    async def action_continue_reply(self) -> None:
        if self.controller.can_continue:
            await self.controller.continue_reply()
        else:
            self.notify("There is no reply that was cut off.")

    @work  # as a worker: the link that was clicked may be removed meanwhile, and must not wait for that
    async def action_regenerate(self) -> None:
        selected = self._transcript.selected
        self._prompt.focus()
        await self.controller.regenerate(selected)

    @work(group="dialog", exclusive=True)
    async def action_tokens(self) -> None:
        """How likely a reply's tokens were; another one in the place of one begins a reply beside it."""
        turn = self._transcript.selected or self._last("assistant")
        if turn is None or turn.role != "assistant" or turn.status == "streaming" or not turn.has_begun:
            self.notify("There is no finished reply to show the tokens of.")
        elif ids := await self.app.push_screen_wait(TokensScreen(self.controller, turn)):
            self._prompt.focus()
            await self.controller.regenerate(turn, ids)

    # The prompt

    @on(PromptInput.QueueWanted)
    async def _take_last(self) -> None:
        await self.action_edit_queued(-1)

    async def action_edit_queued(self, number: int) -> None:
        if message := await self.controller.unqueue(number):
            self._give_back(message.text, message.images)
            self._prompt.focus()

    async def action_drop_queued(self, number: int) -> None:
        await self.controller.unqueue(number)

    async def action_resume_queue(self) -> None:
        await self.controller.resume_queue()

    @work
    async def action_editor(self) -> None:
        """The chat goes on meanwhile; what has come is on the screen when the editor is closed."""
        async with self.editing:
            text, problem = self._prompt.text, ""
            self._prompt.show("")  # what is handed back meanwhile goes behind what comes from the editor
            try:
                with self.app.suspend():
                    try:  # in here: after an error Textual 8.2 would not take the terminal back
                        text = await asyncio.to_thread(editor.edit, text)
                    except UserError as error:
                        problem = str(error)
            except SuspendNotSupported:
                problem = "This terminal cannot be lent to an editor."
            self._prompt.give_back(text)
            if problem:
                self.notify(problem, severity="error", markup=False)

    # Turns

    @on(events.DescendantFocus, "#prompt")
    def action_leave_turns(self) -> None:
        """Back to the prompt: no turn is selected any more."""
        if self._transcript.selected is not None:
            self._transcript.deselect()
            self._prompt.focus()

    async def action_select_turn(self, step: int) -> None:
        if not await self._transcript.select_step(step):
            self.action_leave_turns()

    @work  # see action_regenerate
    async def action_switch_branch(self, turn_id: str, step: int) -> None:
        """Also clicked, at a turn that need not be selected; the other one then is as this one was."""
        if turn := next((turn for turn in self.controller.conversation.turns if turn.id == turn_id), None):
            selected = self._transcript.selected
            other = await self.controller.switch_branch(turn, step)
            if selected is not None:
                await self._transcript.select(other)

    def action_other_branch(self, step: int) -> None:
        turns, selected = self.controller.conversation.turns, self._transcript.selected
        forks = (turn for turn in reversed(turns) if len(self.controller.conversation.siblings(turn)) > 1)
        if turn := selected or next(forks, None):
            self.action_switch_branch(turn.id, step)
        else:
            self.notify("There is only one branch: edit a turn, or try again, to begin another.")

    def action_edit_turn(self) -> None:
        if turn := self._transcript.selected or self._last("user"):
            self._begin_edit(turn, turn.text)

    def _begin_edit(self, turn: Turn, text: str) -> None:
        if self._edited is None:
            self._draft = self._prompt.text
        self._edited = turn
        self._prompt.begin_edit(text, "message" if turn.role == "user" else "reply")
        self._prompt.focus()

    def _end_edit(self) -> None:
        if self._edited is not None:
            self._edited = None
            self._prompt.end_edit(self._draft)

    def action_copy_turn(self) -> None:
        if turn := self._transcript.selected or self._last("assistant"):
            self._copy(turn.text, "The message" if turn.role == "user" else "The reply")

    @work(group="dialog", exclusive=True)
    async def action_copy_code(self) -> None:
        turn = self._transcript.selected or self._last("assistant")
        blocks = code_blocks(turn.text) if turn else []
        if not blocks:
            self.notify("There is no code block in it.")
            return
        code = blocks[0] if len(blocks) == 1 else await self.app.push_screen_wait(CodeBlocksScreen(blocks))
        if code is not None:
            self._copy(code, "The code")

    def _copy(self, text: str, what: str) -> None:
        self.app.copy_to_clipboard(inert(text))
        self.notify(f"{what} is copied: {len(text):,} characters.")

    def _last(self, role: Role) -> Turn | None:
        turns = reversed(self.controller.conversation.turns)
        return next((turn for turn in turns if turn.role == role), None)

    async def action_sidebar(self) -> None:
        """Show the list of chats beside this one, or hide it; where there is no room it is a dialog."""
        if not self.has_class("-wide"):
            await self.app.run_action("conversations")
        elif self.toggle_class("-sidebar").has_class("-sidebar"):
            await self._sidebar.enter()
        else:
            self._prompt.focus()

    @on(ChatList.Left)
    def _sidebar_left(self) -> None:
        self._prompt.focus()

    @on(ChatList.Chosen)
    async def _sidebar_chose(self, event: ChatList.Chosen) -> None:
        await self.open_conversation(event.conversation_id, event.turn_id)
        if event.turn_id is None:
            self._prompt.focus()

    async def _refresh_sidebar(self) -> None:
        if self._sidebar.display:
            await self._sidebar.fill()

    async def open_conversation(self, conversation_id: str, turn_id: str | None) -> None:
        """Show a conversation, with that turn selected."""
        turn = await self.controller.open_conversation(conversation_id, turn_id)
        if turn is not None:
            await self._transcript.select(turn)

    async def action_override(self, text: str = "") -> None:
        await self.controller.override(text)

    async def action_system_prompt(self, text: str = "") -> None:
        if text:
            await self.controller.set_system_prompt(text)
        else:
            self._prompt.show(f"/system {self.controller.conversation.system_prompt}")

    async def action_use_own_model(self) -> None:
        await self.controller.use_own_model()

    async def action_export(self, path: str = "") -> None:
        await self.controller.export_conversation(Path(path) if path else None)

    async def action_import(self, path: str = "") -> None:
        if path:
            await self.controller.import_conversations(Path(path))
        else:
            self._prompt.show("/import ")

    @work
    async def action_retitle(self) -> None:
        await self.controller.retitle()

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
