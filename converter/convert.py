"""The conversion itself: source -> staging directory -> renamed into place."""

from __future__ import annotations

import contextlib
import datetime
import errno
import hashlib
import json
import math
import os
import re
import shutil
import threading
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from .. import __version__
from ..models.checkpoint import FORMAT_VERSION, MANIFEST, WEIGHTS, Checkpoint, FileRecord, Manifest
from ..models.config import ModelConfig
from ..models.errors import CheckpointError, UserError
from ..models.units import format_bytes
from ..models.weights import is_ignored, parameter_count, targets
from . import demo, hub
from .background import wait_for
from .events import Cancelled, ConvertEvent, Done, Notice, Progress
from .huggingface import HuggingFaceSource, auto_dtype, some
from .names import check_name, default_name, directory_name, is_gguf
from .source import Source
from .staging import Part, Staging, already_there, delete, download_directory, parts, staging
from .writer import BYTES, WeightsWriter

Kind = Literal["directory", "gguf", "hub", "demo", "demo-vision"]

_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_HUB_URL = "https://huggingface.co/"
_SPARE_BYTES = 64 << 20
"""Room for tokenizer files and directories beside the weights."""
_DEMO_PARAMETERS = 134_515_008
KEEP_EVERY_S = 2.0
"""How often a conversion writes down how far it is: what a stop loses at most, but for the tensor at hand."""


@dataclass(frozen=True)
class SourceInfo:
    """What is known of a source before it is converted (sizes in bytes)."""

    source: str
    kind: Kind
    name: str
    """The name that the model will get unless the caller names it."""
    family: str | None
    """None when it is not known before the download."""
    parameter_count: int | None
    download_bytes: int
    converted_bytes: int
    free_bytes: int
    """Free space where the model will be."""


def inspect(source: str, models_dir: Path, downloads_dir: Path, *, dtype: str = "auto") -> SourceInfo:
    """Look at a source without converting it. Raises UserError when it cannot be converted."""
    with _explained_os_errors():
        kind, where = identify(source)
        download_bytes = 0
        if kind == "demo":
            config, auto, download_bytes = None, "bfloat16", demo.DEMO_BYTES
        elif kind == "hub":
            repo = hub.look_up(where)
            config, auto = ModelConfig.from_dict(repo.config), auto_dtype(repo.config, ())
            download_bytes = repo.remaining(repo.directory(downloads_dir))
        else:
            with contextlib.closing(_open(kind, Path(where))) as opened:
                config, auto = ModelConfig.from_dict(opened.config), opened.dtype
                _check_tensors(opened.shapes, config)
        parameters = parameter_count(config) if config else _DEMO_PARAMETERS
        return SourceInfo(
            source=source,
            kind=kind,
            name=_default_name(kind, where),
            family=config.family if config else "Llama",
            parameter_count=parameters,
            download_bytes=download_bytes,
            converted_bytes=parameters * BYTES[_choose_dtype(dtype, auto)],
            free_bytes=_free(models_dir),
        )


def convert(
    source: str,
    models_dir: Path,
    downloads_dir: Path,
    *,
    name: str | None = None,
    dtype: str = "auto",
    force: bool = False,
    cancel: threading.Event | None = None,
) -> Generator[ConvertEvent, None, None]:
    """Convert `source` to models_dir/name, telling its progress; the last event is Done.

    `dtype` is auto (what the source declares), float32, bfloat16 or float16. Raises UserError for anything
    the user can mend and Cancelled once `cancel` is set; closing the iterator early cleans up as well.
    """
    started = time.monotonic()
    cancel = cancel or threading.Event()
    with _explained_os_errors(), contextlib.ExitStack() as stack:
        _choose_dtype(dtype, auto="float32")  # a wrong one is better known before a download
        kind, where = identify(source)
        name = name or _default_name(kind, where)
        check_name(name)
        _check_free(models_dir / name, force)
        fetched = yield from _fetch(kind, where, models_dir, downloads_dir, dtype, stack, cancel)
        with contextlib.closing(fetched.source):
            conversion = _Conversion(fetched.source, dtype, cancel)
            origin = source if kind in ("hub", "demo", "demo-vision") else str(Path(where).absolute())
            path = yield from conversion.run(origin, fetched.revision, models_dir, name, force)
        if fetched.download:
            delete(fetched.download)
        checkpoint = Checkpoint.open(path)
        checkpoint.mark_verified()  # the checksums were taken while the files were written
        yield Done(checkpoint, time.monotonic() - started)


def identify(source: str) -> tuple[Kind, str]:
    """What kind of source the user named, and where: a path, or a Hub repo id.

    Raises UserError when it is neither.
    """
    if source == "demo":
        return "demo", source
    if source == "demo-vision":
        return "demo-vision", str(demo.DEMO_VISION)
    path = Path(source).expanduser()
    if source and path.is_dir():
        return "directory", str(path)
    if path.is_file():
        if is_gguf(path) or path.suffix == ".gguf":
            return "gguf", str(path)
        raise UserError(
            f"{path} is no GGUF file: name one, a Hugging Face checkpoint directory, a Hub repo id or demo."
        )
    repo = source.removeprefix(_HUB_URL).rstrip("/")
    if _REPO_ID.fullmatch(repo) and path.suffix != ".gguf":
        return "hub", repo
    raise UserError(f"There is no file or directory {source}, and Hub repo ids look like ORG/NAME.")


@dataclass(frozen=True)
class _Fetched:
    """A source that is on this machine and open."""

    source: Source
    revision: str | None = None
    download: Path | None = None
    """The directory of a download, to be deleted once it is converted."""


def _fetch(
    kind: Kind,
    where: str,
    models_dir: Path,
    downloads_dir: Path,
    dtype: str,
    stack: contextlib.ExitStack,
    cancel: threading.Event,
) -> Generator[ConvertEvent, None, _Fetched]:
    """Download if need be, and open. What has to stay locked meanwhile is entered into `stack`."""
    if kind == "demo":
        directory = stack.enter_context(download_directory(downloads_dir / "demo"))
        _check_space({downloads_dir: 3 * demo.DEMO_BYTES, models_dir: _DEMO_PARAMETERS * 2})
        try:
            gguf = yield from demo.download_demo(directory, cancel=cancel)
        except UserError as error:
            delete(directory)
            yield Notice(f"{error} Taking {demo.DEMO_REPO} from the Hub instead.")
            kind, where = "hub", demo.DEMO_REPO
        else:
            return _Fetched(_open("gguf", gguf), download=directory)
    if kind != "hub":
        return _Fetched(_open(kind, Path(where)))

    yield Progress("download", 0, 0, where)
    repo = wait_for(lambda: hub.look_up(where), cancel)
    if repo.cached:
        yield Notice(f"{where} is in the Hub's cache already: nothing to download.")
        return _Fetched(HuggingFaceSource(repo.cached), repo.revision)
    config = ModelConfig.from_dict(repo.config)
    directory = stack.enter_context(download_directory(repo.directory(downloads_dir)))
    weights = parameter_count(config) * BYTES[_choose_dtype(dtype, auto_dtype(repo.config, ()))]
    _check_space({downloads_dir: repo.remaining(directory), models_dir: weights})
    yield from hub.download(repo, directory, cancel)
    return _Fetched(HuggingFaceSource(directory), repo.revision, directory)


class _Conversion:
    """One open source on its way into a staging directory."""

    def __init__(self, source: Source, dtype: str, cancel: threading.Event) -> None:
        self._source = source
        self._config = ModelConfig.from_dict(source.config)
        self._dtype = _choose_dtype(dtype, source.dtype)
        self._cancel = cancel
        _check_tensors(source.shapes, self._config)

    def run(
        self, origin: str, revision: str | None, models_dir: Path, name: str, force: bool
    ) -> Generator[ConvertEvent, None, Path]:
        """Write the model and move it into place; returns its directory."""
        parameters = parameter_count(self._config)
        fingerprint = self._fingerprint()
        there = (part for part in parts(models_dir) if (part.name, part.fingerprint) == (name, fingerprint))
        done = max((part.done for part in there), default=0)
        _check_space({models_dir: parameters * BYTES[self._dtype] - done})
        with staging(models_dir, name, fingerprint) as stage:
            # The small files first: a tokenizer that does not load is better known before the gigabytes.
            self._source.write_files(stage.directory)
            if origin == "demo":
                demo.add_sampling_defaults(stage.directory)
            check_tokenizer(stage.directory)
            files = {
                path.name: _record(path) for path in sorted(stage.directory.iterdir()) if path.name != WEIGHTS
            }
            part = Part(name, origin, self._dtype, fingerprint, 0, 0, "")
            files[WEIGHTS] = yield from self._write_weights(stage, part)
            manifest = Manifest(
                format_version=FORMAT_VERSION,
                name=name,
                source=origin,
                revision=revision,
                architecture=self._config.architecture,
                family=self._config.family,
                dtype=self._dtype,
                parameter_count=parameters,
                created_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                tool_version=__version__,
                files=files,
            )
            (stage.directory / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
            yield Progress("finish", 0, 0, name)
            if self._cancel.is_set():
                raise Cancelled
            return stage.commit(force=force)

    def _fingerprint(self) -> str:
        """A digest of all that the weights depend on; a source file counts by name, size and time."""
        stamps = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in self._source.files]
        what = [__version__, self._dtype, dict(self._source.config), stamps]
        return hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()

    def _write_weights(self, stage: Staging, part: Part) -> Generator[ConvertEvent, None, FileRecord]:
        """Copy tensor after tensor, one in memory at a time; what a stopped run wrote is taken over."""
        plan = targets(self._config)
        with contextlib.closing(WeightsWriter(stage.directory / WEIGHTS, plan, self._dtype)) as writer:
            start = writer.header_size
            total = parameter_count(self._config) * BYTES[self._dtype]
            yield from self._take_over(writer, stage.part, total)
            end, kept_at = start, time.monotonic()
            for target in plan:
                for tensor in target.sources:
                    end += math.prod(tensor.shape) * BYTES[self._dtype]
                    if end <= writer.size:
                        continue
                    for _ in writer.write(tensor.name, self._source.read(tensor.name)):
                        if self._cancel.is_set():
                            raise Cancelled
                        yield Progress("convert", writer.size - start, total, target.name)
                    if time.monotonic() - kept_at >= KEEP_EVERY_S:
                        writer.flush()
                        stage.keep(replace(part, done=writer.size, total=start + total, sha256=writer.sha256))
                        kept_at = time.monotonic()
        return FileRecord(writer.size, writer.sha256)

    def _take_over(
        self, writer: WeightsWriter, part: Part | None, total: int
    ) -> Generator[ConvertEvent, None, None]:
        """Have the writer behind the last tensor that is there and sound, or else at the first."""
        if part is not None:
            for _ in writer.resume(part.done):
                if self._cancel.is_set():
                    raise Cancelled
                yield Progress("convert", writer.size, total, "checking what is there")
            if writer.sha256 == part.sha256:
                yield Notice(f"Going on with {format_bytes(part.done)} that a stopped conversion left.")
                return
        writer.begin()


def check_tokenizer(directory: Path) -> None:
    """Raise CheckpointError unless the tokenizer in `directory` loads."""
    path = directory / "tokenizer.json"
    try:
        if path.is_file():
            from tokenizers import Tokenizer

            Tokenizer.from_file(str(path))
        else:
            from transformers import AutoTokenizer

            AutoTokenizer.from_pretrained(directory, local_files_only=True)
    # tokenizers raises bare Exception, and transformers whatever the parser of the file at hand does.
    except Exception as error:
        raise CheckpointError(
            f"The tokenizer cannot be loaded ({_first_line(error)}): get its tokenizer files again."
        ) from None


def _check_tensors(shapes: Mapping[str, tuple[int, ...]], config: ModelConfig) -> None:
    """Raise CheckpointError unless the source has exactly the tensors of the model, in their shapes."""
    expected = {part.name: part.shape for target in targets(config) for part in target.sources}
    if missing := expected.keys() - shapes.keys():
        raise CheckpointError(
            f"The checkpoint lacks {_tensors(missing)} of config.json's model: get the complete checkpoint."
        )
    unknown = {name for name in shapes.keys() - expected.keys() if not is_ignored(name, config)}
    if unknown:
        raise CheckpointError(
            f"The checkpoint has {_tensors(unknown)} that config.json's model lacks: "
            "get the config.json that belongs to it."
        )
    for name, shape in expected.items():
        if shapes[name] != shape:
            raise CheckpointError(
                f"Tensor {name} has shape {list(shapes[name])}, not {list(shape)}: "
                "get the config.json that belongs to the checkpoint."
            )


def _tensors(names: Sequence[str] | set[str]) -> str:
    return f"{len(names)} tensor{'s' * (len(names) > 1)} ({some(names)})"


def _open(kind: Kind, path: Path) -> Source:
    if kind in ("directory", "demo-vision"):
        return HuggingFaceSource(path)
    from .gguf import open_gguf  # imports torch: see source.py

    return open_gguf(path)


def _default_name(kind: Kind, where: str) -> str:
    if kind in ("directory", "demo-vision"):
        return directory_name(Path(where))
    if kind == "gguf":
        return default_name(Path(where).stem)
    return demo.DEMO_NAME if kind == "demo" else default_name(where.rsplit("/", 1)[-1])


def _choose_dtype(wanted: str, auto: str) -> str:
    if wanted != "auto" and wanted not in BYTES:
        raise UserError(f"{wanted!r} is no dtype for a model: use auto, {', '.join(BYTES)}.")
    return auto if wanted == "auto" else wanted


def _record(path: Path) -> FileRecord:
    content = path.read_bytes()
    return FileRecord(len(content), hashlib.sha256(content).hexdigest())


def _check_free(path: Path, force: bool) -> None:
    """Raise UserError when the name is taken and may not be replaced."""
    if not path.exists():
        return
    if not (path / MANIFEST).is_file():
        raise UserError(f"{path} is in the way and is no model: move it, or give another name with --name.")
    if not force:
        raise already_there(path.name)


def _check_space(needed: Mapping[Path, int]) -> None:
    """Raise UserError when a disk has too little room for all that goes onto it."""
    by_disk: dict[int, tuple[Path, int]] = {}
    for path, size in needed.items():
        directory = _existing(path)
        first, so_far = by_disk.get(directory.stat().st_dev, (directory, 0))
        by_disk[directory.stat().st_dev] = (first, so_far + size)
    for directory, size in by_disk.values():
        free = _free(directory)
        if free < size + _SPARE_BYTES:
            raise UserError(
                f"{format_bytes(size + _SPARE_BYTES)} are needed on the disk of {directory} and "
                f"{format_bytes(free)} are free: free some, or set LITE_LLAMA_HOME to a larger disk."
            )


def _free(path: Path) -> int:
    return shutil.disk_usage(_existing(path)).free


def _existing(path: Path) -> Path:
    """The nearest directory above `path` that exists."""
    path = path.absolute()
    return path if path.exists() else _existing(path.parent)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


@contextlib.contextmanager
def _explained_os_errors() -> Iterator[None]:
    """Turn what the file system refuses into a sentence."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                "The disk became full during the conversion, and what was written has been removed: "
                "free some space, or set LITE_LLAMA_HOME to a larger disk."
            ) from None
        what = os.strerror(error.errno) if error.errno else str(error)
        where = f"{error.filename}: " if error.filename else ""
        raise UserError(f"{where}{what}: check that the file and its disk are in order.") from None
