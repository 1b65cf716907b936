"""What went wrong between here and a server, in one sentence that says what to do."""

from __future__ import annotations

import json
import re
import socket
import ssl
from collections.abc import Iterator
from typing import Any

import httpx2

from ..text import one_line
from .endpoint import Endpoint
from .keys import variable

_TOO_LONG = re.compile(
    r"context[ _](?:length|size|window)|exceed_context|maximum context|max_model_len|prompt is too long", re.I
)
_LIMIT = re.compile(
    r"(?:context (?:length|size|window)|n_ctx|max_model_len)\D{0,12}?(?:is |of |\()?(?:only )?(\d{3,})", re.I
)
_LONGEST = 300


def of_connection(error: httpx2.TransportError, endpoint: Endpoint) -> str:
    """What to say of a request that got no answer."""
    host, name = endpoint.host, endpoint.name
    causes = list(_causes(error))
    for cause in causes:
        if isinstance(cause, socket.gaierror):
            return f"The host {host} is unknown (DNS): check the address of {name}, and the network."
        if isinstance(cause, ssl.SSLCertVerificationError):
            why = one_line(cause.verify_message)
            return (
                f"The certificate of {host} is not trusted ({why}): check the address of {name}, or point "
                "SSL_CERT_FILE to the authority's certificate."
            )
    if any(isinstance(cause, ssl.SSLError) for cause in causes):
        return f"{host} does not speak TLS: check whether the address of {name} should begin with http://."
    match error:
        case httpx2.ProxyError():
            return f"The proxy on the way to {host} refused the connection: check HTTPS_PROXY and NO_PROXY."
        case httpx2.ConnectTimeout() | httpx2.ConnectError():
            return f"Nothing answers at {host}: check that the server of {name} runs, and its address."
        case httpx2.TimeoutException():
            return f"{name} did not answer in time: try again, or ask those who run it."
    return f"{name} closed the connection without an answer: try again."


def of_response(status: int, headers: httpx2.Headers, body: str, endpoint: Endpoint, *, had_key: bool) -> str:
    """What to say of an answer that is none."""
    name = endpoint.name
    said = message_in(body)
    if 300 <= status < 400:
        where = httpx2.URL(headers.get("location", "")).host or "another address"
        return f"{endpoint.host} sends on to {where}: give {name} the address that it means."
    if is_page(headers, body):
        return (
            f"{endpoint.host} answered with a web page and not with the API ({status}): check the address "
            f"of {name}, which mostly ends with /v1, and a proxy between."
        )
    quoted = f"{status}: {said}" if said else str(status)
    if status in (401, 403):
        if not had_key:
            return f"{name} asks for an API key ({status}): give it one, or set {variable(name)}."
        return f"{name} refuses the API key ({status}): check the key, and what it allows."
    if status == 404:
        if "model" in said.lower():
            return f"{name} has no model {endpoint.model!r} (404): choose another one of its models."
        return f"There is no OpenAI-compatible API at {endpoint.url} (404): the address mostly ends with /v1."
    if status == 413:
        return f"The message is too large for {name} (413): send fewer or smaller images."
    if status == 429:
        after = headers.get("retry-after", "").strip()
        when = f"in {after} s" if after.isdigit() else f"after {after}" if after else "in a while"
        return f"{name} takes no more requests now ({quoted}): try again {one_line(when)}."
    if status < 500 and _TOO_LONG.search(body):
        limit = _LIMIT.search(body)
        of = f" of {int(limit[1]):,} tokens" if limit else ""
        return f"The conversation is too long for the context{of} of {name}: start a new one, or shorten it."
    if status >= 500:
        return f"{name} failed ({quoted}): try again in a while."
    return f"{name} refused the request ({quoted})."


def is_page(headers: httpx2.Headers, body: str) -> bool:
    """Whether this is a web page, as proxies and log-in pages answer with."""
    kind = headers.get("content-type", "").lower()
    return "html" in kind or body.lstrip()[:9].lower() in ("<!doctype", "<html", "<html>")


def message_in(body: str) -> str:
    """The server's own words in the body of an error; empty if there are none."""
    try:
        return words(json.loads(body))
    except ValueError:
        return ""


def is_error(chunk: dict[str, Any]) -> bool:
    """Whether this came in a stream to tell of an error."""
    return bool(chunk.get("error")) or chunk.get("object") == "error"


def words(error: Any) -> str:
    """The text in an error object, on one line without a full stop.

    OpenAI, vLLM, llama.cpp and Ollama have `{"error": {"message"}}`, SGLang and older vLLM `{"message"}`,
    FastAPI `{"detail"}`, which may be a list of `{"msg", "loc"}`.
    """
    match error:
        case {"error": inner} | {"message": inner} | {"detail": inner} | {"msg": inner} | [inner, *_]:
            return words(inner)
        case str():
            return one_line(error)[:_LONGEST].rstrip(". ")
    return ""


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        if isinstance(error, BaseExceptionGroup):  # of the addresses of one host
            for inner in error.exceptions:
                yield from _causes(inner)
        error = error.__cause__ or error.__context__
