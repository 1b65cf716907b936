"""From the start of a process to its first token, with nothing compiled yet and with all kernels at hand."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time

from ...models.errors import UserError
from .report import Column, Panel, Report, Row, facts
from .subject import Subject
from .timing import Tell

CACHE_VARIABLE = "TRITON_CACHE_DIR"


def measure(subject: Subject, *, repeats: int, tell: Tell) -> Report:
    """Start fresh processes, each pair with a Triton cache directory of its own: empty, then filled.

    A checkpoint is asked a question with the `ask` command; random weights are made and continued by
    first_token.py. The clock runs from before the process is made until its first byte on stdout. The first
    of all starts may have to read Python's files from the disk: its time is among the repeats.
    Raises UserError when a process fails.
    """
    from ...engine.device import device_name, resolve_device, resolve_dtype

    command = [sys.executable, "-m", *_arguments(subject)]
    taken: dict[str, list[float]] = {"empty": [], "filled": []}
    for repeat in range(1, repeats + 1):
        with tempfile.TemporaryDirectory(prefix="lite-llama-triton-") as directory:
            for cache, seconds in taken.items():
                tell(f"Start {repeat} of {repeats}, {cache} Triton cache")
                seconds.append(_first_byte(command, os.environ | {CACHE_VARIABLE: directory}))
    rows: list[Row] = [
        {"triton_cache": cache, "first_token_s": statistics.median(seconds), "repeats_s": seconds}
        for cache, seconds in taken.items()
    ]
    device = resolve_device(subject.device)
    dtype = resolve_dtype(subject.dtype, device, subject.config.dtype)
    known = facts(
        "startup",
        subject,
        device=device_name(device),
        dtype=str(dtype).removeprefix("torch."),
        repeats=repeats,
        process="ask" if subject.checkpoint else "random weights, 16 prompt tokens",
    )
    panel = Panel(
        "Seconds from process start to first token",
        [f"{row['triton_cache']} Triton cache" for row in rows],
        {"": [row["first_token_s"] for row in rows]},
    )
    return Report(known, rows, _COLUMNS, (panel,))


def _arguments(subject: Subject) -> list[str]:
    """What the process runs, after `python -m`."""
    where = ["--device", subject.device, "--dtype", subject.dtype]
    if subject.checkpoint is None:
        return ["lite_llama.app.bench.first_token", subject.name, subject.device, subject.dtype]
    model = ["--model", str(subject.checkpoint.path.absolute())]
    return ["lite_llama", "ask", "Hello", *model, *where, "--temperature", "0", "--max-gen-len", "8"]


def _first_byte(command: list[str], environment: dict[str, str]) -> float:
    """Seconds until the process writes to stdout; it is then left to end. Raises UserError when it fails."""
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, env=environment)
        try:
            assert process.stdout
            first = process.stdout.read(1)
            taken = time.perf_counter() - start
            process.stdout.read()
            status = process.wait()
        finally:
            process.kill()
            process.wait()
        if status or not first:
            errors.seek(0)
            said = errors.read().strip().splitlines() or ["it printed nothing"]
            raise UserError(f"The fresh process failed: {said[-1].removeprefix('error: ')}")
    return taken


_COLUMNS = (
    Column("Triton cache", lambda row: row["triton_cache"]),
    Column("First token s", lambda row: f"{row['first_token_s']:.2f}"),
    Column("Repeats s", lambda row: ", ".join(f"{seconds:.2f}" for seconds in row["repeats_s"])),
)
