"""Endpoints: which server, which of its models. They live in a TOML file of their own, without their keys."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import tomlkit
from tomlkit.exceptions import TOMLKitError

from ...models.errors import UserError
from ..files import replace_file, saving

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_HEADER = "OpenAI-compatible endpoints of lite-llama-tui. Keys are kept in the keyring or in the environment."
_COMPLETIONS = "/chat/completions"


@dataclass(frozen=True)
class Endpoint:
    """A model of a server. Raises UserError for what cannot be one."""

    name: str
    """What the user calls it, unique among the endpoints."""
    url: str
    """The API's address; `/v1` is added where it has no path at all."""
    model: str
    """The server's name for the model."""
    context: int | None = None
    """Tokens that a conversation may have; None: what the server says, if it does."""
    key_variable: str | None = None
    """The environment variable with the key, if it is to be another than the usual one."""
    images: bool = True
    """Whether messages may carry images; servers do not tell."""

    def __post_init__(self) -> None:
        for field in fields(self):
            if not _fits(getattr(self, field.name), str(field.type)):
                raise UserError(f"{field.name} must be {_WORDS[str(field.type)]}: correct it.")
        if not _NAME.fullmatch(self.name):
            raise UserError(
                f"{self.name!r} cannot be an endpoint's name: use up to 100 letters, digits, dots, dashes "
                "and underscores, the first a letter or digit."
            )
        object.__setattr__(self, "url", normalised(self.url))
        if not self.model.strip():
            raise UserError("The endpoint needs a model: list the server's models and choose one.")
        if self.context is not None and self.context < 1:
            raise UserError("The context length must be a whole number above 0, or empty: correct it.")
        if self.key_variable is not None and not _VARIABLE.fullmatch(self.key_variable):
            raise UserError(
                "The variable for the key must be the name of an environment variable, such as MY_KEY, "
                "and not the key itself: correct it."
            )

    @property
    def host(self) -> str:
        """Host and port, as the address has them."""
        return urlsplit(self.url).netloc

    @property
    def is_here(self) -> bool:
        """Whether the server is on this machine, as its name alone says."""
        host = urlsplit(self.url).hostname or ""
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return host == "localhost"

    @property
    def exposes_key(self) -> bool:
        """Whether a key would go over the network in the clear."""
        return self.url.startswith("http:") and not self.is_here

    @property
    def exposure(self) -> str:
        """What to say before a key is exposed."""
        return f"The key goes to {self.host} without encryption, for anyone on the way to read."


_WORDS = {
    "str": "text",
    "str | None": "text",
    "int | None": "a whole number",
    "bool": "true or false",
}


def _fits(value: object, annotation: str) -> bool:
    if value is None:
        return annotation.endswith("None")
    kind = {"str": str, "int": int, "bool": bool}[annotation.split()[0]]
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def normalised(url: str) -> str:
    """The address of an API as it is used here. Raises UserError if it cannot be one."""
    url = url.strip()
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises ValueError when it is no number
        host = parts.hostname
    except ValueError:
        host, parts = None, urlsplit("")
    if parts.scheme not in ("http", "https") or not host or any(letter.isspace() for letter in url):
        raise UserError("The address must look like https://host:8000/v1: correct it.")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise UserError(
            "The address must not carry a password, key or query: give the key in its own field or variable."
        )
    path = parts.path.rstrip("/").removesuffix(_COMPLETIONS) or "/v1"
    return f"{parts.scheme}://{parts.netloc}{path}"


class Endpoints:
    """The file of endpoints. Each call reads it anew, since it is small and may be edited meanwhile."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def load(self) -> tuple[dict[str, Endpoint], list[str]]:
        """The endpoints by name, and a sentence on each thing in the file that had to be passed over."""
        found: dict[str, Endpoint] = {}
        problems: list[str] = []
        try:
            document = self._read()
        except UserError as error:
            return {}, [str(error)]
        for name, values in document.unwrap().items():
            try:
                found[name] = _endpoint(name, values)
            except UserError as error:
                problems.append(f"The endpoint {name} in {self.path} is passed over. {error}")
        return found, problems

    def get(self, name: str | None) -> Endpoint | None:
        """The endpoint of that name, if there is one."""
        return self.load()[0].get(name or "")

    def save(self, endpoint: Endpoint) -> None:
        """Add it, or put it in the place of the one with its name. Raises UserError if that fails."""
        document = self._read()
        table = document.get(endpoint.name)
        if not isinstance(table, dict):
            table = document[endpoint.name] = tomlkit.table()
        for name, value in asdict(endpoint).items():
            if name == "name" or value is None:
                table.pop(name, None)
            else:
                table[name] = value
        self._write(document)

    def remove(self, name: str) -> None:
        """Forget an endpoint; its key is another matter. Raises UserError when there is none."""
        document = self._read()
        if name not in document:
            raise UserError(f"There is no endpoint {name!r}: lite-llama-tui endpoints lists them.")
        document.pop(name)
        self._write(document)

    def _read(self) -> tomlkit.TOMLDocument:
        try:
            return tomlkit.parse(self.path.read_bytes().decode("utf-8-sig"))
        except FileNotFoundError:
            document = tomlkit.document()
            document.add(tomlkit.comment(_HEADER))
            return document
        except OSError as error:
            reason = error.strerror
        except (TOMLKitError, UnicodeDecodeError) as error:
            reason = str(error)
        raise UserError(f"{self.path} cannot be read ({reason}): correct it or move it away.")

    def _write(self, document: tomlkit.TOMLDocument) -> None:
        with saving("The endpoint", self.path):
            replace_file(self.path, tomlkit.dumps(document).encode())


def _endpoint(name: str, values: Any) -> Endpoint:
    """Raises UserError."""
    known = {field.name for field in fields(Endpoint)} - {"name"}
    if not isinstance(values, dict) or not {"url", "model"} <= values.keys():
        raise UserError("It needs a url and a model: add them.")
    return Endpoint(name, **{key: value for key, value in values.items() if key in known})
