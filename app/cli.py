"""The command line. Every command imports what it needs in its body: `--help` has to be quick."""

from __future__ import annotations

import json
import os
import shlex
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from .. import __version__
from ..models.checkpoint import Checkpoint
from ..models.errors import UserError
from ..models.units import format_bytes, format_count
from . import log
from .bench.cli import bench
from .chats import chats, with_database
from .endpoints import endpoints
from .interrupt import lasting_interrupt, on_interrupt
from .library import NO_MODEL, find, last_speed, not_converted, remember_speed, scan
from .paths import HOME_VARIABLE, Paths
from .text import format_seconds, inert, one_line, print_table

if TYPE_CHECKING:
    from .backend import Backend
    from .remote.endpoint import Endpoint

Device = Literal["auto", "cpu", "cuda"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]


class Commands(TyperGroup):
    """Runs the command and turns what escapes from it into one sentence on stderr and exit code 1."""

    def invoke(self, ctx: Any) -> Any:
        paths = Paths.default()
        log.set_up(paths.log)
        try:
            return super().invoke(ctx)
        except (typer.Exit, typer.Abort, typer.TyperException, BrokenPipeError):
            raise  # typer knows: usage errors exit with 2, a reader that went away is no error worth telling
        except UserError as error:
            message = str(error)
        except KeyboardInterrupt:
            message = "Stopped."
        except Exception as error:
            if os.environ.get(log.DEBUG_VARIABLE):
                raise
            message = log.record(error, paths.log)
        typer.echo(f"error: {one_line(message)}", err=True)
        raise typer.Exit(1)


app = typer.Typer(
    name="lite-llama-tui",
    cls=Commands,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
models = typer.Typer(help="List, find, rename, remove and check models.")
app.add_typer(models, name="models")
app.add_typer(endpoints, name="endpoints")
app.add_typer(chats, name="chats")
app.add_typer(bench, name="bench")


def main() -> None:
    """Entry point of the `lite-llama-tui` command."""
    # The kernels know no directories: they find the user's tiles by this variable (kernels/tiles.py).
    os.environ.setdefault("LITE_LLAMA_TILES", str(Paths.default().tiles))
    app(prog_name="lite-llama-tui")


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"lite-llama-tui {__version__}")
        raise typer.Exit


@app.callback(
    invoke_without_command=True,
    epilog="Exit codes: 0 done, 1 failed or stopped with Ctrl-C, 2 wrong usage. The variable "
    f"{HOME_VARIABLE} moves all data to another directory.",
)
def open_app(
    ctx: typer.Context,
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="Open the app with this converted model or endpoint.")
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Chat with open models in the terminal. Without a command the full-screen app opens."""
    if ctx.invoked_subcommand:
        if model is not None:
            raise typer.BadParameter("goes after the command", param_hint="--model")
        return
    _chat(model)


@app.command(
    epilog="In the plain chat a backslash at the end of a line goes on with the message, as do lines between "
    'two """. /help lists the commands, Ctrl-C stops a reply, Ctrl-D quits. Without a terminal each line of '
    "the input is a message, and the exit code is 1 if one was not answered."
)
def chat(
    plain: Annotated[
        bool,
        typer.Option(
            "--plain", help="Lines in, lines out: for simple terminals, screen readers and scripts."
        ),
    ] = False,
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="Chat with this converted model or endpoint.")
    ] = None,
) -> None:
    """Open the app, as without a command, or chat line by line."""
    _chat(model, plain)


def _chat(model: str | None, plain: bool = False) -> None:
    from .remote.endpoint import Endpoints

    paths = Paths.default()
    if not plain and not _in_terminal():
        raise UserError(
            "The app needs a terminal: for scripts and pipes there are lite-llama-tui ask and chat --plain."
        )
    if model is not None and Endpoints(paths.endpoints).get(model) is None:
        checkpoint = find(paths.models, model)
        if checkpoint.path.parent != paths.models:
            raise UserError(f"The app opens models by name: move {checkpoint.path} into {paths.models}.")
        model = checkpoint.path.name
    if plain:
        from .plain import run
    else:
        from .tui import run

        if os.environ.get("TERM") == "dumb" or os.environ.get("NO_COLOR"):
            typer.echo("note: without colours, lite-llama-tui chat --plain may read better here.", err=True)
    raise typer.Exit(run(paths, model))


@app.command(
    epilog="Sampling values come from the option, else from the settings file where it sets them, else from "
    "the model's generation_config.json, else temperature 0.7, top-p 0.9 and the rest off. The answer goes "
    "to stdout as it is generated; what the model thinks before it is shown on stderr if that is a terminal. "
    "Ctrl-C ends the reply: what was generated stands, and the exit code is 1."
)
def ask(
    prompt: Annotated[
        str | None, typer.Argument(help="The question; - (or nothing, with a pipe) reads it from stdin.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="A converted model, its directory or an endpoint; default: the one used last, or the only "
            "one.",
        ),
    ] = None,
    system: Annotated[
        str | None, typer.Option(metavar="TEXT", help="System prompt; default: the settings file's.")
    ] = None,
    max_gen_len: Annotated[
        int | None,
        typer.Option(metavar="N", help="Most tokens to generate; default: until the context is full."),
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(metavar="X", help="0 always takes the likeliest token.")
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(metavar="X", help="Sample from the likeliest tokens that together reach X."),
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(metavar="N", help="Sample from the N likeliest tokens; 0: all.")
    ] = None,
    min_p: Annotated[
        float | None,
        typer.Option(metavar="X", help="Leave out tokens less likely than X times the likeliest."),
    ] = None,
    repetition_penalty: Annotated[
        float | None, typer.Option(metavar="X", help="Above 1 makes tokens that were used less likely.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(metavar="N", help="Makes sampling repeatable; default: drawn anew.")
    ] = None,
    stop: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="End the reply before this text; may be given several times."),
    ] = None,
    image: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="PATH", help="Show the model an image, if it sees any; may be given several times."
        ),
    ] = None,
    think: Annotated[
        bool | None,
        typer.Option(
            "--think/--no-think",
            help="Whether to think before the answer; default: the settings file's, else the model's.",
        ),
    ] = None,
    device: Annotated[
        Device | None, typer.Option(help="auto takes a GPU when there is one; default: the settings file's.")
    ] = None,
    dtype: Annotated[
        Dtype | None,
        typer.Option(help="auto suits the stored weights and the device; default: the settings file's."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object with the reply and its figures instead.")
    ] = False,
) -> None:
    """Ask one question and print the answer."""
    text = _read_prompt(prompt)
    paths = Paths.default()
    settings = _load_settings(paths)
    from .remote.endpoint import Endpoints

    endpoint = Endpoints(paths.endpoints).get(model or settings.model)
    if endpoint and (device or dtype):
        raise typer.BadParameter(f"{endpoint.name} runs elsewhere: --device and --dtype are not ours to say")
    checkpoint = endpoint or find(paths.models, model, settings.model)
    given = {
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "seed": seed,
        "max_new_tokens": max_gen_len,
        "stop": tuple(stop or ()),
    }
    with _console().status("Starting the engine") as status:
        with lasting_interrupt():
            from . import ask as one_shot
            from .settings import merge_params

            create, source = _backend(checkpoint, device or settings.device, dtype or settings.dtype)

        images = one_shot.read_images(image or [], checkpoint)
        for note in (picture.note for picture in images if picture.note):
            typer.echo(f"note: {one_line(note)}", err=True)
        asked = (settings.chosen_params(), given)
        try:
            merge_params(*asked)  # before the load, which is slow
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None
        with closing(create()) as engine:
            info = one_shot.load(engine, source, lambda step: status.update(one_line(step)))
            status.stop()
            one_shot.check_thinking(think, info)
            request = one_shot.GenerationRequest(
                one_shot.conversation(text, settings.system_prompt if system is None else system, images),
                merge_params(info.defaults, *asked),
                thinking=settings.think if think is None else think,
            )
            if as_json:
                finished = one_shot.answer(engine, request, lambda _: None, lambda _: None)
                typer.echo(json.dumps(one_shot.as_json(info, finished)))
            else:
                with closing(ReplyPrinter()) as printer:
                    finished = one_shot.answer(engine, request, printer.answer, printer.think)
    if isinstance(checkpoint, Checkpoint) and (rate := finished.usage.decode_tokens_per_s):
        remember_speed(checkpoint.path, rate)
    if finished.reason == "length" and finished.thinking.text and not finished.text:
        typer.echo(
            f"warning: the limit of {finished.usage.completion_tokens} tokens was reached before the answer: "
            "allow more with --max-gen-len.",
            err=True,
        )
    if finished.reason == "cancelled":
        raise typer.Exit(1)


def _backend(model: Checkpoint | Endpoint, device: str, dtype: str) -> tuple[Callable[[], Backend[Any]], Any]:
    """What makes the engine for a model, and what it is to load. Only our own takes seconds to import."""
    from .remote.endpoint import Endpoint

    if isinstance(model, Endpoint):
        from .remote.engine import RemoteEngine

        return RemoteEngine, model
    from ..engine.thread import EngineThread, LoadOptions

    return EngineThread, LoadOptions(model.path, device, dtype)


def _read_prompt(prompt: str | None) -> str:
    """The argument, or stdin for `-` and for no argument in a pipe."""
    if prompt is None and _stdin_is_terminal():
        raise typer.BadParameter("say what to ask, or pipe it in", param_hint="PROMPT")
    try:
        text = sys.stdin.buffer.read().decode("utf-8") if prompt in (None, "-") else str(prompt)
        text.encode("utf-8")  # an argument that is no UTF-8 reaches us with lone surrogates
    except UnicodeError:
        raise UserError("The prompt is not UTF-8 text: convert it first, for example with iconv.") from None
    if not text.strip():
        raise UserError("The prompt is empty: say what to ask.")
    return text


def _stdin_is_terminal() -> bool:
    return sys.stdin.isatty()


def _in_terminal() -> bool:
    return _stdin_is_terminal() and sys.stdout.isatty()


class ReplyPrinter:
    """Writes a reply piece by piece: the answer to stdout, the thinking to stderr.

    Thinking is for somebody who waits: dimmed, and only where stderr is a terminal. What goes to a terminal
    is made inert: a model can be talked into replying with escape sequences.
    """

    def __init__(self) -> None:
        self._console = _console()
        self._thinks = False
        self._last = "\n"

    def think(self, text: str) -> None:
        if sys.stderr.isatty():
            self._console.out(inert(text), style="dim", highlight=False, end="")
            self._thinks = True

    def answer(self, text: str) -> None:
        self._end_thinking("\n\n")
        self._write(text)

    def close(self) -> None:
        """End the last line, however it went."""
        self._end_thinking("\n")
        if self._last != "\n":
            self._write("\n")

    def _end_thinking(self, end: str) -> None:
        if self._thinks:
            self._console.out(end=end)
            self._thinks = False

    def _write(self, text: str) -> None:
        sys.stdout.write(inert(text) if sys.stdout.isatty() else text)
        sys.stdout.flush()
        self._last = text[-1:] or self._last


@app.command()
def convert(
    source: Annotated[
        str,
        typer.Argument(
            help="A checkpoint directory, a .gguf file, a Hub repo id such as Qwen/Qwen3-0.6B, or a model "
            "that is built in: demo, or demo-vision, which sees images."
        ),
    ],
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="What to call the model; default: after the source.")
    ] = None,
    dtype: Annotated[Dtype, typer.Option(help="What to store the weights in; auto: as the source.")] = "auto",
    force: Annotated[bool, typer.Option("--force", help="Replace a model of the same name.")] = False,
) -> None:
    """Convert a model to the lite_llama format, downloading it first where need be."""
    console = _console()
    paths = Paths.default()
    cancel = threading.Event()
    with on_interrupt(cancel.set):
        with console.status("Starting"):
            from ..converter import Cancelled, clean_up, parts
            from ..converter import convert as run
            from . import progress

        freed = clean_up(paths.models, paths.downloads)
        if freed:
            typer.echo(f"Removed {format_bytes(freed)} that a killed conversion had left.", err=True)
        events = run(
            source, paths.models, paths.downloads, name=name, dtype=dtype, force=force, cancel=cancel
        )
        try:
            done = progress.show(events, console)
        except Cancelled:
            kept = parts(paths.models) or (paths.downloads.is_dir() and any(paths.downloads.iterdir()))
            raise UserError(
                "Stopped: the same command goes on from here within a week."
                if kept
                else "Stopped: nothing was left behind."
            ) from None
    name, manifest = done.checkpoint.path.name, done.checkpoint.manifest
    typer.echo(
        f"Converted {name} ({format_count(manifest.parameter_count)} parameters, "
        f"{format_bytes(done.checkpoint.size)}, {manifest.dtype}) in {format_seconds(done.seconds)}. "
        f"Chat with it: lite-llama-tui --model {shlex.quote(name)}"
    )


@models.callback(invoke_without_command=True)
def list_models(
    ctx: typer.Context,
    fit: Annotated[
        bool, typer.Option("--fit", help="Say which fit into memory now, too; takes a few seconds.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list instead of a table.")] = False,
) -> None:
    """List, find, rename, remove and check models. Without a command those that are converted are listed."""
    if ctx.invoked_subcommand:
        return
    paths = Paths.default()
    library = scan(paths.models)
    room: dict[str, Any] = {}
    if fit:
        from .fit import fits

        settings = _load_settings(paths)
        room = fits(library.models, settings.device, settings.dtype)
    for sentence in library.damage.values():
        typer.echo(f"warning: {one_line(sentence)}", err=True)
    rows = [
        {
            "name": checkpoint.path.name,
            "family": checkpoint.manifest.family,
            "parameters": checkpoint.manifest.parameter_count,
            "dtype": checkpoint.manifest.dtype,
            "bytes": checkpoint.size,
            "context": checkpoint.config.max_position,
            "images": checkpoint.config.vision is not None,
            "tokens_per_s": last_speed(checkpoint.path),
            **({"fits": room[checkpoint.path.name].fits} if fit else {}),
            "source": checkpoint.manifest.source,
            "path": str(checkpoint.path),
        }
        for checkpoint in library.models
    ]
    if as_json:
        typer.echo(json.dumps(rows))
    elif rows:
        _print_models(rows)
    else:
        typer.echo(NO_MODEL)


def _print_models(rows: list[dict[str, Any]]) -> None:
    fit = ["Fits"] if "fits" in rows[0] else []
    numbers = ("Parameters", "Size", "Context", "Tok/s")
    headers = ["Name", "Family", "Parameters", "Dtype", "Size", "Context", "Sees", "Tok/s", *fit, "Source"]
    cells = [
        [
            row["name"],
            row["family"],
            format_count(row["parameters"]),
            row["dtype"],
            format_bytes(row["bytes"]),
            f"{row['context']:,}",
            "text, images" if row["images"] else "text",
            f"{row['tokens_per_s']:.1f}" if row["tokens_per_s"] else "",
            *(["yes" if row["fits"] else "no"] if fit else []),
            row["source"],
        ]
        for row in rows
    ]
    print_table(headers, cells, numbers)


@models.command("found")
def list_found() -> None:
    """List the checkpoints on this machine that are not converted yet, by what to tell convert."""
    from ..converter import find_local

    paths = Paths.default()
    with _console().status("Looking around"):
        found = not_converted(find_local(_load_settings(paths).searched), scan(paths.models))
    for local in found:
        what = f"{local.family or 'GGUF'}, {format_bytes(local.size)}"
        typer.echo(f"{one_line(shlex.quote(local.source))}  ({one_line(local.repo or local.name)}, {what})")
    if not found:
        typer.echo("There is none in the Hugging Face cache or the directories that the settings name.")


@models.command("rename")
def rename_model(
    name: Annotated[str, typer.Argument(help="The model to rename.")],
    new_name: Annotated[str, typer.Argument(help="Its new name.")],
) -> None:
    """Give a converted model another name; settings and conversations follow."""
    from ..converter import rename
    from .settings import SettingsStore

    paths = Paths.default()
    rename(paths.models, name, new_name)
    store = SettingsStore(paths.settings)
    settings = store.load()
    if settings.model == name:
        store.save(settings.model_copy(update={"model": new_name}))
    if paths.database.exists():
        with_database(lambda database: database.rename_model(name, new_name))
    typer.echo(f"Renamed {one_line(name)} to {new_name}.")


@models.command("rm")
def remove_model(
    name: Annotated[str, typer.Argument(help="The model to delete.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Delete a converted model."""
    paths = Paths.default()
    if not yes:
        if not _stdin_is_terminal():
            raise UserError(f"Nobody is there to be asked: delete {name} with --yes.")
        if not typer.confirm(f"Delete the model {one_line(name)}?"):
            raise UserError("Nothing was deleted.")
    from ..converter import remove

    typer.echo(f"Deleted {one_line(name)}: {format_bytes(remove(paths.models, name))} are free again.")


@models.command("verify")
def verify_models(
    name: Annotated[str | None, typer.Argument(help="The model to check; default: all.")] = None,
) -> None:
    """Read every file of the models again and compare the checksums."""
    paths = Paths.default()
    library = scan(paths.models)
    checkpoints = library.models if name is None else (find(paths.models, name),)
    damage = list(library.damage.values()) if name is None else []
    if not checkpoints and not damage:
        raise UserError(NO_MODEL)
    for checkpoint in checkpoints:
        try:
            _verify(checkpoint)
        except UserError as error:
            damage.append(str(error))
        else:
            typer.echo(
                f"{one_line(checkpoint.path.name)}: all {len(checkpoint.manifest.files)} files are sound"
            )
    for sentence in damage:
        typer.echo(f"error: {one_line(sentence)}", err=True)
    if damage:
        raise typer.Exit(1)


def _verify(checkpoint: Checkpoint) -> None:
    """Check a model's files, with a percentage on a terminal. Raises CheckpointError for a damaged one."""
    done, name = 0, one_line(checkpoint.path.name)
    with _console().status(f"Verifying {name}") as status:

        def progress(count: int) -> None:
            nonlocal done
            done += count
            status.update(
                f"Verifying {name}: {done / checkpoint.size:.0%} of {format_bytes(checkpoint.size)}"
            )

        checkpoint.verify(force=True, progress=progress)


@app.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead.")] = False,
) -> None:
    """Tell what this machine has, what will run where and why, and what is wrong."""
    with _console().status("Looking around"):
        from . import doctor as examination

        report = examination.examine(Paths.default())
    if as_json:
        typer.echo(json.dumps(report.as_dict()))
    else:
        typer.echo(inert(report.as_text()))
    if report.problems:
        raise typer.Exit(1)


def _console() -> Any:
    """A rich console on stderr."""
    from rich.console import Console

    return Console(stderr=True)


def _load_settings(paths: Paths) -> Any:
    from .settings import SettingsStore

    store = SettingsStore(paths.settings)
    settings = store.load()
    for problem in store.problems:
        typer.echo(f"warning: {one_line(problem)}", err=True)
    return settings
