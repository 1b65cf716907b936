"""The worker thread that owns the engine; the app and the command line both talk to it."""

from __future__ import annotations

import gc
import itertools
import logging
import queue
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ..models.checkpoint import Checkpoint
from ..models.errors import UserError
from .engine import Engine
from .events import EngineFigures, Failed, Loaded, LoadFailed, LoadProgress, ModelInfo
from .options import DEFAULT_OPTIONS, EngineOptions
from .request import GenerationRequest, Message, ScoreRequest
from .sink import Sink, guarded

log = logging.getLogger(__name__)

SWITCH_INTERVAL_S = 1e-4
QUIET_S = 0.2
"""So long without a command, and the engine prepares for later messages: the first must not wait for it."""


@dataclass(frozen=True)
class LoadOptions:
    """Which converted model to load, and how.

    device: auto, cpu or cuda; dtype: auto, float32, bfloat16 or float16; max_context None: as the model
    and the memory allow; max_sequences: requests that run at once.
    """

    path: Path
    device: str = "auto"
    dtype: str = "auto"
    max_context: int | None = None
    max_sequences: int = DEFAULT_OPTIONS.max_sequences


class _LoadCancelled(Exception):
    pass


def settle() -> None:
    """Spare the garbage collector what is there to stay: libraries and model.

    To look through a million objects that never change takes it 0.3 s, in which no thread can run.
    """
    gc.freeze()


class EngineThread:
    """One model at a time, any number of requests at once.

    All methods may be called from any thread and return at once (but for `close`).
    Every `load` ends in exactly one Loaded or LoadFailed, every `submit` in exactly one Finished or Failed,
    every `score` in exactly one Scored or Failed.
    """

    def __init__(self) -> None:
        # The engine's thread gives the interpreter away several times a token. Where another thread computes,
        # as the app does to draw, it would get it back only after 5 ms each time.
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        self._commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._ids = itertools.count(1)
        self._engine: Engine | None = None
        self._cancel_load = threading.Event()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    def load(self, options: LoadOptions, sink: Sink) -> None:
        """Unload what is loaded (its running requests fail) and load another model."""
        cancel = self._cancel_load = threading.Event()
        self._commands.put(lambda: self._load(options, guarded(sink), cancel))

    def cancel_load(self) -> None:
        """Stop the load in progress, if any; it ends in LoadFailed."""
        self._cancel_load.set()

    def unload(self) -> None:
        """Free the model's memory; running requests fail."""
        self._commands.put(self._unload)

    def submit(self, request: GenerationRequest, sink: Sink) -> int:
        """Start a reply and return its request id; `sink` gets Queued first (or Failed)."""
        return self._put(request, sink)

    def score(self, request: ScoreRequest, sink: Sink) -> int:
        """Look at how likely each token of a reply was; returns the request id. It can be cancelled.

        `sink` gets Queued and PrefillProgress, as the reply is read again, and at the end Scored or Failed.
        """
        return self._put(request, sink)

    def _put(self, request: GenerationRequest | ScoreRequest, sink: Sink) -> int:
        request_id, now = next(self._ids), time.monotonic()
        self._commands.put(lambda: self._submit(request_id, request, guarded(sink), now))
        return request_id

    def cancel(self, request_id: int) -> None:
        """End a request within one step; it ends in Finished with reason `cancelled` and the partial text."""
        self._commands.put(lambda: self._engine and self._engine.cancel(request_id))

    def count_tokens(self, messages: Sequence[Message]) -> int:
        """Tokens of the conversation as the chat template renders it, generation prompt included.

        0 when no model is loaded. Raises UserError when the template refuses the conversation.
        """
        engine = self._engine
        return engine.count_tokens(messages) if engine else 0

    @property
    def model(self) -> ModelInfo | None:
        """The loaded model, None while there is none."""
        engine = self._engine
        return engine.info if engine else None

    @property
    def figures(self) -> EngineFigures | None:
        """What the engine holds now, None while no model is loaded."""
        engine = self._engine
        return engine.figures if engine else None

    def close(self) -> None:
        """Cancel everything, free the memory and end the thread."""
        self.cancel_load()
        self._commands.put(self._close)
        self._thread.join()

    # Everything below runs on the engine's thread.

    def _work(self) -> None:
        while not self._closed:
            try:
                self._work_once()
            except BaseException:  # SystemExit too: without this thread everybody would wait for ever
                log.exception("the engine failed in a way that is not foreseen")
                self._abandon()

    def _work_once(self) -> None:
        engine = self._engine
        idle = not (engine and engine.busy)
        try:
            command = self._commands.get(
                block=idle, timeout=None if not engine or engine.prepared else QUIET_S
            )
        except queue.Empty:
            if idle:
                self._prepare()
            else:
                self._step()
        else:
            command()

    def _prepare(self) -> None:
        """Use a moment in which nobody waits."""
        assert self._engine
        try:
            self._engine.prepare()
        except Exception:  # whoever needs it will do it, or hear why not
            log.exception("preparing for later messages failed")

    def _abandon(self) -> None:
        """Drop an engine whose state nobody knows; its requests fail."""
        engine, self._engine = self._engine, None
        if engine:
            engine.abandon("The engine failed and the model had to be dropped: load it again with /model.")

    def _step(self) -> None:
        assert self._engine
        try:
            self._engine.step()
        except torch.cuda.OutOfMemoryError:
            log.exception("out of GPU memory")
            torch.cuda.empty_cache()
            self._engine.fail_all(
                "The GPU ran out of memory: close other programs on it, or start a shorter chat."
            )
        except Exception as error:
            log.exception("engine step failed")
            self._engine.fail_all(f"The engine failed ({type(error).__name__}: {error}): try again.")

    def _load(self, options: LoadOptions, sink: Sink, cancel: threading.Event) -> None:
        def progress(event: LoadProgress) -> None:
            if cancel.is_set():
                raise _LoadCancelled
            sink(event)

        self._unload()
        try:
            checkpoint = Checkpoint.open(options.path)
            how = EngineOptions(
                options.device,
                options.dtype,
                options.max_context,
                max_sequences=options.max_sequences,
            )
            self._engine = Engine.load(checkpoint, how, progress)
        except _LoadCancelled:
            sink(LoadFailed("Loading was cancelled."))
        except UserError as error:
            sink(LoadFailed(str(error)))
        except torch.cuda.OutOfMemoryError:
            sink(LoadFailed("The GPU ran out of memory while loading: close other programs on it."))
        except BaseException as error:  # SystemExit too: the sink waits
            log.exception("loading failed")
            sink(LoadFailed(f"Loading failed ({type(error).__name__}: {error}): convert the model again."))
        else:
            settle()
            sink(Loaded(self._engine.info))

    def _unload(self) -> None:
        if self._engine:
            self._engine.fail_all("The model was unloaded before the reply was finished.")
            self._engine = None
            gc.unfreeze()
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def _submit(
        self, request_id: int, request: GenerationRequest | ScoreRequest, sink: Sink, now: float
    ) -> None:
        try:
            if not self._engine:
                raise UserError("No model is loaded: choose one first.")
            if isinstance(request, ScoreRequest):
                self._engine.score(request_id, request, sink, now)
            else:
                self._engine.submit(request_id, request, sink, now)
        except UserError as error:
            sink(Failed(request_id, str(error), ""))
        except BaseException as error:  # SystemExit too: the sink waits
            log.exception("submitting failed")
            sink(Failed(request_id, f"The prompt could not be prepared ({error}): try again.", ""))

    def _close(self) -> None:
        self._unload()
        self._closed = True
