"""What the app needs of whatever writes the replies: the engine of this machine, or a server elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

from ..engine.events import EngineFigures, ModelInfo
from ..engine.request import GenerationRequest, Message, ScoreRequest
from ..engine.sink import Sink

Source = TypeVar("Source", contravariant=True)


class Backend(Protocol[Source]):
    """One model at a time, any number of requests; `Source` says which model and how to get at it.

    All methods may be called from any thread and return at once, but for `count_tokens` and `close`. Every
    `load` ends in exactly one Loaded or LoadFailed, every `submit` in exactly one Finished or Failed, every
    `score` in exactly one Scored or Failed. EngineThread and RemoteEngine are backends; what each
    method does is said there.
    """

    @property
    def model(self) -> ModelInfo | None: ...

    @property
    def figures(self) -> EngineFigures | None: ...

    def load(self, options: Source, sink: Sink, /) -> None: ...

    def cancel_load(self) -> None: ...

    def unload(self) -> None: ...

    def submit(self, request: GenerationRequest, sink: Sink) -> int: ...

    def score(self, request: ScoreRequest, sink: Sink) -> int: ...

    def cancel(self, request_id: int) -> None: ...

    def count_tokens(self, messages: Sequence[Message]) -> int: ...

    def close(self) -> None: ...
