"""The plain chat's output: what the controller tells, in words, and nothing is ever drawn again."""

from __future__ import annotations

import sys
import threading
import time

from .attachments import Attachment
from .context import Overflow
from .conversation import Conversation, Turn
from .events import (
    BranchShown,
    CannotSee,
    ContextFull,
    ControllerEvent,
    ConversationShown,
    ModelFailed,
    ModelGone,
    ModelLoading,
    ModelOffered,
    ModelReady,
    PromptRead,
    PromptReturned,
    QueueChanged,
    TextAdded,
    ThinkingAdded,
    TitleChanged,
    Told,
    TurnAdded,
    TurnChanged,
    TurnsLeftOut,
)
from .text import format_tokens, inert, one_line

PROMPT = "You: "
REPLY = "Model: "
PROGRESS_EVERY_S = 5.0
_STATES = {"stopped": "[stopped]", "length": "[cut off]", "error": "[failed]"}


class Printer:
    """Prints from the event loop; while a line is typed, what there is to say waits for its end."""

    def __init__(self) -> None:
        self.failed = False
        """Something that was asked for did not come about."""
        self.returned: str | None = None
        """A message that was not sent."""
        self.returned_images: tuple[Attachment, ...] = ()
        self.overflow: Overflow | None = None
        """Of the last message that did not fit the context."""
        self.typed: str | None = None
        """The message that the user has just typed and so need not be shown."""
        self._reply: Turn | None = None
        self._printed = 0
        """Characters of the reply's text."""
        self._thinks = False
        self._answers = False
        """The reply's first line is begun."""
        self._at_line_start = True
        self._progress_at = 0.0
        self._held: list[str] | None = None
        self._lock = threading.Lock()

    def hold(self) -> None:
        """Print nothing until `release`: the line is the user's."""
        with self._lock:
            self._held = []

    def release(self) -> None:
        with self._lock:
            held, self._held = self._held or [], None
        for text in held:
            self._write(text)

    def say(self, text: str) -> None:
        """A line of its own."""
        self._end_line()
        self._write(f"{one_line(text)}\n")

    def fail(self, text: str) -> None:
        self.failed = True
        self.say(text)

    async def handle(self, event: ControllerEvent) -> None:
        match event:
            case ConversationShown(conversation):
                self.overflow = None
                self._show(conversation)
            case TitleChanged(title):
                self.say(f"The title is now: {title}")
            case TurnAdded(Turn(role="user") as turn):
                if turn.text != self.typed:
                    self._show_turn(turn)
                self.typed = None
            case TurnAdded(turn) | TurnChanged(Turn(status="streaming") as turn):
                self._begin(turn)
            case BranchShown(conversation):
                if (reply := conversation.leaf) and reply.status == "streaming":
                    self._begin(reply)
            case PromptRead(done, total):
                self._progress(f"Reading the prompt: {done:,} of {format_tokens(total)}.")
            case ThinkingAdded():
                if not self._thinks:
                    self.say("Thinking…")
                self._thinks = True
            case TextAdded(turn):
                self._print_reply(turn)
            case TurnChanged(turn):
                self._end_reply(turn)
            case PromptReturned(text, _, images):
                self.returned, self.returned_images = text, images
                self.fail("The message was not sent.")
            case QueueChanged(messages, True) if messages:
                count = f"{len(messages)} message{'s wait' if len(messages) > 1 else ' waits'}"
                self.say(f"{count} to be sent, which /resume does.")
            case ModelOffered(name) if name is not None:
                self.say(f"This chat was with {name}: /own loads it.")
            case ModelLoading(name, done, total, text):
                share = f", {100 * done // total} %" if total else ""
                self._progress(f"Loading {name}: {text}{share}.")
            case ModelReady(name):
                self.say(f"The model {name} is loaded.")
            case ModelFailed(name, message):
                self.fail(f"{name} is not loaded. {message}")
            case ModelGone():
                self.say("No model is loaded: /model lists those there are.")
            case CannotSee(name):
                self.fail(f"{name} reads text only: /image none takes the images away, /model has others.")
            case ContextFull(overflow):
                self.overflow = overflow
                tokens = f"This needs {format_tokens(overflow.used)}, and the model reads {overflow.limit:,}"
                can = "/shorten has it read less of what came first, " if overflow.left_out else ""
                self.fail(f"{tokens}: {can}/new begins another chat.")
            case TurnsLeftOut():
                self.say("The model reads less of this chat from here on; all of it is still saved.")
            case Told(text, severity):
                self.failed |= severity == "error"
                self.say(text)

    def _show(self, conversation: Conversation) -> None:
        if not conversation.turns:
            return
        self.say(f"Chat: {conversation.title}")
        for turn in conversation.turns:
            self._show_turn(turn)

    def _show_turn(self, turn: Turn) -> None:
        self._end_line()
        names = "".join(f"[image {one_line(image.name)}] " for image in turn.images)
        self._write(f"{PROMPT if turn.role == 'user' else REPLY}{names}{inert(turn.text)}")
        self._end_turn(turn)

    def _begin(self, reply: Turn) -> None:
        """The reply is written from here on; what it has already was printed before."""
        self._reply, self._printed = reply, len(reply.text)
        self._thinks = self._answers = False
        self._progress_at = time.monotonic()

    def _print_reply(self, reply: Turn) -> None:
        """What has come since the last time. (Events bring most of it, but not what a reply ends with.)"""
        if not self._answers:
            self._end_line()
            self._write(REPLY)
        self._answers = True
        self._write(inert(reply.text[self._printed :]))
        self._printed = len(reply.text)

    def _end_reply(self, reply: Turn) -> None:
        if reply is not self._reply:
            return
        if reply.text[self._printed :] or reply.status == "complete":
            self._print_reply(reply)
        self._end_turn(reply)
        self._reply = None
        self.failed |= reply.status == "error"

    def _end_turn(self, turn: Turn) -> None:
        self._end_line()
        if state := _STATES.get(turn.status):
            self.say(f"{state} {turn.note}")

    def _progress(self, text: str) -> None:
        """Said now and then, and not to somebody who types."""
        if self._held is None and time.monotonic() - self._progress_at >= PROGRESS_EVERY_S:
            self._progress_at = time.monotonic()
            self.say(text)

    def _end_line(self) -> None:
        if not self._at_line_start:
            self._write("\n")

    def _write(self, text: str) -> None:
        with self._lock:
            self._at_line_start = text.endswith("\n") if text else self._at_line_start
            if self._held is not None:
                self._held.append(text)
                return
            sys.stdout.write(text)
            sys.stdout.flush()
