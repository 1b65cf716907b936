"""The log file: what libraries warn of, and the tracebacks that the user is not shown."""

from __future__ import annotations

import logging
import logging.handlers
import os
from pathlib import Path

DEBUG_VARIABLE = "LITE_LLAMA_DEBUG"
INTERNAL_ERROR = "Something went wrong in the program itself; the log file has the details."
_LIMIT = 1_000_000
logger = logging.getLogger("lite_llama")


class _LogFile(logging.handlers.RotatingFileHandler):
    """Makes its directory with the first line, so that a run with nothing to tell leaves nothing behind."""

    def _open(self):
        Path(self.baseFilename).parent.mkdir(parents=True, exist_ok=True)
        return super()._open()


def set_up(path: Path) -> None:
    """Send warnings and log records of all libraries to the file at `path`, none to the terminal.

    Must run before transformers and huggingface_hub are imported: they read these variables then.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    root = logging.getLogger()
    for earlier in [handler for handler in root.handlers if isinstance(handler, _LogFile)]:
        root.removeHandler(earlier)
        earlier.close()
    handler = _LogFile(path, maxBytes=_LIMIT, backupCount=1, encoding="utf-8", delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root.addHandler(handler)
    logging.captureWarnings(True)
    logging.raiseExceptions = False  # a log that cannot be written must not spoil the screen


def record(error: BaseException, path: Path) -> str:
    """Write the traceback of a fault of ours to the log; returns the sentence for the user."""
    logger.error("unexpected error", exc_info=error)
    where = f"details are in {path}" if path.is_file() else f"set {DEBUG_VARIABLE}=1 to see where"
    return f"Unexpected {type(error).__name__} ({error}): this is a fault of the program; {where}."
