"""A screen with a prompt whose message can have images: dropped, pasted, typed as paths, from the panel."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from pathlib import Path

from textual import on, work
from textual.screen import Screen, ScreenResultType

from ...engine.events import ModelInfo
from ...models.errors import UserError
from ..attachments import Attachment, Attachments
from ..incoming import command_paths, image_paths
from ..text import one_line
from ..widgets.attachments import AttachedChip, AttachmentBar
from ..widgets.prompt import PromptInput


class AttachingScreen(Screen[ScreenResultType]):
    """Who inherits from it shows `_attachment_bar` above `_prompt`, and sends what they hold."""

    def __init__(self) -> None:
        super().__init__()
        self.attachments = Attachments(lambda: self.call_later(self._show_attachments))
        self._attachment_bar = AttachmentBar()
        self._prompt = PromptInput()

    @property
    def asked_model(self) -> ModelInfo | None:
        """The one model that the message is for, if that is known."""
        return None

    async def attach(self, paths: Sequence[Path]) -> bool:
        """Attach image files, and say what is wrong with those that are none; False if there were any."""
        return all([await self._add(self.attachments.add(path)) for path in paths])

    async def attach_from_clipboard(self) -> bool:
        return await self._add(self.attachments.add_from_clipboard())

    async def _add(self, adding: Awaitable[str]) -> bool:
        try:
            remark = await adding
        except UserError as error:
            self.notify(one_line(str(error)), title="Not attached", severity="error", markup=False)
            return False
        if remark:
            self.notify(one_line(remark), markup=False)
        return True

    def _attach_instead(self, text: str) -> bool:
        """Whether what was sent is no message but paths of images, which are attached then."""
        # Before commands are looked for: a path begins with a slash as they do.
        paths = command_paths(text) or image_paths(text)
        if paths:
            self._prompt.text = ""
            self._attach_written(paths, text)
        return bool(paths)

    def _still_reading(self) -> bool:
        """Whether an image is on its way, which the user is told."""
        if self.attachments.reading:
            self.notify("An image is still being read: send the message in a moment.", severity="warning")
        return self.attachments.reading > 0

    @work
    async def _attach_written(self, paths: Sequence[Path], text: str) -> None:
        """`text` named the paths; it goes back where they cannot be attached."""
        if not await self.attach(paths):
            self._prompt.give_back(text)

    @on(PromptInput.ImagesDropped)
    @work
    async def _images_dropped(self, event: PromptInput.ImagesDropped) -> None:
        await self.attach(event.paths)

    @on(PromptInput.PasteAsked)
    @work
    async def _paste(self) -> None:
        """An image on the clipboard goes before text that was copied here, perhaps long ago."""
        try:
            await self.attachments.add_from_clipboard()
        except UserError as error:
            if self.app.clipboard:
                self._prompt.paste_text()
            else:
                self.notify(one_line(str(error)), markup=False)

    @on(AttachedChip.Removed)
    def _chip_removed(self, event: AttachedChip.Removed) -> None:
        self.attachments.remove(event.chip.attachment)

    async def _show_attachments(self) -> None:
        await self._attachment_bar.show(self.attachments.items, self.attachments.reading, self.asked_model)
        if self.focused is None:  # it was on a chip that is no longer there
            self._prompt.focus()

    def _give_back(self, text: str, images: tuple[Attachment, ...]) -> None:
        """Put a message that was not sent back, before what has been written and attached since."""
        self._prompt.give_back(text)
        since = [item for item in self.attachments.items if item not in images]
        self.attachments.put(*images, *since)
