"""How likely each token of a reply was to its model, and what else it might have said there.

Nothing is collected while a reply is written: it is read once more, as a prompt, and the logits of its
places are looked at. The prefix cache makes that cheap, and it works for a reply of any age.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from .events import Alternative, Scored, TokenScore

ROWS = 64
"""Tokens whose logits are in memory at a time."""

Piece = Callable[[Sequence[int], int], str]


class Scores:
    """What is known so far of the places of one reply; the tensors stay on the model's device.

    Probabilities are the model's own: the softmax of its logits, whatever the sampling made of them.
    """

    def __init__(
        self, prompt: Sequence[int], reply: Sequence[int], alternatives: int, *, as_generated: bool
    ) -> None:
        self.prompt = prompt
        self.reply = reply
        self._alternatives = alternatives
        self._as_generated = as_generated
        self._parts: list[tuple[Tensor, Tensor, Tensor]] = []

    @property
    def first(self) -> int:
        """The position whose logits are about the reply's first token."""
        return len(self.prompt) - 1

    def targets(self, start: int, end: int) -> list[int]:
        """The reply's tokens that follow the positions start ... end - 1, none of them before `first`."""
        return list(self.reply[start - self.first : end - self.first])

    def restart(self) -> None:
        """Forget what was added: the reply is read from its beginning again."""
        self._parts.clear()

    def add(self, logits: Tensor, targets: Tensor) -> None:
        """Take the next places: logits [R, V] fp32, and the tokens [R] int64 that the reply has there."""
        total = logits.logsumexp(dim=-1, keepdim=True)
        best = logits.topk(self._alternatives)
        own = logits.gather(1, targets[:, None])
        self._parts.append(((own - total)[:, 0], best.values - total, best.indices))

    def scored(self, request_id: int, piece: Piece) -> Scored:
        """All places, once all were added; waits for the device. `piece` is Tokenizer.piece."""
        rows = [
            row for part in self._parts for row in zip(*(tensor.tolist() for tensor in part), strict=True)
        ]
        tokens, start, scores = [*self.prompt, *self.reply], len(self.prompt), []
        for at, (own, logprobs, ids) in enumerate(rows, start):
            before = tokens[max(0, at - 4) : at]
            alternatives = tuple(
                Alternative(id, piece(before, id), logprob) for id, logprob in zip(ids, logprobs, strict=True)
            )
            scores.append(TokenScore(tokens[at], piece(before, tokens[at]), own, alternatives))
        return Scored(request_id, tuple(scores), self._as_generated)
