"""Every kernel compiles for each kind of GPU that we promise, and fits its shared memory."""

import importlib
import json
import os
import pkgutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import lite_llama.kernels

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


def test_every_kernel_compiles_for_every_target(tmp_path):
    """In processes of their own, since this one may run the interpreter; two at a time."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    script = Path(__file__).with_name("compile_kernels.py")

    def compile_for(target: str) -> tuple[list[dict], str]:
        result = subprocess.run(
            [sys.executable, str(script), target],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        return [json.loads(line) for line in result.stdout.splitlines()], result.stderr[-3000:]

    with ThreadPoolExecutor(2) as pool:
        reports = dict(zip(SHARED_MEMORY, pool.map(compile_for, SHARED_MEMORY), strict=True))
    for target, (report, stderr) in reports.items():
        assert [entry for entry in report if "error" in entry] == [], target
        assert {entry["kernel"] for entry in report} == kernel_names(), f"{target}: {stderr}"
        too_large = [entry for entry in report if entry["shared"] > SHARED_MEMORY[target]]
        assert too_large == [], target
