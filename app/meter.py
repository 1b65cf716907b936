"""How full the model's context is with the conversation, the message being typed included."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace

from ..engine.request import Message
from ..models.errors import UserError
from .context import Overflow, plan
from .conversation import Conversation, Turn
from .events import ContextUsed, Listener
from .loader import ModelLoader
from .requests import messages

COUNT_AFTER_S = 0.2


class ContextMeter:
    """Counts with the model's own tokenizer, off the event loop; `tell` is awaited with ContextUsed."""

    def __init__(self, loader: ModelLoader, busy: Callable[[], bool], tell: Listener) -> None:
        """While `busy`, a reply is being written and whoever follows it tells how full the context is."""
        self.draft = Message("user", "")
        """What the input holds."""
        self._loader = loader
        self._busy = busy
        self._tell = tell
        self._count: asyncio.Task[None] | None = None

    def count_soon(self, conversation: Conversation) -> None:
        """Count and tell, once the typing pauses."""
        if self._count is not None:
            self._count.cancel()
        self._count = asyncio.create_task(self._count_tokens(conversation))

    async def close(self) -> None:
        """Count no more."""
        if self._count is not None:
            self._count.cancel()
            await asyncio.gather(self._count, return_exceptions=True)

    async def _count_tokens(self, conversation: Conversation) -> None:
        await asyncio.sleep(COUNT_AFTER_S)
        engine, model = self._loader.engine, self._loader.model
        if self._busy() or engine is None or model is None:
            return
        images = self.draft.images if model.sees_images else ()
        draft = (replace(self.draft, images=images),) if self.draft.content.strip() or images else ()
        used = 0
        if (read := conversation.read_turns) or draft:
            counted = (*messages(conversation, read, model), *draft)
            try:
                used = await asyncio.to_thread(engine.count_tokens, counted)
            except UserError:  # sending it will say what is wrong
                return
        if not self._busy():
            await self._tell(ContextUsed(used, model.max_context))

    async def overflow(self, conversation: Conversation) -> Overflow | None:
        """What can be done about a request that does not fit; None when that was not the reason."""
        engine, model = self._loader.engine, self._loader.model
        if engine is None or model is None:
            return None
        turns, done, limit = list(conversation.turns), conversation.left_out, model.max_context

        def count(read: Sequence[Turn]) -> int:
            return engine.count_tokens(messages(conversation, read, model))

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
