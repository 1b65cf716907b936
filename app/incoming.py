"""What the user types or drops: shortened to a title, read as the paths of images."""

from __future__ import annotations

import os
import shlex
from contextlib import suppress
from pathlib import Path
from urllib.parse import unquote, urlsplit

from .text import inert

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff"})
OTHER_SUFFIXES = frozenset({".svg", ".heic", ".heif", ".avif"})
"""Images too, which are not read; whoever drops one is to be told so."""
_IMAGE_COMMAND = "/image "
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

    Paths may be quoted, backslash-escaped or `file://` URLs, one or more, also of images in formats that are
    not read. Anything else among them, or a path of another kind, means that the text is a message: the
    result is empty.
    """
    whole = _image(text.strip())
    if whole is not None and os.path.isfile(whole):  # an unescaped path with blanks in it
        return [whole]
    try:
        words = shlex.split(text)
    except ValueError:  # an apostrophe in a sentence
        return []
    paths = [_image(word) for word in words]
    return [path for path in paths if path is not None] if all(paths) else []


def command_paths(text: str) -> list[Path]:
    """The paths that `/image PATH ...` names, whatever is there; empty when `text` is no such command."""
    rest = text.removeprefix(_IMAGE_COMMAND).strip() if text.startswith(_IMAGE_COMMAND) else ""
    return written_paths(rest) if rest else []


def written_paths(text: str) -> list[Path]:
    """The paths in what a person typed or dropped: quoted, escaped, with `~` or `file://`."""
    if os.path.exists(_plain(text)):  # an unescaped path with blanks in it
        return [_plain(text)]
    try:
        words = shlex.split(text)
    except ValueError:  # an apostrophe in an unquoted name
        words = [text]
    return [_plain(word) for word in words]


def typed_path(text: str) -> Path:
    """The absolute path that `text` is, as in `written_paths`."""
    text = text.strip()
    paths = written_paths(text)
    return (paths[0] if len(paths) == 1 else _plain(text)).absolute()


def _plain(word: str) -> Path:
    """A path out of a `file://` URL or with a `~`."""
    if word.lower().startswith("file://"):
        word = unquote(urlsplit(word).path)
    path = Path(word)
    with suppress(RuntimeError):  # the home of a user who is not there
        path = path.expanduser()
    return path


def _image(word: str) -> Path | None:
    """`word` as the path of an image, None when it does not look like one."""
    path = _plain(word)
    if "\n" in str(path) or path.suffix.lower() not in IMAGE_SUFFIXES | OTHER_SUFFIXES:
        return None
    # "logo.png" alone may be a word of a sentence; a path begins at a root or is there.
    if not word.lower().startswith(("/", "~", "./", "../", "file://")) and not os.path.isfile(path):
        return None
    return path
