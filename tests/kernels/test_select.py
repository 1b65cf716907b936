"""The choice of a column, and what has to work where Triton is not installed."""

import subprocess
import sys

import pytest
import torch

from lite_llama.kernels import select

WITHOUT_TRITON = """
import sys
sys.modules["triton"] = None  # as if it were not installed
import torch
from lite_llama.kernels import select
for device in ("cpu", "cuda"):
    ops = select(torch.device(device))
    assert ops.name == "reference", ops.name
print(ops.rmsnorm(torch.ones(1, 4), torch.full((4,), 2.0), 0.0).tolist())
"""


def test_device_decides():
    assert select(torch.device("cpu")).name == "reference"
    assert select(torch.device("cuda")).name == "triton"


def test_attention_kernels_differ_and_unknown_names_are_refused():
    cuda = torch.device("cuda")
    kernels = {select(cuda, name).prefill_attention for name in ("flash2", "flash1", "reference")}
    assert len(kernels) == 3
    assert select(cuda).prefill_attention is select(cuda, "flash2").prefill_attention
    with pytest.raises(ValueError, match="flash2, flash1, reference, not 'flash3'"):
        select(cuda, "flash3")


def test_runs_without_triton():
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT_TRITON], capture_output=True, text=True, check=False
    )
    assert result.stdout == "[[2.0, 2.0, 2.0, 2.0]]\n", result.stderr
