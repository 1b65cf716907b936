"""The conversation in use, without any widget: what the user can do, and what comes of it.

The controller talks to the engine's thread and to the database, and tells the screen what happened through
one callback; the model is in the hands of its loader. All of it runs on the event loop; only the engine's
sink is called from elsewhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..engine.events import Event, Failed, Finished, ModelInfo, Thinking
from ..engine.request import Message
from ..models.errors import UserError
from . import tree
from .archive import Archive
from .attachments import Attachment, images_of
from .conversation import Conversation, Turn
from .database import Database
from .events import (
    BranchShown,
    CannotSee,
    ContextFull,
    ControllerEvent,
    ConversationShown,
    Listener,
    ModelGone,
    ModelOffered,
    ModelReady,
    PromptReturned,
    PromptsKnown,
    QueueChanged,
    TitleChanged,
    Told,
    TurnAdded,
    TurnChanged,
    TurnsLeftOut,
)
from .incoming import title_of
from .loader import ModelLoader
from .log import INTERNAL_ERROR
from .meter import ContextMeter
from .overrides import parse
from .pace import Pace
from .replies import Inbox, Refused, follow
from .requests import reply_request, score_request
from .titles import title_from, title_request

if TYPE_CHECKING:  # the engine's thread imports torch, which takes seconds: the screen must be up before
    from ..engine.thread import EngineThread
    from .remote.endpoint import Endpoints
    from .settings import Settings

log = logging.getLogger(__name__)

CLOSE_TIMEOUT_S = 5.0
KNOWN_PROMPTS = 500
STILL_WRITING = "The last reply is still being written: wait, or stop it with /stop."
NO_MODEL = "No model is loaded: choose one with /model."


class Controller:
    """One conversation at a time; `tell` is awaited with each event, in order. `start` comes first."""

    archive: Archive

    def __init__(
        self,
        settings: Settings,
        models_dir: Path,
        create_engine: Callable[[], EngineThread],
        tell: Listener,
        endpoints: Endpoints,
    ) -> None:
        """`create_engine` makes the engine of this machine; `endpoints` are models that run elsewhere."""
        self.settings = settings
        self.conversation = Conversation(system_prompt=settings.system_prompt)
        self.loader = ModelLoader(models_dir, endpoints, create_engine, self._model_told)
        self._meter = ContextMeter(self.loader, lambda: self.replying, self._tell)
        self._listener = tell
        self._reply: asyncio.Task[None] | None = None
        self._stop = asyncio.Event()
        self._paused = False
        """The queue waits for the user, not for the end of a reply."""
        self._request_id: int | None = None
        """The reply that the engine is writing."""
        self._title_id: int | None = None
        """The title that the engine is writing."""
        self.pace = Pace()
        """Of the reply being written, or of the last one."""
        self._open = False

    # State

    @property
    def replying(self) -> bool:
        """A reply is being written, or waits for the model."""
        return self._reply is not None and not self._reply.done()

    @property
    def titling(self) -> bool:
        """The model is writing a title."""
        return self._title_id is not None

    @property
    def last_reply(self) -> Turn | None:
        """The reply at the end of the conversation, if that is where it ends."""
        leaf = self.conversation.leaf
        return leaf if leaf and leaf.role == "assistant" else None

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
        self.archive = Archive(database, self._tell)
        self._open = True
        async with self.archive.telling():
            if interrupted := await database.recover():
                self.conversation = await database.load(interrupted)
                await self._tell(
                    Told("The last reply was cut off when the program ended: you can continue it.")
                )
        self._paused = True
        await self._tell_shown()
        async with self.archive.telling():
            await database.purge()
            prompts = await database.prompts(KNOWN_PROMPTS)
            await self._tell(PromptsKnown(tuple(prompts)))

    async def _tell_shown(self) -> None:
        await self._tell(ConversationShown(self.conversation))
        shown = (*self.conversation.turns, *self.conversation.queue)
        images = [image for turn in shown for image in turn.images]
        if gone := ", ".join(image.name for image in images if image.image is None):
            await self._tell(Told(f"The conversation goes on without images whose copies are gone: {gone}."))
        await self._tell_queue()
        await self._offer_model()

    async def _offer_model(self) -> None:
        """Tell whether the conversation's own model is there, but another or none is loaded."""
        name = self.conversation.model
        other = bool(name) and not self.loader.loading and name != self.loader.name
        there = other and await asyncio.to_thread(self.loader.has, name)
        await self._tell(ModelOffered(name if there else None))

    async def use_own_model(self) -> None:
        """Load the model that the conversation was last with."""
        if self.conversation.model and self.conversation.model != self.loader.name:
            await self.load_model(self.conversation.model)

    async def idle(self) -> None:
        """Return when no reply is being written."""
        if self._reply is not None:
            await asyncio.wait([self._reply])

    async def close(self) -> None:
        """Stop the reply, save what there is of it, close the database; then comes `loader.close_engines`."""
        if not self._open:
            return
        self._open = False
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.cancel(), CLOSE_TIMEOUT_S)
        if self._reply is not None:
            self._reply.cancel()
            await asyncio.gather(self._reply, return_exceptions=True)
        await self.loader.close()
        await self._meter.close()
        await self.archive.database.close()

    # The model

    async def load_model(self, name: str) -> None:
        """Stop the reply that the engine is writing, and load another model; see ModelLoader.load."""
        await self.free_engine()
        self.loader.load(name, self.settings)

    async def unload(self) -> None:
        """Have no model loaded."""
        await self.free_engine()
        await self.loader.unload()

    async def model_renamed(self, name: str, new_name: str) -> None:
        """The directory `name` is called `new_name` now: conversations go on with it."""
        if self.conversation.model == name:
            self.conversation.model = new_name
        async with self.archive.telling() as database:
            await database.rename_model(name, new_name)
        await self.loader.renamed(name, new_name)

    async def free_engine(self) -> None:
        """Stop what the engine is writing; a reply that waits for a model goes on waiting."""
        if self._request_id is not None or self.titling:
            await self.cancel()

    async def _model_told(self, event: ControllerEvent) -> None:
        await self._tell(event)
        if isinstance(event, ModelReady):
            await self._offer_model()
            self._meter.count_soon(self.conversation)

    # Settings and draft

    def set_settings(self, settings: Settings) -> None:
        """Use other settings from the next reply on, in this conversation where it has none of its own."""
        if self.conversation.system_prompt == self.settings.system_prompt:
            self.conversation.system_prompt = settings.system_prompt
        self.settings = settings
        self._meter.count_soon(self.conversation)

    @property
    def own_settings(self) -> dict[str, Any]:
        """What this conversation has for itself, a system prompt included if it is another."""
        prompt = self.conversation.system_prompt
        own = {} if prompt == self.settings.system_prompt else {"system_prompt": prompt}
        return self.conversation.overrides | own

    async def use_own_settings(self, own: Mapping[str, Any]) -> None:
        """Take `own` in place of what this conversation has for itself; see `own_settings`."""
        if own != self.own_settings:
            overrides = dict(own)
            self.conversation.system_prompt = overrides.pop("system_prompt", self.settings.system_prompt)
            self.conversation.overrides = overrides
            await self._save_head()
            self._meter.count_soon(self.conversation)

    async def override(self, text: str) -> None:
        """Take a setting for this conversation alone, as `/set` is followed by; empty: tell those it has."""
        overrides = self.conversation.overrides
        if text:
            try:
                name, value = parse(text)
            except UserError as error:
                await self._tell(Told(str(error)))
                return
            overrides.pop(name, None)
            overrides |= {} if value is None else {name: value}
            await self._save_head()
        own = ", ".join(f"{name} {value}" for name, value in overrides.items())
        await self._tell(Told(f"In this chat: {own or 'as in the settings'}.", "information"))

    async def set_system_prompt(self, text: str) -> None:
        """Tell the model something else ahead of this conversation alone."""
        self.conversation.system_prompt = text
        await self._save_head()
        self._meter.count_soon(self.conversation)
        what = f"The system prompt of this chat is: {text}" if text else "This chat has no system prompt."
        await self._tell(Told(what, "information"))

    async def _save_head(self) -> None:
        if self.conversation.turns:  # else it is saved with its first turn
            await self.archive.save(self.conversation, [])

    def set_draft(self, text: str, images: Sequence[Attachment] = ()) -> None:
        """What the input holds, counted with the conversation's tokens."""
        self._meter.draft = Message("user", text, images=images_of(images))
        self._meter.count_soon(self.conversation)

    # The list of conversations

    async def new_conversation(self) -> None:
        await self._show(Conversation(system_prompt=self.settings.system_prompt))

    async def take_conversation(self, conversation: Conversation) -> None:
        """Show a conversation that was written elsewhere in the app, and save it."""
        await self.cancel()
        await self.archive.save(conversation, conversation.all_turns)
        await self._show(conversation)

    async def open_conversation(self, conversation_id: str, turn_id: str | None = None) -> Turn | None:
        """Show a conversation, in the branch of that turn; returns the turn, None if it is not there."""
        await self.cancel()  # first, so that what is loaded is complete
        async with self.archive.telling() as database:
            conversation = await database.load(conversation_id)
            turn = next((turn for turn in conversation.all_turns if turn.id == turn_id), None)
            if turn is not None and turn not in conversation.turns:
                conversation.show(tree.newest_leaf(conversation.all_turns, turn))
                await database.save_branch(conversation)
            await self._show(conversation)
            return turn
        return None

    async def export_conversation(self, path: Path | None) -> None:
        """Write the conversation to a new file; see Archive.write_file."""
        if self.conversation.turns:
            await self.archive.write_file(path, self.conversation)
        else:
            await self._tell(Told("There is nothing to export yet."))

    async def import_conversations(self, path: Path) -> None:
        """Add the conversations of an exported file, and show the first of them."""
        if imported := await self.archive.read_file(path):
            await self.open_conversation(imported[0].id)
            await self._tell(Told(f"Imported from {path}.", "information"))

    async def retitle(self) -> None:
        """Have the model write the conversation's title; `cancel` stops it."""
        conversation, engine = self.conversation, self.loader.engine
        if self.replying or self.titling or not conversation.turns:
            await self._tell(Told("A title needs a conversation, and a model that is idle."))
        elif await self._refuses():
            return
        elif engine is None:
            await self._tell(Told(NO_MODEL))
        else:
            inbox = Inbox()
            self._title_id = engine.submit(title_request(conversation.turns), inbox.sink)
            try:
                *_, events = [events async for events in inbox.batches()]
            finally:
                self._title_id = None
            match events[-1]:
                case Finished(reason="cancelled"):
                    await self._tell(Told("Stopped: the old title stays.", "information"))
                case Finished(text=text) if title := title_from(text):
                    await self.rename_conversation(conversation.id, title)
                case _:
                    await self._tell(Told("The model wrote no title: the old one stays."))

    async def rename_conversation(self, conversation_id: str, title: str) -> None:
        title = title_of(title)
        if conversation_id == self.conversation.id:
            self.conversation.title = title
            await self._tell(TitleChanged(title))
        async with self.archive.telling() as database:
            await database.rename(conversation_id, title)

    async def delete_conversation(self, conversation_id: str) -> None:
        if conversation_id == self.conversation.id:
            await self.new_conversation()
        async with self.archive.telling() as database:
            await database.delete(conversation_id)

    async def _show(self, conversation: Conversation) -> None:
        await self.cancel()
        self.conversation, self._paused = conversation, True
        await self._tell_shown()
        self._meter.count_soon(self.conversation)

    # Replies

    async def send(self, text: str, images: tuple[Attachment, ...] = ()) -> None:
        """Add the user's turn and start the reply to it; while a model is loading, the reply waits.

        While a reply is written the message is queued with its images, and sent after it.
        """
        if self.replying:
            self.conversation.queue.append(Turn("user", text, images=images))
            await self._queue_changed()
        elif await self._refuses():
            await self._tell(PromptReturned(text, images=images))
        else:
            self._paused = bool(self.conversation.queue)
            self._start(*await self._add_exchange(text, images))

    async def _add_exchange(self, text: str, images: tuple[Attachment, ...] = ()) -> tuple[Turn, _Undo]:
        """The user's turn and the reply that is to be written."""
        leaf = self.conversation.leaf
        user, reply = Turn("user", text, images=images), Turn("assistant", "", "streaming")
        if leaf is None:
            self.conversation.title = title_of(user.label)
        for turn in (user, reply):
            self.conversation.add(turn)
            await self._tell(TurnAdded(turn))
        return reply, _Undo(leaf=leaf, added=(user, reply), prompt=PromptReturned(text, images=images))

    async def _add_queued(self, queue: list[Turn]) -> tuple[Turn, _Undo]:
        """The same for the first message of the queue, which leaves it."""
        first = queue.pop(0)
        return await self._add_exchange(first.text, first.images)

    async def resume_queue(self) -> None:
        """Send what is queued, one message after the other."""
        if self.conversation.queue and not self.replying and not await self._refuses():
            self._paused = False
            self._start(*await self._add_queued(self.conversation.queue))
            await self._tell_queue()

    async def unqueue(self, number: int = -1) -> Turn | None:
        """Take a message, by default the last, out of the queue; None when it is gone already."""
        try:
            message = self.conversation.queue.pop(number)
        except IndexError:
            return None
        await self._queue_changed()
        return message

    async def _queue_changed(self) -> None:
        await self._tell_queue()
        await self.archive.save(self.conversation, [])

    async def _tell_queue(self) -> None:
        await self._tell(QueueChanged(tuple(self.conversation.queue), self._paused))

    async def continue_reply(self) -> None:
        """Let the last reply go on where it was cut off."""
        reply = self.last_reply
        if reply is not None and self.can_continue:
            await self._restart(reply, keep=True)

    async def regenerate(self, turn: Turn | None = None, begin: tuple[int, ...] = ()) -> None:
        """Answer anew, beside the reply `turn`, or to the message `turn`; without one, beside the last reply.

        `begin` are tokens of the model that the new reply begins with.
        A last reply of which nothing had come, after an error, is written again in its place.
        """
        turn = turn or self.last_reply
        if turn is None:
            return
        if turn is self.last_reply and not turn.has_begun and not self.replying:
            await self._restart(turn, keep=False)
        elif not await self._refuses():
            leaf = self.conversation.leaf
            self.conversation.cut(turn, keep=turn.role == "user")
            reply = Turn("assistant", "", "streaming", token_ids=begin)
            self.conversation.add(reply)
            await self._tell(BranchShown(self.conversation))
            self._start(reply, _Undo(leaf=leaf, added=(reply,)))

    async def score(self, turn: Turn) -> AsyncIterator[Event]:
        """Have the model read a reply again: PrefillProgress, and at the end Scored or Failed."""
        engine, model = self.loader.engine, self.loader.model
        if engine is None or model is None:
            yield Failed(0, NO_MODEL, "")
            return
        inbox = Inbox()
        request_id = engine.score(score_request(self.conversation, turn, model), inbox.sink)
        try:
            async for events in inbox.batches():
                for event in events:
                    yield event
        finally:  # also when nobody wants to know any more
            engine.cancel(request_id)

    async def edit(self, turn: Turn, text: str) -> None:
        """Put `text` beside a turn as another branch. A message is answered; a reply stands as it is."""
        answered = turn.role == "user"
        if await self._refuses(needs_model=answered):
            await self._tell(PromptReturned(text, turn))
            return
        conversation, leaf = self.conversation, self.conversation.leaf
        self.conversation.cut(turn, keep=False)
        edited = Turn(turn.role, text, images=turn.images)
        conversation.add(edited)
        if answered:
            reply = Turn("assistant", "", "streaming")
            conversation.add(reply)
            await self._tell(BranchShown(conversation))
            self._start(reply, _Undo(leaf=leaf, added=(edited, reply), prompt=PromptReturned(text, turn)))
        else:
            await self._tell(BranchShown(conversation))
            await self.archive.save(conversation, [edited])
            self._meter.count_soon(self.conversation)

    async def switch_branch(self, turn: Turn, step: int) -> Turn:
        """Show the branch through the sibling `step` places on; returns that, or `turn` if there is none."""
        siblings = self.conversation.siblings(turn)
        place = next(i for i, sibling in enumerate(siblings) if sibling.id == turn.id) + step
        if not 0 <= place < len(siblings):
            return turn
        if await self._refuses(needs_model=False):
            return turn
        self.conversation.show(tree.newest_leaf(self.conversation.all_turns, siblings[place]))
        await self._tell(BranchShown(self.conversation))
        self._meter.count_soon(self.conversation)
        async with self.archive.telling() as database:
            await database.save_branch(self.conversation)
        return siblings[place]

    async def _refuses(self, *, needs_model: bool = True) -> bool:
        """Whether no reply can be started now; tells why."""
        if self.replying:
            await self._tell(Told(STILL_WRITING))
        elif needs_model and self.loader.model is None and not self.loader.loading:
            await self._tell(Told(NO_MODEL))
        else:
            return False
        return True

    async def cancel(self) -> None:
        """Stop the reply or the title being written, if any; returns when what there is of a reply is saved.

        What is queued stays so until the user says otherwise.
        """
        self._paused = True
        for request_id in (self._request_id, self._title_id):
            if self.loader.engine and request_id is not None:
                self.loader.engine.cancel(request_id)
        if self.replying:
            self._stop.set()
            await self.idle()

    async def _restart(self, reply: Turn, *, keep: bool) -> None:
        if await self._refuses():
            return
        before = replace(reply)
        reply.status, reply.note = "streaming", ""
        if not keep:
            reply.text, reply.thinking, reply.figures, reply.token_ids = "", Thinking(), None, ()
        await self._tell(TurnChanged(reply))
        self._start(reply, _Undo(before=before))

    def _start(self, reply: Turn, undo: _Undo) -> None:
        self._stop.clear()
        self._reply = asyncio.create_task(self._write_all(reply, undo))

    async def _write_all(self, reply: Turn, undo: _Undo) -> None:
        """The reply, and those to what is queued. Stopped, failed or refused, the rest of the queue waits."""
        queue = self.conversation.queue
        await self._write(reply, undo)
        while queue and not self._paused and reply.status in ("complete", "length"):
            reply, undo = await self._add_queued(queue)
            await self._tell_queue()
            await self._write(reply, undo)
        if queue:
            self._paused = True
            await self._tell_queue()

    async def _write(self, reply: Turn, undo: _Undo) -> None:
        """One reply from start to end. Whatever happens, it ends with a final status, saved and told."""
        conversation = self.conversation
        # The user's turn is on disk before anything can go wrong, and again with the outcome.
        pair = conversation.turns[-2:]
        try:
            await self.archive.save(conversation, pair)
            await self.loader.settled(self._stop)
            engine, model = self.loader.engine, self.loader.model
            if self._stop.is_set():
                reply.status = "stopped"
            elif engine is None or model is None:
                raise Refused(Told("The model could not be loaded: choose another with /model.", "error"))
            elif pair[0].images and not model.sees_images:
                raise Refused(CannotSee(model.name))
            else:
                await self._tell_unseen(conversation, model)
                request, inbox = reply_request(conversation, reply, model, self.settings), Inbox()
                conversation.model, conversation.settings = model.name, asdict(request.params)
                self._request_id = engine.submit(request, inbox.sink)
                if self._stop.is_set():
                    engine.cancel(self._request_id)
                self.pace = Pace(time.monotonic())
                await follow(
                    inbox,
                    reply,
                    model.max_context,
                    self.pace,
                    self._tell,
                    partial(self.archive.save, conversation, [reply]),
                )
                if reply.figures is not None and reply.status != "error":
                    await self.loader.remember_speed(model.name, reply.figures)
        except Refused as refused:
            told = isinstance(refused.why, Told)
            overflow = await self._meter.overflow(conversation) if told else None
            await self._take_back(conversation, reply, undo, None if overflow else refused.why)
            if overflow:
                beside = pair[0] if undo.added == (reply,) else None
                await self._tell(ContextFull(overflow, undo.prompt, beside))
            self._meter.count_soon(self.conversation)
            return
        except asyncio.CancelledError:  # the app is closing and the engine did not answer in time
            reply.status = "stopped"
        except Exception:
            log.exception("the reply failed")
            reply.status, reply.note = "error", INTERNAL_ERROR
        finally:
            self._request_id = None
        await self.archive.save(conversation, pair)
        await self._tell(TurnChanged(reply))
        if self.loader.model is None and not self.loader.loading:  # the engine had to drop it
            await self._tell(ModelGone())
        self._meter.count_soon(self.conversation)

    async def _tell_unseen(self, conversation: Conversation, model: ModelInfo) -> None:
        """Earlier turns may have images for a model that was there before."""
        if not model.sees_images and any(turn.images for turn in conversation.read_turns):
            await self._tell(
                Told(f"{model.name} reads text only: it answers without this conversation's images.")
            )

    async def _take_back(
        self, conversation: Conversation, reply: Turn, undo: _Undo, why: Told | CannotSee | None
    ) -> None:
        """The request was refused: leave everything as it was before it."""
        if why is not None:
            await self._tell(why)
        if (before := undo.before) is not None:
            reply.text, reply.thinking, reply.figures = before.text, before.thinking, before.figures
            reply.status, reply.note, reply.token_ids = before.status, before.note, before.token_ids
            await self.archive.save(conversation, [reply])
            await self._tell(TurnChanged(reply))
            return
        for turn in reversed(undo.added):
            conversation.remove(turn)
        if undo.leaf is not None:
            conversation.show(undo.leaf)
        await self._tell(BranchShown(conversation))
        if undo.prompt is not None:
            await self._tell(undo.prompt)
        async with self.archive.telling() as database:
            await database.remove_turns(conversation, undo.added)

    # The end of the context

    async def leave_out(self, turns: int) -> None:
        """Have the model read the branch only from there on; the turns before stay in it."""
        self.conversation.leave_out(turns)
        await self.archive.save(self.conversation, [])
        await self._tell(TurnsLeftOut())
        self._meter.count_soon(self.conversation)

    # Telling

    async def _tell(self, event: ControllerEvent) -> None:
        try:
            await self._listener(event)
        except Exception:  # what cannot be shown is still to be generated and saved
            log.exception("showing %s failed", type(event).__name__)


@dataclass(frozen=True)
class _Undo:
    """What to go back to when the engine refuses a request."""

    before: Turn | None = None
    """A reply that goes on in its place, as it was."""
    added: tuple[Turn, ...] = ()
    leaf: Turn | None = None
    """The end of the branch that was shown; None: there was nothing yet."""
    prompt: PromptReturned | None = None
