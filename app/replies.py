"""Following a reply while the engine writes it: from its thread to the turn, the screen and the disk."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace

from ..engine.events import (
    Event,
    Failed,
    Finished,
    Loaded,
    LoadFailed,
    PrefillProgress,
    Queued,
    Scored,
    TextDelta,
    Thinking,
    ThinkingDelta,
)
from .conversation import Status, Turn
from .events import CannotSee, ContextUsed, Listener, PromptRead, TextAdded, ThinkingAdded, Told
from .pace import Pace

TELL_EVERY_S = 0.1
TELL_EVERY_AT_MOST_S = 0.25
REST = 4
"""What takes long to show comes less often: it leaves so many times as long to the user's keys."""
SAVE_EVERY_S = 0.7
"""With TELL_EVERY_AT_MOST_S and the writing itself, a killed program loses at most the last second."""
_STATUS: dict[str, Status] = {"stop": "complete", "length": "length", "cancelled": "stopped"}


class Inbox:
    """Hands the events of the engine's thread over to the event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._events: deque[Event] = deque()
        self._any = asyncio.Event()
        self._last = asyncio.Event()

    def sink(self, event: Event) -> None:
        """Called on the engine's thread. The loop is woken for a batch's first event, and for the last."""
        self._events.append(event)
        last = isinstance(event, Finished | Failed | Scored | Loaded | LoadFailed)
        if last or len(self._events) == 1:
            with contextlib.suppress(RuntimeError):  # the loop is closed: the app is gone
                self._loop.call_soon_threadsafe(self._wake, last)

    def _wake(self, last: bool) -> None:
        self._any.set()
        if last:
            self._last.set()

    async def batches(self) -> AsyncIterator[list[Event]]:
        """What has come in, the first at once and then at most every TELL_EVERY_S, up to the last event."""
        while True:
            await self._any.wait()
            self._any.clear()
            events = []
            while self._events:  # to the last: what comes when there is none wakes the loop again
                events.append(self._events.popleft())
            begin = time.thread_time()
            if events:
                yield events
            rest = REST * (time.thread_time() - begin)
            if self._last.is_set() and not self._events:
                return
            with contextlib.suppress(TimeoutError):
                pause = min(max(rest, TELL_EVERY_S), TELL_EVERY_AT_MOST_S)
                await asyncio.wait_for(self._last.wait(), pause)


class Refused(Exception):
    """The request was not started; `why` is what to tell of it."""

    def __init__(self, why: Told | CannotSee) -> None:
        self.why = why


async def follow(
    inbox: Inbox,
    reply: Turn,
    limit: int,
    pace: Pace,
    tell: Listener,
    save: Callable[[], Awaitable[None]],
) -> None:
    """Take the engine's events until the reply ends: change the turn, tell of it, save each SAVE_EVERY_S.

    `limit` is the model's context in tokens; `pace` is told when tokens come. Raises Refused when
    the reply does not even begin.
    """
    start, thinking, prompt_tokens, saved_at = replace(reply), Thinking(), None, time.monotonic()
    async for events in inbox.batches():
        text, thought, last = "", thinking.text, None
        for event in events:
            match event:
                case Queued(prompt_tokens=prompt_tokens):
                    await tell(ContextUsed(prompt_tokens, limit))
                case PrefillProgress(done=done, total=total, tokens_per_s=rate):
                    await tell(PromptRead(done, total, rate))
                case ThinkingDelta():
                    so_far, last = thinking.text + event.text, event
                    pace.add(event.completion_tokens, event.time)
                    thinking = Thinking(so_far, event.thinking_tokens, event.thinking_s)
                case TextDelta():
                    text, last = text + event.text, event
                    pace.add(event.completion_tokens, event.time)
                case Finished():
                    _finish(reply, start, event, limit)
                case Failed(message=message) if prompt_tokens is None:
                    raise Refused(Told(message, "error"))
                case Failed():
                    _take(reply, start, event)
                    reply.status, reply.note = "error", event.message
        if reply.status != "streaming":
            return
        if last is not None:
            rate = last.decode_tokens_per_s
            if thinking.text != thought:
                reply.thinking = start.thinking + thinking
                await tell(ThinkingAdded(reply, last.completion_tokens, rate))
            if text:
                reply.text += text
                await tell(TextAdded(reply, text, last.completion_tokens, rate))
            await tell(ContextUsed((prompt_tokens or 0) + last.completion_tokens, limit))
        if time.monotonic() - saved_at >= SAVE_EVERY_S:
            await save()
            saved_at = time.monotonic()


def _take(reply: Turn, start: Turn, event: Finished | Failed) -> None:
    """Set the reply to what it was at the start and what the engine has added."""
    reply.text = start.text + event.text
    reply.thinking = start.thinking + event.thinking
    if isinstance(event, Finished) and (start.token_ids or not start.has_begun):
        reply.token_ids = start.token_ids + event.token_ids
    else:
        reply.token_ids = ()


def _finish(reply: Turn, start: Turn, event: Finished, limit: int) -> None:
    _take(reply, start, event)
    reply.status = _STATUS[event.reason]
    reply.figures = usage = event.usage
    if event.reason == "length" and usage.prompt_tokens + usage.completion_tokens >= limit:
        reply.note = f"The context of {limit:,} tokens is full: go on, and choose what to leave out."
    elif event.reason == "length":
        reply.note = f"The reply reached its limit of {usage.completion_tokens:,} tokens."
