"""The operators of the engine: each in its own file, in plain PyTorch (`reference`) and in Triton.

`select(device)` returns one table of callables; the two columns have the same signatures, so a model runs
the same lines on a CPU and on a GPU. Shapes use T tokens of a ragged batch (all sequences one after the
other, no padding), B sequences, Hq query heads, Hk key/value heads (Hq a multiple of Hk), D the head
dimension, and pages of PAGE_SIZE tokens.
"""

from __future__ import annotations

from .decode_attention import Memo
from .gemm import sum_parts
from .linear import Hidden, product
from .operators import PAGE_SIZE, Operators, select

__all__ = ["PAGE_SIZE", "Hidden", "Memo", "Operators", "product", "select", "sum_parts"]
