"""The `bench` command: a mode each, the options that they share, and where the results go."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from ...models.checkpoint import MANIFEST, Checkpoint
from ...models.errors import UserError
from ..interrupt import lasting_interrupt
from ..text import one_line
from .shapes import SHAPES

Model = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="A converted model or its directory; default: the one used last, or the only one.",
    ),
]
Shape = Annotated[
    str | None,
    typer.Option(metavar="NAME", help=f"Random weights at a published model's shape: {', '.join(SHAPES)}."),
]
Device = Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="auto takes a GPU when there is one.")]
Dtype = Annotated[
    Literal["auto", "float32", "bfloat16", "float16"],
    typer.Option(help="auto suits the stored weights and the device."),
]
Repeats = Annotated[
    int, typer.Option(metavar="N", min=1, help="Measurements of each thing; the median counts.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")]
Out = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Write <mode>-<model>-<device>.json there, and a plot (.png)."),
]
PromptTokens = Annotated[int, typer.Option(metavar="N", min=1, help="Tokens of each prompt.")]
NewTokens = Annotated[int, typer.Option(metavar="N", min=2, help="Tokens of each reply.")]
MedianPrompt = Annotated[
    int, typer.Option("--prompt-tokens", metavar="N", min=1, help="Median prompt length.")
]
MedianReply = Annotated[int, typer.Option("--new-tokens", metavar="N", min=2, help="Median reply length.")]

_ARGUMENTS = "lite_llama.bench.arguments"


class Modes(TyperGroup):
    """Takes `decode` for the mode when none is named, and remembers the arguments for the report."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        ctx.meta[_ARGUMENTS] = list(args)
        if not args or (args[0].startswith("-") and args[0] not in ctx.help_option_names):
            args = ["decode", *args]
        return super().parse_args(ctx, args)


bench = typer.Typer(
    cls=Modes,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@bench.callback()
def describe() -> None:
    """Measure the speed of this machine. Without a mode: decode."""


@bench.command()
def decode(
    ctx: typer.Context,
    model: Model = None,
    shape: Shape = None,
    batch: Annotated[
        list[int] | None,
        typer.Option(metavar="N", min=1, help="Requests at once; may be given several times; default: 1."),
    ] = None,
    prompt_tokens: PromptTokens = 128,
    new_tokens: NewTokens = 256,
    compare: Annotated[
        str,
        typer.Option(
            metavar="LIST",
            help="Who runs beside us on the same weights and tokens: transformers, transformers-compiled, "
            "both with a comma between, or none.",
        ),
    ] = "transformers",
    compare_batch: Annotated[
        list[int] | None,
        typer.Option(metavar="N", min=1, help="Batches that the others run too; default: all."),
    ] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    repeats: Repeats = 3,
    as_json: AsJson = False,
    out: Out = None,
) -> None:
    """Time to first token and decode rate, beside transformers."""
    batches, compare_batches = batch or [1], compare_batch or []
    if unknown := set(compare_batches) - set(batches):
        raise typer.BadParameter(f"--compare-batch {min(unknown)} has no --batch {min(unknown)}.")
    from .rivals import parse

    rivals = parse(compare)
    with _session(ctx, model, shape, device, dtype, as_json, out) as (subject, tell, publish):
        from .decode import measure

        publish(
            measure(
                subject,
                batches=batches,
                prompt_tokens=prompt_tokens,
                new_tokens=new_tokens,
                compare=rivals,
                compare_batches=compare_batches,
                repeats=repeats,
                tell=tell,
            )
        )


@bench.command()
def prefill(
    ctx: typer.Context,
    model: Model = None,
    shape: Shape = None,
    prompt_tokens: Annotated[
        list[int] | None,
        typer.Option(
            metavar="N",
            min=1,
            help="May be given several times; default: 128, 512, 2048 and 8192, as they fit.",
        ),
    ] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    repeats: Repeats = 5,
    as_json: AsJson = False,
    out: Out = None,
) -> None:
    """How fast prompts of several lengths are read."""
    with _session(ctx, model, shape, device, dtype, as_json, out) as (subject, tell, publish):
        from .prefill import measure

        publish(measure(subject, lengths=prompt_tokens or [], repeats=repeats, tell=tell))


@bench.command()
def context(
    ctx: typer.Context,
    model: Model = None,
    shape: Shape = None,
    prompt_tokens: Annotated[
        list[int] | None,
        typer.Option(
            metavar="N", min=1, help="May be given several times; default: 1024, 8192 and 32768, as they fit."
        ),
    ] = None,
    new_tokens: NewTokens = 128,
    device: Device = "auto",
    dtype: Dtype = "auto",
    repeats: Repeats = 3,
    as_json: AsJson = False,
    out: Out = None,
) -> None:
    """Decode rate at long contexts, beside the bytes to be read."""
    with _session(ctx, model, shape, device, dtype, as_json, out) as (subject, tell, publish):
        from .context import measure

        publish(
            measure(subject, contexts=prompt_tokens or [], new_tokens=new_tokens, repeats=repeats, tell=tell)
        )


@bench.command()
def images(
    ctx: typer.Context,
    shape: Annotated[
        str, typer.Option(metavar="NAME", help="Random weights at the shape of a model that sees images.")
    ] = "LLaVA-1.5-7B",
    prompt_tokens: Annotated[
        int, typer.Option(metavar="N", min=1, help="Tokens of the prompt beside those of the image.")
    ] = 64,
    new_tokens: NewTokens = 128,
    device: Device = "auto",
    dtype: Dtype = "auto",
    repeats: Repeats = 5,
    as_json: AsJson = False,
    out: Out = None,
) -> None:
    """An image in the prompt, beside transformers and beside text alone."""
    with _session(ctx, None, shape, device, dtype, as_json, out) as (subject, tell, publish):
        from .images import measure

        publish(
            measure(subject, prompt_tokens=prompt_tokens, new_tokens=new_tokens, repeats=repeats, tell=tell)
        )


@bench.command()
def perplexity(
    ctx: typer.Context,
    text: Annotated[Path, typer.Argument(metavar="FILE", help="Text in UTF-8, a novel for example.")],
    model: Model = None,
    window: Annotated[int, typer.Option(metavar="N", min=2, help="Tokens that are read at a time.")] = 1024,
    tokens: Annotated[
        int, typer.Option(metavar="N", min=2, help="Tokens of the text, from its beginning.")
    ] = 16384,
    compare: Annotated[
        str, typer.Option(metavar="LIST", help="transformers, on the same weights, or none.")
    ] = "transformers",
    device: Device = "auto",
    dtype: Dtype = "auto",
    as_json: AsJson = False,
    out: Out = None,
) -> None:
    """How well a model foretells a text, beside transformers."""
    from .rivals import parse

    rivals = parse(compare)
    try:
        content = text.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{text} cannot be read as text ({error}): name another file.") from None
    with _session(ctx, model, None, device, dtype, as_json, out) as (subject, tell, publish):
        from .perplexity import measure

        publish(measure(subject, content, window=window, tokens=tokens, compare=rivals, tell=tell))


@bench.command()
def serve(
    ctx: typer.Context,
    model: Model = None,
    shape: Shape = None,
    rate: Annotated[
        list[float] | None,
        typer.Option(
            metavar="X",
            min=0.001,
            help="Requests per second; may be given several times; default: 1, 4 and 16.",
        ),
    ] = None,
    requests: Annotated[int, typer.Option(metavar="N", min=1, help="Requests at each rate.")] = 100,
    prompt_tokens: MedianPrompt = 256,
    new_tokens: MedianReply = 128,
    device: Device = "auto",
    dtype: Dtype = "auto",
    as_json: AsJson = False,
    out: Out = None,
) -> None:
    """Requests of mixed lengths that arrive at random moments."""
    with _session(ctx, model, shape, device, dtype, as_json, out) as (subject, tell, publish):
        from .serve import measure

        publish(
            measure(
                subject,
                rates=rate or [1.0, 4.0, 16.0],
                requests=requests,
                prompt_tokens=prompt_tokens,
                new_tokens=new_tokens,
                tell=tell,
            )
        )


@bench.command()
def turn(
    ctx: typer.Context,
    model: Model = None,
    shape: Shape = None,
    conversation_tokens: Annotated[
        int, typer.Option(metavar="N", min=2, help="Tokens of the conversation before the turn.")
    ] = 4000,
    device: Device = "auto",
    dtype: Dtype = "auto",
    repeats: Repeats = 5,
    as_json: AsJson = False,
    out: Out = None,
) -> None:
    """The next turn of a long chat, with the prefix cache and cold."""
    with _session(ctx, model, shape, device, dtype, as_json, out) as (subject, tell, publish):
        from .turn import measure

        publish(measure(subject, conversation_tokens=conversation_tokens, repeats=repeats, tell=tell))


@bench.command()
def ablation(
    ctx: typer.Context,
    model: Model = None,
    shape: Shape = None,
    batch: Annotated[int, typer.Option(metavar="N", min=1, help="Requests of the equal workload.")] = 1,
    requests: Annotated[int, typer.Option(metavar="N", min=1, help="Requests of the ragged workload.")] = 64,
    prompt_tokens: Annotated[
        int, typer.Option(metavar="N", min=1, help="Prompt length; the median of the ragged workload.")
    ] = 512,
    new_tokens: Annotated[
        int, typer.Option(metavar="N", min=2, help="Reply length; the median of the ragged workload.")
    ] = 128,
    device: Device = "auto",
    dtype: Dtype = "auto",
    repeats: Repeats = 3,
    as_json: AsJson = False,
    out: Out = None,
) -> None:
    """What each optimisation brings, one after the other."""
    with _session(ctx, model, shape, device, dtype, as_json, out) as (subject, tell, publish):
        from .ablation import measure

        publish(
            measure(
                subject,
                batch=batch,
                prompt_tokens=prompt_tokens,
                new_tokens=new_tokens,
                requests=requests,
                repeats=repeats,
                tell=tell,
            )
        )


@bench.command()
def startup(
    ctx: typer.Context,
    model: Model = None,
    shape: Shape = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    repeats: Repeats = 3,
    as_json: AsJson = False,
    out: Out = None,
) -> None:
    """Process start to first token, kernels compiled or not."""
    with _session(ctx, model, shape, device, dtype, as_json, out) as (subject, tell, publish):
        from .startup import measure

        publish(measure(subject, repeats=repeats, tell=tell))


@bench.command()
def speculate(
    ctx: typer.Context,
    model: Model = None,
    new_tokens: Annotated[int, typer.Option(metavar="N", min=2, help="Most tokens of a reply.")] = 256,
    device: Device = "auto",
    dtype: Dtype = "auto",
    repeats: Repeats = 3,
    as_json: AsJson = False,
    out: Out = None,
) -> None:
    """Prompt-lookup speculation; needs a real model."""
    with _session(ctx, model, None, device, dtype, as_json, out) as (subject, tell, publish):
        from .speculate import measure

        publish(measure(subject, new_tokens=new_tokens, repeats=repeats, tell=tell))


@bench.command()
def profile(
    ctx: typer.Context,
    model: Model = None,
    shape: Shape = None,
    batch: Annotated[int, typer.Option(metavar="N", min=1, max=64, help="Requests at once.")] = 1,
    prompt_tokens: PromptTokens = 128,
    device: Device = "auto",
    dtype: Dtype = "auto",
    as_json: AsJson = False,
    out: Out = None,
) -> None:
    """Each launch of a decode step on a GPU: time, rate, gaps; and how long the host waits."""
    with _session(ctx, model, shape, device, dtype, as_json, out) as (subject, tell, publish):
        from .profile import measure

        publish(measure(subject, batch=batch, prompt_tokens=prompt_tokens, tell=tell))


@bench.command()
def ui(
    ctx: typer.Context,
    model: Model = None,
    shape: Shape = None,
    rate: Annotated[
        list[float] | None,
        typer.Option(
            metavar="X", min=1, help="Tokens per second; may be given several times; default: 50, 300, 1500."
        ),
    ] = None,
    turns: Annotated[int, typer.Option(metavar="N", min=4, help="Turns of the long conversation.")] = 200,
    new_tokens: Annotated[int, typer.Option(metavar="N", min=2, help="Tokens of a model's reply.")] = 4096,
    device: Device = "auto",
    dtype: Dtype = "auto",
    repeats: Annotated[
        int, typer.Option(metavar="N", min=1, help="Times that a model replies; the median counts.")
    ] = 3,
    as_json: AsJson = False,
    out: Out = None,
) -> None:
    """The app while replies stream; with --model or --shape, what it costs the engine."""
    modelless = not (model or shape)
    with _session(ctx, model, shape, device, dtype, as_json, out, modelless) as (subject, tell, publish):
        from .ui import measure

        publish(
            measure(
                subject,
                rates=rate or [50.0, 300.0, 1500.0],
                turns=turns,
                new_tokens=new_tokens,
                repeats=repeats,
                tell=tell,
            )
        )


@bench.command()
def tune(
    model: Model = None,
    shape: Shape = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    table: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Where to write the tiles; default: the file that the app reads."),
    ] = None,
) -> None:
    """Find the fastest kernel tiles for this GPU and a model's shapes."""
    subject = _subject(model, shape, device, dtype)
    if table is None:
        if not (own := os.environ.get("LITE_LLAMA_TILES")):
            raise UserError("Say where to write the tiles: --table FILE.")
        table = Path(own)
    from .tune import tune as tune_tiles

    def tell(text: str) -> None:
        typer.echo(text, err=True)

    count = tune_tiles(subject.config, table, device=device, dtype=dtype, tell=tell)
    typer.echo(f"Wrote {count} tiles to {table}")


@contextmanager
def _session(
    ctx: typer.Context,
    model: str | None,
    shape: str | None,
    device: str,
    dtype: str,
    as_json: bool,
    out: Path | None,
    modelless: bool = False,
) -> Iterator[tuple[Any, Callable[[str], None], Callable[[Any], None]]]:
    """Yields the Subject (None where no model is asked for), what tells the terminal where we are, and what
    publishes the Report."""
    from rich.console import Console

    errors = Console(stderr=True)
    with errors.status("Starting") as status:
        with lasting_interrupt():
            import torch  # noqa: F401 - takes seconds

            from . import report as reports
        subject = None if modelless else _subject(model, shape, device, dtype)
        if out:
            reports.prepare(out)

        def publish(report: Any) -> None:
            status.stop()
            command = f"lite-llama-tui bench {shlex.join(ctx.meta[_ARGUMENTS])}".strip()
            if as_json:
                typer.echo(json.dumps(report.as_dict(command)))
            else:
                typer.echo(one_line(report.title))
                # Into a file or a pipe, lines are as long as they need to be.
                Console(width=None if sys.stdout.isatty() else 1000).print(reports.table(report))
            if out:
                for path in reports.write(report, out, command):
                    typer.echo(f"Wrote {path}", err=True)
                if not reports.can_plot():
                    typer.echo("There is no plot without matplotlib: pip install matplotlib.", err=True)

        yield subject, lambda text: status.update(one_line(text)), publish


def _subject(model: str | None, shape: str | None, device: str, dtype: str) -> Any:
    """What the user wants measured. Raises UserError when that is unclear or not there.

    A shape, or a model given by its directory, needs none of the libraries that the app needs.
    """
    from .subject import Subject

    if model and shape:
        raise UserError("Give either --model or --shape, not both.")
    if shape:
        return Subject.of_shape(shape, device, dtype)
    if model and (Path(model).expanduser() / MANIFEST).is_file():
        return Subject.of_checkpoint(Checkpoint.open(Path(model).expanduser()), device, dtype)
    try:
        from ..library import find
        from ..paths import Paths
        from ..settings import SettingsStore
    except ModuleNotFoundError as error:
        raise UserError(f"{error.name} is not installed: give --shape, or --model a directory.") from None
    paths = Paths.default()
    last_used = None if model else SettingsStore(paths.settings).load().model
    return Subject.of_checkpoint(find(paths.models, model, last_used), device, dtype)
