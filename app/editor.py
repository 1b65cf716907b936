"""The prompt in the user's own editor."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

from ..models.errors import UserError


def edit(text: str) -> str:
    """Let the user edit `text` in $VISUAL, $EDITOR, nano or vi; returns what was saved when that is closed.

    Not for the event loop, and the terminal must be the editor's meanwhile. Raises UserError when there is no
    editor or it fails.
    """
    wanted = os.environ.get("VISUAL") or os.environ.get("EDITOR")
    try:
        command = shlex.split(wanted or shutil.which("nano") or shutil.which("vi") or "")
    except ValueError:
        command = []
    if not command:
        raise UserError("There is no editor to open: set EDITOR to one, such as EDITOR=nano.")
    with tempfile.TemporaryDirectory(prefix="lite-llama-") as directory:
        path = Path(directory) / "message.md"
        path.write_text(text, encoding="utf-8")
        try:
            code = subprocess.run([*command, str(path)], check=False).returncode
            edited = path.read_bytes().decode("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"The editor {command[0]} failed ({error}): set EDITOR to another.") from None
    if code:
        raise UserError(f"The editor {command[0]} ended with code {code}: the message is as it was.")
    return edited.removesuffix("\n")
