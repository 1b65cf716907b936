"""The images of a message: read off the event loop, from wherever they come, made small for the screen."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic_core.core_schema import AnySchema, any_schema

from ..engine.images import MAX_PIXELS, Image, image_of, read_image
from ..models.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image as Pixels

THUMBNAIL_PIXELS = 512
"""Of the longer side: enough for the largest preview."""
NO_CLIPBOARD_TOOL = (
    "The clipboard cannot be asked for images here: install wl-clipboard (Wayland) or xclip (X11), or attach "
    "the image's file."
)


@dataclass(frozen=True)
class Attachment:
    """An image of a message: what is known of it, and the image itself unless its file is gone."""

    name: str
    size: tuple[int, int]
    """Width and height in pixels, as the image is seen."""
    sha256: str
    """Of its content, in hexadecimal digits."""
    image: Image | None = field(default=None, compare=False, repr=False)
    thumbnail: Pixels | None = field(default=None, compare=False, repr=False)

    @classmethod
    def __get_pydantic_core_schema__(cls, *_: object) -> AnySchema:
        """Taken as it is: app/exchange.py writes and reads the content."""
        return any_schema()


def images_of(attachments: Iterable[Attachment]) -> tuple[Image, ...]:
    """Those whose files are still there."""
    return tuple(attachment.image for attachment in attachments if attachment.image)


def entries_of(attachments: Iterable[Attachment]) -> list[dict[str, Any]]:
    """What is written of them beside an image store, which has their content."""
    return [
        {"name": each.name, "sha256": each.sha256, "width": each.size[0], "height": each.size[1]}
        for each in attachments
    ]


def of_entries(entries: Iterable[Mapping[str, Any]]) -> tuple[Attachment, ...]:
    """The attachments, without their images, of what `entries_of` gave."""
    return tuple(
        Attachment(entry["name"], (entry["width"], entry["height"]), entry["sha256"]) for entry in entries
    )


def attachment_of(image: Image) -> Attachment:
    """Takes as long as decoding the image does: not for the event loop."""
    thumbnail = image.pixels()
    thumbnail.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
    return Attachment(image.name, image.size, sha256(image.content).hexdigest(), image, thumbnail)


class Attachments:
    """The images of the message that is being written, in the order in which a model sees them."""

    def __init__(self, changed: Callable[[], object]) -> None:
        """`changed` is called after each change, on the event loop."""
        self.items: tuple[Attachment, ...] = ()
        self.reading = 0
        """Images that are still being read."""
        self._changed = changed
        self._one_at_a_time = asyncio.Lock()  # in the order in which they came, in the memory of one

    async def add(self, path: Path) -> str:
        """Attach a file; returns what there is to say about it, mostly nothing. Raises UserError."""
        return await self._add(partial(read_image, path))

    async def add_from_clipboard(self) -> str:
        """The same for an image on the clipboard."""
        return await self._add(_clipboard_image)

    async def restore(self, read: Callable[[], tuple[Attachment, ...]]) -> None:
        """Attach what `read` returns, before what there is."""
        with self._announced():
            found = await asyncio.to_thread(read)
        self.put(*found, *(item for item in self.items if item not in found))

    def remove(self, attachment: Attachment) -> None:
        self.put(*(item for item in self.items if item is not attachment))

    def put(self, *items: Attachment) -> None:
        """Have these instead of those there are."""
        self.items = items
        self._changed()

    async def _add(self, read: Callable[[], Image]) -> str:
        with self._announced():
            async with self._one_at_a_time:
                attachment = await asyncio.to_thread(lambda: attachment_of(read()))
        if any(item.sha256 == attachment.sha256 for item in self.items):
            return f"{attachment.name} is attached already."
        self.put(*self.items, attachment)
        return attachment.image.note if attachment.image else ""

    @contextmanager
    def _announced(self) -> Iterator[None]:
        self.reading += 1
        self._changed()
        try:
            yield
        finally:
            self.reading -= 1
            self._changed()


def _clipboard_image() -> Image:
    """Raises UserError when there is none, or no way to it."""
    from PIL import ImageGrab

    try:
        grabbed = ImageGrab.grabclipboard()
    except NotImplementedError:
        raise UserError(NO_CLIPBOARD_TOOL) from None
    except Exception as error:  # of the tool, or of the parser of what it gave
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"The clipboard cannot be read ({reason}): attach the image's file.") from None
    if isinstance(grabbed, list):  # files that were copied
        return read_image(Path(grabbed[0]))
    if grabbed is None:
        raise UserError("There is no image on the clipboard: copy one first, or attach a file.")
    if grabbed.width * grabbed.height > MAX_PIXELS:
        raise UserError(
            f"The clipboard's image has too many pixels, and {MAX_PIXELS // 1_000_000} million are the most: "
            "copy a part of it."
        )
    content = io.BytesIO()
    grabbed.convert("RGBA").save(content, "PNG", compress_level=1)
    return image_of("clipboard.png", content.getvalue())
