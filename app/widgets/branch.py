"""Which of several branches a turn is in, and the way to the others."""

from __future__ import annotations

from textual.content import Content
from textual.widgets import Static

from ..conversation import Conversation, Turn


class BranchLabel(Static):
    """A line that `branch_line` made, below its turn."""

    ALLOW_SELECT = False

    def __init__(self, line: Content) -> None:
        super().__init__(line, classes="branch", markup=False)


def branch_line(conversation: Conversation, turn: Turn) -> Content | None:
    """`‹ 2/3 ›` of a turn with siblings; after a fork also what the prefix cache saved. Mostly None."""
    siblings = conversation.siblings(turn)
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
    if (usage := turn.figures) and usage.cached_prompt_tokens and _after_fork(conversation, turn):
        parts.append(
            Content(f"{usage.cached_prompt_tokens:,} of {usage.prompt_tokens:,} prompt tokens reused")
        )
    return Content("   ").join(parts) if parts else None


def _after_fork(conversation: Conversation, turn: Turn) -> bool:
    """Whether this turn, or the one that it answers, stands beside another."""
    before = (other for other in conversation.all_turns if other.id == turn.parent_id)
    return any(len(conversation.siblings(each)) > 1 for each in (turn, *before))


def _arrow(symbol: str, turn: Turn, step: int) -> Content:
    return Content.from_markup(f"[@click=\"screen.switch_branch('{turn.id}', {step})\"]{symbol}[/]")
