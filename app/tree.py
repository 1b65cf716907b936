"""The messages of a conversation as a tree: one that is edited or answered anew has siblings.

A tree is a list of nodes in the order in which they were written, so a parent stands before its children.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar


class Node(Protocol):
    id: str
    parent_id: str | None
    """The node before it, None for the first of a branch."""


N = TypeVar("N", bound=Node)


def path(nodes: Sequence[N], leaf: N) -> list[N]:
    """The branch that ends with `leaf`, from its first node on."""
    by_id = {node.id: node for node in nodes}
    branch = [leaf]
    while (parent := by_id.get(branch[-1].parent_id or "")) is not None:
        branch.append(parent)
    return branch[::-1]


def siblings(nodes: Sequence[N], node: N) -> list[N]:
    """The alternatives to `node`, itself included, oldest first."""
    return [other for other in nodes if other.parent_id == node.parent_id]


def newest_leaf(nodes: Sequence[N], node: N) -> N:
    """The end of the branch through `node` that was written last."""
    below, leaf = {node.id}, node
    for other in nodes:
        if other.parent_id in below:
            below.add(other.id)
            leaf = other
    return leaf
