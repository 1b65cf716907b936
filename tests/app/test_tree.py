"""Branches of a conversation: the tree itself, and what the controller and the database make of it."""

from lite_llama.app import tree
from lite_llama.app.conversation import Conversation, Turn


def fork():
    """q -> a1 -> q2 -> a3, and beside a1: a2."""
    conversation = Conversation(turns=[Turn("user", "q"), Turn("assistant", "a1"), Turn("user", "q2")])
    conversation.turns = conversation.turns[:1]
    conversation.add(Turn("assistant", "a2"))
    conversation.show(conversation.all_turns[2])
    conversation.add(Turn("assistant", "a3"))
    return conversation, {turn.text: turn for turn in conversation.all_turns}


def texts(turns):
    return [turn.text for turn in turns]


def test_a_branch_is_found_from_its_end():
    conversation, turns = fork()
    assert texts(conversation.turns) == ["q", "a1", "q2", "a3"]
    assert texts(tree.path(conversation.all_turns, turns["a2"])) == ["q", "a2"]
    assert texts(conversation.all_turns) == ["q", "a1", "q2", "a2", "a3"]


def test_siblings_are_in_the_order_of_writing():
    conversation, turns = fork()
    assert texts(conversation.siblings(turns["a2"])) == ["a1", "a2"]
    assert texts(conversation.siblings(turns["q"])) == ["q"]


def test_the_newest_leaf_is_below_the_turn():
    conversation, turns = fork()
    assert tree.newest_leaf(conversation.all_turns, turns["a1"]).text == "a3"
    assert tree.newest_leaf(conversation.all_turns, turns["a2"]).text == "a2"
    conversation.show(turns["a1"])
    conversation.add(Turn("user", "newer"))
    assert tree.newest_leaf(conversation.all_turns, turns["q"]).text == "newer"
