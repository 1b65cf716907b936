"""What the user types or drops: shortened to a title, read as the path of an image."""

from __future__ import annotations

import shlex
from pathlib import Path
from urllib.parse import unquote, urlsplit

from .text import inert

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff"})
_TITLE_LENGTH = 48


def title_of(text: str) -> str:
    """The first words of a message as the title of its conversation."""
    words = inert(text).split()
    title = ""
    for word in words:
        longer = f"{title} {word}".strip()
        if len(longer) > _TITLE_LENGTH:
            # A single word that is too long, such as a URL, is cut.
            return f"{title or word[:_TITLE_LENGTH]}…"
        title = longer
    return title or "Untitled"


def image_paths(text: str) -> list[Path]:
    """The image files that `text` consists of, as a terminal pastes them on drag and drop.

    Paths may be quoted, backslash-escaped or `file://` URLs, one or more. Anything else among them, or a
    path of another kind, means that the text is a message: the result is empty.
    """
    whole = _image(text.strip())
    if whole is not None and whole.is_file():  # an unescaped path with blanks in it
        return [whole]
    try:
        words = shlex.split(text)
    except ValueError:  # an apostrophe in a sentence
        return []
    paths = [_image(word) for word in words]
    return [path for path in paths if path is not None] if all(paths) else []


def _image(word: str) -> Path | None:
    """`word` as the path of an image, None when it does not look like one."""
    if word.lower().startswith("file://"):
        word = unquote(urlsplit(word).path)
    if "\n" in word or Path(word).suffix.lower() not in IMAGE_SUFFIXES:
        return None
    # "logo.png" alone may be a word of a sentence; a path begins at a root or is there.
    if not word.startswith(("/", "~", "./", "../")) and not _exists(word):
        return None
    return Path(word).expanduser()


def _exists(word: str) -> bool:
    try:
        return Path(word).is_file()
    except OSError:  # longer than a file name may be
        return False
