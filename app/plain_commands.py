"""The slash commands of the plain chat. Names and help are those of the app (app/actions.py)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ..models.errors import UserError
from .actions import ACTIONS, no_command
from .incoming import written_paths
from .library import NO_MODEL
from .text import format_time

if TYPE_CHECKING:
    from .plain import PlainChat

LISTED = 20


class Commands:
    """What each command does. A method gets what follows the command, and raises UserError."""

    def __init__(self, chat: PlainChat) -> None:
        self._chat = chat
        self._listed: list[tuple[str, str | None]] = []
        """Of the list that was printed last: the conversation and perhaps the turn that /open goes to."""
        self._arguments: dict[str, tuple[str, Callable[[str], None]]] = {
            "/help": ("", self._help),
            "/model": ("[NUMBER]", self._model),
            "/image": ("[PATH]", self._image),
            "/new": ("", lambda _: chat.call(chat.controller.new_conversation())),
            "/open": ("[NUMBER]", self._open),
            "/chats": ("", lambda _: self._open("")),
            "/search": ("WORDS", self._search),
            "/set": ("[NAME VALUE]", lambda text: chat.call(chat.controller.override(text))),
            "/system": ("[TEXT]", lambda text: chat.call(chat.controller.set_system_prompt(text))),
            "/own": ("", lambda _: chat.load(chat.controller.use_own_model())),
            "/export": ("[PATH]", self._export),
            "/import": ("PATH", self._import),
            "/retitle": ("", lambda _: chat.answered(chat.controller.retitle())),
            "/continue": ("", self._continue),
            "/retry": ("", self._retry),
            "/edit": ("[NUMBER]", self._edit),
            "/shorten": ("", self._shorten),
            "/resume": ("", lambda _: chat.answered(chat.controller.resume_queue())),
        }

    def run(self, text: str) -> bool | None:
        """Do what `text` asks for; False: the chat ends, None: it is no command but a message."""
        command, _, argument = text.strip().partition(" ")
        if not command.startswith("/"):
            return None
        if command == "/quit":
            return False
        if known := self._arguments.get(command):
            known[1](argument.strip())
        elif any(action.command == command for action in ACTIONS):
            raise UserError(f"{command} is for the full-screen app: lite-llama-tui opens that.")
        elif wrong := no_command(text):
            raise UserError(wrong)
        else:
            return None
        return True

    def _help(self, _: str) -> None:
        for action in ACTIONS:
            if action.command in self._arguments or action.command == "/quit":
                command = f"{action.command} {self._arguments.get(action.command, ('',))[0]}".strip()
                self._chat.printer.say(f"{command}: {action.title}, {action.help}")
        self._chat.printer.say("/shorten: When the context is full, have the model read less of the chat")
        self._chat.printer.say("A backslash at a line's end, or three quotes around lines, join them.")

    # Conversations

    def _open(self, number: str) -> None:
        chat = self._chat
        if number:
            if not self._listed:
                self._list_conversations()
            conversation, turn = self._listed[_index(number, len(self._listed))]
            chat.call(chat.controller.open_conversation(conversation, turn))
        else:
            for place, line in enumerate(self._list_conversations(), start=1):
                chat.printer.say(f"{place}. {line}")
            chat.printer.say("/open 1 opens the first." if self._listed else "There is no saved chat yet.")

    def _list_conversations(self) -> list[str]:
        summaries = self._chat.call(self._chat.controller.archive.summaries())[:LISTED]
        self._listed = [(summary.id, None) for summary in summaries]
        return [f"{summary.title}, {format_time(summary.updated)}" for summary in summaries]

    def _search(self, words: str) -> None:
        chat = self._chat
        if not words:
            raise UserError("Say what to look for: /search WORDS.")
        hits = chat.call(chat.controller.archive.search(words))[:LISTED]
        self._listed = [(hit.conversation_id, hit.turn_id) for hit in hits]
        for place, hit in enumerate(hits, start=1):
            chat.printer.say(f"{place}. {hit.title}: {hit.text}")
        chat.printer.say("/open 1 opens the first." if hits else "Nothing is found.")

    def _export(self, path: str) -> None:
        self._chat.call(self._chat.controller.export_conversation(Path(path) if path else None))

    def _import(self, path: str) -> None:
        if not path:
            raise UserError("Say which file: /import PATH.")
        self._chat.call(self._chat.controller.import_conversations(Path(path)))

    # Turns

    def _continue(self, _: str) -> None:
        if not self._chat.controller.can_continue:
            raise UserError("There is no reply that was cut off.")
        self._chat.answered(self._chat.controller.continue_reply())

    def _retry(self, _: str) -> None:
        if self._chat.controller.last_reply is None:
            raise UserError("There is no reply yet that could be written anew.")
        self._chat.answered(self._chat.controller.regenerate())

    def _edit(self, number: str) -> None:
        """Another version of the message of that number, by default the last; the old one stays a branch."""
        chat = self._chat
        messages = [turn for turn in chat.controller.conversation.turns if turn.role == "user"]
        if not messages:
            raise UserError("There is no message yet that could be edited.")
        turn = messages[_index(number, len(messages)) if number else -1]
        text = chat.lines.read(f"Message {messages.index(turn) + 1}: ", turn.text)
        if not text.strip():
            raise UserError("The message stays as it was.")
        chat.printer.typed = text
        chat.answered(chat.controller.edit(turn, text))

    def _shorten(self, _: str) -> None:
        overflow, self._chat.printer.overflow = self._chat.printer.overflow, None
        if overflow is None or not overflow.left_out:
            raise UserError("There is nothing that would have to be left out.")
        self._chat.call(self._chat.controller.leave_out(overflow.left_out))

    # Model and images

    def _model(self, wanted: str) -> None:
        chat = self._chat
        described = chat.controller.loader.described()
        names = list(described)
        if not names:
            raise UserError(NO_MODEL)
        if wanted:
            name = wanted if wanted in names else names[_index(wanted, len(names))]
            chat.load(chat.controller.load_model(name))
            return
        for place, (name, what) in enumerate(described.items(), start=1):
            loaded = ", loaded" if chat.controller.loader.name == name else ""
            chat.printer.say(f"{place}. {name}: {what}{loaded}")
        chat.printer.say("/model 1 loads the first.")

    def _image(self, path: str) -> None:
        chat = self._chat
        if path == "none":
            chat.attachments.items = ()
            chat.printer.say("Your next message has no image.")
        elif path:
            chat.attach(written_paths(path))
        else:
            names = ", ".join(image.name for image in chat.attachments.items)
            chat.printer.say(f"Your next message has: {names or 'no image'}.")


def _index(number: str, count: int) -> int:
    """The place in a list that the user numbers from 1. Raises UserError."""
    if not number.isdecimal() or not 1 <= int(number) <= count:
        raise UserError(f"{number} is not in the list: name a number from 1 to {count}.")
    return int(number) - 1
