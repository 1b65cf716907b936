"""`python -m lite_llama.app.bench` is `lite-llama-tui bench` without the app: for machines with no more than
torch, triton, transformers, safetensors, typer and rich, and this repository on the path as `lite_llama`."""

import os
import sys

from ...models.errors import UserError
from .cli import bench


def main() -> None:
    """Run the command; a UserError becomes one line on stderr and exit code 1."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        bench(prog_name="python -m lite_llama.app.bench")
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
