"""`python -m lite_llama` is the same as `lite-llama-tui`."""

from .app.cli import main

if __name__ == "__main__":
    main()
