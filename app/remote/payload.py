"""A request as the API takes it: `POST /chat/completions`."""

from __future__ import annotations

import base64
import io
from typing import Any

from ...engine.images import Image
from ...engine.request import GenerationRequest, Message
from ...models.errors import UserError

EXTRAS = (
    "top_k",
    "min_p",
    "repetition_penalty",
    "repeat_penalty",
    "seed",
    "stream_options",
    "chat_template_kwargs",
    "continue_final_message",
    "add_generation_prompt",
)
"""What not all servers take; a request that is refused over one of them is sent again without it."""
_SENT_AS_IT_IS = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp"}
"""The formats that all servers read."""
_ORIENTATION = 0x0112


def payload(model: str, request: GenerationRequest, seed: int, *, llama_cpp: bool) -> dict[str, Any]:
    """The body of a streamed request. Takes as long as its images do.

    Values that are off are left out, because `off` is spelt differently by the servers. Raises UserError for
    what cannot be asked for.
    """
    params = request.params
    body: dict[str, Any] = {
        "model": model,
        "messages": as_json(request.messages),
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": params.temperature,
        "top_p": params.top_p,
        "seed": seed,
    }
    if params.max_new_tokens is not None:
        body["max_tokens"] = params.max_new_tokens
    if params.stop:
        body["stop"] = list(params.stop)
    if params.top_k:
        body["top_k"] = params.top_k
    if params.min_p:
        body["min_p"] = params.min_p
    if params.repetition_penalty != 1:
        body["repeat_penalty" if llama_cpp else "repetition_penalty"] = params.repetition_penalty
    if request.thinking is not None:
        body["chat_template_kwargs"] = {"enable_thinking": request.thinking}
    if request.continue_last:
        if not request.messages[-1].content:
            raise UserError(
                "A server cannot take up a reply that was stopped in its thinking: try it again instead."
            )
        # vLLM and SGLang want to be told; llama.cpp goes on by itself, if it is not to think; Ollama too.
        body |= {"continue_final_message": True, "add_generation_prompt": False}
        body["chat_template_kwargs"] = {"enable_thinking": False}
    return body


def as_json(messages: tuple[Message, ...]) -> list[dict[str, Any]]:
    """The messages as the API takes them; what was thought is not passed on."""
    return [{"role": message.role, "content": _content(message)} for message in messages]


def _content(message: Message) -> str | list[dict[str, Any]]:
    if not message.images:
        return message.content
    parts: list[dict[str, Any]] = [
        {"type": "image_url", "image_url": {"url": _data_url(image)}} for image in message.images
    ]
    return [*parts, {"type": "text", "text": message.content}] if message.content else parts


def _data_url(image: Image) -> str:
    """The file as it is where all servers see the same picture in it, else as a new PNG."""
    from PIL import Image as pillow

    with pillow.open(io.BytesIO(image.content)) as file:
        kind = _SENT_AS_IT_IS.get(file.format or "")
        upright = file.getexif().get(_ORIENTATION, 1) == 1
    content = image.content
    if kind is None or not upright:
        buffer = io.BytesIO()
        image.pixels().save(buffer, "PNG")
        kind, content = "image/png", buffer.getvalue()
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
