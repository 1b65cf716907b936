"""What stands in the prompt and was not sent, images included: it is there again at the next start."""

from __future__ import annotations

import contextlib
import json
import logging
import threading
from dataclasses import replace
from pathlib import Path

from filelock import FileLock, Timeout

from ..models.errors import UserError
from .attachments import Attachment, entries_of, of_entries
from .files import replace_file
from .image_store import ImageStore
from .text import inert

log = logging.getLogger(__name__)

Images = tuple[Attachment, ...]

MOST = 9
"""Instances of the app at once that keep what is in their prompts."""


class Draft:
    """A file that holds it. Each instance of the app that runs has one for itself."""

    def __init__(self, path: Path) -> None:
        """`path` is the first instance's file. The copies of a file's images are in a directory beside it."""
        self.kept: tuple[str, Images] = "", ()
        """What the file has: the text, and the images, which may be known by name alone."""
        self._paths = [path, *(path.with_stem(f"{path.stem}-{number}") for number in range(2, MOST + 1))]
        self._one_write = threading.Lock()
        self._be(path)

    def _be(self, path: Path) -> None:
        self._path = path
        self._copies = ImageStore(path.with_name(f"{path.stem}-images"))
        self._lock = FileLock(path.with_name(f"{path.name}.lock"), thread_local=False)

    def _take(self, path: Path) -> bool:
        """Lock the file at `path` and read it; False where another instance has it, or the disk has none."""
        self._be(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(blocking=False)
        except (Timeout, OSError):
            return False
        with contextlib.suppress(OSError, ValueError):
            self.kept = _parsed(path.read_text(encoding="utf-8"))
        return True

    def read(self) -> str:
        """The text that an instance left behind which runs no more; mostly empty."""
        for path in self._paths:
            if path.exists() and self._take(path):
                if any(self.kept):
                    return self.kept[0]
                self._lock.release()
        for path in self._paths:  # the first that is free; without one, nothing is kept
            if self._take(path):
                break
        return self.kept[0]

    def read_images(self) -> Images:
        """Its images, without those whose copy is gone. Decodes them: not for the event loop."""
        found = (self._copies.get(attachment) for attachment in self.kept[1])
        return tuple(attachment for attachment in found if attachment.image)

    def keep(self, text: str, images: Images) -> None:
        """Save them, from any thread; at most a line in the log says that it cannot be."""
        with self._one_write:
            if (text, images) == self.kept or not self._lock.is_locked:
                return
            try:
                for image in images:
                    self._copies.put(image)
                if text or images:
                    replace_file(self._path, _written(text, images))
                else:
                    self._path.unlink(missing_ok=True)
                self.kept = text, images
                self._copies.sweep({image.sha256 for image in images})
            except (OSError, UserError) as error:
                log.warning("what is in the prompt is not saved: %s", error)

    def close(self, text: str, images: Images) -> None:
        """Save them for the next start, and let another instance have the file."""
        self.keep(text, images)
        with contextlib.suppress(OSError):
            self._lock.release()


def _written(text: str, images: Images) -> bytes:
    content = json.dumps({"text": text, "images": entries_of(images)}, ensure_ascii=False)
    return content.encode("utf-8", "replace")


def _parsed(content: str) -> tuple[str, Images]:
    """What `_written` made. Raises ValueError for anything else."""
    try:
        known = json.loads(content)
        images = (
            replace(image, name=inert(image.name), size=(int(image.size[0]), int(image.size[1])))
            for image in of_entries(known["images"])
            if set(image.sha256) <= set("0123456789abcdef")  # the name of a file
        )
        return inert(known["text"]), tuple(images)
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"no draft: {error!r}") from None
