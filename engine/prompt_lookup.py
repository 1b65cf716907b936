"""Prompt-lookup decoding (Saxena 2023): a reply that copies what came before is its own draft.

The tokens that followed an earlier occurrence of the newest n-gram are the drafts, and the model verifies
them in one pass (Leviathan et al. 2023, arXiv:2211.17192). Sampling noise is keyed by seed and position, so
the token at each position is a function of the tokens before it: a draft that equals the model's own token
is accepted, the first that does not gives way to it, and the output is what it would be without drafts.

Host only: no tensors, no model. This says when to draft and what; the engine has it verified.
"""

from __future__ import annotations

from collections.abc import Sequence

START_STREAK = 3
"""Tokens in a row that must have been predicted before drafts are verified."""
ROUND_COST = 0.5
"""What a round of drafts costs beyond a normal step, in such steps, and with something to spare: the rows of
the drafts, and the host's work, which no step in flight hides. Each accepted draft saves one step."""
ROUNDS = 4
"""Time constant, in rounds, of the running average of accepted drafts."""
FIRST_AVERAGE = 1.0
"""Where that average begins, after a streak: a single bad round does not stop it, three do."""
READ_TOKENS = 256
"""Tokens read at once: a long prompt is indexed over several steps, so that none of them is late for it."""


def count_accepted(drafts: Sequence[int], verified: Sequence[int]) -> int:
    """How many drafts there are before the first that is not the model's own token."""
    pairs = enumerate(zip(drafts, verified, strict=False))
    return next((at for at, (draft, own) in pairs if draft != own), len(drafts))


class PromptLookup:
    """Reads along as one sequence grows, and predicts what comes next; O(1) time and memory per token.

    As long as nothing repeats it proposes nothing, and only compares: a few microseconds per token.
    """

    def __init__(self, tokens: list[int], prompt_len: int) -> None:
        """tokens: the sequence's own list of prompt and reply, which grows while this reads along."""
        self._tokens = tokens
        self._prompt_len = prompt_len
        self._read = 0
        self._after: dict[tuple[int, ...], int] = {}  # by 3-gram and 2-gram: where its last occurrence ended
        self._source: int | None = None  # where the next token is expected to be copied from
        self._streak = 0
        self._drafting = False
        self._average = 0.0

    def propose(self, most: int) -> list[int]:
        """The drafts worth a verification now, at most so many; none while it would not pay.

        A copy that has caught up with the newest token goes on with itself: the text is periodic.
        """
        self._read_on()
        tokens, source = self._tokens, self._source
        if source is None or self._read < len(tokens):
            self._stop()
        if source is None or not (self._drafting or self._streak >= START_STREAK):
            return []
        period = len(tokens) - source
        return [tokens[source + at % period] for at in range(most)]

    def judge(self, accepted: int) -> None:
        """Learn how many drafts of a round were accepted; if too few lately, another streak has to come."""
        average = self._average if self._drafting else FIRST_AVERAGE
        self._average = average + (accepted - average) / ROUNDS
        self._drafting = True
        if self._average < ROUND_COST:
            self._stop()

    def _stop(self) -> None:
        self._drafting, self._streak = False, 0

    def _read_on(self) -> None:
        tokens, after = self._tokens, self._after
        end = min(len(tokens), self._read + READ_TOKENS)
        for at in range(self._read, end):
            three, two = tuple(tokens[max(at - 2, 0) : at + 1]), tuple(tokens[max(at - 1, 0) : at + 1])
            if self._source is not None and tokens[self._source] == tokens[at]:
                self._source += 1  # stay with a match while it lasts: the longer, the better a guess
                self._streak += at >= self._prompt_len  # what repeats in the prompt (a template) says little
            else:
                self._source = after.get(three) or after.get(two)
                self._streak = 0
            after[three] = after[two] = at + 1
        self._read = end
