"""Which of several branches a turn is in, and the way to the others."""

from __future__ import annotations

from textual.content import Content
from textual.widgets import Static

from ..conversation import Conversation, Turn


class BranchLabel(Static):
    """`‹ 2/3 ›` at a turn with siblings; after a fork also what the prefix cache saved. Else not there."""

    ALLOW_SELECT = False

    def __init__(self, conversation: Conversation, turn: Turn) -> None:
        super().__init__(classes="branch", markup=False)
        self._conversation, self._turn = conversation, turn
        self.refresh_turn()

    def refresh_turn(self) -> None:
        turn, siblings = self._turn, self._conversation.siblings(self._turn)
        parts = []
        if len(siblings) > 1:
            place = next(i for i, sibling in enumerate(siblings) if sibling.id == turn.id)
            parts.append(
                Content(" ").join(
                    [
                        _arrow("‹", turn, -1) if place else Content("‹"),
                        Content(f"{place + 1}/{len(siblings)}"),
                        _arrow("›", turn, 1) if place + 1 < len(siblings) else Content("›"),
                    ]
                )
            )
        if self._after_fork and (usage := turn.figures) and usage.cached_prompt_tokens:
            parts.append(
                Content(f"{usage.cached_prompt_tokens:,} of {usage.prompt_tokens:,} prompt tokens reused")
            )
        self.update(Content("   ").join(parts))
        self.display = bool(parts)

    @property
    def _after_fork(self) -> bool:
        """Whether this turn, or the one that it answers, stands beside another."""
        conversation, turn = self._conversation, self._turn
        before = (other for other in conversation.all_turns if other.id == turn.parent_id)
        return any(len(conversation.siblings(each)) > 1 for each in (turn, *before))


def _arrow(symbol: str, turn: Turn, step: int) -> Content:
    return Content.from_markup(f"[@click=\"screen.switch_branch('{turn.id}', {step})\"]{symbol}[/]")
