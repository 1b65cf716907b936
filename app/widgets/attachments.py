"""Images of a message as chips: a thumbnail each, with what there is to know about it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, HorizontalScroll, Vertical
from textual.content import Content
from textual.events import Click
from textual.message import Message
from textual.widgets import Static

from ...engine.events import ModelInfo
from ..attachments import Attachment
from ..text import format_tokens, one_line
from .picture import Picture

NAME_CELLS = 24


def size_in_words(attachment: Attachment) -> str:
    """1,920 x 1,080"""
    width, height = attachment.size
    return f"{width:,} x {height:,}"


class Chip(Horizontal, can_focus=True):
    """An image that was sent: its thumbnail, its name and its size; it can be looked at unless it is gone."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("enter,space", "look", "Look")]
    FOCUS_ON_CLICK = False
    THUMBNAIL = (16, 6)
    """The most cells that it takes."""

    @dataclass
    class Opened(Message):
        """The user wants to see the image of a chip larger."""

        chip: Chip

    def __init__(self, attachment: Attachment, cost: str = "") -> None:
        super().__init__()
        self.attachment = attachment
        self._cost = cost
        self.can_focus = attachment.thumbnail is not None

    def compose(self) -> ComposeResult:
        attachment = self.attachment
        if attachment.thumbnail is not None:
            picture = Picture(attachment.thumbnail)
            picture.fit(*self.THUMBNAIL)
            yield picture
        name = Content(one_line(attachment.name)).truncate(NAME_CELLS, ellipsis=True).plain
        size = size_in_words(attachment) if attachment.image else "its copy is gone"
        yield Static("\n".join(line for line in (name, size, self._cost) if line), markup=False)

    async def on_click(self, event: Click) -> None:
        await self.action_look()

    async def action_look(self) -> None:
        if self.can_focus:
            self.post_message(self.Opened(self))


class AttachedChip(Chip):
    """An image of the message being written, with what it costs; it can be looked at and removed."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("delete,backspace", "remove", "Remove")]
    THUMBNAIL = (8, 3)

    @dataclass
    class Removed(Message):
        chip: AttachedChip

    def compose(self) -> ComposeResult:
        yield from super().compose()
        yield Static("✕", classes="remove")

    async def on_click(self, event: Click) -> None:
        if event.widget is not None and event.widget.has_class("remove"):
            event.prevent_default()  # which is to look
            self.action_remove()

    async def action_look(self) -> None:
        await self.run_action("app.images")

    def action_remove(self) -> None:
        self.post_message(self.Removed(self))


class AttachmentBar(Vertical):
    """The images of the message being written, above it; not there without any."""

    def __init__(self) -> None:
        super().__init__(id="attachments")
        self._chips = HorizontalScroll(can_focus=False)
        self._remark = Static(classes="remark", markup=False)
        self.display = False

    def compose(self) -> ComposeResult:
        yield self._chips
        yield self._remark

    async def show(self, attachments: Iterable[Attachment], reading: int, model: ModelInfo | None) -> None:
        """Show these; `reading` more are on their way, and `model` says what they cost."""
        attachments = tuple(attachments)
        cost = format_tokens(model.image_tokens) if model and model.sees_images else ""
        with self.app.batch_update():
            await self._chips.remove_children()
            await self._chips.mount_all(AttachedChip(attachment, cost) for attachment in attachments)
        remark = ""
        if reading:
            remark = f"Reading {reading} image{'s' if reading > 1 else ''}…"
        elif attachments and model and not model.sees_images:
            remark = f"{one_line(model.name)} reads text only: Enter shows the models that see."
        self._remark.update(remark)
        self._remark.display = bool(remark)
        self._remark.set_class(not reading, "-warning")
        self.display = bool(attachments or reading)
