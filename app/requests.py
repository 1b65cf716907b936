"""What the engine is asked for: a conversation's turns as the messages that the model reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..engine.events import ModelInfo
from ..engine.request import GenerationRequest, Message, ScoreRequest
from .attachments import images_of
from .conversation import Conversation, Turn

if TYPE_CHECKING:
    from .settings import Settings


def messages(conversation: Conversation, turns: Sequence[Turn], model: ModelInfo) -> tuple[Message, ...]:
    """Turns of the conversation: of replies the answers, and none of those that came to none.

    Images are left out for a model that reads text only.
    """
    system_prompt = conversation.system_prompt
    system = [Message("system", system_prompt)] if system_prompt.strip() else []
    said = [
        Message(turn.role, turn.text, images=images_of(turn.images) if model.sees_images else ())
        for turn in turns
    ]
    return (*system, *(message for message in said if message.content or message.images))


def reply_request(
    conversation: Conversation, reply: Turn, model: ModelInfo, settings: Settings
) -> GenerationRequest:
    """What asks for `reply`, the last turn, or for the rest of it."""
    own = settings.model_copy(update=conversation.overrides)
    params = own.sampling_params(model.defaults)
    before = messages(conversation, conversation.read_turns[:-1], model)
    if reply.has_begun:
        begun = Message("assistant", reply.text, reply.thinking.text)
        return GenerationRequest((*before, begun), params, continue_last=True, thinking=own.think)
    return GenerationRequest(before, params, begin=reply.token_ids, thinking=own.think)


def score_request(conversation: Conversation, turn: Turn, model: ModelInfo) -> ScoreRequest:
    """What has the model read the reply `turn` again, after the turns that it read before it."""
    read = conversation.read_turns
    turns = read if turn in read else conversation.turns  # one that is left out was written before it was
    reply = Message("assistant", turn.text, turn.thinking.text)
    return ScoreRequest((*messages(conversation, turns[: turns.index(turn)], model), reply), turn.token_ids)
