"""One loaded model and the requests that run on it, advanced a step at a time."""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as Sequences

from ..models.checkpoint import Checkpoint
from ..models.config import ModelConfig
from ..models.decoder import Decoder
from ..models.errors import UserError
from ..models.loader import load_decoder
from ..models.random import random_decoder
from ..models.weights import parameter_count
from .device import device_name, resolve_device, resolve_dtype
from .events import (
    EngineFigures,
    Event,
    Failed,
    Finished,
    FinishReason,
    LoadProgress,
    ModelInfo,
    PrefillProgress,
    Queued,
    TextDelta,
    ThinkingDelta,
    Usage,
)
from .image_features import ImageFeatures, PrepareImage
from .image_processor import ImageProcessor, raw_pixels
from .image_prompt import ImageTokenizer, place_images, salts
from .images import Image
from .kv_cache import PagePool, allocate_cache
from .memory import CHUNK_TOKENS, STEP_TOKENS, MemoryPlan, plan_memory
from .no_tokenizer import NoTokenizer
from .options import DEFAULT_OPTIONS, EngineOptions
from .prompt_lookup import PromptLookup, count_accepted
from .reply import Part, ReplyText
from .request import GenerationRequest, Message, SamplingParams, ScoreRequest
from .runner import MAX_DRAFTS, ModelRunner, Step
from .scheduler import Batch, Scheduler
from .scores import Scores
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
        model: Decoder,
        tokenizer: Tokenizer,
        plan: MemoryPlan,
        options: EngineOptions,
        *,
        name: str,
        prepare_image: PrepareImage | None = None,
    ) -> None:
        """Run `model` with the KV cache of `plan`; its device and dtype are those of its weights.

        A model that sees images needs `prepare_image` to do so.
        """
        config, weight = model.config, model.embed_tokens.weight
        self.tokenizer = tokenizer
        cache = allocate_cache(config, plan.kv_pages, weight.dtype, weight.device)
        features = None
        if prepare_image:
            features = ImageFeatures(model, prepare_image, cuda_graph=options.captures)
        self.runner = ModelRunner(
            model,
            cache,
            weight.device,
            max_sequences=options.max_sequences,
            max_context=plan.max_context,
            cuda_graphs=options.captures,
            features=features,
        )
        self._vision = config.vision if features else None
        self.runner.warm_up()
        self.pool = PagePool(plan.kv_pages)
        self.scheduler = Scheduler(
            self.pool,
            chunk_tokens=CHUNK_TOKENS[weight.device.type],
            step_tokens=STEP_TOKENS[weight.device.type],
            max_sequences=options.max_sequences,
            dynamic_kv=options.dynamic_kv,
            prefix_cache=options.prefix_cache,
        )
        self._pending: deque[tuple[Batch, Step]] = deque()
        # The Triton kernels give each row of a verification the bits that it would have alone. PyTorch need
        # not, and on a CPU four rows cost 2 or 3 steps (SmolLM2-135M, bf16): that would seldom pay.
        self._speculate = options.speculate and model.ops.name == "triton"
        self.info = ModelInfo(
            name=name,
            family=config.family,
            parameter_count=parameter_count(config),
            device=weight.device.type,
            device_name=device_name(weight.device),
            dtype=str(weight.dtype).removeprefix("torch."),
            max_context=plan.max_context,
            kv_pages=self.pool.total,
            weight_bytes=plan.weight_bytes,
            kv_bytes=plan.kv_bytes,
            operators=model.ops.name,
            defaults=tokenizer.defaults,
            thinking=tokenizer.thinking,
            image_tokens=self._vision.tokens if self._vision else 0,
        )

    @classmethod
    def load(
        cls,
        checkpoint: Checkpoint,
        options: EngineOptions = DEFAULT_OPTIONS,
        progress: Callable[[LoadProgress], None] = lambda _: None,
    ) -> Engine:
        """Load a converted model.

        Raises UserError (unknown device, not enough memory, damaged files) and whatever `progress` raises.
        """
        config = checkpoint.config
        device = resolve_device(options.device)
        dtype = resolve_dtype(options.dtype, device, checkpoint.manifest.dtype)
        plan = plan_memory(config, dtype, device, options)
        if config.vision:
            tokenizer = ImageTokenizer(checkpoint.path, config.vision)
            prepare = ImageProcessor.from_checkpoint(checkpoint.path, config.vision).prepare
        else:
            tokenizer, prepare = Tokenizer(checkpoint.path), None
        checkpoint.verify(progress=_Counter(checkpoint.size, "Checking the files", progress))
        counter = _Counter(checkpoint.weights.stat().st_size, "Loading the weights", progress)
        ops = options.operators(device)
        model = load_decoder(checkpoint, ops, device, dtype, plan.max_context, counter)
        name = checkpoint.manifest.name
        return cls(model, tokenizer, plan, options, name=name, prepare_image=prepare)

    @classmethod
    def random(cls, config: ModelConfig, options: EngineOptions = DEFAULT_OPTIONS, *, name: str) -> Engine:
        """A model of random weights and no vocabulary, for benchmarks; nothing is read from disk.

        If it sees images, their content is RGB bytes in the size that it takes.

        Raises UserError (unknown device, not enough memory).
        """
        device = resolve_device(options.device)
        dtype = resolve_dtype(options.dtype, device, config.dtype)
        plan = plan_memory(config, dtype, device, options)
        model = random_decoder(config, options.operators(device), device, dtype, plan.max_context)
        prepare = raw_pixels if config.vision else None
        return cls(model, NoTokenizer(), plan, options, name=name, prepare_image=prepare)

    @property
    def busy(self) -> bool:
        """Whether any request is unfinished or any step in flight: whether `step` has something to do."""
        return bool(self.scheduler.running or self.scheduler.waiting or self._pending)

    @property
    def prepared(self) -> bool:
        """Whether `prepare` has nothing left to do."""
        return self.runner.prepared

    def prepare(self) -> None:
        """Do something that a later message would have to wait for."""
        self.runner.prepare()

    def prepare_all(self) -> None:
        """`prepare` until nothing is left."""
        while not self.prepared:
            self.prepare()

    @property
    def figures(self) -> EngineFigures:
        """What it holds now; may be read by any thread, since each figure is the length of one container."""
        pool, scheduler = self.pool, self.scheduler
        return EngineFigures(
            pool.used, pool.cached, pool.total, len(scheduler.running), len(scheduler.waiting)
        )

    def count_tokens(self, messages: Sequences[Message]) -> int:
        """Tokens of the conversation, generation prompt included."""
        return len(self.tokenizer.encode_chat(messages))

    def score(self, request_id: int, request: ScoreRequest, sink: Sink, submitted: float) -> None:
        """Queue the scoring of a reply, which ends in Scored. Raises UserError when it does not fit."""
        prompt, reply, as_generated = self.tokenizer.encode_reply(request.messages, request.token_ids)
        if not reply:
            raise UserError("The reply is empty: there are no tokens to look at.")
        images = [image for message in request.messages for image in message.images]
        scores = Scores(prompt, reply, request.alternatives, as_generated=as_generated)
        self._queue_scoring(request_id, scores, sink, submitted, images)

    def score_tokens(
        self, request_id: int, prompt: Sequences[int], reply: Sequences[int], sink: Sink
    ) -> None:
        """As `score`, of tokens after tokens, and without alternatives."""
        scores = Scores(prompt, reply, 0, as_generated=True)
        self._queue_scoring(request_id, scores, sink, time.monotonic())

    def _queue_scoring(
        self,
        request_id: int,
        scores: Scores,
        sink: Sink,
        submitted: float,
        images: Sequences[Image] = (),
    ) -> None:
        self._queue(
            request_id,
            list(scores.prompt),
            scores.reply[:-1],
            SamplingParams(max_new_tokens=1),
            ReplyText(self.tokenizer.decode),
            sink,
            submitted,
            images,
            scores,
        )

    def submit(self, request_id: int, request: GenerationRequest, sink: Sink, submitted: float) -> None:
        """Tokenise and queue a request. Raises UserError when it does not fit the context."""
        tags, thinking = self.tokenizer.tags, request.thinking
        if request.begin:
            thinking = tags is not None and request.begin[0] == tags.open
        prompt = self.tokenizer.encode_chat(
            request.messages, thinking=thinking, continue_last=request.continue_last
        )
        images = [image for message in request.messages for image in message.images]
        self.submit_tokens(request_id, prompt, request, sink, submitted, images)

    def submit_tokens(
        self,
        request_id: int,
        prompt: list[int],
        request: GenerationRequest,
        sink: Sink,
        submitted: float,
        images: Sequences[Image] = (),
    ) -> None:
        """Queue a request whose prompt is tokens already, with the places of its images among them."""
        part, params = self._first_part(prompt, request), request.params
        reply = ReplyText(self.tokenizer.decode, params.stop, self.tokenizer.tags, part)
        sequence = self._queue(request_id, prompt, request.begin, params, reply, sink, submitted, images)
        for token in request.begin:
            if not sequence.finished:
                self._take(sequence, token, submitted)

    def _queue(
        self,
        request_id: int,
        prompt: list[int],
        begun: Sequences[int],
        params: SamplingParams,
        reply: ReplyText,
        sink: Sink,
        submitted: float,
        images: Sequences[Image],
        scores: Scores | None = None,
    ) -> Sequence:
        """Queue a sequence that begins with a prompt and tokens of the reply to it."""
        limit = self.info.max_context
        if not prompt:
            raise UserError("The prompt is empty: type a message first.")
        tokens = [*prompt, *begun]
        if len(tokens) >= limit:
            raise UserError(
                f"The conversation has {len(tokens)} tokens and {self.info.name} can hold {limit}: "
                f"start a new chat or shorten the message."
            )
        placed = place_images(prompt, images, self._vision) if images and self._vision else ()
        wanted = limit if params.max_new_tokens is None else len(tokens) + params.max_new_tokens
        sequence = Sequence(
            request_id=request_id,
            tokens=tokens,
            prompt_len=len(tokens),
            params=params,
            seed=random.getrandbits(48) if params.seed is None else params.seed,
            max_tokens=min(wanted, limit),
            reply=reply,
            sink=sink,
            submitted=submitted,
            images=placed,
            salts=salts(placed),
            scores=scores,
        )
        self.scheduler.add(sequence)
        sink(Queued(request_id, len(tokens)))
        return sequence

    def cancel(self, request_id: int) -> None:
        """Finish a request now, with the text it has; unknown ids (already finished) are no error."""
        for sequence in self.scheduler.sequences:
            if sequence.request_id == request_id and sequence.scores:
                self.scheduler.remove(sequence)
                sequence.sink(Failed(request_id, "Reading the tokens was stopped.", ""))
            elif sequence.request_id == request_id:
                self._finish(sequence, "cancelled")

    def step(self) -> None:
        """Launch one batch, then tell every request how far the oldest batch in flight has brought it.

        Where the runner works ahead, the batch just launched goes on while the one before it is told. With
        drafts to verify nothing is launched until all that is in flight is told, and then they are verified
        instead. An exception leaves the engine in a state that only `fail_all` ends.
        """
        drafts = self._propose()
        if drafts and not self._pending:
            self._verify(self.scheduler.running[0], drafts)
            return
        batch = None if drafts else self._schedule()
        if batch:
            self._pending.append((batch, self.runner.launch(batch)))
        if self._pending and (batch is None or len(self._pending) > self.runner.steps_ahead):
            self._finish_step(*self._pending.popleft())

    def fail_all(self, message: str) -> None:
        """End every request in an error and forget whatever may not have been computed."""
        self._pending.clear()
        self.pool.forget()
        for sequence in self.scheduler.sequences:
            self.scheduler.remove(sequence)
            self._stream(sequence, *sequence.reply.flush())
            self._fail(sequence, message)

    def abandon(self, message: str) -> None:
        """End every request in an error and touch nothing else: the engine is not to be used any more."""
        for sequence in self.scheduler.sequences:
            self._fail(sequence, message)

    def _fail(self, sequence: Sequence, message: str) -> None:
        reply = sequence.reply
        sequence.sink(Failed(sequence.request_id, message, reply.text, reply.thinking))

    def _first_part(self, prompt: list[int], request: GenerationRequest) -> Part:
        """What the first token of the reply belongs to."""
        if request.continue_last:
            last = request.messages[-1]
            return "thinking" if last.thinking and not last.content else "answer"
        return "thinking" if self.tokenizer.opens_thinking(prompt) else "start"

    def _schedule(self) -> Batch | None:
        for sequence in self.scheduler.running:
            if sequence.device_is_behind:
                self.runner.state.enter_token(sequence)
                sequence.device_is_behind = False
        return self.scheduler.schedule()

    def _propose(self) -> list[int]:
        """Drafts for the sequence that runs alone; none if it would not pay or there is no such sequence.

        A repetition penalty depends on all tokens before, the drafts included: such a sequence has none.
        """
        running = self.scheduler.running
        if not self._speculate or len(running) != 1 or self.scheduler.waiting:
            return []
        (sequence,) = running
        if not sequence.is_decoding or sequence.params.repetition_penalty != 1:
            return []
        sequence.lookup = sequence.lookup or PromptLookup(sequence.tokens, sequence.prompt_len)
        # The model's own token, which follows the accepted drafts, needs room in the reply too.
        room = sequence.max_tokens - sequence.length - 1
        drafts = sequence.lookup.propose(min(MAX_DRAFTS, room))
        if drafts and not self.scheduler.reserve(sequence, sequence.length + len(drafts)):
            return []
        return drafts

    def _verify(self, sequence: Sequence, drafts: list[int]) -> None:
        """Take in the drafts that are the model's own tokens too, and the token that it draws after them."""
        tokens = self.runner.verify(sequence, drafts)
        now = time.monotonic()
        accepted = count_accepted(drafts, tokens)
        sequence.device_is_behind = True
        for token in tokens[: accepted + 1]:
            self.scheduler.accept_verified(sequence, token)
            self._accept(sequence, token, now)
            if sequence.finished:
                return
        assert sequence.lookup
        sequence.lookup.judge(accepted)

    def _finish_step(self, batch: Batch, step: Step) -> None:
        tokens = step.tokens()
        now = time.monotonic()
        for chunk in batch.prefill:
            sequence = chunk.sequence
            if not sequence.finished:
                done = min(chunk.start + chunk.count, sequence.prompt_len)
                rate = (done - sequence.cached) / (now - sequence.submitted)
                sequence.sink(PrefillProgress(sequence.request_id, done, sequence.prompt_len, rate))
        for sequence, token in zip(batch.drawing, tokens, strict=True):
            if self.scheduler.accept(sequence, token):
                self._accept(sequence, token, now)

    def _accept(self, sequence: Sequence, token: int, now: float) -> None:
        """Take in a new token, and finish the request if this was its last."""
        sequence.first_token = sequence.first_token or now
        sequence.last_token = now
        if sequence.scores:
            self.scheduler.remove(sequence)
            sequence.sink(sequence.scores.scored(sequence.request_id, self.tokenizer.piece))
            return
        self._take(sequence, token, now)
        if not sequence.finished and len(sequence.tokens) >= sequence.max_tokens:
            self._finish(sequence, "length")

    def _take(self, sequence: Sequence, token: int, now: float) -> None:
        """Stream the text of a token, and finish the request if it ends the reply."""
        if token in self.tokenizer.eos_ids:
            self._finish(sequence, "stop")
            return
        self._stream(sequence, *sequence.reply.add(token, now))
        if sequence.reply.stopped:
            self._finish(sequence, "stop")

    def _stream(self, sequence: Sequence, thought: str, text: str) -> None:
        """Tell what was added to the thinking and to the answer."""
        figures = (sequence.completion_len, sequence.last_token or 0.0, sequence.decode_rate)
        if thought:
            so_far = sequence.reply.thinking
            sequence.sink(
                ThinkingDelta(sequence.request_id, thought, so_far.tokens, so_far.seconds, *figures)
            )
        if text:
            sequence.sink(TextDelta(sequence.request_id, text, *figures))

    def _finish(self, sequence: Sequence, reason: FinishReason) -> None:
        self.scheduler.remove(sequence)
        self._stream(sequence, *sequence.reply.flush())
        now = time.monotonic()
        usage = Usage(
            prompt_tokens=sequence.prompt_len,
            cached_prompt_tokens=sequence.cached,
            completion_tokens=sequence.completion_len,
            ttft_s=(sequence.first_token or now) - sequence.submitted,
            decode_tokens_per_s=sequence.decode_rate,
            total_s=now - sequence.submitted,
            seed=sequence.seed,
        )
        ids = tuple(sequence.tokens[sequence.prompt_len :])
        reply = sequence.reply
        sequence.sink(Finished(sequence.request_id, reason, reply.text, ids, usage, reply.thinking))
