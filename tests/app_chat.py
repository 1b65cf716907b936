"""The running app as a user sees it, driven by keys: what the tests of its screens share."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from textual.pilot import Pilot
from textual.screen import Screen
from textual.widgets import Static

from lite_llama.app.conversation import Turn
from lite_llama.app.tui import LiteLlamaApp
from lite_llama.app.widgets.markdown import ReplyMarkdown
from lite_llama.app.widgets.message import ReplyMessage, UserMessage
from lite_llama.app.widgets.prompt import PromptInput
from lite_llama.app.widgets.transcript import Transcript


async def until(pilot: Pilot[Any], condition: Callable[[], object], seconds: float = 60) -> None:
    """Let the app run until the condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "what the test waits for did not happen"
        await pilot.pause(0.01)
    await pilot.pause()


class Chat:
    """The app, its chat screen and the prompt in it."""

    def __init__(self, app: LiteLlamaApp, pilot: Pilot[Any]) -> None:
        self.app, self.pilot, self.controller = app, pilot, app.controller
        self.main: Screen[Any] = app.screen_stack[0]
        self.prompt = self.main.query_one(PromptInput)
        self.prompt.cursor_blink = False

    async def until(self, condition: Callable[[], object]) -> None:
        await until(self.pilot, condition)

    async def send(self, text: str) -> None:
        self.prompt.text = text
        await self.pilot.press("enter")

    async def ask(self, text: str) -> Turn:
        """Send a message and wait for its reply."""
        before = self.controller.last_reply
        await self.send(text)
        await self.until(lambda: self.controller.last_reply is not before)
        await self.replied()
        assert self.controller.last_reply is not None
        return self.controller.last_reply

    async def replied(self) -> None:
        await self.until(lambda: not self.controller.replying)

    async def screen(self, kind: type[Screen[Any]]) -> None:
        await self.until(lambda: isinstance(self.app.screen, kind))

    def shown(self) -> list[str]:
        """The conversation on the screen: what the user wrote, and the source of the replies."""
        texts = []
        for widget in self.main.query_one(Transcript).children:
            if isinstance(widget, UserMessage):
                texts.append(str(widget.query_one(".text", Static).render()))
            elif isinstance(widget, ReplyMessage):
                texts.append(widget.query_one(ReplyMarkdown).source)
        return texts

    def text_of(self, selector: str) -> str:
        return str(self.main.query(selector).last(Static).render())

    def notices(self) -> list[str]:
        return [notice.message for notice in self.app._notifications]
