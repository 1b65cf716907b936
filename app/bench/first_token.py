"""The process that `bench startup --shape` starts: random weights, a short prompt, one token on stdout.

python -m lite_llama.app.bench.first_token SHAPE DEVICE DTYPE
"""

from __future__ import annotations

import sys

from ...models.errors import UserError
from .subject import Subject
from .workload import equal_jobs, run


def main(shape: str, device: str, dtype: str) -> None:
    """Generate the token; a UserError becomes one line on stderr and exit code 1."""
    try:
        subject = Subject.of_shape(shape, device, dtype)
        (finished,) = run(subject.load(), equal_jobs(subject.config.vocab_size, 1, 16, 1))
    except UserError as error:
        sys.exit(f"error: {error}")
    print(finished.token_ids[0], flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
