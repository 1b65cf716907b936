"""The images of saved conversations: a copy of each in a directory, under the SHA-256 of its content."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Collection
from hashlib import sha256
from pathlib import Path

from ..engine.images import Image
from ..models.errors import UserError
from .attachments import Attachment, attachment_of
from .files import replace_file

log = logging.getLogger(__name__)

GRACE_S = 60.0
"""A copy is kept at least so long: another program may be about to save the message that it belongs to."""


class ImageStore:
    """All methods do their work on the disk and are not for the event loop."""

    def __init__(self, directory: Path | None) -> None:
        """`directory` need not exist; None keeps the images in memory only."""
        self._directory = directory
        self._in_memory: dict[str, bytes] = {}

    def put(self, attachment: Attachment) -> None:
        """Keep a copy, unless there is one. Raises UserError when the disk does not take it."""
        if attachment.image is None:
            return
        if self._directory is None:
            self._in_memory[attachment.sha256] = attachment.image.content
            return
        path = self._directory / attachment.sha256
        try:
            if path.exists():
                os.utime(path)  # GRACE_S from now on
            else:
                replace_file(path, attachment.image.content)
        except OSError as error:
            raise UserError(
                f"The copy of {attachment.name} cannot be written to {self._directory} ({error.strerror}): "
                "check the disk and its owner."
            ) from None

    def get(self, attachment: Attachment) -> Attachment:
        """The attachment with its image, and without one when the copy is gone or damaged."""
        try:
            if self._directory is None:
                content = self._in_memory[attachment.sha256]
            else:
                content = (self._directory / attachment.sha256).read_bytes()
            if sha256(content).hexdigest() == attachment.sha256:
                return attachment_of(Image(attachment.name, content, attachment.size))
        except (KeyError, OSError, UserError) as error:
            log.warning("the copy of %s cannot be read: %r", attachment.name, error)
        return attachment

    def sweep(self, used: Collection[str]) -> None:
        """Remove the copies whose digest is not in `used`, and what a killed program left half written."""
        if self._directory is None or not self._directory.is_dir():
            return
        oldest = time.time() - GRACE_S
        for path in self._directory.iterdir():
            with contextlib.suppress(OSError):  # it is tried again the next time
                if path.name not in used and path.stat().st_mtime < oldest:
                    path.unlink()
