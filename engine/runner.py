"""Runs the model on scheduled batches: owns the decoder, the KV cache's tensors and the device's state."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Sequences
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ..kernels import PAGE_SIZE
from ..kernels.compiling import compiling
from ..kernels.sampling import RECENT
from ..models.batch import DecodeBatch, PrefillBatch
from ..models.decoder import Decoder, LayerCache
from .device_state import DeviceState, host_tensor
from .graphs import Function, Graphs, Inputs
from .image_features import ImageFeatures
from .scheduler import Batch, Chunk
from .scores import ROWS, Scores
from .sequence import Sequence

DECODE_SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64)
"""Sequences of a decode step that has a graph; what lies between is padded."""
PREFILL_SIZES = (64, 128, 256, 384, 512, 640, 768, 1024, 1280, 1536, 2048)
"""Tokens of a prefill that has a graph: up to a whole chunk, which a busy host launches more slowly than a
fast GPU reads it."""
FEW_SEQUENCES = (2, 4)
"""Sizes of the decode steps that `prepare` captures: those of a chat's few replies at once."""
COMPILED_LAYERS = 2
"""Layers that have all kernels of a model between them."""
MAX_DRAFTS = 3
"""Tokens that `verify` checks beyond the one that is certain: what the kernel of few tokens takes in all."""

_launching = threading.Lock()
"""Of all engines of the process, which share scratch memory of kernels and the stream of captures."""


class Step:
    """A batch that was launched, and where its tokens arrive."""

    def __init__(self, state: DeviceState, places: list[tuple[int, int]]) -> None:
        """places: the slot and the position of each token that the work launched so far draws."""
        self._drawn, self._places, self._done = state.sampling.drawn.numpy(), places, None
        if state.positions.is_cuda:
            self._done = torch.cuda.Event()
            self._done.record()

    def tokens(self) -> list[int]:
        """Wait for the step; the token of each sequence of `batch.drawing`."""
        if self._done:
            self._done.synchronize()
        return [int(self._drawn[position % RECENT, slot]) for slot, position in self._places]


class ModelRunner:
    """One forward pass for all decodes of a step, and one for each prefill chunk.

    What a pass computes of a sequence depends on nothing else: chunks go one by one, and the decode
    operators treat each row by itself.
    """

    def __init__(
        self,
        model: Decoder,
        cache: list[LayerCache],
        device: torch.device,
        *,
        max_sequences: int,
        max_context: int,
        cuda_graphs: bool,
        features: ImageFeatures | None = None,
    ) -> None:
        """features: the embeddings of images, for a model that sees them."""
        self.model = model
        self.cache = cache
        self.device = device
        self.state = DeviceState.allocate(max_sequences, max_context, model.config.vocab_size, device)
        self.steps_ahead = 1 if device.type == "cuda" else 0
        """Steps that may be launched before the tokens of an earlier one are fetched."""
        self.features = features
        self._graphs = Graphs(device) if cuda_graphs and device.type == "cuda" else None
        self._images = None
        if features and self._graphs:
            rows = PREFILL_SIZES[-1]
            embeddings = model.embed_tokens.weight.new_empty(rows, model.config.hidden_size)
            self._images = torch.zeros(rows, dtype=torch.bool, device=device), embeddings
            """`PrefillBatch.images` for the prefills that have a graph, which reads them here."""
        self._entered: dict[int, tuple[Sequence, int]] = {}
        self._unprepared = deque(self._later_graphs() if self._graphs else ())

    @torch.inference_mode()
    def warm_up(self) -> None:
        """Compile and capture what a short first message needs, so that its answer need not wait for it."""
        if self._graphs:
            self._compile(self._short_message)
            self._short_message()
            torch.cuda.synchronize(self.device)

    def _compile(self, *work: Callable[[], None]) -> None:
        """Compile what some work launches, without doing it."""
        graphs, cache = self._graphs, self.cache
        self._graphs, self.cache = None, cache[:COMPILED_LAYERS]
        try:
            with compiling():
                for piece in work:
                    piece()
        finally:
            self._graphs, self.cache = graphs, cache

    def _short_message(self) -> None:
        self._read_padding(PREFILL_SIZES[0])
        self._decode([self.state.padding], [0])

    @property
    def prepared(self) -> bool:
        """Whether `prepare` has nothing left to do."""
        return not self._unprepared

    @torch.inference_mode()
    def prepare(self) -> None:
        """Compile kernels or capture a graph that a later message would have to wait for.

        May be called at any moment between two steps.
        """
        if self._unprepared:
            self._unprepared.popleft()()
            torch.cuda.synchronize(self.device)

    def _later_graphs(self) -> Iterator[Callable[[], None]]:
        """Work of each kind, which leaves no trace."""
        few = [partial(self._decode, [self.state.padding] * size, [0] * size) for size in FEW_SEQUENCES]
        few.append(partial(self._verify, self._nothing_to_verify()))
        yield partial(self._compile, *few)
        for size in reversed(PREFILL_SIZES):  # the largest first: in its memory the others have room
            yield partial(self._read_padding, size)
        yield partial(self._read_padding, PREFILL_SIZES[-1], last=False)
        yield from few

    def _read_padding(self, size: int, *, last: bool = True) -> None:
        self._prefill([self.state.padding, 0, 1], [0] * size, last=last)

    @torch.inference_mode()
    def launch(self, batch: Batch) -> Step:
        """Start the work of a batch whose sequences are marked as `Batch` says."""
        if batch.decode:
            at = [sequence.computed - 1 for sequence in batch.decode]
            pages = [
                sequence.pages[position // PAGE_SIZE] if position % PAGE_SIZE == 0 else 0
                for sequence, position in zip(batch.decode, at, strict=True)
            ]
            self._decode([sequence.slot for sequence in batch.decode], pages)
        for chunk in batch.prefill:
            self._launch_chunk(chunk)
        return Step(self.state, [(sequence.slot, sequence.computed) for sequence in batch.drawing])

    @torch.inference_mode()
    def verify(self, sequence: Sequence, drafts: Sequences[int]) -> list[int]:
        """The tokens that follow the last token of a sequence and each of at most MAX_DRAFTS more; waits.

        No step of the sequence is in flight and its pages have room. The device's state is left as it was:
        DeviceState.enter_token brings it up to what was accepted.
        """
        slot, tokens = sequence.slot, [sequence.tokens[-1], *drafts]
        first = len(sequence.tokens) - 1
        self.state.enter_pages(sequence, first // PAGE_SIZE)
        spare = MAX_DRAFTS + 1 - len(tokens)
        inputs = [
            tokens + [0] * spare,
            [*range(first, first + len(tokens)), *[0] * spare],
            [slot] * len(tokens) + [self.state.padding] * spare,
        ]
        self._verify(inputs)
        return Step(self.state, [(slot, first + 1 + at) for at in range(len(tokens))]).tokens()

    def _verify(self, inputs: list[list[int]]) -> None:
        self._run("verify", self._verify_step, inputs, self._nothing_to_verify())

    def _nothing_to_verify(self) -> list[list[int]]:
        rows = MAX_DRAFTS + 1
        return [[0] * rows, [0] * rows, [self.state.padding] * rows]

    def _decode(self, slots: list[int], new_pages: list[int]) -> None:
        rows = len(slots)
        size = min((size for size in DECODE_SIZES if size >= rows), default=rows) if self._graphs else rows
        spare, padding = size - rows, self.state.padding
        inputs = [slots + [padding] * spare, new_pages + [0] * spare]
        self._run(("decode", size), self.decode_step, inputs, [[padding] * size, [0] * size])

    def _launch_chunk(self, chunk: Chunk) -> None:
        sequence, end = chunk.sequence, chunk.start + chunk.count
        admission = (sequence, sequence.preemptions)
        if self._entered.get(sequence.slot) != admission:
            self._entered[sequence.slot] = admission
            self.state.enter(sequence)
            if sequence.scores:
                sequence.scores.restart()
        head = [sequence.slot, chunk.start, chunk.count]
        images = self.features and self.features.between(sequence.images, chunk.start, end)
        ids = sequence.tokens[chunk.start : end]
        if sequence.scores and end > sequence.scores.first:
            self._score(chunk, sequence.scores, [*head, *ids], images)
        else:
            self._prefill(head, ids, last=chunk.is_last, images=images)

    def _score(
        self, chunk: Chunk, scores: Scores, inputs: list[int], images: tuple[list[int], Tensor] | None
    ) -> None:
        """A prefill chunk of a reply, or its end, whose places are scored; `images` is as for `_prefill`."""
        model, state = self.model, self.state
        shown = images and self._shown(*images, chunk.count)
        batch, slot, end = self._prefill_batch(state.upload(inputs, torch.int32), last=False, images=shown)
        hidden = model.read(batch, self.cache)
        stop = chunk.start + chunk.count
        for start in range(max(chunk.start, scores.first), stop, ROWS):
            rows = range(start, min(start + ROWS, stop))
            place = state.upload([row - chunk.start for row in rows], torch.int64)
            logits = model.logits(hidden.rows(place))
            scores.add(logits, state.upload(scores.targets(rows.start, rows.stop), torch.int64))
            if chunk.is_last and rows.stop == stop:  # what every prefill ends with
                self._draw(logits[-1:], slot, end)

    def _prefill(
        self,
        head: list[int],
        ids: list[int],
        *,
        last: bool = True,
        images: tuple[list[int], Tensor] | None = None,
    ) -> None:
        """images: rows of the chunk that belong to images, and their embeddings."""
        size = min((size for size in PREFILL_SIZES if size >= len(ids)), default=0)
        if not (self._graphs and size):
            shown = images and self._shown(*images, len(ids))
            self._prefill_step(self.state.upload([*head, *ids], torch.int32), last=last, images=shown)
            return
        shown = images and self._shown(*images, size, self._images)
        function = partial(self._prefill_step, last=last, images=shown)
        inputs = [*head, *ids, *[0] * (size - len(ids))]
        idle = [self.state.padding, 0, 1, *[0] * size]
        self._run(("prefill", size, last, bool(images)), function, inputs, idle)

    def _shown(
        self, rows: list[int], embeddings: Tensor, size: int, into: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """`PrefillBatch.images` of `size` rows, in tensors of its own or in the first rows of `into`."""
        if into is None:
            into = (
                self.state.positions.new_empty(size, dtype=torch.bool),
                embeddings.new_empty(size, embeddings.shape[1]),
            )
        is_image, embedded = into[0][:size], into[1][:size]
        where = self.state.upload(rows, torch.int64)
        is_image.zero_().index_fill_(0, where, True)
        embedded.index_copy_(0, where, embeddings)
        return is_image, embedded

    def _run(self, key: object, function: Function, inputs: Inputs, idle: Inputs) -> None:
        with _launching:
            if self._graphs:
                self._graphs.run(key, function, host_tensor(inputs, torch.int32, self.device), idle)
            else:
                function(self.state.upload(inputs, torch.int32))

    # The steps on the device: no look at a value on the host. What they draw arrives in the state.

    @torch.inference_mode()
    def decode_step(self, inputs: Tensor) -> None:
        """inputs [2, B] int32: slots, and the pages that begin with this step's tokens or 0."""
        model, state = self.model, self.state
        slots, new_pages = inputs
        embedded, positions = model.ops.begin_step(
            model.embed_tokens.weight,
            slots,
            new_pages,
            state.sampling.token,
            state.positions,
            state.page_table,
        )
        logits = model.decode(embedded, DecodeBatch(positions, slots, state.page_table), self.cache)
        model.ops.sample(logits, slots, positions, state.sampling)

    def _prefill_step(
        self, inputs: Tensor, *, last: bool, images: tuple[Tensor, Tensor] | None = None
    ) -> None:
        """inputs [3 + T] int32: slot, first position, number of tokens N <= T; the token ids, padded to T.

        With `last`, a token is drawn after them. `images` is as in PrefillBatch.
        """
        batch, slot, end = self._prefill_batch(inputs, last=last, images=images)
        logits = self.model.prefill(batch, self.cache)
        if logits is not None:
            self._draw(logits, slot, end)

    def _draw(self, logits: Tensor, slot: Tensor, end: Tensor) -> None:
        """Draw the token that follows a prefill: logits [1, V] after its last token, `end` [1] tokens."""
        self.state.positions.index_copy_(0, slot, end)
        self.model.ops.sample(logits, slot.int(), end - 1, self.state.sampling)

    def _prefill_batch(
        self, inputs: Tensor, *, last: bool, images: tuple[Tensor, Tensor] | None
    ) -> tuple[PrefillBatch, Tensor, Tensor]:
        """The batch of `_prefill_step`'s inputs; the slot [1] and the position after the last token [1]."""
        state = self.state
        inputs = inputs.long()
        slot, start, count, ids = inputs[:1], inputs[1:2], inputs[2:3], inputs[3:]
        end = start + count
        place = torch.arange(len(ids), device=ids.device)
        real = place < count
        positions = torch.where(real, start + place, 0)
        table = state.page_table.index_select(0, slot)
        pages = torch.where(real, table[0].index_select(0, positions // PAGE_SIZE), 0)
        batch = PrefillBatch(
            token_ids=ids,
            positions=positions,
            cache_slots=pages * PAGE_SIZE + positions % PAGE_SIZE,
            page_table=table,
            context_lens=end.int(),
            query_start=F.pad(count, (1, 0)).int(),
            max_query_len=len(ids),
            logit_rows=count - 1 if last else None,
            images=images,
        )
        return batch, slot, end

    def _verify_step(self, inputs: Tensor) -> None:
        """inputs [3, R] int32: consecutive tokens of one sequence, their positions, its slot."""
        model, state = self.model, self.state
        (ids, positions), slots = inputs[:2].long(), inputs[2]
        batch = DecodeBatch(positions, slots, state.page_table, one_sequence=True)
        logits = model.decode(model.embed_tokens(ids), batch, self.cache)
        model.ops.sample(logits, batch.slots, positions, state.sampling)
