"""The API's three calls that are needed here, over HTTP: list the models, count tokens, stream a reply."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Generator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx2
from pydantic import SecretStr

from ...models.errors import UserError
from . import failures
from .endpoint import Endpoint

CONNECT_S, SILENCE_S = 10.0, 300.0
"""A busy server may let a request wait long before the first token."""
_ERROR_BYTES = 100_000


class Rejected(UserError):
    """The server does not take the request as it is; `body` is what it says of it."""

    def __init__(self, message: str, body: str) -> None:
        super().__init__(message)
        self.body = body


@dataclass(frozen=True)
class ServedModel:
    """A model that a server lists."""

    id: str
    owner: str
    """Who runs it: `vllm`, `sglang`, `llamacpp`, `library` (Ollama)."""
    context: int | None
    """Tokens of a conversation; None if the server does not say."""


class _BearerAuth(httpx2.Auth):
    """Puts the key into the request at the last moment, so that nothing else holds it as text."""

    def __init__(self, key: SecretStr) -> None:
        self._key = key

    def auth_flow(self, request: httpx2.Request) -> Generator[httpx2.Request, httpx2.Response, None]:
        request.headers["Authorization"] = f"Bearer {self._key.get_secret_value()}"
        yield request


class Client:
    """Calls one endpoint; used on one event loop. All errors are UserErrors, and none shows the key."""

    def __init__(self, endpoint: Endpoint, key: SecretStr | None) -> None:
        self._endpoint = endpoint
        self._key = key
        self._http = httpx2.AsyncClient(
            auth=_BearerAuth(key) if key else None,
            timeout=httpx2.Timeout(SILENCE_S, connect=CONNECT_S, pool=CONNECT_S),
            # Proxies and certificates as the environment has them; this machine needs no proxy.
            trust_env=not endpoint.is_here,
        )

    async def close(self) -> None:
        await self._http.aclose()

    async def models(self) -> list[ServedModel]:
        """The models that the server has. Raises UserError."""
        url = f"{self._endpoint.url}/models"
        async with self._answer("GET", url, timeout=CONNECT_S) as response:
            body = await self._json(response)
        listed = body.get("data") if isinstance(body, dict) else None
        if not isinstance(listed, list):
            raise UserError(f"{url} does not list models as the OpenAI API does: check the address.")
        return [_served(model) for model in listed if isinstance(model, dict) and model.get("id")]

    async def count(self, messages: list[dict[str, Any]]) -> int | None:
        """Tokens of the conversation as the model reads it, by vLLM's /tokenize; None where that is not."""
        url = self._endpoint.url.removesuffix("/v1") + "/tokenize"
        body = {"model": self._endpoint.model, "messages": messages, "add_generation_prompt": True}
        try:
            async with self._answer("POST", url, json=body, timeout=CONNECT_S) as response:
                answer = await self._json(response)
        except UserError:
            return None
        count = answer.get("count") if isinstance(answer, dict) else None
        return count if isinstance(count, int) and count > 0 else None

    async def chat(self, body: dict[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """Stream a reply: an empty chunk when the server has accepted the request, then its chunks.

        Raises Rejected or another UserError.
        """
        name = self._endpoint.name
        async with self._answer("POST", f"{self._endpoint.url}/chat/completions", json=body) as response:
            if not response.headers.get("content-type", "").startswith("text/event-stream"):
                text = (await self._read(response)).decode("utf-8", "replace")
                if failures.is_page(response.headers, text):
                    raise self._failure(response, text)
                raise UserError(f"{name} does not stream its replies: check that its address is the API's.")
            yield {}
            ended = False
            try:
                async for event in httpx2.EventSource(response):
                    if event.data.strip() == "[DONE]":
                        return
                    if event.data:
                        chunk = self._chunk(event.data)
                        yield chunk
                        ended = ended or _ends(chunk)
            except httpx2.TransportError:
                raise self._cut() from None
            if not ended:
                raise self._cut()

    def _cut(self) -> UserError:
        return UserError(
            f"The connection to {self._endpoint.name} was cut: continue the reply, or try again."
        )

    def _chunk(self, data: str) -> dict[str, Any]:
        try:
            chunk = json.loads(data)
        except ValueError:
            chunk = None
        if not isinstance(chunk, dict):
            raise UserError(
                f"{self._endpoint.name} sent something that is no JSON: continue the reply, or try again."
            )
        if failures.is_error(chunk):
            # Only errors quote keys, and a reply may well have a word that somebody took for a key.
            said = failures.words(json.loads(_hidden(data, self._key))) or "an error"
            raise UserError(f"The server broke off the reply ({said}): try again.")
        return chunk

    @asynccontextmanager
    async def _answer(self, method: str, url: str, **more: Any) -> AsyncIterator[httpx2.Response]:
        """A response with status 200 whose body is yet to be read."""
        request = self._http.build_request(method, url, **more)
        try:
            response = await self._http.send(request, stream=True)
        except httpx2.TransportError as error:
            raise UserError(failures.of_connection(error, self._endpoint)) from None
        try:
            if response.status_code != 200:
                raise self._failure(response, (await self._read(response)).decode("utf-8", "replace"))
            yield response
        finally:
            await response.aclose()

    def _failure(self, response: httpx2.Response, body: str) -> UserError:
        body = _hidden(body, self._key)
        status = response.status_code
        message = failures.of_response(
            status, response.headers, body, self._endpoint, had_key=self._key is not None
        )
        return Rejected(message, body) if status in (400, 422) else UserError(message)

    async def _read(self, response: httpx2.Response) -> bytes:
        content = b""
        try:
            async for part in response.aiter_bytes():
                content += part
                if len(content) > _ERROR_BYTES and response.status_code != 200:
                    break
        except httpx2.TransportError as error:
            raise UserError(failures.of_connection(error, self._endpoint)) from None
        return content

    async def _json(self, response: httpx2.Response) -> Any:
        text = (await self._read(response)).decode("utf-8", "replace")
        try:
            return json.loads(text)
        except ValueError:
            if failures.is_page(response.headers, text):
                raise self._failure(response, text) from None
        raise UserError(f"{self._endpoint.host} answered with something that is no JSON: check the address.")


def _hidden(text: str, key: SecretStr | None) -> str:
    """Without the key: servers quote it when they refuse it."""
    return text.replace(key.get_secret_value(), "•••") if key else text


def _served(model: dict[str, Any]) -> ServedModel:
    meta = model.get("meta")
    known = (
        model.get("max_model_len"),  # vLLM, SGLang
        model.get("context_length"),  # OpenRouter and other gateways
        meta.get("n_ctx") if isinstance(meta, dict) else None,  # llama.cpp
    )
    context = next((value for value in known if isinstance(value, int) and value > 0), None)
    return ServedModel(str(model["id"]), str(model.get("owned_by") or ""), context)


def _ends(chunk: dict[str, Any]) -> bool:
    """Whether the reply is complete with this chunk; only the token counts may follow."""
    return any(choice.get("finish_reason") for choice in chunk.get("choices") or ())


async def models_of(endpoint: Endpoint, key: SecretStr | None) -> list[ServedModel]:
    """The models that a server has which is not in use. Raises UserError."""
    client = Client(endpoint, key)
    try:
        return await client.models()
    finally:
        await client.close()
