"""Export and import: what is written comes back, and a page is harmless."""

import json
import math
import re
from dataclasses import replace

import pytest
from PIL import Image as pillow

from lite_llama.app import exchange
from lite_llama.app.attachments import attachment_of
from lite_llama.app.conversation import Conversation, Turn
from lite_llama.app.database import Database
from lite_llama.engine.events import Thinking, Usage
from lite_llama.engine.images import read_image
from lite_llama.models.errors import UserError


def talk():
    reply = Turn(
        "assistant", "# Hum\n\n```py\nx < 1\n```", "length", "Limit.", Usage(5, 2, 3, 0.2, 20.0, 1.0, 7)
    )
    reply.thinking = Thinking("Hm </script>", 2, 0.5)
    conversation = Conversation(
        title="Llamas & <co>",
        system_prompt="Be brief.",
        model="tiny",
        settings={"temperature": 0.5},
        turns=[Turn("user", "<b>Hi</b> 🦙\n\nthere"), Turn("assistant", "first")],
    )
    conversation.turns = conversation.turns[:1]
    conversation.add(reply)
    conversation.leave_out(1)
    return conversation


def as_told(conversation):
    """All of a conversation but the ids, which an import makes anew."""
    places = {turn.id: number for number, turn in enumerate(conversation.all_turns)}
    turns = [
        (turn.role, turn.text, turn.status, turn.note, turn.figures, turn.thinking, turn.created,
         places.get(turn.parent_id or ""))
        for turn in conversation.all_turns
    ]  # fmt: skip
    shown = [places[turn.id] for turn in conversation.turns]
    head = (conversation.title, conversation.system_prompt, conversation.model, conversation.settings)
    return head, conversation.created, turns, shown, conversation.left_out


@pytest.mark.parametrize("suffix", [".jsonl", ".html"])
def test_everything_comes_back(tmp_path, suffix):
    path, written = tmp_path / f"talk{suffix}", [talk(), talk()]
    exchange.write(path, written)
    read = exchange.read(path)
    assert [as_told(each) for each in read] == [as_told(each) for each in written]
    ids = {turn.id for each in (*written, *read) for turn in each.all_turns}
    assert len(ids) == 4 * 3


def test_markdown_has_the_branch_that_was_shown(tmp_path):
    path, written = tmp_path / "talk.md", [talk(), talk()]
    exchange.write(path, written)
    assert path.read_text().startswith("# Llamas & <co>\n\n<!-- user -->\n## You\n\n<b>Hi</b> 🦙\n\nthere\n")
    read = exchange.read(path)
    assert [each.title for each in read] == ["Llamas & <co>"] * 2
    for each in read:
        assert [(turn.role, turn.text) for turn in each.turns] == [
            (turn.role, turn.text) for turn in written[0].turns
        ]


def test_a_page_runs_and_loads_nothing(tmp_path):
    evil = "<script>x</script> <img src=x onerror=y> [a](javascript:z) \x1b[2J ![i](http://h/i.png) </script>"
    path = tmp_path / "talk.html"
    exchange.write(path, [Conversation(title=evil, turns=[Turn("user", evil), Turn("assistant", evil)])])
    page = path.read_text()
    assert "default-src 'none'" in page
    assert page.count("<script") == page.count("</script>") == 1
    assert not re.search(r"<[^>]*(onerror|javascript:)", page)
    assert "\x1b" not in page
    (read,) = exchange.read(path)
    assert read.turns[0].text == evil


def test_nothing_is_overwritten(tmp_path):
    path = tmp_path / "talk.md"
    path.write_text("mine")
    with pytest.raises(UserError, match="there already"):
        exchange.write(path, [talk()])
    assert [each.name for each in tmp_path.iterdir()] == ["talk.md"]
    assert path.read_text() == "mine"
    with pytest.raises(UserError, match="no known ending"):
        exchange.write(tmp_path / "talk.txt", [talk()])
    with pytest.raises(UserError, match="cannot be written"):
        exchange.write(tmp_path / "no" / "talk.md", [talk()])


def cycle(good):
    good["all_turns"][0]["parent_id"] = good["all_turns"][1]["id"]
    return good


DAMAGED = {
    "no JSON": lambda good: "{",
    "a list": lambda good: [],
    "empty": lambda good: {},
    "another format": lambda good: good | {"format": 2},
    "wrong settings": lambda good: good | {"overrides": {"temperature": 9}},
    "no turns": lambda good: good | {"all_turns": []},
    "another role": lambda good: good | {"all_turns": [{"role": "king", "text": "x"}]},
    "a cycle": cycle,
    "turns twice": lambda good: good | {"all_turns": good["all_turns"] * 2},
    "a text": lambda good: '"hello"',
    "nothing": lambda good: "null",
    "turns of another kind": lambda good: good | {"all_turns": [1]},
    "turns by name": lambda good: good | {"all_turns": {"a": 1}},
    "images of another kind": lambda good: good | {"all_turns": [good["all_turns"][0] | {"images": [[]]}]},
    "too deep": lambda good: "[" * 100_000,
    "a deep setting": lambda good: json.dumps(good)[:-1] + ', "settings": ' + '{"a":' * 100_000,
    "a time that no clock shows": lambda good: good | {"created": 1e300},
    "no number": lambda good: good | {"created": math.nan},
    "infinite": lambda good: good | {"settings": {"temperature": math.inf}},
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_file_is_refused(tmp_path, damage):
    path = tmp_path / "talk.jsonl"
    damaged = DAMAGED[damage](json.loads(exchange._to_jsonl([talk()])))
    path.write_text(damaged if isinstance(damaged, str) else json.dumps(damaged))
    with pytest.raises(UserError, match="damaged"):
        exchange.read(path)


@pytest.mark.parametrize("text", ["<!-- user -->\n## You\n\nHi\n\n", "<!-- assistant -->\n"])
def test_markdown_without_a_title_is_refused(tmp_path, text):
    (tmp_path / "talk.md").write_text(text)
    with pytest.raises(UserError, match="damaged"):
        exchange.read(tmp_path / "talk.md")


@pytest.mark.parametrize("suffix", [".jsonl", ".html"])
async def test_half_characters_are_replaced_and_can_be_saved(tmp_path, suffix):
    path = tmp_path / f"talk{suffix}"
    exchange.write(path, [talk()])
    told = path.read_text(encoding="utf-8").replace("first", r"half \ud800 and \ud83e\udd99")
    path.write_text(told.replace("Be brief.", r"\udc00"), encoding="utf-8")
    (read,) = exchange.read(path)
    assert read.system_prompt == "\ufffd"
    assert read.all_turns[1].text == "half \ufffd and 🦙"
    database = await Database.open(tmp_path / "chats.sqlite3")
    await database.save(read, read.all_turns)
    assert (await database.load(read.id)).all_turns == read.all_turns
    await database.close()


def test_an_export_that_fails_leaves_nothing_behind(tmp_path, monkeypatch):
    def fails(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(exchange, "_who", fails)
    with pytest.raises(UserError, match="No space left on device"):
        exchange.write(tmp_path / "talk.md", [talk()])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("name", "content"), [("a.md", b"no marks"), ("a.html", b"<p>"), ("a.jsonl", b"\n")])
def test_a_file_without_conversations_is_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match="holds no conversation"):
        exchange.read(tmp_path / name)


async def test_export_and_import_by_command(chat, engine, tmp_path):
    engine.reply("**hum**")
    async with chat() as c:
        await c.send("/export")
        await c.until(lambda: "There is nothing to export yet." in c.notices())
        await c.ask("What do llamas do?")
        path = tmp_path / "it's one.html"
        await c.send(f"/export {path}")
        await c.until(path.exists)
        await c.send(f"/export {path}")
        await c.until(lambda: f"{path} is there already: name another file." in c.notices())
        await c.pilot.press("ctrl+n")
        await c.until(lambda: c.shown() == [])
        await c.send("/import")
        assert c.prompt.text == "/import "
        await c.send(f"/import {path}")
        await c.until(lambda: c.shown() == ["What do llamas do?", "**hum**"])
        assert len(await c.app.controller.archive.summaries()) == 2


@pytest.mark.parametrize("suffix", [".jsonl", ".html"])
def test_images_are_exported_and_come_back(tmp_path, suffix):
    picture = tmp_path / "a <b>.png"
    pillow.new("RGB", (40, 30), "red").save(picture)
    attached = attachment_of(read_image(picture))
    gone = replace(attached, name="gone.png", image=None, thumbnail=None)
    talk = Conversation(
        "t", turns=[Turn("user", "What is this?", images=(attached, gone)), Turn("assistant", "Red.")]
    )
    exchange.write(tmp_path / f"talk{suffix}", [talk])
    text = (tmp_path / f"talk{suffix}").read_text(encoding="utf-8")
    assert "a <b>" not in text or suffix == ".jsonl"
    ((first, _),) = [each.turns for each in exchange.read(tmp_path / f"talk{suffix}")]
    assert first.images == (attached,)
    assert first.images[0].image == attached.image


def test_what_another_user_had_queued_is_not_sent(tmp_path):
    path = tmp_path / "talk.jsonl"
    values = json.loads(exchange._to_jsonl([talk()])) | {"queue": [{"role": "user", "text": "Hum!"}]}
    path.write_text(json.dumps(values))
    assert exchange.read(path)[0].queue == []


def test_markdown_names_the_images(tmp_path):
    picture = tmp_path / "cat.png"
    pillow.new("RGB", (4, 3), "red").save(picture)
    talk = Conversation("t", turns=[Turn("user", "Look", images=(attachment_of(read_image(picture)),))])
    exchange.write(tmp_path / "talk.md", [talk])
    assert "*cat.png*\n\nLook" in (tmp_path / "talk.md").read_text(encoding="utf-8")
