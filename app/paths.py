"""Where the program keeps its data. `LITE_LLAMA_HOME` moves all of it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import platformdirs

HOME_VARIABLE = "LITE_LLAMA_HOME"


@dataclass(frozen=True)
class Paths:
    """The directories and files that the program owns; none need exist yet."""

    data: Path
    config: Path

    @property
    def models(self) -> Path:
        """Converted models, a directory each."""
        return self.data / "models"

    @property
    def downloads(self) -> Path:
        """Partial and finished Hub downloads, kept only until they are converted."""
        return self.data / "downloads"

    @property
    def database(self) -> Path:
        return self.data / "conversations.db"

    @property
    def draft(self) -> Path:
        """What stood in the prompt and was not sent; its images are in a directory beside it."""
        return self.data / "draft.json"

    @property
    def settings(self) -> Path:
        return self.config / "settings.toml"

    @property
    def endpoints(self) -> Path:
        """Models that run elsewhere, without their keys."""
        return self.config / "endpoints.toml"

    @property
    def tiles(self) -> Path:
        """The kernels' tiles that `bench tune` found on this machine."""
        return self.data / "tiles.json"

    @property
    def log(self) -> Path:
        return self.data / "lite-llama-tui.log"

    @classmethod
    def default(cls) -> Paths:
        """Under `LITE_LLAMA_HOME` when it is set, else where the platform keeps such data."""
        if home := os.environ.get(HOME_VARIABLE):
            root = Path(home).expanduser().absolute()
            return cls(data=root, config=root)
        dirs = platformdirs.PlatformDirs("lite-llama-tui", appauthor=False)
        return cls(data=Path(dirs.user_data_dir), config=Path(dirs.user_config_dir))
