"""The worker thread that owns the engine; the app and the command line both talk to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from .events import Event, GenerationEvent, LoadEvent, ModelInfo
from .request import GenerationRequest, Message

Sink = Callable[[Event], None]
"""Called on the engine's thread for each event; it must return at once and raise nothing."""


@dataclass(frozen=True)
class LoadOptions:
    """Which converted model to load, and how.

    device: auto, cpu or cuda; dtype: auto, float32, bfloat16 or float16; max_context None: as the model
    and the memory allow.
    """

    path: Path
    device: str = "auto"
    dtype: str = "auto"
    max_context: int | None = None


class EngineThread:
    """One model at a time, any number of requests at once.

    All methods may be called from any thread and return at once (but for the two iterators and `close`).
    Every `load` ends in exactly one Loaded or LoadFailed, every `submit` in exactly one Finished or Failed.
    """

    def load(self, options: LoadOptions, sink: Sink) -> None:
        """Unload what is loaded (its running requests fail) and load another model."""
        raise NotImplementedError

    def cancel_load(self) -> None:
        """Stop the load in progress, if any; it ends in LoadFailed."""
        raise NotImplementedError

    def unload(self) -> None:
        """Free the model's memory; running requests fail."""
        raise NotImplementedError

    def submit(self, request: GenerationRequest, sink: Sink) -> int:
        """Start a reply and return its request id; `sink` gets Queued first."""
        raise NotImplementedError

    def cancel(self, request_id: int) -> None:
        """End a request within one step; it ends in Finished with reason `cancelled` and the partial text."""
        raise NotImplementedError

    def count_tokens(self, messages: Sequence[Message]) -> int:
        """Tokens of the conversation as the chat template renders it, generation prompt included; 0 when no
        model is loaded."""
        raise NotImplementedError

    @property
    def model(self) -> ModelInfo | None:
        """The loaded model, None while there is none."""
        raise NotImplementedError

    def load_events(self, options: LoadOptions) -> Iterator[LoadEvent]:
        """`load` as a blocking iterator, for the command line."""
        raise NotImplementedError

    def stream(self, request: GenerationRequest) -> Iterator[GenerationEvent]:
        """`submit` as a blocking iterator, for the command line; closing it early cancels the request."""
        raise NotImplementedError

    def close(self) -> None:
        """Cancel everything, free the memory and end the thread."""
        raise NotImplementedError
