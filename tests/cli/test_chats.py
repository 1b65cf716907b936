"""`lite-llama-tui chats`."""

import asyncio
import json

from lite_llama.app.conversation import Conversation, Turn
from lite_llama.app.database import Database
from lite_llama.app.paths import Paths


def save(*texts):
    async def run():
        database = await Database.open(Paths.default().database)
        one = Conversation(
            title=texts[0],
            turns=[Turn("assistant" if number % 2 else "user", text) for number, text in enumerate(texts)],
        )
        await database.save(one, one.turns)
        await database.close()
        return one.id

    return asyncio.run(run())


def test_list_and_search(cli):
    assert cli("chats", "list").stdout == "There is no saved conversation yet.\n"
    first, second = save("about llamas", "They \x1b[2J hum."), save("other", "things")
    assert [row["id"] for row in json.loads(cli("chats", "list", "--json").stdout)] == [second, first]
    assert cli("chats", "search", "hu").stdout == f"{first}  about llamas  They [2J hum.\n"
    assert cli("chats", "search", "nowhere").stdout == "Nothing is found.\n"


def test_export_and_import(cli, fails, tmp_path):
    assert "nothing was written" in fails("chats", "export", tmp_path / "none.md")
    first, _ = save("one", "1"), save("two", "2")
    path = tmp_path / "all.jsonl"
    assert cli("chats", "export", path).stdout == f"Exported 2 conversations to {path}.\n"
    assert cli("chats", "import", path).stdout == f"Imported 2 conversations from {path}.\n"
    assert len(json.loads(cli("chats", "list", "--json").stdout)) == 4
    assert cli("chats", "export", tmp_path / "one.md", first[:20]).exit_code == 0
    assert (tmp_path / "one.md").read_text().startswith("# one\n")
    assert "No conversation has an id with zzz" in fails("chats", "export", tmp_path / "x.md", "zzz")
    assert "cannot be read" in fails("chats", "import", tmp_path / "missing.md")
