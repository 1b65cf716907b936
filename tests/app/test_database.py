"""Conversations on disk: what is saved comes back, whatever state the file is in."""

import contextlib
import os
import sqlite3

import pytest
from PIL import Image as pillow

from lite_llama.app import database, image_store
from lite_llama.app.attachments import attachment_of
from lite_llama.app.conversation import Conversation, Turn
from lite_llama.app.database import DamagedError, Database, open_or_replace
from lite_llama.app.image_store import ImageStore
from lite_llama.engine.events import Thinking, Usage
from lite_llama.engine.images import read_image
from lite_llama.models.errors import UserError


@pytest.fixture
def path(tmp_path):
    return tmp_path / "home" / "conversations.db"


@pytest.fixture
async def db(path):
    opened = await Database.open(path)
    yield opened
    await opened.close()


def talk(title="Hello", *texts):
    turns = [Turn("assistant" if number % 2 else "user", text) for number, text in enumerate(texts)]
    return Conversation(title=title, turns=turns)


async def test_everything_of_a_conversation_comes_back(db):
    saved = Conversation(
        title="Grüße",
        system_prompt="Be brief.",
        model="tiny",
        settings={"temperature": 0.5},
        turns=[
            Turn("user", "Hi\n\tthere 🦙"),
            Turn("assistant", "Hel", "error", "The GPU fell over.", Usage(5, 2, 3, 0.25, 20.0, 1.0, 7)),
        ],
    )
    await db.save(saved, saved.turns)
    assert await db.load(saved.id) == saved


async def test_a_second_save_updates(db):
    saved = talk("A", "one", "two")
    await db.save(saved, saved.turns)
    saved.title, saved.turns[1].text, saved.turns[1].status = "B", "two and a half", "stopped"
    await db.save(saved, saved.turns[1:])
    assert await db.load(saved.id) == saved
    assert len(await db.summaries()) == 1


async def test_summaries_are_newest_first(db):
    talks = [talk(title, "x") for title in "abc"]
    for one in [*talks, talks[0]]:
        await db.save(one, one.turns)
    assert [summary.title for summary in await db.summaries()] == ["a", "c", "b"]
    assert [summary.questions for summary in await db.summaries()] == [1, 1, 1]


async def test_rename_and_delete(db, monkeypatch):
    monkeypatch.setattr(database, "KEEP_DELETED_S", -1.0)
    kept, gone = talk("kept", "x"), talk("gone", "x", "y")
    for one in (kept, gone):
        await db.save(one, one.turns)
    await db.rename(kept.id, "renamed")
    await db.delete(gone.id)
    await db.purge()
    assert [summary.title for summary in await db.summaries()] == ["renamed"]
    with pytest.raises(UserError, match="no longer there"):
        await db.load(gone.id)
    orphans = await db._value(
        "SELECT count(*) FROM messages WHERE conversation_id != (SELECT id FROM conversations)"
    )
    assert orphans == 0


async def test_removing_the_last_turn_removes_the_conversation(db):
    saved = talk("t", "one", "two")
    await db.save(saved, saved.turns)
    await db.remove_turns(saved, saved.turns[1:])
    assert [turn.text for turn in (await db.load(saved.id)).turns] == ["one"]
    await db.remove_turns(saved, saved.turns)
    assert await db.summaries() == []


async def test_replies_that_a_crash_cut_off_become_stopped(db):
    whole, cut = talk("whole", "q", "a"), talk("cut", "q", "half an ans")
    cut.turns[1].status = "streaming"
    for one in (cut, whole):
        await db.save(one, one.turns)
    assert await db.recover() == cut.id
    assert [turn.status for turn in (await db.load(cut.id)).turns] == ["complete", "stopped"]
    assert await db.recover() is None


async def test_what_was_saved_survives_without_a_close(db, path):
    saved = talk("t", "one")
    await db.save(saved, saved.turns)
    other = await Database.open(path)  # as the next start after kill -9: nothing was checkpointed or closed
    try:
        assert await other.load(saved.id) == saved
    finally:
        await other.close()


@pytest.mark.parametrize("garbage", [b"this is no database", b"SQLite format 3\0" + b"\x55" * 5000])
async def test_a_damaged_file_is_moved_aside(path, garbage):
    path.parent.mkdir()
    path.write_bytes(garbage)
    with pytest.raises(DamagedError):
        await Database.open(path)
    opened, notice = await open_or_replace(path)
    try:
        assert await opened.summaries() == []
    finally:
        await opened.close()
    assert path.with_name("conversations.db.damaged-1").read_bytes() == garbage
    assert notice is not None
    assert "conversations.db.damaged-1" in notice


async def test_damage_deep_in_the_file_is_found(db, path):
    for number in range(60):
        one = talk(f"conversation {number}", "x" * 500)
        await db.save(one, one.turns)
    await db.close()
    content = bytearray(path.read_bytes())
    content[8192:16384] = b"\xff" * 8192
    path.write_bytes(content)
    opened, notice = await open_or_replace(path)
    await opened.close()
    assert notice is not None


async def test_a_locked_file_is_waited_for_then_named(db, path):
    saved = talk("t", "one")
    await db.save(saved, saved.turns)
    locker = sqlite3.connect(path)
    locker.execute("BEGIN EXCLUSIVE")
    try:
        patient = await Database.open(path, busy_timeout_s=0.05)
        with pytest.raises(UserError, match="locked"):
            await patient.save(saved, saved.turns)
        await patient.close()
    finally:
        locker.rollback()
        locker.close()
    await db.save(saved, saved.turns)


async def test_a_directory_in_its_place_leaves_the_session_in_memory(path):
    path.mkdir(parents=True)
    opened, notice = await open_or_replace(path)
    saved = talk("t", "one")
    await opened.save(saved, saved.turns)
    assert await opened.load(saved.id) == saved
    await opened.close()
    assert notice is not None
    assert "not saved" in notice


async def test_migrations_run_once_each_and_keep_the_data(db, path, monkeypatch):
    saved = talk("t", "one")
    await db.save(saved, saved.turns)
    await db.close()
    added = "CREATE TABLE tags (name TEXT); INSERT INTO tags SELECT title FROM conversations"
    monkeypatch.setattr(database, "MIGRATIONS", (*database.MIGRATIONS, added))
    for _ in range(2):
        newer = await Database.open(path)
        assert await newer._value("PRAGMA user_version") == len(database.MIGRATIONS)
        assert await newer._value("SELECT count(*) FROM tags WHERE name = 't'") == 1
        assert await newer.load(saved.id) == saved
        await newer.close()


async def test_a_failed_migration_changes_nothing(db, path, monkeypatch):
    saved = talk("t", "one")
    await db.save(saved, saved.turns)
    await db.close()
    good = database.MIGRATIONS
    monkeypatch.setattr(database, "MIGRATIONS", (*good, "CREATE TABLE tags (name TEXT); SELECT nonsense"))
    with pytest.raises(UserError):
        await Database.open(path)
    monkeypatch.setattr(database, "MIGRATIONS", good)
    reopened = await Database.open(path)
    assert await reopened.load(saved.id) == saved
    assert await reopened._value("SELECT count(*) FROM sqlite_master WHERE name = 'tags'") == 0
    await reopened.close()


async def test_a_newer_file_is_left_alone(db, path, monkeypatch):
    await db.close()
    before = path.read_bytes()
    monkeypatch.setattr(database, "MIGRATIONS", ())
    opened, notice = await open_or_replace(path)
    await opened.close()
    assert notice is not None
    assert "newer version" in notice
    assert path.read_bytes() == before


async def test_thinking_is_kept(db):
    saved = talk("t", "q", "a")
    saved.turns[1].thinking = Thinking("Hm,\nwell 🦙", 5, 1.25)
    await db.save(saved, saved.turns)
    assert await db.load(saved.id) == saved
    saved.turns[1].thinking = Thinking()
    await db.save(saved, saved.turns)
    assert await db.load(saved.id) == saved


async def test_a_file_from_before_thinking_is_migrated(path):
    path.parent.mkdir()
    with contextlib.closing(sqlite3.connect(path)) as old:
        old.executescript(database.MIGRATIONS[0])
        old.execute("INSERT INTO conversations VALUES ('c', 'Old', 1.0, 2.0, 'tiny', '{}', '')")
        old.execute(
            "INSERT INTO messages VALUES ('m', 'c', NULL, 0, 'assistant', 'Yes', 'complete', '', NULL, 1.0)"
        )
        old.execute("PRAGMA user_version = 1")
        old.commit()
    opened, notice = await open_or_replace(path)
    assert notice is None
    loaded = await opened.load("c")
    assert loaded.turns == [Turn("assistant", "Yes", id="m", created=1.0)]
    loaded.turns[0].thinking = Thinking("Hm", 1, 0.5)
    await opened.save(loaded, loaded.turns)
    assert await opened.load("c") == loaded
    await opened.close()


# Images


@pytest.fixture
def attachment(tmp_path):
    """`attachment("red")`: a small picture of that colour, as it is attached."""

    def make(colour):
        path = tmp_path / f"{colour}.png"
        pillow.new("RGB", (40, 30), colour).save(path)
        return attachment_of(read_image(path))

    return make


def with_images(*images, title="Pictures"):
    return Conversation(title=title, turns=[Turn("user", "What is this?", images=images)])


def stored(path):
    return sorted(file.name for file in (path.parent / "images").iterdir())


@pytest.fixture
def later(monkeypatch):
    """Copies may be removed at once."""
    monkeypatch.setattr(image_store, "GRACE_S", -1.0)


async def test_images_are_kept_with_their_message(db, path, attachment):
    red, blue = attachment("red"), attachment("blue")
    saved = with_images(red, blue)
    await db.save(saved, saved.turns)
    (path.parent.parent / "red.png").unlink()  # the copy is what counts
    assert stored(path) == sorted([red.sha256, blue.sha256])
    other = await Database.open(path)  # as the next start after kill -9
    try:
        loaded = await other.load(saved.id)
    finally:
        await other.close()
    assert loaded == saved
    first, second = loaded.turns[0].images
    assert (first.image, second.image) == (red.image, blue.image)
    assert first.thumbnail is not None
    assert first.thumbnail.getpixel((0, 0)) == (255, 0, 0)


async def test_one_copy_does_for_all_messages_and_goes_with_the_last(
    db, path, attachment, later, monkeypatch
):
    red, blue = attachment("red"), attachment("blue")
    one, two = with_images(red, blue), with_images(red)
    for each in (one, two):
        await db.save(each, each.turns)
    assert len(stored(path)) == 2
    await db.delete(one.id)
    await db.purge()
    assert len(stored(path)) == 2  # the conversation may come back
    monkeypatch.setattr(database, "KEEP_DELETED_S", -1.0)
    await db.purge()
    assert stored(path) == [red.sha256]
    await db.remove_turns(two, two.turns)
    assert stored(path) == []


async def test_copies_of_another_program_are_left_alone_while_they_are_new(db, path, attachment):
    other = ImageStore(path.parent / "images")
    other.put(attachment("red"))
    await db.purge()
    assert stored(path) == [attachment("red").sha256]
    os.utime(path.parent / "images" / attachment("red").sha256, (0, 0))
    await db.purge()
    assert stored(path) == []


async def test_half_a_copy_is_never_taken_for_one(db, path, attachment, later, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    red = attachment("red")
    monkeypatch.setattr("os.replace", killed)
    monkeypatch.setattr("os.unlink", lambda _: None)  # what comes after a kill does not happen either
    with pytest.raises(KeyboardInterrupt):
        ImageStore(path.parent / "images").put(red)
    monkeypatch.undo()
    monkeypatch.setattr(image_store, "GRACE_S", -1.0)
    assert len(stored(path)) == 1
    saved = with_images(red)
    await db.save(saved, saved.turns)
    assert (await db.load(saved.id)).turns[0].images[0].image == red.image
    await db.purge()
    assert stored(path) == [red.sha256]


async def test_images_of_the_queue_are_kept_until_it_is_sent(db, path, attachment, later):
    red = attachment("red")
    saved = with_images(title="Later")
    saved.queue = [Turn("user", "one"), Turn("user", "", images=(red,))]
    await db.save(saved, saved.turns)
    await db.purge()
    assert stored(path) == [red.sha256]
    loaded = await db.load(saved.id)
    assert [(message.text, message.images) for message in loaded.queue] == [("one", ()), ("", (red,))]
    assert loaded.queue[1].images[0].image == red.image
    saved.queue = []
    await db.save(saved, [])
    await db.purge()
    assert stored(path) == []


async def test_a_queue_of_texts_alone_is_migrated(path):
    before = next(i for i, script in enumerate(database.MIGRATIONS) if "json_group_array" in script)
    path.parent.mkdir()
    with contextlib.closing(sqlite3.connect(path)) as old:
        old.executescript("".join(f"{script};" for script in database.MIGRATIONS[:before]))
        for name, queue in (("c", '["\\"Grüße\\"", "[]"]'), ("d", "[]")):
            old.execute(
                "INSERT INTO conversations "
                "(id, title, created, updated, model, settings, system_prompt, queue) "
                "VALUES (?, 'Old', 1.0, 2.0, 'tiny', '{}', '', ?)",
                (name, queue),
            )
        old.execute(f"PRAGMA user_version = {before}")
        old.commit()
    opened = await Database.open(path)
    assert [message.text for message in (await opened.load("c")).queue] == ['"Grüße"', "[]"]
    assert (await opened.load("d")).queue == []
    await opened.close()


@pytest.mark.parametrize("damage", ["gone", "cut"])
async def test_a_copy_that_is_gone_or_damaged_leaves_the_text(db, path, attachment, damage):
    saved = with_images(attachment("red"))
    await db.save(saved, saved.turns)
    copy = path.parent / "images" / saved.turns[0].images[0].sha256
    copy.unlink() if damage == "gone" else copy.write_bytes(copy.read_bytes()[:-20])
    loaded = await db.load(saved.id)
    assert loaded == saved
    assert loaded.turns[0].images[0].image is None


async def test_the_text_is_saved_when_an_image_cannot_be(db, path, attachment):
    (path.parent / "images").touch()  # in the directory's place
    saved = with_images(attachment("red"))
    with pytest.raises(UserError, match=r"The copy of red\.png cannot be written"):
        await db.save(saved, saved.turns)
    assert (await db.load(saved.id)).turns[0].text == "What is this?"


async def test_a_session_in_memory_keeps_images_there_and_removes_none(path, attachment, later):
    path.mkdir(parents=True)  # in the database's place
    kept = attachment("blue")
    ImageStore(path.parent / "images").put(kept)
    opened, _ = await open_or_replace(path)
    saved = with_images(attachment("red"))
    await opened.save(saved, saved.turns)
    assert (await opened.load(saved.id)).turns[0].images[0].image is not None
    await opened.purge()
    await opened.close()
    assert stored(path) == [kept.sha256]


async def test_the_images_of_a_damaged_file_are_moved_aside_with_it(path, attachment, later):
    path.parent.mkdir()
    path.write_bytes(b"this is no database")
    ImageStore(path.parent / "images").put(attachment("red"))
    opened, _ = await open_or_replace(path)
    await opened.purge()
    await opened.close()
    assert [file.name for file in (path.parent / "images.damaged-1").iterdir()] == [attachment("red").sha256]


async def test_a_file_from_before_images_is_migrated(path, attachment):
    path.parent.mkdir()
    with contextlib.closing(sqlite3.connect(path)) as old:
        for script in database.MIGRATIONS[:2]:
            old.executescript(script)
        old.execute("INSERT INTO conversations VALUES ('c', 'Old', 1.0, 2.0, 'tiny', '{}', '')")
        old.execute(
            "INSERT INTO messages VALUES ('m', 'c', NULL, 0, 'user', 'Hi', 'complete', '', NULL, 1.0, NULL)"
        )
        old.execute("PRAGMA user_version = 2")
        old.commit()
    opened, notice = await open_or_replace(path)
    assert notice is None
    loaded = await opened.load("c")
    assert loaded.turns == [Turn("user", "Hi", id="m", created=1.0)]
    loaded.add(Turn("user", "And this?", images=(attachment("red"),)))
    await opened.save(loaded, loaded.turns)
    assert await opened.load("c") == loaded
    await opened.close()


# Branches


async def test_all_branches_come_back_and_the_one_that_was_shown(db):
    saved = talk("t", "q", "a1", "q2")
    saved.turns = saved.turns[:1]
    saved.add(Turn("assistant", "a2"))
    await db.save(saved, saved.all_turns)
    assert await db.load(saved.id) == saved
    saved.show(saved.all_turns[2])
    await db.save_branch(saved)
    loaded = await db.load(saved.id)
    assert loaded == saved
    assert [turn.text for turn in loaded.turns] == ["q", "a1", "q2"]


async def test_a_file_from_before_branches_is_migrated(path):
    path.parent.mkdir()
    with contextlib.closing(sqlite3.connect(path)) as old:
        old.executescript("".join(f"{script};" for script in database.MIGRATIONS[:2]))
        old.execute("INSERT INTO conversations VALUES ('c', 'Old', 1.0, 2.0, 'tiny', '{}', '')")
        for number, (role, parent) in enumerate([("user", None), ("assistant", "m0"), ("user", "m1")]):
            row = (f"m{number}", "c", parent, number, role, f"text {number}", "complete", "", None, 1.0, None)
            old.execute(f"INSERT INTO messages VALUES ({', '.join('?' * len(row))})", row)
        old.execute("PRAGMA user_version = 2")
        old.commit()
    opened, notice = await open_or_replace(path)
    assert notice is None
    loaded = await opened.load("c")
    assert [turn.text for turn in loaded.turns] == ["text 0", "text 1", "text 2"]
    loaded.turns = loaded.turns[:2]
    loaded.add(Turn("user", "another"))
    await opened.save(loaded, loaded.turns[2:])
    assert await opened.load("c") == loaded
    await opened.close()


# Search, pin, delete


async def test_search_finds_beginnings_of_words_in_all_branches(db):
    saved = talk("t", "How do llamas hum?", 'They **hum** softly, "mm".')
    other = talk("u", "Nothing of that kind: crème", "x" * 500)
    saved.turns = saved.turns[:1]
    saved.add(Turn("assistant", "Humming is their language."))
    for one in (saved, other):
        await db.save(one, one.all_turns)

    async def found(text):
        return sorted(hit.turn_id for hit in await db.search(text, 10))

    ids = [turn.id for turn in saved.all_turns]
    assert await found("hum") == sorted(ids)
    assert await found("LLAM hum") == [ids[0]]
    assert await found("creme") == [other.turns[0].id]
    assert await found('"mm" AND (') == []
    assert await found('"mm"') == [ids[1]]
    assert await found("  ? ") == []
    (hit,) = await db.search("soft", 10)
    assert hit.snippet == 'They **hum** \x02softly\x03, "mm".'
    assert (hit.conversation_id, hit.title, hit.role) == (saved.id, "t", "assistant")


async def test_the_index_follows_every_change(db):
    saved = talk("t", "one", "two")
    await db.save(saved, saved.turns)
    saved.turns[1].text = "three"
    await db.save(saved, saved.turns)
    assert await db.search("two", 10) == []
    assert len(await db.search("three", 10)) == 1
    await db.remove_turns(saved, saved.turns[1:])
    assert await db.search("three", 10) == []
    await db.delete(saved.id)
    assert await db.search("one", 10) == []
    await db._connection.execute("INSERT INTO search (search, rank) VALUES ('integrity-check', 1)")


async def test_deleted_conversations_come_back_until_they_are_purged(db, monkeypatch):
    kept, gone = talk("kept", "a"), talk("gone", "b")
    for one in (kept, gone):
        await db.save(one, one.turns)
        await db.delete(one.id)
    assert await db.summaries() == []
    await db.purge()
    await db.restore(kept.id)
    assert [summary.title for summary in await db.summaries()] == ["kept"]
    monkeypatch.setattr(database, "KEEP_DELETED_S", -1.0)
    await db.purge()
    with pytest.raises(UserError):
        await db.load(gone.id)
    assert (await db.load(kept.id)).turns == kept.turns
    assert await db._value("SELECT count(*) FROM messages") == 1


async def test_past_replies_are_those_of_the_conversations_that_are_there(db):
    kept, gone = talk("kept", "a", "b"), talk("gone", "a", "b")
    for number, one in enumerate((kept, gone)):
        one.turns[1].figures = Usage(10, 0, number, 0.1, 20.0, 1.0, 7)
        await db.save(one, one.turns)
    assert [reply.figures for reply in await db.past_replies(5)] == [
        gone.turns[1].figures,
        kept.turns[1].figures,
    ]
    await db.delete(gone.id)
    assert [reply.figures for reply in await db.past_replies(5)] == [kept.turns[1].figures]


async def test_what_is_written_to_is_no_longer_deleted(db):
    saved = talk("t", "one")
    await db.save(saved, saved.turns)
    await db.delete(saved.id)
    await db.save(saved, saved.turns)
    assert len(await db.summaries()) == 1


async def test_pinned_conversations_come_first(db):
    talks = [talk(title, "x") for title in "abc"]
    for one in talks:
        await db.save(one, one.turns)
    await db.pin(talks[0].id, True)
    assert [(each.title, each.pinned) for each in await db.summaries()] == [
        ("a", True),
        ("c", False),
        ("b", False),
    ]


async def test_a_file_of_version_2_is_found_in(path):
    path.parent.mkdir()
    with contextlib.closing(sqlite3.connect(path)) as old:
        old.executescript("".join(f"{script};" for script in database.MIGRATIONS[:2]))
        old.execute("INSERT INTO conversations VALUES ('c', 'Old', 1.0, 2.0, 'tiny', '{}', '')")
        row = ("m", "c", None, 0, "user", "old words", "complete", "", None, 1.0, None)
        old.execute(f"INSERT INTO messages VALUES ({', '.join('?' * len(row))})", row)
        old.execute("PRAGMA user_version = 2")
        old.commit()
    opened = await Database.open(path)
    assert [hit.turn_id for hit in await opened.search("word", 5)] == ["m"]
    await opened.close()
