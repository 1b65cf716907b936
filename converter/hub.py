"""Models from the Hugging Face Hub: what a repo holds, and its download.

Listing, log-in, proxies and errors are huggingface_hub's. The bytes are fetched here, because its own
download (2.4) starts a broken-off file anew, reports (and so can be cancelled) only every 10 MB, and checks
sizes but no checksums.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from ..models.config import ModelConfig
from ..models.errors import CheckpointError, UserError
from .events import Cancelled, Progress
from .huggingface import CONFIG, INDEX, WEIGHTS, HuggingFaceSource, check_files, is_companion

_PARALLEL = 4
_TIMEOUT_S = 10.0
_RETRIES = 5
"""Attempts in a row that bring no byte before a download is given up."""
_RETRY_PAUSE_S = 1.0


class HubUnreachable(UserError):
    """There is no network, or the Hub does not answer."""


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repo. `sha256` is known for those in large-file storage, `blob_id` (git's) for all."""

    name: str
    size: int
    sha256: str | None
    blob_id: str | None


@dataclass(frozen=True)
class Repo:
    """A model repo at one commit, with the files that a conversion needs."""

    name: str
    revision: str
    """The commit's hash."""
    files: tuple[RemoteFile, ...]
    config: Mapping[str, Any]
    cached: Path | None
    """Where the Hub's own cache on this machine holds all of the files."""

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    def directory(self, downloads_dir: Path) -> Path:
        """Where this commit is downloaded to."""
        return downloads_dir / f"{self.name.replace('/', '--')}--{self.revision[:12]}"

    def remaining(self, directory: Path) -> int:
        """Bytes that are still to be fetched into `directory`; none when the Hub's cache has them."""
        if self.cached:
            return 0
        return self.size - sum(_fetched(directory, file) for file in self.files)


def look_up(name: str, *, revision: str | None = None) -> Repo:
    """Ask the Hub for the repo `name` (ORG/NAME); offline, look into the Hub's cache on this machine.

    Raises UserError when there is none, access is refused, the Hub cannot be reached, or the repo holds
    nothing that can be converted.
    """
    from huggingface_hub import HfApi

    try:
        with _explained(name):
            info = HfApi(endpoint=_endpoint()).model_info(
                name, revision=revision, files_metadata=True, timeout=_TIMEOUT_S
            )
    except HubUnreachable:
        if (directory := _offline_copy(name, revision)) is None:
            raise
        config = json.loads((directory / CONFIG).read_text(encoding="utf-8"))
        return Repo(name, directory.name, (), config, directory)

    commit = str(info.sha)
    listed = {item.rfilename: item for item in info.siblings or [] if "/" not in item.rfilename}
    check_files(listed, f"Hub repo {name}")
    with _explained(name):
        config = _fetch_json(name, commit, CONFIG)
        ModelConfig.from_dict(config)  # a model that cannot run is not worth gigabytes
        if WEIGHTS in listed:
            weights = {WEIGHTS}
        else:
            weights = {INDEX, *map(str, _fetch_json(name, commit, INDEX).get("weight_map", {}).values())}
    files = tuple(
        RemoteFile(item.rfilename, item.size or 0, item.lfs.sha256 if item.lfs else None, item.blob_id)
        for item in listed.values()
        if is_companion(item.rfilename) or item.rfilename in weights
    )
    return Repo(name, commit, files, config, _cached(name, commit, files))


def download(repo: Repo, directory: Path, cancel: threading.Event) -> Iterator[Progress]:
    """Fetch the repo's files into `directory`, going on where an earlier run was broken off.

    Every file is checked against its hash before it gets its name. Raises UserError when it cannot be
    fetched and Cancelled within a moment of `cancel`; in either case what has arrived stays.
    """
    transfer = _Transfer(repo, directory)
    threads = [threading.Thread(target=transfer.work, daemon=True) for _ in range(_PARALLEL)]
    try:
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            if cancel.wait(0.1):
                raise Cancelled
            yield transfer.progress
    finally:
        # A thread that waits for the network ends at its next byte or timeout, and writes nothing more.
        transfer.stop.set()
    if transfer.error:
        with _explained(repo.name):
            raise transfer.error
    yield transfer.progress


class _Transfer:
    """The state that the downloading threads share."""

    def __init__(self, repo: Repo, directory: Path) -> None:
        self._repo = repo
        self._directory = directory
        self._waiting = deque(sorted(repo.files, key=lambda file: file.size, reverse=True))
        self._received = {file.name: _fetched(directory, file) for file in repo.files}
        self._current = self._waiting[0].name
        self.stop = threading.Event()
        self.error: BaseException | None = None

    @property
    def progress(self) -> Progress:
        return Progress("download", sum(self._received.values()), self._repo.size, self._current)

    def work(self) -> None:
        """Fetch waiting files until there are none, or an error, or a stop."""
        try:
            while not self.stop.is_set():
                file = self._waiting.popleft()
                self._current = file.name
                self._fetch(file)
        except IndexError:
            return
        except BaseException as error:
            self.error = error
            self.stop.set()

    def _fetch(self, file: RemoteFile) -> None:
        final = self._directory / file.name
        if final.exists():
            return
        part = _part(self._directory, file)
        with part.open("ab") as out:
            failures = 0
            while out.tell() < file.size and not self.stop.is_set():
                before, error = out.tell(), None
                try:
                    self._stream(file, out)
                except _http_error() as problem:
                    error = problem
                    if not _is_transient(problem):
                        raise
                failures = 0 if out.tell() > before else failures + 1
                if failures > _RETRIES:
                    raise error or CheckpointError(
                        f"The Hub sends {file.name} incompletely: try again later."
                    )
                if error:
                    self.stop.wait(_RETRY_PAUSE_S)
        if self.stop.is_set():
            return
        if not _matches(part, file):
            part.unlink()
            raise CheckpointError(f"{file.name} of {self._repo.name} arrived damaged: try again.")
        part.replace(final)

    def _stream(self, file: RemoteFile, out: IO[bytes]) -> None:
        """Append what the server sends from the end of `out` on, until the end, a stop or an error."""
        start = out.tell()
        extra = {"Range": f"bytes={start}-"} if start else {}
        with _open_url(self._repo.name, self._repo.revision, file.name, extra) as response:
            if start and response.status_code != 206:  # the server knows no ranges
                out.truncate(0)
                self._received[file.name] = 0
            for chunk in response.iter_bytes():
                if self.stop.is_set():
                    return
                out.write(chunk)
                self._received[file.name] += len(chunk)


def _part(directory: Path, file: RemoteFile) -> Path:
    return directory / f"{file.name}.part"


def _fetched(directory: Path, file: RemoteFile) -> int:
    """Bytes of a file that are there already."""
    for path in (directory / file.name, _part(directory, file)):
        if path.exists():
            return path.stat().st_size
    return 0


def _matches(path: Path, file: RemoteFile) -> bool:
    """Whether the content is what the Hub says it is (without a hash: whether the size is)."""
    if file.sha256:
        expected, digest = file.sha256, hashlib.sha256()
    else:
        expected, digest = file.blob_id, hashlib.sha1(b"blob %d\0" % file.size)
    with path.open("rb") as content:
        while block := content.read(1 << 20):
            digest.update(block)
    return path.stat().st_size == file.size and expected in (None, digest.hexdigest())


def _endpoint() -> str | None:
    """HF_ENDPOINT as it is now; huggingface_hub looks at it only when it is imported."""
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or None


@contextmanager
def _open_url(repo: str, revision: str, name: str, extra_headers: Mapping[str, str]) -> Iterator[Any]:
    """GET a file of a repo; yields the response, whose body is still to be read. Raises for 4xx and 5xx."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    # Compressed on the way, the length would not be the file's.
    headers = {**build_hf_headers(), "Accept-Encoding": "identity", **extra_headers}
    url = hf_hub_url(repo, name, revision=revision, endpoint=_endpoint())
    with get_session().stream(
        "GET", url, headers=headers, timeout=_TIMEOUT_S, follow_redirects=True
    ) as response:
        if response.status_code >= 400:
            response.read()  # the error's text
        hf_raise_for_status(response)
        yield response


def _fetch_json(repo: str, revision: str, name: str) -> dict[str, Any]:
    with _open_url(repo, revision, name, {}) as response:
        try:
            content = json.loads(response.read())
        except ValueError:
            content = None
    if not isinstance(content, dict):
        raise CheckpointError(f"{name} of {repo} holds no JSON object: the repo is damaged.")
    return content


def _cached(repo: str, revision: str, files: tuple[RemoteFile, ...]) -> Path | None:
    """The snapshot in the Hub's cache, if it has every one of `files`."""
    from huggingface_hub import try_to_load_from_cache

    paths = [try_to_load_from_cache(repo, file.name, revision=revision) for file in files]
    found = [Path(path) for path in paths if isinstance(path, str)]
    return found[0].parent if len(found) == len(files) else None


def _offline_copy(repo: str, revision: str | None) -> Path | None:
    """The complete snapshot, if there is one, that the Hub's cache got when it last asked for a repo."""
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(repo, CONFIG, revision=revision)
    if not isinstance(path, str):
        return None
    try:
        HuggingFaceSource(Path(path).parent).close()
    except UserError:
        return None
    return Path(path).parent


def _http_error() -> type[Exception]:
    """The base error of the HTTP client that huggingface_hub uses (httpx, or since 2.0 its successor)."""
    from huggingface_hub import errors

    return errors.HTTPError  # pyright: ignore[reportPrivateImportUsage]


def _is_transient(error: Exception) -> bool:
    """Whether trying again may help: a broken connection or timeout, a busy or failing server."""
    from huggingface_hub.errors import HfHubHTTPError

    return not isinstance(error, HfHubHTTPError) or error.response.status_code in (
        408,
        429,
        500,
        502,
        503,
        504,
    )


@contextmanager
def _explained(repo: str) -> Iterator[None]:
    """Turn the errors of huggingface_hub and its HTTP client into one sentence."""
    from huggingface_hub import errors

    log_in = "log in with `hf auth login` or set HF_TOKEN"
    try:
        yield
    except errors.GatedRepoError:
        raise UserError(
            f"{repo} is gated: accept its terms at https://huggingface.co/{repo}, then {log_in}."
        ) from None
    except errors.RevisionNotFoundError:
        raise UserError(f"{repo} has no such revision: leave it out for the newest.") from None
    except errors.RepositoryNotFoundError:
        raise UserError(
            f"There is no model {repo} on the Hub, or it is private: check the name, or {log_in}."
        ) from None
    except errors.HFValidationError:
        raise UserError(f"{repo!r} is no Hub repo id: they look like ORG/NAME.") from None
    except errors.HfHubHTTPError as error:
        code = error.response.status_code
        if code in (401, 403):
            raise UserError(f"The Hub refuses access to {repo}: {log_in}.") from None
        raise HubUnreachable(f"The Hub answers with error {code} for {repo}: try again later.") from None
    except errors.OfflineModeIsEnabled:
        raise HubUnreachable(f"HF_HUB_OFFLINE is set, and {repo} is not in the Hub's cache.") from None
    except _http_error():
        where = _endpoint() or "https://huggingface.co"
        raise HubUnreachable(
            f"{where} cannot be reached: check the network and try again (what was downloaded is kept)."
        ) from None
