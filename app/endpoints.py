"""The commands `endpoints`, `endpoints add` and `endpoints rm`: models that run elsewhere."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..models.errors import UserError
from .paths import Paths
from .text import one_line, print_table

if TYPE_CHECKING:
    from .remote.endpoint import Endpoint

endpoints = typer.Typer(help="List, add and remove endpoints: models behind an OpenAI-compatible API.")


@endpoints.callback(invoke_without_command=True)
def list_endpoints(
    ctx: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list instead of a table.")] = False,
) -> None:
    """List, add and remove endpoints: models behind an OpenAI-compatible API. Without a command: list."""
    if ctx.invoked_subcommand:
        return
    from .remote.endpoint import Endpoints

    found, problems = Endpoints(Paths.default().endpoints).load()
    for problem in problems:
        typer.echo(f"warning: {one_line(problem)}", err=True)
    rows = [_row(endpoint) for endpoint in found.values()]
    if as_json:
        typer.echo(json.dumps(rows))
    elif rows:
        _print(rows)
    else:
        typer.echo("There is no endpoint: lite-llama-tui endpoints add NAME URL adds one.")


def _row(endpoint: Endpoint) -> dict[str, Any]:
    from .remote.keys import whence

    return {
        "name": endpoint.name,
        "model": endpoint.model,
        "url": endpoint.url,
        "context": endpoint.context,
        "images": endpoint.images,
        "key": whence(endpoint),
    }


def _print(rows: list[dict[str, Any]]) -> None:
    print_table(
        ("Name", "Model", "Address", "Context", "Key"),
        [
            (
                row["name"],
                row["model"],
                row["url"],
                f"{row['context']:,}" if row["context"] else "as the server says",
                row["key"],
            )
            for row in rows
        ],
    )


@endpoints.command(
    "add",
    epilog="The key is asked for on the terminal, or read from a pipe with --key-stdin, and kept in the "
    "system's keyring; without one, set LITE_LLAMA_API_KEY_<NAME>, or name another variable with "
    "--key-variable. It is never written to a file.",
)
def add_endpoint(
    name: Annotated[str, typer.Argument(help="What to call it.")],
    url: Annotated[str, typer.Argument(help="The API's address, such as https://host:8000/v1.")],
    model: Annotated[
        str | None,
        typer.Option(metavar="ID", help="The server's name for the model; default: its only one."),
    ] = None,
    context: Annotated[
        int | None, typer.Option(metavar="N", help="Context in tokens; default: what the server says.")
    ] = None,
    key: Annotated[bool, typer.Option("--key", help="Ask for an API key.")] = False,
    key_stdin: Annotated[bool, typer.Option("--key-stdin", help="Read the API key from stdin.")] = False,
    key_variable: Annotated[
        str | None, typer.Option(metavar="VAR", help="The environment variable that holds the key.")
    ] = None,
    no_images: Annotated[bool, typer.Option("--no-images", help="The model reads text only.")] = False,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Send a key over plain http without asking.")
    ] = False,
) -> None:
    """Add an endpoint, or change one: connect, see that the model is there, and remember it."""
    import asyncio

    from .remote import keys
    from .remote.client import models_of
    from .remote.endpoint import Endpoint, Endpoints
    from .remote.engine import choose

    paths = Paths.default()
    if (paths.models / name).is_dir():
        raise UserError(f"There is a converted model called {name}: choose another name.")
    draft = Endpoint(name, url, "?" if model is None else model, context, key_variable, not no_images)
    given = None
    if key or key_stdin:
        text = sys.stdin.readline() if key_stdin else typer.prompt("API key", hide_input=True)
        given = keys.checked(text, "that was given")
    found = given or keys.find(draft)
    if found and draft.exposes_key and not yes:
        warning = draft.exposure
        if key_stdin or not sys.stdin.isatty():
            raise UserError(f"{warning} Use https, or say --yes.")
        if not typer.confirm(f"{warning} Go on?"):
            raise UserError("Nothing was added.")
    served = asyncio.run(models_of(draft, found))
    if model is None and len(served) != 1:
        there = ", ".join(one_line(each.id) for each in served[:20]) or "none"
        raise UserError(f"Say which model with --model; the server has: {there}.")
    endpoint = draft if model is not None else replace(draft, model=served[0].id)
    choose(endpoint, served)
    if given:
        keys.store(name, given)
    Endpoints(paths.endpoints).save(endpoint)
    typer.echo(
        f"Added {name}: {one_line(endpoint.model)} at {endpoint.host}. Try: lite-llama-tui --model {name}"
    )


@endpoints.command("rm")
def remove_endpoint(name: Annotated[str, typer.Argument(help="The endpoint to forget.")]) -> None:
    """Forget an endpoint, and its key in the keyring."""
    from .remote import keys
    from .remote.endpoint import Endpoints

    keys.remove(Endpoints(Paths.default().endpoints), name)
    typer.echo(f"Removed {one_line(name)}.")
