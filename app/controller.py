"""The conversation and the model in use, without any widget: what the user can do, and what comes of it.

The controller talks to the engine's thread and to the database, and tells the screen what happened through
one callback. All of it runs on the event loop; only the engine's sink is called from elsewhere.
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

from ..engine.events import Event, Failed, Finished, Loaded, LoadFailed, LoadProgress, ModelInfo, Thinking
from ..engine.request import GenerationRequest, Message, ScoreRequest
from ..models.errors import UserError
from . import exchange, tree
from .attachments import Attachment, images_of
from .context import Overflow, plan
from .database import Conversation, Database, Hit, PastReply, Summary, Turn
from .events import (
    BranchShown,
    CannotSee,
    ContextFull,
    ContextUsed,
    ControllerEvent,
    ConversationShown,
    Listener,
    ModelFailed,
    ModelGone,
    ModelLoading,
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
from .library import scan
from .overrides import parse
from .pace import Pace
from .replies import Inbox, Refused, follow
from .titles import title_from, title_request

if TYPE_CHECKING:  # the engine's thread imports torch, which takes seconds: the screen must be up before
    from ..engine.thread import EngineThread
    from .backend import Backend
    from .remote.endpoint import Endpoints
    from .remote.engine import RemoteEngine
    from .settings import Settings

log = logging.getLogger(__name__)

COUNT_AFTER_S = 0.2
CLOSE_TIMEOUT_S = 5.0
KNOWN_PROMPTS = 500
FOUND_TURNS = 100
STILL_WRITING = "The last reply is still being written: wait, or stop it with /stop."
NO_MODEL = "No model is loaded: choose one with /model."
INTERNAL_ERROR = "Something went wrong in the program itself; the log file has the details."


def create_engine() -> EngineThread:
    """The engine. Importing it imports torch, which takes seconds: call this off the event loop."""
    from ..engine.thread import EngineThread

    return EngineThread()


class Controller:
    """One conversation at a time; `tell` is awaited with each event, in order. `start` comes first."""

    database: Database

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
        self.models_dir = models_dir
        self.engine: Backend[Any] | None = None
        """What writes the replies: the engine of this machine, or the one for endpoints."""
        self.conversation = Conversation(system_prompt=settings.system_prompt)
        self._create_engine = create_engine
        self._endpoints = endpoints
        self._remote: RemoteEngine | None = None
        self._starting: asyncio.Task[EngineThread] | None = None
        self._listener = tell
        self._reply: asyncio.Task[None] | None = None
        self._stop = asyncio.Event()
        self._paused = False
        """The queue waits for the user, not for the end of a reply."""
        self._request_id: int | None = None
        self.model_name: str | None = None
        """The directory of the model that was loaded last."""
        self._back_to: str | None = None
        """The model that a load replaces, loaded again when it comes to nothing."""
        self._load: asyncio.Task[None] | None = None
        self._settled = asyncio.Event()
        """Set while it is known which model there is, if any: neither at the start nor during a load."""
        self._count: asyncio.Task[None] | None = None
        self.pace = Pace()
        """Of the reply being written, or of the last one."""
        self._draft = Message("user", "")
        self._saving_failed = False
        self._open = False

    # State

    @property
    def model(self) -> ModelInfo | None:
        """What is loaded, by the name of its directory (it may have been renamed since)."""
        info = self.engine.model if self.engine else None
        return replace(info, name=self.model_name) if info and self.model_name else info

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
        self.database = database
        self._open = True
        async with self._telling():
            if interrupted := await self.database.recover():
                self.conversation = await self.database.load(interrupted)
                await self._tell(
                    Told("The last reply was cut off when the program ended: you can continue it.")
                )
        self._paused = True
        await self._tell_shown()
        async with self._telling():
            await self.database.purge()
            prompts = await self.database.prompts(KNOWN_PROMPTS)
            await self._tell(PromptsKnown(tuple(prompts)))

    async def _tell_shown(self) -> None:
        await self._tell(ConversationShown(self.conversation))
        images = [image for turn in self.conversation.turns for image in turn.images]
        if gone := ", ".join(image.name for image in images if image.image is None):
            await self._tell(Told(f"The conversation goes on without images whose copies are gone: {gone}."))
        await self._tell_queue()
        await self._offer_model()

    async def _offer_model(self) -> None:
        """Tell whether the conversation's own model is there, but another or none is loaded."""
        name = self.conversation.model
        other = bool(name) and not self.loading and name != self.model_name
        there = other and await asyncio.to_thread(self._is_there, name)
        await self._tell(ModelOffered(name if there else None))

    def _is_there(self, name: str) -> bool:
        return self._endpoints.get(name) is not None or (self.models_dir / name).is_dir()

    async def use_own_model(self) -> None:
        """Load the model that the conversation was last with."""
        if self.conversation.model and self.conversation.model != self.model_name:
            await self.load_model(self.conversation.model)

    async def start_engine(self) -> EngineThread:
        """This machine's engine, brought up on first use; that takes seconds, on another thread."""
        if self._starting is None:
            self._starting = asyncio.create_task(asyncio.to_thread(self._create_engine))
        engine = await asyncio.shield(self._starting)
        self.engine = self.engine or engine
        return engine

    def use_engine(self, engine: Backend[Any]) -> None:
        """Have another engine write the replies; the one before frees what it has."""
        if self.engine is not None and self.engine is not engine:
            self.engine.unload()
        self.engine = engine

    def close_engines(self) -> None:
        """End their threads; the last thing to be done."""
        if self._remote is not None:
            self._remote.close()
        starting = self._starting
        if starting and starting.done() and not starting.cancelled() and not starting.exception():
            starting.result().close()

    async def idle(self) -> None:
        """Return when no reply is being written."""
        if self._reply is not None:
            await asyncio.wait([self._reply])

    async def settled(self) -> None:
        """Return when no model is being loaded, and the outcome is told."""
        if self._load is not None:
            await asyncio.wait([self._load])

    async def close(self) -> None:
        """Stop the reply, save what there is of it, close the database; then comes `close_engines`."""
        if not self._open:
            return
        self._open = False
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.cancel(), CLOSE_TIMEOUT_S)
        self.cancel_load()
        tasks = [task for task in (self._reply, self._load, self._count) if task and not task.done()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.database.close()

    # The model

    async def find_model(self, wanted: str | None) -> str | None:
        """The model to begin with: `wanted`, else the one used last, else any; None when there is none.

        Tells what is wrong with the endpoints.
        """
        library = await asyncio.to_thread(scan, self.models_dir)
        endpoints, problems = await asyncio.to_thread(self._endpoints.load)
        for problem in problems:
            await self._tell(Told(problem))
        names = [*(checkpoint.path.name for checkpoint in library.models), *endpoints]
        wanted = wanted or self.settings.model
        return wanted if wanted in names else next(iter(names), None)

    async def load_model(self, name: str) -> None:
        """Load a converted model, or connect to the endpoint of that name.

        Returns at once; ModelReady or ModelFailed tells the outcome. When it fails or is cancelled, the
        model that was loaded before is loaded again.
        """
        await self.free_engine()
        if self.model is not None:
            self._back_to = self.model_name
        if self._load is not None and not self._load.done():
            self._load.cancel()
            if self.engine:
                self.engine.cancel_load()
        self._settled.clear()
        self._load = asyncio.create_task(self._load_model(name))

    async def _load_model(self, name: str) -> None:
        await self._tell(ModelLoading(name, 0, 0, "Starting the engine"))
        try:
            if self.engine is not None:
                self.engine.unload()  # whatever becomes of the load, nothing more goes to what is left
            engine, source = await self._source(name)
            self.use_engine(engine)
            inbox = Inbox()
            engine.load(source, inbox.sink)
            async for events in inbox.batches():
                match events[-1]:
                    case LoadProgress(done, total, text):
                        await self._tell(ModelLoading(name, done, total, text))
                    case Loaded():
                        await self.model_changed(name)
                    case LoadFailed(message):
                        if self._back_to in (None, name):
                            self._back_to = None
                            self._settled.set()
                            await self._tell(ModelFailed(name, message))
                        else:
                            await self._tell(Told(f"{name}: {message} Going back to {self._back_to}."))
                            await self._load_model(self._back_to)
        except Exception:
            log.exception("loading %s failed", name)
            self._settled.set()
            await self._tell(ModelFailed(name, INTERNAL_ERROR))

    async def _source(self, name: str) -> tuple[Backend[Any], Any]:
        """The engine for the model `name`, and what that engine is to load."""
        endpoint = await asyncio.to_thread(self._endpoints.get, name)
        if endpoint is not None:
            from .remote.engine import RemoteEngine  # the HTTP client is for those who need it

            self._remote = self._remote or RemoteEngine()
            return self._remote, endpoint
        engine = await self.start_engine()
        from ..engine.thread import LoadOptions  # now that torch is there, this is quick

        return engine, LoadOptions(self.models_dir / name, self.settings.device, self.settings.dtype)

    def cancel_load(self) -> None:
        """Stop the load in progress, if any; what was loaded before comes back."""
        if self.engine and self.loading:
            self.engine.cancel_load()

    async def unload(self) -> None:
        """Have no model loaded."""
        await self.free_engine()
        if self.engine:
            self.engine.unload()
        self._back_to = self.model_name = None
        await self._tell(ModelGone())

    async def model_renamed(self, name: str, new_name: str) -> None:
        """The directory `name` is called `new_name` now: conversations go on with it."""
        if self.conversation.model == name:
            self.conversation.model = new_name
        async with self._telling():
            await self.database.rename_model(name, new_name)
        if self._back_to == name:
            self._back_to = new_name
        if self.model_name == name:
            self.model_name = new_name
            if not self.loading:
                await self.model_changed(new_name)

    async def free_engine(self) -> None:
        """Stop the reply that the engine is writing; one that waits for a model goes on waiting."""
        if self._request_id is not None:
            await self.cancel()

    async def model_changed(self, name: str | None) -> None:
        """The engine now has the model `name`, loaded here or by the wizard; None: whatever it has."""
        loaded = self.engine.model if self.engine else None
        self.model_name = name or (loaded.name if loaded else None)
        self._settled.set()
        if self.model is None or self.model_name is None:
            await self._tell(ModelGone())
        else:
            await self._tell(ModelReady(self.model_name, self.model))
            await self._offer_model()
            self._count_soon()

    # Settings and draft

    def set_settings(self, settings: Settings) -> None:
        """Use other settings from the next reply on, in this conversation where it has none of its own."""
        if self.conversation.system_prompt == self.settings.system_prompt:
            self.conversation.system_prompt = settings.system_prompt
        self.settings = settings
        self._count_soon()

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
            self._count_soon()

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
        self._count_soon()
        what = f"The system prompt of this chat is: {text}" if text else "This chat has no system prompt."
        await self._tell(Told(what, "information"))

    async def _save_head(self) -> None:
        if self.conversation.turns:  # else it is saved with its first turn
            await self._save(self.conversation, [])

    def set_draft(self, text: str, images: Sequence[Attachment] = ()) -> None:
        """What the input holds, counted with the conversation's tokens."""
        self._draft = Message("user", text, images=images_of(images))
        self._count_soon()

    # The list of conversations

    async def new_conversation(self) -> None:
        await self._show(Conversation(system_prompt=self.settings.system_prompt))

    async def take_conversation(self, conversation: Conversation) -> None:
        """Show a conversation that was written elsewhere in the app, and save it."""
        await self.cancel()
        await self._save(conversation, conversation.all_turns)
        await self._show(conversation)

    async def open_conversation(self, conversation_id: str, turn_id: str | None = None) -> Turn | None:
        """Show a conversation, in the branch of that turn; returns the turn, None if it is not there."""
        await self.cancel()  # first, so that what is loaded is complete
        async with self._telling():
            conversation = await self.database.load(conversation_id)
            turn = next((turn for turn in conversation.all_turns if turn.id == turn_id), None)
            if turn is not None and turn not in conversation.turns:
                conversation.show(tree.newest_leaf(conversation.all_turns, turn))
                await self.database.save_branch(conversation)
            await self._show(conversation)
            return turn
        return None

    async def summaries(self) -> list[Summary]:
        """All saved conversations in the list's order; none when they cannot be read."""
        async with self._telling():
            return await self.database.summaries()
        return []

    async def search(self, text: str) -> list[Hit]:
        """The turns of all conversations in which these words are found."""
        async with self._telling():
            return await self.database.search(text, FOUND_TURNS)
        return []

    async def past_replies(self, count: int) -> list[PastReply]:
        """How the last replies of all conversations went, newest first; none when they cannot be read."""
        async with self._telling():
            return await self.database.past_replies(count)
        return []

    async def pin_conversation(self, conversation_id: str, pinned: bool) -> None:
        async with self._telling():
            await self.database.pin(conversation_id, pinned)

    async def restore_conversation(self, conversation_id: str) -> None:
        """Undo `delete_conversation`."""
        async with self._telling():
            await self.database.restore(conversation_id)

    async def export_conversation(self, path: Path | None) -> None:
        """Write the conversation to a new file, by default a Markdown file in the current directory."""
        conversation = self.conversation
        if not conversation.turns:
            await self._tell(Told("There is nothing to export yet."))
            return
        path = (path or Path(f"{exchange.file_name(conversation)}.md")).expanduser()
        async with self._telling():
            await asyncio.to_thread(exchange.write, path, [conversation])
            await self._tell(Told(f"Exported to {path}.", "information"))

    async def import_conversations(self, path: Path) -> None:
        """Add the conversations of an exported file, and show the first of them."""
        async with self._telling():
            imported = await asyncio.to_thread(exchange.read, path.expanduser())
            for conversation in imported:
                await self.database.save(conversation, conversation.all_turns)
            await self.open_conversation(imported[0].id)
            await self._tell(Told(f"Imported from {path}.", "information"))

    async def retitle(self) -> None:
        """Have the model write the conversation's title."""
        conversation = self.conversation
        if self.replying or not conversation.turns:
            await self._tell(Told("A title needs a conversation, and a model that is idle."))
        elif await self._refuses():
            return
        elif self.engine is None:
            await self._tell(Told(NO_MODEL))
        else:
            inbox = Inbox()
            self.engine.submit(title_request(conversation.turns), inbox.sink)
            async for events in inbox.batches():
                if isinstance(last := events[-1], Finished) and (title := title_from(last.text)):
                    await self.rename_conversation(conversation.id, title)
                elif isinstance(last, Finished | Failed):
                    await self._tell(Told("The model wrote no title: the old one stays."))

    async def rename_conversation(self, conversation_id: str, title: str) -> None:
        title = title_of(title)
        if conversation_id == self.conversation.id:
            self.conversation.title = title
            await self._tell(TitleChanged(title))
        async with self._telling():
            await self.database.rename(conversation_id, title)

    async def delete_conversation(self, conversation_id: str) -> None:
        if conversation_id == self.conversation.id:
            await self.new_conversation()
        async with self._telling():
            await self.database.delete(conversation_id)

    async def _show(self, conversation: Conversation) -> None:
        await self.cancel()
        self.conversation, self._paused = conversation, True
        await self._tell_shown()
        self._count_soon()

    # Replies

    async def send(self, text: str, images: tuple[Attachment, ...] = ()) -> None:
        """Add the user's turn and start the reply to it; while a model is loading, the reply waits.

        While a reply is written the message is queued, and sent after it; with images it is handed back.
        """
        if self.replying and images:
            await self._tell(Told("A message with images is not queued: send it when the reply has ended."))
            await self._tell(PromptReturned(text, images=images))
        elif self.replying:
            self.conversation.queue.append(text)
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

    async def resume_queue(self) -> None:
        """Send what is queued, one message after the other."""
        if self.conversation.queue and not self.replying and not await self._refuses():
            self._paused = False
            self._start(*await self._add_exchange(self.conversation.queue.pop(0)))
            await self._tell_queue()

    async def unqueue(self, number: int = -1) -> str | None:
        """Take a message, by default the last, out of the queue; None when it is gone already."""
        try:
            text = self.conversation.queue.pop(number)
        except IndexError:
            return None
        await self._queue_changed()
        return text

    async def _queue_changed(self) -> None:
        await self._tell_queue()
        await self._save(self.conversation, [])

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
            self._cut(turn, keep=turn.role == "user")
            reply = Turn("assistant", "", "streaming", token_ids=begin)
            self.conversation.add(reply)
            await self._tell(BranchShown(self.conversation))
            self._start(reply, _Undo(leaf=leaf, added=(reply,)))

    async def score(self, turn: Turn) -> AsyncIterator[Event]:
        """Have the model read a reply again: PrefillProgress, and at the end Scored or Failed."""
        if self.engine is None:
            yield Failed(0, NO_MODEL, "")
            return
        turns = self.conversation.turns
        before = self._messages(turns[: next(at for at, other in enumerate(turns) if other.id == turn.id)])
        reply = Message("assistant", turn.text, turn.thinking.text)
        inbox = Inbox()
        request_id = self.engine.score(ScoreRequest((*before, reply), turn.token_ids), inbox.sink)
        try:
            async for events in inbox.batches():
                for event in events:
                    yield event
        finally:  # also when nobody wants to know any more
            self.engine.cancel(request_id)

    async def edit(self, turn: Turn, text: str) -> None:
        """Put `text` beside a turn as another branch. A message is answered; a reply stands as it is."""
        answered = turn.role == "user"
        if await self._refuses(needs_model=answered):
            await self._tell(PromptReturned(text, turn))
            return
        conversation, leaf = self.conversation, self.conversation.leaf
        self._cut(turn, keep=False)
        edited = Turn(turn.role, text, images=turn.images)
        conversation.add(edited)
        if answered:
            reply = Turn("assistant", "", "streaming")
            conversation.add(reply)
            await self._tell(BranchShown(conversation))
            self._start(reply, _Undo(leaf=leaf, added=(edited, reply), prompt=PromptReturned(text, turn)))
        else:
            await self._tell(BranchShown(conversation))
            await self._save(conversation, [edited])
            self._count_soon()

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
        self._count_soon()
        async with self._telling():
            await self.database.save_branch(self.conversation)
        return siblings[place]

    def _cut(self, turn: Turn, *, keep: bool) -> None:
        """End the branch that is shown before `turn`, or after it with `keep`; the rest stays a branch."""
        turns = self.conversation.turns
        place = next(i for i, other in enumerate(turns) if other.id == turn.id)
        self.conversation.turns = turns[: place + keep]

    async def _refuses(self, *, needs_model: bool = True) -> bool:
        """Whether no reply can be started now; tells why."""
        if self.replying:
            await self._tell(Told(STILL_WRITING))
        elif needs_model and self.model is None and not self.loading:
            await self._tell(Told(NO_MODEL))
        else:
            return False
        return True

    async def cancel(self) -> None:
        """Stop the reply being written, if any; returns when what there is of it is saved.

        What is queued stays so until the user says otherwise.
        """
        self._paused = True
        if self.replying:
            self._stop.set()
            if self.engine and self._request_id is not None:
                self.engine.cancel(self._request_id)
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
            reply, undo = await self._add_exchange(queue.pop(0))
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
            await self._save(conversation, pair)
            await self._model_loaded()
            if self._stop.is_set():
                reply.status = "stopped"
            elif self.engine is None or self.model is None:
                raise Refused(Told("The model could not be loaded: choose another with /model.", "error"))
            elif pair[0].images and not self.model.sees_images:
                raise Refused(CannotSee(self.model.name))
            else:
                await self._tell_unseen(conversation, self.model)
                request, inbox = self._request(conversation, reply, self.model), Inbox()
                self._request_id = self.engine.submit(request, inbox.sink)
                if self._stop.is_set():
                    self.engine.cancel(self._request_id)
                self.pace = Pace(time.monotonic())
                await follow(
                    inbox,
                    reply,
                    self.model.max_context,
                    self.pace,
                    self._tell,
                    partial(self._save, conversation, [reply]),
                )
        except Refused as refused:
            told = isinstance(refused.why, Told)
            overflow = await self._overflow(conversation) if told else None
            await self._take_back(conversation, reply, undo, None if overflow else refused.why)
            if overflow:
                beside = pair[0] if undo.added == (reply,) else None
                await self._tell(ContextFull(overflow, undo.prompt, beside))
            self._count_soon()
            return
        except asyncio.CancelledError:  # the app is closing and the engine did not answer in time
            reply.status = "stopped"
        except Exception:
            log.exception("the reply failed")
            reply.status, reply.note = "error", INTERNAL_ERROR
        finally:
            self._request_id = None
        await self._save(conversation, pair)
        await self._tell(TurnChanged(reply))
        if self.model is None and not self.loading:  # the engine had to drop it
            await self._tell(ModelGone())
        self._count_soon()

    def _request(self, conversation: Conversation, reply: Turn, model: ModelInfo) -> GenerationRequest:
        """What asks for the reply, or for the rest of it; the conversation remembers model and settings."""
        settings = self.settings.model_copy(update=conversation.overrides)
        params = settings.sampling_params(model.defaults)
        conversation.model, conversation.settings = model.name, asdict(params)
        messages = self._messages(conversation.read_turns[:-1])
        if reply.has_begun:
            begun = Message("assistant", reply.text, reply.thinking.text)
            return GenerationRequest((*messages, begun), params, continue_last=True, thinking=settings.think)
        return GenerationRequest(messages, params, begin=reply.token_ids, thinking=settings.think)

    async def _model_loaded(self) -> None:
        """Wait until no model is loading, or the reply is stopped."""
        if self.loading:
            waits = {asyncio.create_task(event.wait()) for event in (self._settled, self._stop)}
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            for wait in waits:
                wait.cancel()

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
            await self._save(conversation, [reply])
            await self._tell(TurnChanged(reply))
            return
        for turn in reversed(undo.added):
            conversation.remove(turn)
        if undo.leaf is not None:
            conversation.show(undo.leaf)
        await self._tell(BranchShown(conversation))
        if undo.prompt is not None:
            await self._tell(undo.prompt)
        async with self._telling():
            await self.database.remove_turns(conversation, undo.added)

    def _messages(self, turns: Sequence[Turn]) -> tuple[Message, ...]:
        """Turns for the engine: of replies the answers, and none of those that came to none.

        Images are left out for a model that reads text only.
        """
        system_prompt = self.conversation.system_prompt
        system = [Message("system", system_prompt)] if system_prompt.strip() else []
        sees = self.model is not None and self.model.sees_images
        said = [
            Message(turn.role, turn.text, images=images_of(turn.images) if sees else ()) for turn in turns
        ]
        return (*system, *(message for message in said if message.content or message.images))

    # The end of the context

    async def leave_out(self, turns: int) -> None:
        """Have the model read the branch only from there on; the turns before stay in it."""
        self.conversation.leave_out(turns)
        await self._save(self.conversation, [])
        await self._tell(TurnsLeftOut())
        self._count_soon()

    async def _overflow(self, conversation: Conversation) -> Overflow | None:
        """What can be done about a request that does not fit; None when that was not the reason."""
        engine, model = self.engine, self.model
        if engine is None or model is None:
            return None
        turns, done, limit = list(conversation.turns), conversation.left_out, model.max_context

        def count(read: Sequence[Turn]) -> int:
            return engine.count_tokens(self._messages(read))

        try:
            used = await asyncio.to_thread(count, turns[done:])
            if used < limit:
                return None
            planned = await asyncio.to_thread(plan, turns, done, limit, count)
        except UserError:
            return None
        left_out, after = planned or (0, used)
        questions = tuple(turn.label for turn in turns[done:left_out] if turn.role == "user")
        return Overflow(used, limit, left_out, questions, after)

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
        if (read := self.conversation.read_turns) or draft:
            messages = (*self._messages(read), *draft)
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
            await self.database.save(conversation, conversation.all_turns if self._saving_failed else turns)
            self._saving_failed = False
        except UserError as error:
            if not self._saving_failed:
                await self._tell(Told(f"The conversation is not saved. {error}", "error"))
            self._saving_failed = True

    @contextlib.asynccontextmanager
    async def _telling(self) -> AsyncIterator[None]:
        """A UserError ends the block, and is told."""
        try:
            yield
        except UserError as error:
            await self._tell(Told(str(error), "error"))

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
