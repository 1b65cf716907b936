"""The conversation and the model in use, without any widget: what the user can do, and what comes of it.

The controller talks to the engine's thread and to the database, and tells the screen what happened through
one callback. All of it runs on the event loop; only the engine's sink is called from elsewhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

from ..engine.events import (
    Event,
    Failed,
    Finished,
    Loaded,
    LoadFailed,
    LoadProgress,
    ModelInfo,
    PrefillProgress,
    Queued,
    Scored,
    TextDelta,
    Thinking,
    ThinkingDelta,
)
from ..engine.request import GenerationRequest, Message, ScoreRequest
from ..models.errors import UserError
from .attachments import Attachment, images_of
from .database import Conversation, Database, Status, Summary, Turn
from .incoming import title_of

if TYPE_CHECKING:  # the engine's thread imports torch, which takes seconds: the screen must be up before
    from ..engine.thread import EngineThread
    from .settings import Settings

log = logging.getLogger(__name__)
T = TypeVar("T")

TELL_EVERY_S = 0.1
SAVE_EVERY_S = 1.0
COUNT_AFTER_S = 0.2
CLOSE_TIMEOUT_S = 5.0
_STATUS: dict[str, Status] = {"stop": "complete", "length": "length", "cancelled": "stopped"}
INTERNAL_ERROR = "Something went wrong in the program itself; the log file has the details."


@dataclass(frozen=True)
class ConversationShown:
    """Another conversation is the current one: show all of it."""

    conversation: Conversation


@dataclass(frozen=True)
class TurnAdded:
    turn: Turn


@dataclass(frozen=True)
class TurnChanged:
    """The turn's text, status or figures are others than before; show it anew."""

    turn: Turn


@dataclass(frozen=True)
class TurnRemoved:
    turn: Turn


@dataclass(frozen=True)
class PromptRead:
    """The model is reading the prompt: `done` of `total` tokens."""

    done: int
    total: int


@dataclass(frozen=True)
class ThinkingAdded:
    """The model thinks: the turn's `thinking` has grown; the figures are the engine's."""

    turn: Turn
    completion_tokens: int
    tokens_per_s: float


@dataclass(frozen=True)
class TextAdded:
    """The reply goes on: `text` was added to the turn; the figures are the engine's."""

    turn: Turn
    text: str
    completion_tokens: int
    tokens_per_s: float


@dataclass(frozen=True)
class PromptReturned:
    """What was sent could not be started: it belongs back in the input."""

    text: str
    images: tuple[Attachment, ...] = ()


@dataclass(frozen=True)
class CannotSee:
    """The model `name` reads text only and was not asked: the message has images."""

    name: str


@dataclass(frozen=True)
class ModelLoading:
    name: str
    done: int
    total: int
    text: str


@dataclass(frozen=True)
class ModelReady:
    """`name` is that of the model's directory; `info.name` is what the model was called when converted."""

    name: str
    info: ModelInfo


@dataclass(frozen=True)
class ModelFailed:
    name: str
    message: str


@dataclass(frozen=True)
class ModelGone:
    """No model is loaded any more, or none yet."""


@dataclass(frozen=True)
class ContextUsed:
    """`used` of `limit` tokens of the context, the draft in the input included."""

    used: int
    limit: int


@dataclass(frozen=True)
class Told:
    """Something the user should know."""

    text: str
    severity: Literal["information", "warning", "error"] = "warning"


ControllerEvent = (
    ConversationShown
    | TurnAdded
    | TurnChanged
    | TurnRemoved
    | PromptRead
    | ThinkingAdded
    | TextAdded
    | PromptReturned
    | CannotSee
    | ModelLoading
    | ModelReady
    | ModelFailed
    | ModelGone
    | ContextUsed
    | Told
)
Listener = Callable[[ControllerEvent], Awaitable[None]]


class Inbox:
    """Hands the events of the engine's thread over to the event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._events: list[Event] = []
        self._any = asyncio.Event()
        self._last = asyncio.Event()

    def sink(self, event: Event) -> None:
        """Called on the engine's thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: the app is gone
            self._loop.call_soon_threadsafe(self._receive, event)

    def _receive(self, event: Event) -> None:
        self._events.append(event)
        self._any.set()
        if isinstance(event, Finished | Failed | Scored | Loaded | LoadFailed):
            self._last.set()

    async def batches(self) -> AsyncIterator[list[Event]]:
        """What has come in, the first at once and then at most every TELL_EVERY_S, up to the last event."""
        while True:
            await self._any.wait()
            self._any.clear()
            events, self._events = self._events, []
            yield events
            if self._last.is_set() and not self._events:
                return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._last.wait(), TELL_EVERY_S)


class Controller:
    """One conversation at a time; `tell` is awaited with each event, in order. `start` comes first."""

    database: Database

    def __init__(
        self,
        settings: Settings,
        models_dir: Path,
        create_engine: Callable[[], EngineThread],
        tell: Listener,
    ) -> None:
        self.settings = settings
        self.models_dir = models_dir
        self.engine: EngineThread | None = None
        self.conversation = Conversation(system_prompt=settings.system_prompt)
        self._create_engine = create_engine
        self._starting: asyncio.Task[EngineThread] | None = None
        self._listener = tell
        self._reply: asyncio.Task[None] | None = None
        self._stop = asyncio.Event()
        self._request_id: int | None = None
        self.model_name: str | None = None
        """The directory of the model that was loaded last."""
        self._load: asyncio.Task[None] | None = None
        self._settled = asyncio.Event()
        """Set while it is known which model there is, if any: neither at the start nor during a load."""
        self._count: asyncio.Task[None] | None = None
        self._draft = Message("user", "")
        self._saving_failed = False
        self._open = False

    # State

    @property
    def model(self) -> ModelInfo | None:
        return self.engine.model if self.engine else None

    @property
    def replying(self) -> bool:
        """A reply is being written, or waits for the model."""
        return self._reply is not None and not self._reply.done()

    @property
    def loading(self) -> bool:
        """A model is being loaded, or the app has yet to find out which."""
        return not self._settled.is_set()

    @property
    def last_reply(self) -> Turn | None:
        """The reply at the end of the conversation, if that is where it ends."""
        turns = self.conversation.turns
        return turns[-1] if turns and turns[-1].role == "assistant" else None

    @property
    def can_continue(self) -> bool:
        """Whether the last reply was cut off and has a part to go on from."""
        reply = self.last_reply
        return bool(
            not self.replying and reply and reply.has_begun and reply.status in ("stopped", "length", "error")
        )

    # Start and end

    async def start(self, database: Database) -> None:
        """Use this database, and show the conversation that a crash cut off, or an empty one."""
        self.database = database
        self._open = True
        with contextlib.suppress(_Told):
            if interrupted := await self._attempt(self.database.recover()):
                self.conversation = await self._attempt(self.database.load(interrupted))
                await self._tell(
                    Told("The last reply was cut off when the program ended: you can continue it.")
                )
        await self._tell_shown()

    async def start_engine(self) -> EngineThread:
        """The engine, brought up on first use; that takes seconds and happens on another thread."""
        if self._starting is None:
            self._starting = asyncio.create_task(asyncio.to_thread(self._create_engine))
        self.engine = engine = await asyncio.shield(self._starting)
        return engine

    async def close(self) -> None:
        """Stop the reply, save what there is of it, close the database. The engine is left to the caller."""
        if not self._open:
            return
        self._open = False
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.cancel(), CLOSE_TIMEOUT_S)
        if self.engine and self.loading:
            self.engine.cancel_load()
        tasks = [task for task in (self._reply, self._load, self._count) if task and not task.done()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.database.close()

    # The model

    async def load_model(self, name: str) -> None:
        """Load a converted model; returns at once, ModelReady or ModelFailed tells the outcome."""
        await self.free_engine()
        if self._load is not None and not self._load.done():
            self._load.cancel()
            if self.engine:
                self.engine.cancel_load()
        self._settled.clear()
        self._load = asyncio.create_task(self._load_model(name))

    async def _load_model(self, name: str) -> None:
        await self._tell(ModelLoading(name, 0, 0, "Starting the engine"))
        try:
            engine = await self.start_engine()
            from ..engine.thread import LoadOptions  # now that torch is there, this is quick

            inbox = Inbox()
            options = LoadOptions(self.models_dir / name, self.settings.device, self.settings.dtype)
            engine.load(options, inbox.sink)
            async for events in inbox.batches():
                match events[-1]:
                    case LoadProgress(done, total, text):
                        await self._tell(ModelLoading(name, done, total, text))
                    case Loaded():
                        await self.model_changed(name)
                    case LoadFailed(message):
                        self._settled.set()
                        await self._tell(ModelFailed(name, message))
        except Exception:
            log.exception("loading %s failed", name)
            self._settled.set()
            await self._tell(ModelFailed(name, INTERNAL_ERROR))

    async def free_engine(self) -> None:
        """Stop the reply that the engine is writing; one that waits for a model goes on waiting."""
        if self._request_id is not None:
            await self.cancel()

    async def model_changed(self, name: str | None) -> None:
        """The engine now has the model `name`, loaded here or by the wizard; None: whatever it has."""
        self.model_name = name or (self.model.name if self.model else None)
        self._settled.set()
        if self.model is None or self.model_name is None:
            await self._tell(ModelGone())
        else:
            await self._tell(ModelReady(self.model_name, self.model))
            self._count_soon()

    # Settings and draft

    def set_settings(self, settings: Settings) -> None:
        """Use other settings from the next reply on; a changed system prompt counts for this conversation."""
        if settings.system_prompt != self.settings.system_prompt:
            self.conversation.system_prompt = settings.system_prompt
        self.settings = settings
        self._count_soon()

    def set_draft(self, text: str, images: Sequence[Attachment] = ()) -> None:
        """What the input holds, counted with the conversation's tokens."""
        self._draft = Message("user", text, images=images_of(images))
        self._count_soon()

    # The list of conversations

    async def new_conversation(self) -> None:
        await self._show(Conversation(system_prompt=self.settings.system_prompt))

    async def open_conversation(self, conversation_id: str) -> None:
        await self.cancel()  # first, so that what is loaded is complete
        with contextlib.suppress(_Told):
            await self._show(await self._attempt(self.database.load(conversation_id)))

    async def summaries(self) -> list[Summary]:
        """All saved conversations, newest first; none when they cannot be read."""
        with contextlib.suppress(_Told):
            return await self._attempt(self.database.summaries())
        return []

    async def rename_conversation(self, conversation_id: str, title: str) -> None:
        title = title_of(title)
        if conversation_id == self.conversation.id:
            self.conversation.title = title
        with contextlib.suppress(_Told):
            await self._attempt(self.database.rename(conversation_id, title))

    async def delete_conversation(self, conversation_id: str) -> None:
        if conversation_id == self.conversation.id:
            await self.new_conversation()
        with contextlib.suppress(_Told):
            await self._attempt(self.database.delete(conversation_id))

    async def _show(self, conversation: Conversation) -> None:
        await self.cancel()
        self.conversation = conversation
        await self._tell_shown()
        self._count_soon()

    async def _tell_shown(self) -> None:
        await self._tell(ConversationShown(self.conversation))
        images = [image for turn in self.conversation.turns for image in turn.images]
        if gone := ", ".join(image.name for image in images if image.image is None):
            await self._tell(Told(f"The conversation goes on without images whose copies are gone: {gone}."))

    # Replies

    async def send(self, text: str, images: tuple[Attachment, ...] = ()) -> None:
        """Add the user's turn and start the reply to it; while a model is loading, the reply waits."""
        refusal = None
        if self.replying:
            refusal = "The last reply is still being written: wait, or stop it with Esc."
        elif self.model is None and not self.loading:
            refusal = "No model is loaded: choose one with F3."
        if refusal:
            await self._tell(Told(refusal))
            await self._tell(PromptReturned(text, images))
            return
        if not self.conversation.turns:
            self.conversation.title = title_of(text or images[0].name)
        user, reply = Turn("user", text, images=images), Turn("assistant", "", "streaming")
        for turn in (user, reply):
            self.conversation.turns.append(turn)
            await self._tell(TurnAdded(turn))
        self._start(reply, before=None)

    async def continue_reply(self) -> None:
        """Let the last reply go on where it was cut off."""
        reply = self.last_reply
        if reply is not None and self.can_continue:
            await self._restart(reply, keep=True)

    async def regenerate(self) -> None:
        """Write the last reply again, also after an error."""
        reply = self.last_reply
        if reply is not None and not self.replying:
            await self._restart(reply, keep=False)

    async def score(self, turn: Turn) -> AsyncIterator[Event]:
        """Have the model read a reply again: PrefillProgress, and at the end Scored or Failed."""
        if self.engine is None:
            yield Failed(0, "No model is loaded: choose one with F3.", "")
            return
        turns = self.conversation.turns
        reply = Message("assistant", turn.text, turn.thinking.text)
        before = self._messages(turns[: turns.index(turn)])
        inbox = Inbox()
        request_id = self.engine.score(ScoreRequest((*before, reply), turn.token_ids), inbox.sink)
        try:
            async for events in inbox.batches():
                for event in events:
                    yield event
        finally:  # also when nobody wants to know any more
            self.engine.cancel(request_id)

    async def resample(self, turn: Turn, token_ids: tuple[int, ...]) -> None:
        """Write the last reply anew, beginning with these tokens of the model's."""
        if turn is self.last_reply and not self.replying:
            await self._restart(turn, keep=False, begin=token_ids)

    async def cancel(self) -> None:
        """Stop the reply being written, if any; returns when what there is of it is saved."""
        if self._reply is not None and not self._reply.done():
            self._stop.set()
            if self.engine and self._request_id is not None:
                self.engine.cancel(self._request_id)
            await asyncio.wait([self._reply])

    async def _restart(self, reply: Turn, *, keep: bool, begin: tuple[int, ...] = ()) -> None:
        if self.model is None and not self.loading:
            await self._tell(Told("No model is loaded: choose one with F3."))
            return
        before = replace(reply)
        reply.status, reply.note = "streaming", ""
        if not keep:
            reply.text, reply.thinking, reply.figures, reply.token_ids = "", Thinking(), None, begin
        await self._tell(TurnChanged(reply))
        self._start(reply, before)

    def _start(self, reply: Turn, before: Turn | None) -> None:
        """`before` is the reply as it was; None for a new one, whose prompt goes back if it is refused."""
        self._stop.clear()
        self._reply = asyncio.create_task(self._write(reply, before))

    async def _write(self, reply: Turn, before: Turn | None) -> None:
        """One reply from start to end. Whatever happens, it ends with a final status, saved and told."""
        conversation = self.conversation
        # The user's turn is on disk before anything can go wrong, and again with the outcome.
        exchange = conversation.turns[-2:]
        try:
            await self._save(conversation, exchange)
            await self._model_loaded()
            if self._stop.is_set():
                reply.status = "stopped"
            elif self.engine is None or self.model is None:
                raise _Refused(Told("The model could not be loaded: choose another with F3.", "error"))
            elif exchange[0].images and not self.model.sees_images:
                raise _Refused(CannotSee(self.model.name))
            else:
                await self._tell_unseen(conversation, self.model)
                conversation.model = self.model.name
                params = self.settings.sampling_params(self.model.defaults)
                conversation.settings = asdict(params)
                begun = [Message("assistant", reply.text, reply.thinking.text)] if reply.has_begun else []
                request = GenerationRequest(
                    (*self._messages(conversation.turns[:-1]), *begun),
                    params,
                    continue_last=bool(begun),
                    begin=() if begun else reply.token_ids,
                    thinking=self.settings.think,
                )
                inbox = Inbox()
                self._request_id = self.engine.submit(request, inbox.sink)
                if self._stop.is_set():
                    self.engine.cancel(self._request_id)
                await self._follow(inbox, conversation, reply)
        except _Refused as refused:
            await self._take_back(conversation, reply, before, refused.why)
            self._count_soon()
            return
        except asyncio.CancelledError:  # the app is closing and the engine did not answer in time
            reply.status = "stopped"
        except Exception:
            log.exception("the reply failed")
            reply.status, reply.note = "error", INTERNAL_ERROR
        finally:
            self._request_id = None
        await self._save(conversation, exchange)
        await self._tell(TurnChanged(reply))
        self._count_soon()

    async def _model_loaded(self) -> None:
        """Wait until no model is loading, or the reply is stopped."""
        if self.loading:
            waits = {asyncio.create_task(event.wait()) for event in (self._settled, self._stop)}
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            for wait in waits:
                wait.cancel()

    async def _follow(self, inbox: Inbox, conversation: Conversation, reply: Turn) -> None:
        """Take the engine's events until the reply ends. Raises _Refused when it does not even begin."""
        start, thinking, prompt_tokens, saved_at = replace(reply), Thinking(), None, time.monotonic()
        limit = self.model.max_context if self.model else 0
        async for events in inbox.batches():
            text, thought, last = "", thinking.text, None
            for event in events:
                match event:
                    case Queued(prompt_tokens=prompt_tokens):
                        await self._tell(ContextUsed(prompt_tokens, limit))
                    case PrefillProgress(done=done, total=total):
                        await self._tell(PromptRead(done, total))
                    case ThinkingDelta():
                        so_far, last = thinking.text + event.text, event
                        thinking = Thinking(so_far, event.thinking_tokens, event.thinking_s)
                    case TextDelta():
                        text, last = text + event.text, event
                    case Finished():
                        _finish(reply, start, event, limit)
                    case Failed(message=message) if prompt_tokens is None:
                        raise _Refused(Told(message, "error"))
                    case Failed():
                        _take(reply, start, event)
                        reply.status, reply.note = "error", event.message
            if reply.status != "streaming":
                return
            if last is not None:
                rate = last.decode_tokens_per_s
                if thinking.text != thought:
                    reply.thinking = start.thinking + thinking
                    await self._tell(ThinkingAdded(reply, last.completion_tokens, rate))
                if text:
                    reply.text += text
                    await self._tell(TextAdded(reply, text, last.completion_tokens, rate))
                await self._tell(ContextUsed((prompt_tokens or 0) + last.completion_tokens, limit))
            if time.monotonic() - saved_at >= SAVE_EVERY_S:
                await self._save(conversation, [reply])
                saved_at = time.monotonic()

    async def _tell_unseen(self, conversation: Conversation, model: ModelInfo) -> None:
        """Earlier turns may have images for a model that was there before."""
        if not model.sees_images and any(turn.images for turn in conversation.turns):
            await self._tell(
                Told(f"{model.name} reads text only: it answers without this conversation's images.")
            )

    async def _take_back(
        self, conversation: Conversation, reply: Turn, before: Turn | None, why: Told | CannotSee
    ) -> None:
        """The request was refused: leave everything as it was before it."""
        await self._tell(why)
        if before is not None:
            reply.text, reply.thinking, reply.figures = before.text, before.thinking, before.figures
            reply.status, reply.note, reply.token_ids = before.status, before.note, before.token_ids
            await self._save(conversation, [reply])
            await self._tell(TurnChanged(reply))
            return
        exchange = conversation.turns[-2:]
        del conversation.turns[-2:]
        for turn in reversed(exchange):
            await self._tell(TurnRemoved(turn))
        await self._tell(PromptReturned(exchange[0].text, exchange[0].images))
        with contextlib.suppress(_Told):
            await self._attempt(self.database.remove_turns(conversation, exchange))

    def _messages(self, turns: Sequence[Turn]) -> tuple[Message, ...]:
        """The conversation for the engine: of replies the answers, and none of those that came to none.

        Images are left out for a model that reads text only.
        """
        system_prompt = self.conversation.system_prompt
        system = [Message("system", system_prompt)] if system_prompt.strip() else []
        sees = self.model is not None and self.model.sees_images
        said = [
            Message(turn.role, turn.text, images=images_of(turn.images) if sees else ()) for turn in turns
        ]
        return (*system, *(message for message in said if message.content or message.images))

    # Tokens

    def _count_soon(self) -> None:
        if self._count is not None:
            self._count.cancel()
        self._count = asyncio.create_task(self._count_tokens())

    async def _count_tokens(self) -> None:
        await asyncio.sleep(COUNT_AFTER_S)  # until the typing pauses
        if self.replying or self.engine is None or self.model is None:
            return
        images = self._draft.images if self.model.sees_images else ()
        draft = (replace(self._draft, images=images),) if self._draft.content.strip() or images else ()
        used, limit = 0, self.model.max_context
        if self.conversation.turns or draft:
            messages = (*self._messages(self.conversation.turns), *draft)
            try:
                used = await asyncio.to_thread(self.engine.count_tokens, messages)
            except UserError:  # sending it will say what is wrong
                return
        if not self.replying:
            await self._tell(ContextUsed(used, limit))

    # Saving and telling

    async def _save(self, conversation: Conversation, turns: Sequence[Turn]) -> None:
        """Save; a failure is told once, and what it left out is saved as soon as that works again."""
        try:
            await self.database.save(conversation, conversation.turns if self._saving_failed else turns)
            self._saving_failed = False
        except UserError as error:
            if not self._saving_failed:
                await self._tell(Told(f"The conversation is not saved. {error}", "error"))
            self._saving_failed = True

    async def _attempt(self, action: Awaitable[T]) -> T:
        """The action's result; a UserError is told, and _Told raised in its place."""
        try:
            return await action
        except UserError as error:
            await self._tell(Told(str(error), "error"))
            raise _Told from None

    async def _tell(self, event: ControllerEvent) -> None:
        try:
            await self._listener(event)
        except Exception:  # what cannot be shown is still to be generated and saved
            log.exception("showing %s failed", type(event).__name__)


class _Told(Exception):
    """The user knows already; there is nothing to go on with."""


class _Refused(Exception):
    """The request was not started; `why` is what to tell of it."""

    def __init__(self, why: Told | CannotSee) -> None:
        self.why = why


def _take(reply: Turn, start: Turn, event: Finished | Failed) -> None:
    """Set the reply to what it was at the start and what the engine has added."""
    reply.text = start.text + event.text
    reply.thinking = start.thinking + event.thinking
    if isinstance(event, Finished) and (start.token_ids or not start.has_begun):
        reply.token_ids = start.token_ids + event.token_ids
    else:
        reply.token_ids = ()


def _finish(reply: Turn, start: Turn, event: Finished, limit: int) -> None:
    _take(reply, start, event)
    reply.status = _STATUS[event.reason]
    reply.figures = usage = event.usage
    if event.reason == "length" and usage.prompt_tokens + usage.completion_tokens >= limit:
        reply.note = f"The context of {limit:,} tokens is full: start a new conversation to go on."
    elif event.reason == "length":
        reply.note = f"The reply reached its limit of {usage.completion_tokens:,} tokens."
