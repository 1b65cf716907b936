"""What the engine is asked for, as made of a conversation."""

import pytest

from lite_llama.app.conversation import Conversation, Turn
from lite_llama.app.requests import score_request


@pytest.fixture
def conversation():
    first, second = (
        (Turn("user", "One?"), Turn("assistant", "First.")),
        (Turn("user", "Two?"), Turn("assistant", "Second.")),
    )
    return Conversation(turns=[*first, *second], system_prompt="Be brief.")


def read(conversation, turn, model):
    return [message.content for message in score_request(conversation, turn, model).messages]


def test_a_reply_is_scored_after_the_turns_that_the_model_read(conversation, engine):
    engine.use("tiny")
    first, second = conversation.turns[1], conversation.turns[3]
    assert read(conversation, second, engine.model) == ["Be brief.", "One?", "First.", "Two?", "Second."]
    conversation.leave_out(2)
    assert read(conversation, second, engine.model) == ["Be brief.", "Two?", "Second."]
    assert read(conversation, first, engine.model) == ["Be brief.", "One?", "First."]
