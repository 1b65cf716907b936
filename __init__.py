"""lite_llama: a terminal chat for open models with its own inference engine."""

__version__ = "0.1.0"
