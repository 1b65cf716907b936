"""One question, one answer, on the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeVar

from ..engine.events import (
    Event,
    Failed,
    Finished,
    Loaded,
    LoadFailed,
    LoadProgress,
    ModelInfo,
    TextDelta,
    ThinkingDelta,
)
from ..engine.images import Image, read_image
from ..engine.request import GenerationRequest, Message
from ..models.checkpoint import Checkpoint
from ..models.errors import UserError
from .backend import Backend
from .interrupt import on_interrupt
from .remote.endpoint import Endpoint

Source = TypeVar("Source")


def read_images(paths: list[Path], model: Checkpoint | Endpoint) -> tuple[Image, ...]:
    """Read and check the images of a question. Raises UserError, also when the model cannot see any."""
    images = tuple(read_image(path) for path in paths)
    if not images:
        return ()
    if isinstance(model, Endpoint):
        if not model.images:
            raise UserError(f"{model.name} is set to take no images: ask without --image, or change that.")
    elif not model.config.vision:
        raise UserError(
            f"{model.path.name} is a text-only model ({model.manifest.family}) and takes no image: "
            f"ask without --image, or a model that sees images, such as LLaVA-1.5."
        )
    return images


def conversation(prompt: str, system: str, images: tuple[Image, ...] = ()) -> tuple[Message, ...]:
    """The messages of a single question; a blank system prompt is left out."""
    question = Message("user", prompt, images=images)
    return (Message("system", system), question) if system.strip() else (question,)


def check_thinking(think: bool | None, info: ModelInfo) -> None:
    """Refuse a wish that the model cannot fulfil. Raises UserError."""
    if think is True and info.thinking == "never":
        raise UserError(f"{info.name} has no thinking mode: ask without --think.")
    if think is False and info.thinking == "always":
        raise UserError(f"{info.name} cannot answer without thinking: ask without --no-think.")


def load(engine: Backend[Source], source: Source, tell: Callable[[str], object]) -> ModelInfo:
    """Load the model, telling what goes on. Raises UserError when that fails or Ctrl-C is pressed."""
    events: SimpleQueue[Event | None] = SimpleQueue()  # None: Ctrl-C
    with on_interrupt(lambda: events.put(None)):
        engine.load(source, events.put)
        while True:
            match events.get():
                case None:
                    engine.cancel_load()
                case LoadProgress(text=text):
                    tell(text)
                case Loaded(info=info):
                    return info
                case LoadFailed(message=message):
                    raise UserError(message)


def answer(
    engine: Backend[Any],
    request: GenerationRequest,
    on_text: Callable[[str], object],
    on_thinking: Callable[[str], object],
) -> Finished:
    """Generate the reply; `on_text` gets each piece of the answer as it comes, `on_thinking` what is before.

    Ctrl-C ends the reply, which is then Finished with reason `cancelled`. Raises UserError when it fails.
    """
    events: SimpleQueue[Event | None] = SimpleQueue()  # None: Ctrl-C
    with on_interrupt(lambda: events.put(None)):
        request_id = engine.submit(request, events.put)
        while True:
            match events.get():
                case None:
                    engine.cancel(request_id)
                case ThinkingDelta(text=text):
                    on_thinking(text)
                case TextDelta(text=text):
                    on_text(text)
                case Finished() as finished:
                    return finished
                case Failed(message=message):
                    raise UserError(message)


def as_json(info: ModelInfo, finished: Finished) -> dict[str, Any]:
    """The object that `ask --json` prints."""
    usage = finished.usage
    return {
        "text": finished.text,
        "thinking": finished.thinking.text,
        "thinking_tokens": finished.thinking.tokens,
        "finish_reason": finished.reason,
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "token_ids": list(finished.token_ids),
        "cached_prompt_tokens": usage.cached_prompt_tokens,
        "ttft_s": usage.ttft_s,
        "decode_tokens_per_s": usage.decode_tokens_per_s,
        "model": info.name,
        "device": info.device,
        "dtype": info.dtype,
        "seed": usage.seed,
    }
