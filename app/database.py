"""Conversations on disk: SQLite through aiosqlite, plain SQL."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import aiosqlite

from ..engine.events import Thinking, Usage
from ..engine.request import Role
from ..models.errors import UserError
from .attachments import Attachment, entries_of, of_entries
from .conversation import Conversation, Turn
from .image_store import ImageStore
from .instance import Instance

BUSY_TIMEOUT_S = 5.0
IMAGES = "images"
"""The directory of the images, beside the database's file."""
KEEP_DELETED_S = 24 * 3600.0
"""How long a deleted conversation can still be brought back; the first start after that removes it."""
HIT_START, HIT_END = "\x02", "\x03"
"""Around what was found in a snippet; characters that no text on the screen has."""

# One script per version of the schema; `PRAGMA user_version` counts those that a file has been through.
MIGRATIONS = (
    """
    CREATE TABLE conversations (
        id TEXT PRIMARY KEY,
        title TEXT NOT NULL,
        created REAL NOT NULL,          -- seconds since the epoch, as all times here
        updated REAL NOT NULL,
        model TEXT NOT NULL,
        settings TEXT NOT NULL,         -- JSON: the sampling parameters last used
        system_prompt TEXT NOT NULL
    );
    CREATE INDEX conversations_by_time ON conversations (updated DESC);
    CREATE TABLE messages (
        id TEXT PRIMARY KEY,
        conversation_id TEXT NOT NULL REFERENCES conversations (id) ON DELETE CASCADE,
        parent_id TEXT,                 -- the message before; several may share one: branches
        position INTEGER NOT NULL,      -- in the order of writing, over all branches
        role TEXT NOT NULL,
        content TEXT NOT NULL,
        status TEXT NOT NULL,
        note TEXT NOT NULL,
        figures TEXT,                   -- JSON of engine.events.Usage
        created REAL NOT NULL
    );
    CREATE INDEX messages_by_position ON messages (conversation_id, position);
    """,
    "ALTER TABLE messages ADD COLUMN thinking TEXT",  # JSON of engine.events.Thinking; NULL: none
    # JSON list of images: name, sha256, width, height; NULL: none. Their content is in the image store.
    "ALTER TABLE messages ADD COLUMN images TEXT",
    # The last message of the branch that is shown; NULL: of the one written last.
    "ALTER TABLE conversations ADD COLUMN leaf_id TEXT",
    # JSON: the messages that are still to be sent, in order.
    "ALTER TABLE conversations ADD COLUMN queue TEXT NOT NULL DEFAULT '[]'",
    """
    ALTER TABLE conversations ADD COLUMN pinned INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE conversations ADD COLUMN deleted REAL;  -- when; NULL: it is not
    """,
    # Which instance of the app writes the reply (see app/instance.py); only while its status is 'streaming'.
    "ALTER TABLE messages ADD COLUMN owner TEXT",
    # JSON: the settings that the conversation has for itself.
    "ALTER TABLE conversations ADD COLUMN overrides TEXT NOT NULL DEFAULT '{}'",
    # The index refers to messages by rowid, which VACUUM may change: run 'rebuild' after one.
    """
    CREATE VIRTUAL TABLE search USING fts5(
        content, content = 'messages', tokenize = 'unicode61 remove_diacritics 2'
    );
    INSERT INTO search (search) VALUES ('rebuild');
    CREATE TRIGGER message_added AFTER INSERT ON messages BEGIN
        INSERT INTO search (rowid, content) VALUES (new.rowid, new.content);
    END;
    CREATE TRIGGER message_removed AFTER DELETE ON messages BEGIN
        INSERT INTO search (search, rowid, content) VALUES ('delete', old.rowid, old.content);
    END;
    CREATE TRIGGER message_changed AFTER UPDATE OF content ON messages WHEN old.content <> new.content BEGIN
        INSERT INTO search (search, rowid, content) VALUES ('delete', old.rowid, old.content);
        INSERT INTO search (rowid, content) VALUES (new.rowid, new.content);
    END;
    """,
    # The last message that the model no longer reads, with all before it; NULL: it reads all.
    "ALTER TABLE conversations ADD COLUMN unread_id TEXT",
    # JSON list of the token ids that a reply was generated as; NULL: not known.
    "ALTER TABLE messages ADD COLUMN token_ids TEXT",
    # The queue's messages, which were texts, are objects: text, and images as messages have them.
    """
    UPDATE conversations SET queue = (
        SELECT json_group_array(json_object('text', value, 'images', json('[]'))) FROM json_each(queue)
    );
    """,
)
_SAVE_BRANCH = "UPDATE conversations SET leaf_id = ? WHERE id = ?"


@dataclass(frozen=True)
class Summary:
    """A line of the list of conversations."""

    id: str
    title: str
    updated: float
    model: str
    questions: int
    pinned: bool


@dataclass(frozen=True)
class Hit:
    """A turn that was found; HIT_START and HIT_END surround what was looked for in its `snippet`."""

    conversation_id: str
    turn_id: str
    title: str
    role: Role
    snippet: str

    @property
    def text(self) -> str:
        """The snippet without these marks."""
        return self.snippet.replace(HIT_START, "").replace(HIT_END, "")


@dataclass(frozen=True)
class PastReply:
    """How a reply went; `model` is the one that its conversation used last."""

    created: float
    model: str
    figures: Usage


class Database:
    """The conversations of one file. Each method that writes is one transaction.

    Every method raises UserError when the disk does not do what is asked: full, read-only, or locked by
    another program for longer than BUSY_TIMEOUT_S.
    """

    def __init__(
        self, connection: aiosqlite.Connection, images: ImageStore, instance: Instance | None
    ) -> None:
        self._connection = connection
        self._images = images
        self._instance = instance
        self._writing = asyncio.Lock()  # one transaction at a time on the one connection

    @classmethod
    async def open(cls, path: Path | None, *, busy_timeout_s: float = BUSY_TIMEOUT_S) -> Database:
        """Open the file, creating or migrating it; None keeps everything in memory only.

        Raises UserError when it is locked, unreadable or of a newer version, and DamagedError when it is
        no sound database.
        """
        if path is not None:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UserError(
                    f"{path.parent} cannot be made ({error.strerror}): check its owner."
                ) from None
        with _translated(path):
            connection = await aiosqlite.connect(path or ":memory:", timeout=busy_timeout_s)
        images = ImageStore(path.with_name(IMAGES) if path else None)
        database = cls(connection, images, Instance(path) if path else None)
        try:
            with _translated(path):
                await database._prepare()
        except BaseException:
            await database.close()
            raise
        return database

    async def close(self) -> None:
        await self._connection.close()
        if self._instance is not None:
            self._instance.close()

    async def _prepare(self) -> None:
        run = self._connection.execute
        await run("PRAGMA journal_mode = WAL")  # readers and the writer do not wait for each other
        await run("PRAGMA synchronous = NORMAL")  # in WAL mode a killed program still loses nothing
        await run("PRAGMA foreign_keys = ON")
        if await self._value("PRAGMA quick_check(1)") != "ok":
            raise sqlite3.DatabaseError("quick_check failed")
        version = await self._value("PRAGMA user_version")
        if version > len(MIGRATIONS):
            raise UserError(
                "The conversations were written by a newer version of lite-llama-tui: install that one."
            )
        while version < len(MIGRATIONS):
            try:
                await self._connection.executescript(
                    f"BEGIN IMMEDIATE; {MIGRATIONS[version]}; PRAGMA user_version = {version + 1}; COMMIT;"
                )
            except sqlite3.OperationalError:
                await self._connection.rollback()
                if await self._value("PRAGMA user_version") <= version:
                    raise  # else another instance that starts now has done it in the meantime
            version = await self._value("PRAGMA user_version")

    async def _value(self, sql: str) -> Any:
        async with self._connection.execute(sql) as cursor:
            row = await cursor.fetchone()
        assert row is not None
        return row[0]

    async def save(self, conversation: Conversation, turns: Iterable[Turn]) -> None:
        """Insert or update the conversation itself, its queue and those of its turns, with their images.

        Raises UserError, for an image after the text has been saved without it.
        """
        turns, problem = list(turns), None
        position = {turn.id: number for number, turn in enumerate(conversation.all_turns)}
        rows = [
            {
                "id": turn.id,
                "conversation_id": conversation.id,
                "parent_id": turn.parent_id,
                "position": position[turn.id],
                "role": turn.role,
                "content": turn.text,
                "status": turn.status,
                "note": turn.note,
                "figures": json.dumps(asdict(turn.figures)) if turn.figures else None,
                "created": turn.created,
                "thinking": json.dumps(asdict(turn.thinking)) if turn.thinking.text else None,
                "images": json.dumps(entries_of(turn.images)) if turn.images else None,
                "token_ids": json.dumps(turn.token_ids) if turn.token_ids else None,
                "owner": self._instance.id if self._instance and turn.status == "streaming" else None,
            }
            for turn in turns
        ]
        async with self._transaction() as run:
            try:  # first: a message that is saved has its images, even after a kill -9
                for image in (image for turn in (*turns, *conversation.queue) for image in turn.images):
                    await asyncio.to_thread(self._images.put, image)
            except UserError as error:
                problem = error
            await run.execute(
                "INSERT INTO conversations "
                "(id, title, created, updated, model, settings, system_prompt, leaf_id, queue, overrides, "
                "unread_id) VALUES (:id, :title, :created, :updated, :model, :settings, :system_prompt, "
                ":leaf_id, :queue, :overrides, :unread_id) "
                "ON CONFLICT (id) DO UPDATE SET "
                "title = excluded.title, updated = excluded.updated, model = excluded.model, "
                "settings = excluded.settings, system_prompt = excluded.system_prompt, "
                "leaf_id = excluded.leaf_id, queue = excluded.queue, overrides = excluded.overrides, "
                "unread_id = excluded.unread_id, "
                "deleted = NULL",  # what is still written to is wanted, in this window or in another
                {
                    "id": conversation.id,
                    "title": conversation.title,
                    "created": conversation.created,
                    "updated": time.time(),
                    "model": conversation.model,
                    "settings": json.dumps(conversation.settings),
                    "system_prompt": conversation.system_prompt,
                    "leaf_id": conversation.leaf_id,
                    "queue": json.dumps(
                        [
                            {"text": turn.text, "images": entries_of(turn.images)}
                            for turn in conversation.queue
                        ]
                    ),
                    "overrides": json.dumps(conversation.overrides),
                    "unread_id": conversation.unread_id,
                },
            )
            await run.executemany(
                "INSERT INTO messages (id, conversation_id, parent_id, position, role, content, status, "
                "note, figures, created, thinking, images, token_ids, owner) VALUES "
                "(:id, :conversation_id, :parent_id, :position, :role, :content, :status, "
                ":note, :figures, :created, :thinking, :images, :token_ids, :owner) "
                "ON CONFLICT (id) DO UPDATE SET "
                "content = excluded.content, status = excluded.status, note = excluded.note, "
                "figures = excluded.figures, thinking = excluded.thinking, token_ids = excluded.token_ids, "
                "owner = excluded.owner",
                rows,
            )
        if problem:
            raise problem

    async def save_branch(self, conversation: Conversation) -> None:
        """Remember which branch is shown; the conversation is none the newer for it."""
        async with self._transaction() as run:
            await run.execute(_SAVE_BRANCH, (conversation.leaf_id, conversation.id))

    async def remove_turns(self, conversation: Conversation, turns: Iterable[Turn]) -> None:
        """Delete turns, and the conversation with its last one."""
        async with self._transaction() as run:
            await run.execute(_SAVE_BRANCH, (conversation.leaf_id, conversation.id))
            await run.executemany("DELETE FROM messages WHERE id = ?", [(turn.id,) for turn in turns])
            await run.execute(
                "DELETE FROM conversations WHERE id = ?1 AND NOT EXISTS "
                "(SELECT 1 FROM messages WHERE conversation_id = ?1)",
                (conversation.id,),
            )
        await self._sweep()

    async def load(self, conversation_id: str) -> Conversation:
        """Read a conversation with all its turns. Raises UserError when there is none of that id.

        An attachment whose file is gone comes without its image.
        """
        with _translated():
            cursor = await self._connection.execute(
                "SELECT title, created, model, settings, system_prompt, leaf_id, queue, overrides, unread_id "
                "FROM conversations WHERE id = ?",
                (conversation_id,),
            )
            found = await cursor.fetchone()
            rows = await self._connection.execute_fetchall(
                "SELECT role, content, status, note, figures, id, created, thinking, images, token_ids, "
                "parent_id FROM messages WHERE conversation_id = ? ORDER BY position, rowid",
                (conversation_id,),
            )
        if found is None:
            raise UserError("That conversation is no longer there: choose another.")
        title, created, model, settings, system_prompt, leaf_id, queue, overrides, unread_id = found
        turns = []
        for role, content, status, note, figures, turn_id, when, thinking, stored, ids, parent in rows:
            images = await self._read_images(json.loads(stored or "[]"))
            turn = Turn(role, content, status, note, _figures(figures), turn_id, when, _thinking(thinking))
            token_ids = tuple(json.loads(ids or "[]"))
            turns.append(replace(turn, images=images, token_ids=token_ids, parent_id=parent))
        conversation = Conversation(
            title,
            system_prompt,
            model,
            json.loads(settings),
            id=conversation_id,
            created=created,
            all_turns=turns,
            queue=[
                Turn("user", message["text"], images=await self._read_images(message["images"]))
                for message in json.loads(queue)
            ],
            overrides=json.loads(overrides),
            unread_id=unread_id,
        )
        if turns:
            conversation.show(next((turn for turn in turns if turn.id == leaf_id), turns[-1]))
        return conversation

    async def _read_images(self, entries: list[dict[str, Any]]) -> tuple[Attachment, ...]:
        """The images of a message, from what the database has of them."""
        return tuple([await asyncio.to_thread(self._images.get, image) for image in of_entries(entries)])

    async def prompts(self, limit: int) -> list[str]:
        """What the user has sent last in all conversations, each text once, the newest at the end."""
        with _translated():
            rows = await self._connection.execute_fetchall(
                "SELECT content FROM messages JOIN conversations ON conversations.id = conversation_id "
                "WHERE role = 'user' AND deleted IS NULL "
                "GROUP BY content ORDER BY max(messages.created) DESC LIMIT ?",
                (limit,),
            )
        return [row[0] for row in rows][::-1]

    async def summaries(self) -> list[Summary]:
        """All conversations, pinned ones first, then the one used last."""
        with _translated():
            rows = await self._connection.execute_fetchall(
                "SELECT id, title, updated, model, "
                "(SELECT count(*) FROM messages WHERE conversation_id = conversations.id AND role = 'user'), "
                "pinned = 1 FROM conversations WHERE deleted IS NULL "
                "ORDER BY pinned DESC, updated DESC, rowid DESC"
            )
        return [Summary(*row) for row in rows]

    async def past_replies(self, count: int) -> list[PastReply]:
        """The last replies of all conversations, newest first."""
        with _translated():
            rows = await self._connection.execute_fetchall(
                "SELECT messages.created, conversations.model, figures FROM messages "
                "JOIN conversations ON conversations.id = conversation_id "
                "WHERE figures IS NOT NULL AND deleted IS NULL ORDER BY messages.created DESC LIMIT ?",
                (count,),
            )
        return [PastReply(created, model, Usage(**json.loads(figures))) for created, model, figures in rows]

    async def search(self, text: str, limit: int) -> list[Hit]:
        """The turns with words that begin as those of `text` do, all of them; the best first."""
        words = [word.replace('"', '""') for word in text.split() if any(map(str.isalnum, word))]
        if not words:
            return []
        with _translated():
            rows = await self._connection.execute_fetchall(
                "SELECT conversation_id, messages.id, title, role, "
                "snippet(search, 0, ?, ?, '…', 12) FROM search "
                "JOIN messages ON messages.rowid = search.rowid "
                "JOIN conversations ON conversations.id = conversation_id "
                "WHERE search MATCH ? AND deleted IS NULL ORDER BY rank, messages.created DESC LIMIT ?",
                (HIT_START, HIT_END, " ".join(f'"{word}"*' for word in words), limit),
            )
        return [Hit(*row) for row in rows]

    async def pin(self, conversation_id: str, pinned: bool) -> None:
        """Keep a conversation at the top of the list, or no longer."""
        async with self._transaction() as run:
            await run.execute("UPDATE conversations SET pinned = ? WHERE id = ?", (pinned, conversation_id))

    async def rename(self, conversation_id: str, title: str) -> None:
        async with self._transaction() as run:
            await run.execute("UPDATE conversations SET title = ? WHERE id = ?", (title, conversation_id))

    async def rename_model(self, name: str, new_name: str) -> None:
        """Have the conversations of the model `name` know it by its new name."""
        async with self._transaction() as run:
            await run.execute("UPDATE conversations SET model = ? WHERE model = ?", (new_name, name))

    async def delete(self, conversation_id: str) -> None:
        """Take a conversation out of the list; `restore` undoes it until `purge` removes it."""
        async with self._transaction() as run:
            await run.execute(
                "UPDATE conversations SET deleted = ? WHERE id = ?", (time.time(), conversation_id)
            )

    async def restore(self, conversation_id: str) -> None:
        async with self._transaction() as run:
            await run.execute("UPDATE conversations SET deleted = NULL WHERE id = ?", (conversation_id,))

    async def purge(self) -> None:
        """Remove for good what was deleted more than KEEP_DELETED_S ago, and images without a message."""
        async with self._transaction() as run:
            await run.execute("DELETE FROM conversations WHERE deleted < ?", (time.time() - KEEP_DELETED_S,))
        await self._sweep()

    async def recover(self) -> str | None:
        """Mark replies that a crash cut off as stopped; returns the newest such conversation's id.

        Replies that another running instance writes are left alone. Call it before any reply is started.
        """
        with _translated():
            rows = await self._connection.execute_fetchall(
                "SELECT id, conversation_id, owner FROM messages WHERE status = 'streaming' "
                "ORDER BY created DESC"
            )
        alive = self._instance.others() if self._instance else set()
        cut_off = [(turn_id, conversation) for turn_id, conversation, owner in rows if owner not in alive]
        async with self._transaction() as run:
            await run.executemany(
                "UPDATE messages SET status = 'stopped', owner = NULL WHERE id = ? AND status = 'streaming'",
                [(turn_id,) for turn_id, _ in cut_off],
            )
        return next((conversation for _, conversation in cut_off), None)

    async def _sweep(self) -> None:
        """Remove the images that no message has any more, sent or queued."""
        async with self._writing:  # nobody saves one meanwhile
            with _translated():
                rows = await self._connection.execute_fetchall(
                    "SELECT json_extract(image.value, '$.sha256') "
                    "FROM messages, json_each(messages.images) AS image "
                    "UNION SELECT json_extract(image.value, '$.sha256') FROM conversations, "
                    "json_each(queue) AS message, json_each(message.value, '$.images') AS image"
                )
            await asyncio.to_thread(self._images.sweep, {row[0] for row in rows})

    @contextlib.asynccontextmanager
    async def _transaction(self) -> AsyncIterator[aiosqlite.Connection]:
        with _translated():
            async with self._writing:
                try:
                    yield self._connection
                    await self._connection.commit()
                except BaseException:
                    await self._connection.rollback()
                    raise


class DamagedError(UserError):
    """The file is no sound SQLite database."""


async def open_or_replace(path: Path) -> tuple[Database, str | None]:
    """Open the database whatever it takes, with a notice for the user when it took something.

    A damaged file is moved aside and a new one started; one that cannot be used now (locked, read-only,
    of a newer version) is left alone, and this session's conversations stay in memory.
    """
    try:
        return await Database.open(path), None
    except DamagedError:
        aside = _move_aside(path)
        return await Database.open(path), (
            f"The conversations file was damaged and is now {aside.name}; a new one was started."
        )
    except UserError as error:
        return await Database.open(None), f"{error} Until then conversations are not saved."


def _move_aside(path: Path) -> Path:
    number = 1
    while (aside := path.with_name(f"{path.name}.damaged-{number}")).exists():
        number += 1
    path.rename(aside)
    for suffix in ("-wal", "-shm"):  # they belong to the damaged file and would spoil the new one
        with contextlib.suppress(FileNotFoundError):
            path.with_name(path.name + suffix).rename(aside.with_name(aside.name + suffix))
    with contextlib.suppress(FileNotFoundError):  # to the new one its images would be nobody's
        path.with_name(IMAGES).rename(path.with_name(f"{IMAGES}.damaged-{number}"))
    return aside


@contextlib.contextmanager
def _translated(path: Path | None = None) -> Iterator[None]:
    """SQLite's errors as UserErrors."""
    try:
        yield
    except sqlite3.OperationalError as error:
        reason = str(error)
        if "locked" in reason or "busy" in reason:
            reason = "another program holds it locked"
            advice = "close that program"
        elif "full" in reason:
            advice = "free some disk space"
        else:
            advice = "check the disk and the file's owner"
        name = path or "The conversations file"
        raise UserError(f"{name} cannot be used ({reason}): {advice}.") from None
    except sqlite3.DatabaseError as error:
        raise DamagedError(
            f"The conversations file is damaged ({error}): restart to begin a new one."
        ) from None


def _figures(stored: str | None) -> Usage | None:
    if stored is None:
        return None
    values: Mapping[str, Any] = json.loads(stored)
    return Usage(**values)


def _thinking(stored: str | None) -> Thinking:
    return Thinking() if stored is None else Thinking(**json.loads(stored))
