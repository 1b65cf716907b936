"""`lite-llama-tui chats`: the saved conversations on the command line."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from ..models.errors import UserError
from .paths import Paths
from .text import format_time, one_line

if TYPE_CHECKING:
    from .database import Database

T = TypeVar("T")
chats = typer.Typer(help="List, search, export and import the saved conversations.", no_args_is_help=True)
AsJson = Annotated[bool, typer.Option("--json", help="Print a JSON list instead of lines.")]


def with_database(action: Callable[[Database], Awaitable[T]]) -> T:
    """What `action` makes of the saved conversations."""
    import asyncio

    from .database import Database

    async def run() -> T:
        database = await Database.open(Paths.default().database)
        try:
            return await action(database)
        finally:
            await database.close()

    return asyncio.run(run())


def _print(rows: list[dict[str, Any]], as_json: bool, nothing: str) -> None:
    if as_json:
        typer.echo(json.dumps(rows))
    elif not rows:
        typer.echo(nothing)
    else:
        for row in rows:
            typer.echo("  ".join(one_line(str(value)) for value in row.values()))


@chats.command("list")
def list_chats(as_json: AsJson = False) -> None:
    """List the conversations in the order of the app, each with its id."""
    found = with_database(lambda database: database.summaries())
    rows = [
        {
            "id": each.id,
            "updated": format_time(each.updated),
            "title": each.title,
        }
        for each in found
    ]
    _print(rows, as_json, "There is no saved conversation yet.")


@chats.command("search")
def search_chats(
    words: Annotated[list[str], typer.Argument(help="Beginnings of words; all must occur in a turn.")],
    as_json: AsJson = False,
) -> None:
    """Search every turn of every conversation."""
    found = with_database(lambda database: database.search(" ".join(words), 100))
    rows = [{"id": hit.conversation_id, "title": hit.title, "snippet": hit.text} for hit in found]
    _print(rows, as_json, "Nothing is found.")


@chats.command("export")
def export_chats(
    path: Annotated[Path, typer.Argument(help="The new file: .jsonl (everything), .md or .html.")],
    ids: Annotated[
        list[str] | None,
        typer.Argument(metavar="[ID]...", help="Ids, or how they begin; default: all."),
    ] = None,
) -> None:
    """Write conversations to a file."""
    from . import exchange

    async def load(database: Database) -> list[Any]:
        known = [summary.id for summary in await database.summaries()]
        chosen = [_one(known, wanted) for wanted in ids] if ids else known
        return [await database.load(each) for each in chosen]

    conversations = with_database(load)
    if not conversations:
        raise UserError("There is no saved conversation yet: nothing was written.")
    exchange.write(path, conversations)
    typer.echo(f"Exported {_count(conversations)} to {path}.")


def _one(known: list[str], wanted: str) -> str:
    matching = [each for each in known if each.startswith(wanted)]
    if len(matching) != 1:
        how_many = "Several conversations have ids that begin" if matching else "No conversation has an id"
        raise UserError(f"{how_many} with {wanted}: lite-llama-tui chats list shows them.")
    return matching[0]


@chats.command("import")
def import_chats(
    path: Annotated[Path, typer.Argument(help="A file that was exported: .jsonl, .html or .md.")],
) -> None:
    """Add the conversations of a file to the saved ones."""
    from . import exchange

    conversations = exchange.read(path)

    async def save(database: Database) -> None:
        for conversation in conversations:
            await database.save(conversation, conversation.all_turns)

    with_database(save)
    typer.echo(f"Imported {_count(conversations)} from {path}.")


def _count(conversations: list[Any]) -> str:
    return f"{len(conversations):,} conversation{'s' if len(conversations) != 1 else ''}"
