"""One prompt to two models, or to one with two settings, without any widget."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from ..models.errors import UserError
from . import presets, tree
from .attachments import Attachment
from .compare_models import CompareModels, Plan
from .controller import CLOSE_TIMEOUT_S
from .conversation import Conversation, Turn
from .events import ControllerEvent, Listener, ModelReady, PromptReturned, Told, TurnAdded, TurnChanged
from .incoming import title_of
from .log import INTERNAL_ERROR
from .pace import Pace
from .replies import Inbox, Refused, follow
from .requests import reply_request

if TYPE_CHECKING:
    from .archive import Archive
    from .backend import Backend
    from .settings import Settings

log = logging.getLogger(__name__)

AS_CHAT = "this chat"
"""In place of a preset's name: what the conversation has for itself."""

Tell = Callable[[int, ControllerEvent], Awaitable[None]]
"""Is awaited with the number of the side, 0 or 1, and what happened there."""


@dataclass(frozen=True)
class Side:
    """Who answers: the name of a converted model or an endpoint, and that of a preset, NONE or AS_CHAT."""

    model: str
    preset: str


class Comparison:
    """One exchange at a time: a prompt and the replies of two sides.

    It is a conversation of its own, saved as it happens like any other, with the replies as two branches.
    """

    def __init__(
        self, models: CompareModels, archive: Archive, settings: Settings, own: Mapping[str, Any]
    ) -> None:
        """`own` is what the chat has in place of the general `settings`; see Controller.own_settings."""
        self.models = models
        self.paces = [Pace(), Pace()]
        """Of the two replies."""
        self._archive = archive
        self._settings = settings
        self._own = own
        self._sides: tuple[Side, Side] | None = None
        self._replies: tuple[Turn, ...] = ()
        self._conversation = Conversation()
        self._running: dict[int, Callable[[], None]] = {}
        """By the number of the side, how to cancel its request."""
        self._task: asyncio.Task[None] | None = None
        self._stopped = False

    # Settings

    @property
    def presets(self) -> list[str]:
        """What a Side may have as its preset."""
        own = [AS_CHAT] if self._own else []
        return list(dict.fromkeys([*own, presets.NONE, *presets.known(self._settings)]))

    def first_sides(self, names: Sequence[str], loaded: str | None) -> tuple[Side, Side]:
        """What to offer at first: the chat's model as it is, beside another one or another preset."""
        preset = self.presets[0]
        first = loaded if loaded and loaded in names else names[0]
        other = next((name for name in names if name != first), None)
        right = Side(other, preset) if other else Side(first, self.presets[1])
        return Side(first, preset), right

    def _own_settings(self, side: Side) -> dict[str, Any]:
        """What the side has in place of the general settings, as if `/preset` had been used in this chat."""
        if side.preset == AS_CHAT:
            return dict(self._own)
        if side.preset == presets.NONE:
            return {}
        kept = {name: value for name, value in self._own.items() if name == "system_prompt"}
        return kept | presets.known(self._settings)[side.preset]

    # The exchange

    @property
    def running(self) -> bool:
        return self._task is not None and not self._task.done()

    @property
    def shared(self) -> bool:
        """Whether one model answers for both sides, in the same steps."""
        return self._sides is not None and self._sides[0].model == self._sides[1].model

    def start(
        self, prompt: str, images: tuple[Attachment, ...], sides: tuple[Side, Side], tell: Tell
    ) -> Turn:
        """Have both answer; returns at once, with the user's turn.

        Each side's events begin with TurnAdded, which has its reply, and end with TurnChanged, whatever
        happens. When neither reply came to anything, PromptReturned follows.
        """
        self._sides, self._stopped = sides, False
        user = Turn("user", prompt, images=images)
        self._replies = (Turn("assistant", "", "streaming"), Turn("assistant", "", "streaming"))
        self._conversation = Conversation(title_of(user.label), turns=[user, self._replies[0]])
        self._conversation.show(user)
        self._conversation.add(self._replies[1])
        self._conversation = self._as(0)
        self.paces = [Pace(), Pace()]
        self._task = asyncio.create_task(self._run(partial(_tell, tell)))
        return user

    async def stop(self) -> None:
        """End both replies and keep what there is of them; returns when that is saved."""
        self._stopped = True
        for cancel in self._running.values():
            cancel()
        self.models.cancel_load()
        if self._task is not None:
            await asyncio.wait([self._task])

    def can_keep(self, number: int) -> bool:
        """Whether there is a reply, or a part of one, on that side."""
        return bool(self._replies) and self._replies[number].has_begun

    def keep(self, number: int) -> Conversation:
        """The conversation, to go on with that side; the other reply stands beside it. See `can_keep`."""
        return self._as(number)

    async def close(self) -> None:
        """Stop, and free what was loaded for it."""
        if self._task is not None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.stop(), CLOSE_TIMEOUT_S)
            self._task.cancel()
            await asyncio.wait([self._task])
        await self.models.close()

    def _as(self, number: int) -> Conversation:
        """The conversation with that side's reply, model and settings."""
        assert self._sides is not None
        side, turns = self._sides[number], self._conversation.all_turns
        overrides = self._own_settings(side)
        return replace(
            self._conversation,
            model=side.model,
            system_prompt=overrides.pop("system_prompt", self._settings.system_prompt),
            overrides=overrides,
            turns=tree.path(turns, self._replies[number]),
        )

    async def _run(self, tell: Tell) -> None:
        left, right = partial(tell, 0), partial(tell, 1)
        await left(TurnAdded(self._replies[0]))
        await right(TurnAdded(self._replies[1]))
        await self._save()
        try:
            await self._answer_both(left, right)
        except Exception:
            log.exception("the comparison failed")
            for number, reply in enumerate(self._replies):
                reply.status, reply.note = "error", INTERNAL_ERROR
                await tell(number, TurnChanged(reply))
        await self._take_back(left)

    async def _answer_both(self, left: Listener, right: Listener) -> None:
        assert self._sides is not None
        names = [side.model for side in self._sides]
        plan = await self.models.plan(names)
        await self.models.prepare(plan)
        if plan.at_once:
            await asyncio.gather(self._answer(0, plan, left), self._answer(1, plan, right))
        elif self.models.has(names[1]) and not self.models.has(names[0]):  # that may spare a load
            await self._answer(1, plan, right)
            await self._answer(0, plan, left)
        else:
            await self._answer(0, plan, left)
            await self._answer(1, plan, right)

    async def _answer(self, number: int, plan: Plan, tell: Listener) -> None:
        """One reply from start to end. Whatever happens, it ends with a final status, saved and told."""
        assert self._sides is not None
        side, reply = self._sides[number], self._replies[number]
        try:
            if not self._stopped:
                await self._write(number, await self.models.have(side.model, plan, tell), tell)
                if reply.figures is not None and reply.status != "error" and not plan.at_once:
                    await self.models.remember_speed(side.model, reply.figures)
        except Refused as refused:
            why = refused.why.text if isinstance(refused.why, Told) else INTERNAL_ERROR
            reply.status, reply.note = "error", why
        except UserError as error:
            reply.status, reply.note = "error", str(error)
        except asyncio.CancelledError:  # the app is closing and an engine did not answer in time
            reply.status = "stopped"
        except Exception:
            log.exception("a reply of the comparison failed")
            reply.status, reply.note = "error", INTERNAL_ERROR
        finally:
            self._running.pop(number, None)
        if self._stopped and not reply.has_begun:
            reply.status, reply.note = "stopped", ""
        await self._save()
        await tell(TurnChanged(reply))

    async def _write(self, number: int, engine: Backend[Any], tell: Listener) -> None:
        """Raises Refused when the reply does not begin."""
        assert self._sides is not None
        side, model = self._sides[number], engine.model
        if model is None:  # the engine had to drop it
            raise UserError(f"{side.model} is no longer loaded: send the prompt again.")
        if self._conversation.turns[0].images and not model.sees_images:
            raise UserError(f"{side.model} reads text only: choose a model that sees images on this side.")
        await tell(ModelReady(side.model, model))
        reply, inbox = self._replies[number], Inbox()
        request = reply_request(self._as(number), reply, model, self._settings)
        request_id = engine.submit(request, inbox.sink)
        self._running[number] = partial(engine.cancel, request_id)
        if self._stopped:
            engine.cancel(request_id)
        self.paces[number] = pace = Pace(time.monotonic())
        await follow(inbox, reply, model.max_context, pace, tell, self._save)

    # Saving and telling

    async def _save(self) -> None:
        await self._archive.save(self._conversation, self._conversation.all_turns)

    async def _take_back(self, tell: Listener) -> None:
        """Leave out of the conversation what never began; without any reply, there is none."""
        turns = self._conversation.all_turns
        begun = [number for number, reply in enumerate(self._replies) if reply.has_begun]
        if len(begun) == len(self._replies):
            return
        gone = [reply for reply in self._replies if not reply.has_begun] if begun else list(turns)
        self._conversation.all_turns = [turn for turn in turns if turn not in gone]
        if begun:
            self._conversation = self._as(begun[0])
            await self._save()
        async with self._archive.telling() as database:
            await database.remove_turns(self._conversation, gone)
        if not begun:
            await tell(PromptReturned(turns[0].text, images=turns[0].images))


async def _tell(tell: Tell, number: int, event: ControllerEvent) -> None:
    try:
        await tell(number, event)
    except Exception:  # what cannot be shown is still to be generated and saved
        log.exception("showing %s failed", type(event).__name__)
