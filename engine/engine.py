"""One loaded model and the requests that run on it, advanced a step at a time."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from collections.abc import Sequence as Sequences

from ..kernels import select
from ..models.checkpoint import Checkpoint
from ..models.errors import UserError
from ..models.loader import load_decoder
from .detokenizer import Detokenizer
from .device import device_name, resolve_device, resolve_dtype
from .events import (
    Event,
    Failed,
    Finished,
    FinishReason,
    LoadProgress,
    ModelInfo,
    PrefillProgress,
    Queued,
    TextDelta,
    Usage,
)
from .kv_cache import PagePool, allocate_cache
from .memory import MAX_SEQUENCES, STEP_TOKENS, plan_memory
from .request import GenerationRequest, Message
from .runner import ModelRunner
from .scheduler import Scheduler
from .sequence import Sequence
from .tokenizer import Tokenizer

Sink = Callable[[Event], None]


class _Counter:
    """Turns byte counts into LoadProgress events."""

    def __init__(self, total: int, text: str, tell: Callable[[LoadProgress], None]) -> None:
        self._done, self._total, self._text, self._tell = 0, total, text, tell

    def __call__(self, count: int) -> None:
        self._done += count
        self._tell(LoadProgress(self._done, self._total, self._text))


class Engine:
    """Not thread-safe: EngineThread is its only caller outside the tests."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        device: str = "auto",
        dtype: str = "auto",
        max_context: int | None = None,
        attention: str = "flash2",
        progress: Callable[[LoadProgress], None] = lambda _: None,
    ) -> None:
        """Load a converted model.

        Raises UserError (unknown device, not enough memory, damaged files) and whatever `progress` raises.
        """
        place = resolve_device(device)
        torch_dtype = resolve_dtype(dtype, place, checkpoint.manifest.dtype)
        config = checkpoint.config
        plan = plan_memory(config, torch_dtype, place, max_context=max_context)
        self.tokenizer = Tokenizer(checkpoint.path)
        checkpoint.verify(progress=_Counter(checkpoint.size, "Checking the files", progress))
        ops = select(place, attention)
        counter = _Counter(checkpoint.weights.stat().st_size, "Loading the weights", progress)
        model = load_decoder(checkpoint, ops, place, torch_dtype, plan.max_context, counter)
        cache = allocate_cache(config, plan.kv_pages, torch_dtype, place)
        self.runner = ModelRunner(model, cache, place)
        self.pool = PagePool(plan.kv_pages)
        self.scheduler = Scheduler(
            self.pool, step_tokens=STEP_TOKENS[place.type], max_sequences=MAX_SEQUENCES
        )
        self.info = ModelInfo(
            name=checkpoint.manifest.name,
            family=checkpoint.manifest.family,
            parameter_count=checkpoint.manifest.parameter_count,
            device=place.type,
            device_name=device_name(place),
            dtype=str(torch_dtype).removeprefix("torch."),
            max_context=plan.max_context,
            kv_pages=self.pool.total,
            weight_bytes=plan.weight_bytes,
            kv_bytes=plan.kv_bytes,
            operators=ops.name,
            defaults=self.tokenizer.defaults,
        )

    @property
    def busy(self) -> bool:
        """Whether any request is unfinished."""
        return bool(self.scheduler.running or self.scheduler.waiting)

    def count_tokens(self, messages: Sequences[Message]) -> int:
        """Tokens of the conversation, generation prompt included."""
        return len(self.tokenizer.encode_chat(messages))

    def submit(self, request_id: int, request: GenerationRequest, sink: Sink, submitted: float) -> None:
        """Tokenise and queue a request. Raises UserError when it does not fit the context."""
        prompt = self.tokenizer.encode_chat(request.messages, continue_last=request.continue_last)
        self.submit_tokens(request_id, prompt, request, sink, submitted)

    def submit_tokens(
        self, request_id: int, prompt: list[int], request: GenerationRequest, sink: Sink, submitted: float
    ) -> None:
        """Queue a request whose prompt is tokens already."""
        params, limit = request.params, self.info.max_context
        if not prompt:
            raise UserError("The prompt is empty: type a message first.")
        if len(prompt) >= limit:
            raise UserError(
                f"The conversation has {len(prompt)} tokens and {self.info.name} can hold {limit}: "
                f"start a new chat or shorten the message."
            )
        wanted = limit if params.max_new_tokens is None else len(prompt) + params.max_new_tokens
        sequence = Sequence(
            request_id=request_id,
            tokens=prompt,
            prompt_len=len(prompt),
            params=params,
            seed=random.getrandbits(48) if params.seed is None else params.seed,
            max_tokens=min(wanted, limit),
            detokenizer=Detokenizer(self.tokenizer.decode, params.stop),
            sink=sink,
            submitted=submitted,
        )
        self.scheduler.add(sequence)
        sink(Queued(request_id, len(prompt)))

    def cancel(self, request_id: int) -> None:
        """Finish a request now, with the text it has; unknown ids (already finished) are no error."""
        for sequence in self.scheduler.sequences:
            if sequence.request_id == request_id:
                self._finish(sequence, "cancelled")

    def step(self) -> None:
        """Compute one batch and tell every request that got further."""
        batch = self.scheduler.schedule()
        if batch is None:
            return
        tokens = iter(self.runner.run(batch))
        now = time.monotonic()
        for chunk in batch.chunks:
            sequence = chunk.sequence
            sequence.computed = chunk.start + chunk.count
            if not batch.is_decode:
                done = min(sequence.computed, sequence.prompt_len)
                sequence.sink(PrefillProgress(sequence.request_id, done, sequence.prompt_len))
            if sequence.computed == len(sequence.tokens):
                self._accept(sequence, next(tokens), now)

    def fail_all(self, message: str) -> None:
        """End every request in an error."""
        for sequence in self.scheduler.sequences:
            self.scheduler.remove(sequence)
            sequence.sink(Failed(sequence.request_id, message, sequence.detokenizer.text))

    def _accept(self, sequence: Sequence, token: int, now: float) -> None:
        """Append a drawn token, stream its text, and finish the request if this was its last."""
        sequence.tokens.append(token)
        sequence.first_token = sequence.first_token or now
        sequence.last_token = now
        if token in self.tokenizer.eos_ids:
            self._finish(sequence, "stop")
            return
        self._stream(sequence, sequence.detokenizer.add(token))
        if sequence.detokenizer.stopped:
            self._finish(sequence, "stop")
        elif len(sequence.tokens) >= sequence.max_tokens:
            self._finish(sequence, "length")

    def _stream(self, sequence: Sequence, text: str) -> None:
        if text:
            rate = sequence.decode_rate
            sequence.sink(
                TextDelta(
                    sequence.request_id, text, sequence.completion_len, sequence.last_token or 0.0, rate
                )
            )

    def _finish(self, sequence: Sequence, reason: FinishReason) -> None:
        self.scheduler.remove(sequence)
        self._stream(sequence, sequence.detokenizer.flush())
        now = time.monotonic()
        usage = Usage(
            prompt_tokens=sequence.prompt_len,
            cached_prompt_tokens=0,
            completion_tokens=sequence.completion_len,
            ttft_s=(sequence.first_token or now) - sequence.submitted,
            decode_tokens_per_s=sequence.decode_rate,
            total_s=now - sequence.submitted,
            seed=sequence.seed,
        )
        ids = tuple(sequence.tokens[sequence.prompt_len :])
        sequence.sink(Finished(sequence.request_id, reason, sequence.detokenizer.text, ids, usage))
