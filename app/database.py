"""Conversations on disk: SQLite through aiosqlite, plain SQL."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
import time
import uuid
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import aiosqlite

from ..engine.events import Thinking, Usage
from ..engine.request import Role
from ..models.errors import UserError
from .attachments import Attachment
from .image_store import ImageStore

Status = Literal["complete", "streaming", "stopped", "length", "error"]
BUSY_TIMEOUT_S = 5.0
IMAGES = "images"
"""The directory of the images, beside the database's file."""

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
        parent_id TEXT,                 -- the message before; several may share one when branches come
        position INTEGER NOT NULL,
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
    # JSON list of the token ids that a reply was generated as; NULL: not known.
    "ALTER TABLE messages ADD COLUMN token_ids TEXT",
)


def _new_id() -> str:
    return uuid.uuid4().hex


@dataclass
class Turn:
    """One message of a conversation; `note` says why a reply ended early, where there is more to say.

    `text` of a reply is its answer; `thinking` is what came before it.
    """

    role: Role
    text: str
    status: Status = "complete"
    note: str = ""
    figures: Usage | None = None
    id: str = field(default_factory=_new_id)
    created: float = field(default_factory=time.time)
    thinking: Thinking = field(default_factory=Thinking)
    images: tuple[Attachment, ...] = ()
    token_ids: tuple[int, ...] = ()
    """The tokens that a reply was generated as, empty if they are not known; before it has begun, those that
    it is to begin with."""

    @property
    def has_begun(self) -> bool:
        """Whether there is a part of the reply, thinking or answer, to go on from."""
        return bool(self.text or self.thinking.text)


@dataclass
class Conversation:
    """A conversation with its turns, oldest first; `model` and `settings` are those last used."""

    title: str = ""
    system_prompt: str = ""
    model: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    turns: list[Turn] = field(default_factory=list)
    id: str = field(default_factory=_new_id)
    created: float = field(default_factory=time.time)


@dataclass(frozen=True)
class Summary:
    """A line of the list of conversations."""

    id: str
    title: str
    updated: float
    model: str
    turns: int


class Database:
    """The conversations of one file. Each method that writes is one transaction.

    Every method raises UserError when the disk does not do what is asked: full, read-only, or locked by
    another program for longer than BUSY_TIMEOUT_S.
    """

    def __init__(self, connection: aiosqlite.Connection, images: ImageStore) -> None:
        self._connection = connection
        self._images = images
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
        database = cls(connection, ImageStore(path.with_name(IMAGES) if path else None))
        try:
            with _translated(path):
                await database._prepare()
        except BaseException:
            await connection.close()
            raise
        return database

    async def close(self) -> None:
        await self._connection.close()

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
        for number, script in enumerate(MIGRATIONS[version:], start=version + 1):
            await self._connection.executescript(
                f"BEGIN IMMEDIATE; {script}; PRAGMA user_version = {number}; COMMIT;"
            )

    async def _value(self, sql: str) -> Any:
        async with self._connection.execute(sql) as cursor:
            row = await cursor.fetchone()
        assert row is not None
        return row[0]

    async def save(self, conversation: Conversation, turns: Iterable[Turn]) -> None:
        """Insert or update the conversation itself and those of its turns, with the images of these.

        Raises UserError, for an image after the text has been saved without it.
        """
        turns, problem = list(turns), None
        position = {turn.id: number for number, turn in enumerate(conversation.turns)}
        rows = []
        for turn in turns:
            number = position[turn.id]
            rows.append(
                {
                    "id": turn.id,
                    "conversation_id": conversation.id,
                    "parent_id": conversation.turns[number - 1].id if number else None,
                    "position": number,
                    "role": turn.role,
                    "content": turn.text,
                    "status": turn.status,
                    "note": turn.note,
                    "figures": json.dumps(asdict(turn.figures)) if turn.figures else None,
                    "created": turn.created,
                    "thinking": json.dumps(asdict(turn.thinking)) if turn.thinking.text else None,
                    "images": _stored_images(turn.images),
                    "token_ids": json.dumps(turn.token_ids) if turn.token_ids else None,
                }
            )
        async with self._transaction() as run:
            try:  # first: a message that is saved has its images, even after a kill -9
                for image in (image for turn in turns for image in turn.images):
                    await asyncio.to_thread(self._images.put, image)
            except UserError as error:
                problem = error
            await run.execute(
                "INSERT INTO conversations VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET "
                "title = excluded.title, updated = excluded.updated, model = excluded.model, "
                "settings = excluded.settings, system_prompt = excluded.system_prompt",
                (
                    conversation.id,
                    conversation.title,
                    conversation.created,
                    time.time(),
                    conversation.model,
                    json.dumps(conversation.settings),
                    conversation.system_prompt,
                ),
            )
            await run.executemany(
                "INSERT INTO messages VALUES (:id, :conversation_id, :parent_id, :position, :role, :content, "
                ":status, :note, :figures, :created, :thinking, :images, :token_ids) "
                "ON CONFLICT (id) DO UPDATE SET "
                "content = excluded.content, status = excluded.status, note = excluded.note, "
                "figures = excluded.figures, thinking = excluded.thinking, token_ids = excluded.token_ids",
                rows,
            )
        if problem:
            raise problem

    async def remove_turns(self, conversation: Conversation, turns: Iterable[Turn]) -> None:
        """Delete turns, and the conversation with its last one."""
        async with self._transaction() as run:
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
                "SELECT title, created, model, settings, system_prompt FROM conversations WHERE id = ?",
                (conversation_id,),
            )
            found = await cursor.fetchone()
            rows = await self._connection.execute_fetchall(
                "SELECT role, content, status, note, figures, id, created, thinking, images, token_ids "
                "FROM messages "
                "WHERE conversation_id = ? ORDER BY position",
                (conversation_id,),
            )
        if found is None:
            raise UserError("That conversation is no longer there: choose another.")
        title, created, model, settings, system_prompt = found
        turns = []
        for role, content, status, note, figures, turn_id, when, thinking, stored, ids in rows:
            images = [await asyncio.to_thread(self._images.get, image) for image in _images(stored)]
            turn = Turn(role, content, status, note, _figures(figures), turn_id, when, _thinking(thinking))
            turns.append(replace(turn, images=tuple(images), token_ids=tuple(json.loads(ids or "[]"))))
        return Conversation(
            title, system_prompt, model, json.loads(settings), turns, conversation_id, created
        )

    async def summaries(self) -> list[Summary]:
        """All conversations, the one used last first."""
        with _translated():
            rows = await self._connection.execute_fetchall(
                "SELECT id, title, updated, model, "
                "(SELECT count(*) FROM messages WHERE conversation_id = conversations.id) "
                "FROM conversations ORDER BY updated DESC, rowid DESC"
            )
        return [Summary(*row) for row in rows]

    async def rename(self, conversation_id: str, title: str) -> None:
        async with self._transaction() as run:
            await run.execute("UPDATE conversations SET title = ? WHERE id = ?", (title, conversation_id))

    async def delete(self, conversation_id: str) -> None:
        async with self._transaction() as run:
            await run.execute("DELETE FROM conversations WHERE id = ?", (conversation_id,))
        await self._sweep()

    async def recover(self) -> str | None:
        """Mark replies that a crash cut off as stopped; returns the newest such conversation's id.

        Images that a crash left without a message are removed.
        """
        with _translated():
            rows = await self._connection.execute_fetchall(
                "SELECT conversation_id FROM messages WHERE status = 'streaming' ORDER BY created DESC"
            )
        async with self._transaction() as run:
            await run.execute("UPDATE messages SET status = 'stopped' WHERE status = 'streaming'")
        await self._sweep()
        return next((row[0] for row in rows), None)

    async def _sweep(self) -> None:
        """Remove the images that no message has any more."""
        async with self._writing:  # nobody saves one meanwhile
            with _translated():
                rows = await self._connection.execute_fetchall(
                    "SELECT DISTINCT json_extract(image.value, '$.sha256') "
                    "FROM messages, json_each(messages.images) AS image"
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


def _stored_images(images: Iterable[Attachment]) -> str | None:
    entries = [
        {"name": image.name, "sha256": image.sha256, "width": image.size[0], "height": image.size[1]}
        for image in images
    ]
    return json.dumps(entries) if entries else None


def _images(stored: str | None) -> list[Attachment]:
    return [
        Attachment(entry["name"], (entry["width"], entry["height"]), entry["sha256"])
        for entry in json.loads(stored or "[]")
    ]
