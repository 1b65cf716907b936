"""Runs one test body on every column of operators: PyTorch on the CPU, Triton interpreted, Triton on a GPU.

The interpreter is chosen when Triton is imported, by TRITON_INTERPRET in tests/conftest.py; one process runs
kernels either interpreted or compiled.
"""

import itertools
import os
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from lite_llama.kernels.operators import Operators, reference_operators, triton_operators

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

# (query heads, key/value heads, head dim). The interpreter takes some 20 ms for each step of each program,
# so it gets few heads, and half precision only once.
SHAPES = [(8, 2, 8), (14, 2, 64), (9, 3, 80), (6, 2, 96), (2, 2, 128), (3, 1, 256)]
HALF_SHAPES = [(9, 3, 80)]
# Those of SmolLM2, Llama 3, Qwen2.5 and Qwen3, and some that are not.
GPU_SHAPES = [
    *((9, 3, 64), (32, 8, 64), (24, 8, 128), (32, 8, 128), (14, 2, 64), (12, 2, 128), (16, 2, 128)),
    *((28, 4, 128), (16, 8, 128), (9, 3, 80), (24, 8, 96), (12, 12, 80), (8, 4, 256)),
]


@dataclass
class Column:
    """One column of operators on one device in one dtype, with inputs and comparisons to match."""

    ops: Operators
    device: torch.device
    dtype: torch.dtype
    generator: torch.Generator

    def randn(self, *shape: int) -> Tensor:
        """Normal noise: the same for every dtype, but for rounding."""
        noise = torch.randn(shape, generator=self.generator, dtype=torch.float64, device=self.device)
        return noise.to(self.dtype)

    def randint(self, low: int, high: int, *shape: int) -> Tensor:
        """int64 in [low, high)."""
        return torch.randint(low, high, shape, generator=self.generator, device=self.device)

    def permutation(self, size: int) -> Tensor:
        return torch.randperm(size, generator=self.generator, device=self.device)

    def check(self, actual: Tensor, exact: Tensor) -> None:
        """`actual` is as near to `exact` (fp64) as its dtype lets it: per row, in the L2 norm.

        Half precision rounds a few times on the way; fp32 results gather the error of long sums and of a
        GPU's fast exponentials: 30 roundings where thousands of values cancel, in the worst of 250 seeds.
        """
        assert actual.dtype == self.dtype
        assert actual.shape == exact.shape
        tolerance = torch.finfo(self.dtype).eps * (64 if self.dtype == torch.float32 else 2)
        actual, exact = actual.cpu(), exact.cpu()
        error = (actual.double() - exact).norm(dim=-1)
        allowed = tolerance * exact.norm(dim=-1)
        wrong = (~(error <= allowed)).nonzero().tolist()  # written so that NaN is wrong
        if wrong:
            row = tuple(wrong[0])
            pytest.fail(
                f"{len(wrong)} of {error.numel()} rows are wrong; row {row}: error {error[row]:.3e}, "
                f"allowed {allowed[row]:.3e}\nactual {actual[row]}\nexact  {exact[row]}"
            )

    def check_sum(self, actual: Tensor, exact: Tensor) -> None:
        """As `check`, for what passes through two or three roundings more (a norm, an activation) and may
        be handed on in fp32."""
        assert actual.dtype in (self.dtype, torch.float32)
        assert actual.shape == exact.shape
        tolerance = torch.finfo(self.dtype).eps * (32 if self.dtype == torch.float32 else 3)
        actual, exact = actual.cpu(), exact.cpu()
        error = (actual.double() - exact).norm(dim=-1)
        assert bool((error <= tolerance * exact.norm(dim=-1)).all()), f"{error} of {exact.norm(dim=-1)}"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`column` runs over the columns; with it `prefill` over prefill kernels, `shape` over heads and dims."""
    if "column" not in metafunc.fixturenames:
        return
    prefill, shape = "prefill" in metafunc.fixturenames, "shape" in metafunc.fixturenames
    cases = []
    for where, dtype in itertools.product(("cpu", "interpreter", "gpu"), DTYPES):
        if where == "interpreter" and dtype == "bf16":  # its tl.dot gets bf16 wrong
            continue
        if dtype != "fp32" and "fp32" in metafunc.fixturenames:
            continue
        shapes = GPU_SHAPES if where == "gpu" else SHAPES
        if where == "interpreter" and dtype == "fp16":
            shapes = HALF_SHAPES
        for kernel in ("flash2", "flash1") if prefill and where != "cpu" else ("flash2",):
            for heads in shapes if shape else (None,):
                values = [(where, dtype, kernel)] + [kernel] * prefill + [heads] * shape
                name = (
                    [where, dtype] + [kernel] * (prefill and where != "cpu") + [str(n) for n in heads or ()]
                )
                marks = pytest.mark.gpu if where == "gpu" else ()
                cases.append(pytest.param(*values, id="-".join(name), marks=marks))
    names = ["column"] + ["prefill"] * prefill + ["shape"] * shape
    metafunc.parametrize(names, cases, indirect=["column"])


@pytest.fixture
def column(request: pytest.FixtureRequest, generator: torch.Generator) -> Column:
    where, dtype, prefill = request.param
    if where == "interpreter" and not INTERPRETED:
        pytest.skip("this process compiles kernels for its GPU")
    if where == "gpu" and (INTERPRETED or not torch.cuda.is_available()):
        pytest.skip("no GPU, or TRITON_INTERPRET is set")
    ops = reference_operators() if where == "cpu" else triton_operators(prefill)
    device = torch.device("cuda" if where == "gpu" else "cpu")
    if where == "gpu":  # where the large weights of real shapes are drawn in no time
        generator = torch.Generator(device).manual_seed(generator.initial_seed())
    return Column(ops, device, DTYPES[dtype], generator)


@pytest.fixture
def fp32(column: Column) -> Column:
    """The columns in fp32 alone, for what has no other dtype."""
    return column


@pytest.fixture
def generator() -> torch.Generator:
    """Fresh random numbers; KERNEL_TEST_SEED repeats those of a failure, whose report shows the seed."""
    seed = int(os.environ.get("KERNEL_TEST_SEED") or int.from_bytes(os.urandom(4)))
    print(f"KERNEL_TEST_SEED={seed}")
    return torch.Generator().manual_seed(seed)
