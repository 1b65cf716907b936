"""Every kernel compiles for each kind of GPU that we promise, and fits its shared memory."""

import hashlib
import importlib
import json
import os
import pkgutil
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import lite_llama.kernels

SCRIPT = Path(__file__).with_name("compile_kernels.py")
KIB = 1024
SHARED_MEMORY = {
    "cuda:80": 163 * KIB,
    "cuda:86": 99 * KIB,
    "cuda:90": 227 * KIB,
    "hip:gfx90a": 64 * KIB,
    "hip:gfx942": 64 * KIB,
    "hip:gfx1100": 64 * KIB,
}


def kernel_names() -> set[str]:
    """module.function for each launchable kernel of the package: those whose name ends in `kernel`."""
    names = set()
    for module in pkgutil.iter_modules(lite_llama.kernels.__path__):
        functions = vars(importlib.import_module(f"lite_llama.kernels.{module.name}"))
        names |= {f"{module.name}.{name}" for name in functions if name.endswith("_kernel")}
    return names


@pytest.fixture
def triton_cache(cache_directory: Path) -> Path:
    """Where Triton keeps what it compiled from the kernels as they are now: another run looks it up there."""
    sources = [*Path(lite_llama.kernels.__path__[0]).glob("*.*"), SCRIPT]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(sources))).hexdigest()
    path = cache_directory / "triton" / digest[:16]
    if not path.is_dir():
        shutil.rmtree(path.parent, ignore_errors=True)  # of the kernels as they were
    return path


def test_every_kernel_compiles_for_every_target(triton_cache):
    """In two processes of their own, since this one may run the interpreter."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(triton_cache)

    def compile_for(targets: list[str]) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(SCRIPT), *targets]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    targets = list(SHARED_MEMORY)
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(compile_for, (targets[::2], targets[1::2])))
    report = [json.loads(line) for result in results for line in result.stdout.splitlines()]
    stderr = "".join(result.stderr[-3000:] for result in results)
    assert [entry for entry in report if "error" in entry] == []
    for target, available in SHARED_MEMORY.items():
        entries = [entry for entry in report if entry["target"] == target]
        assert {entry["kernel"] for entry in entries} == kernel_names(), f"{target}: {stderr}"
        assert [entry for entry in entries if entry["shared"] > available] == [], target


SIDE_BY_SIDE = """
import json, sys
from itertools import islice
from compile_kernels import TARGETS, AbsentDriver, driver, launches
from triton.runtime.jit import JITFunction
from lite_llama.kernels.compiling import compiling

driver.set_active(AbsentDriver(0, TARGETS["cuda:80"][0]))
calls = [call for _, call in islice(launches(), 6)]
with compiling():
    for call in calls:
        call()  # with no GPU there, a launch would fail
kernels = []
JITFunction._do_compile = lambda kernel, *_: kernels.append(f"{kernel.__name__} is compiled again")
JITFunction.__getitem__ = lambda kernel, grid: lambda *args, **options: kernels.append(
    kernel.run(*args, grid=grid, warmup=True, **options).metadata.name
)
for call in calls:
    call()
print(json.dumps(kernels))
"""


def test_launches_are_compiled_side_by_side_and_found(tmp_path):
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment |= {
        "TRITON_CACHE_DIR": str(tmp_path),
        "PYTHONPATH": os.pathsep.join([str(SCRIPT.parent), *sys.path]),
    }
    result = subprocess.run(
        [sys.executable, "-c", SIDE_BY_SIDE], env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    kernels = json.loads(result.stdout)
    assert len(kernels) >= 6
    assert [name for name in kernels if not name.endswith("_kernel")] == []
