"""The saved conversations, as the app uses them: what goes wrong with them is told, not raised."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from ..models.errors import UserError
from . import exchange
from .conversation import Conversation, Turn
from .database import Database, Hit, PastReply, Summary
from .events import Listener, Told

FOUND_TURNS = 100


class Archive:
    """A database whose errors go to `tell`."""

    def __init__(self, database: Database, tell: Listener) -> None:
        self.database = database
        self._tell = tell
        self._saving_failed = False

    @contextlib.asynccontextmanager
    async def telling(self) -> AsyncIterator[Database]:
        """A block that works with the database; a UserError ends it, and is told."""
        try:
            yield self.database
        except UserError as error:
            await self._tell(Told(str(error), "error"))

    async def save(self, conversation: Conversation, turns: Sequence[Turn]) -> None:
        """Save; a failure is told once, and what it left out is saved as soon as that works again."""
        try:
            await self.database.save(conversation, conversation.all_turns if self._saving_failed else turns)
            self._saving_failed = False
        except UserError as error:
            if not self._saving_failed:
                await self._tell(Told(f"The conversation is not saved. {error}", "error"))
            self._saving_failed = True

    async def summaries(self) -> list[Summary]:
        """All saved conversations in the list's order; none when they cannot be read."""
        async with self.telling() as database:
            return await database.summaries()
        return []

    async def search(self, text: str) -> list[Hit]:
        """The turns of all conversations in which these words are found."""
        async with self.telling() as database:
            return await database.search(text, FOUND_TURNS)
        return []

    async def past_replies(self, count: int) -> list[PastReply]:
        """How the last replies of all conversations went, newest first; none when they cannot be read."""
        async with self.telling() as database:
            return await database.past_replies(count)
        return []

    async def pin(self, conversation_id: str, pinned: bool) -> None:
        async with self.telling() as database:
            await database.pin(conversation_id, pinned)

    async def restore(self, conversation_id: str) -> None:
        """Bring back a conversation that was deleted."""
        async with self.telling() as database:
            await database.restore(conversation_id)

    async def write_file(self, path: Path | None, conversation: Conversation) -> None:
        """Write the conversation to a new file, by default a Markdown file in the current directory."""
        path = (path or Path(f"{exchange.file_name(conversation)}.md")).expanduser()
        async with self.telling():
            await asyncio.to_thread(exchange.write, path, [conversation])
            await self._tell(Told(f"Exported to {path}.", "information"))

    async def read_file(self, path: Path) -> list[Conversation]:
        """Add the conversations of an exported file; returns them, none when it cannot be read."""
        async with self.telling() as database:
            imported = await asyncio.to_thread(exchange.read, path.expanduser())
            for conversation in imported:
                await database.save(conversation, conversation.all_turns)
            return imported
        return []
