"""What this machine has, what will run where and why, and what keeps the program from running."""

from __future__ import annotations

import importlib
import os
import platform
import shutil
import sys
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from .. import __version__
from ..models.checkpoint import Checkpoint
from ..models.errors import UserError
from ..models.units import format_bytes, format_count
from .library import NO_MODEL, Library, scan
from .paths import HOME_VARIABLE, Paths
from .settings import Settings, SettingsStore

_PACKAGES = ("torch", "triton", "transformers", "safetensors", "huggingface_hub", "gguf", "textual", "rich")
NOT_INSTALLED = "not installed"
_LITTLE_SPACE = 2_000_000_000
_LEAST_CAPABILITY = (8, 0)
"""NVIDIA's Ampere: the oldest that the Triton kernels are compiled and tuned for."""


class Bytes(int):
    """A size that JSON shows as a number and people see with its unit."""

    def __str__(self) -> str:
        return format_bytes(self)


@dataclass
class Report:
    """The examination's result."""

    sections: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Heading -> name -> value (a string, a number or Bytes)."""
    plan: list[str] = field(default_factory=list)
    """What will run where and why, a sentence each."""
    warnings: list[str] = field(default_factory=list)
    """What is wrong but keeps nothing from running, each with its remedy."""
    problems: list[str] = field(default_factory=list)
    """What keeps the program from running, each with its remedy."""

    def as_dict(self) -> dict[str, Any]:
        """The report for scripts."""
        return asdict(self)

    def as_text(self) -> str:
        """The report for people."""
        width = max(len(name) for entries in self.sections.values() for name in entries)
        lines: list[str] = []
        for heading, entries in self.sections.items():
            lines += ["", heading, *(f"  {name:<{width}}  {value}" for name, value in entries.items())]
        for heading, sentences in (
            ("What will run where", self.plan),
            ("Worth knowing", self.warnings),
            ("Problems", self.problems),
        ):
            if sentences:
                lines += ["", heading, *(f"  {sentence}" for sentence in sentences)]
        if not self.problems:
            lines += ["", "Nothing keeps the program from running."]
        return "\n".join(lines).lstrip()


def examine(paths: Paths) -> Report:
    """Look at the machine, the installation and the data. Changes nothing, loads no model."""
    report = Report()
    report.sections["Program"] = {
        "lite-llama-tui": __version__,
        "python": f"{platform.python_version()} ({sys.executable})",
        "system": f"{platform.system()} {platform.release()}, {platform.machine()}",
    }
    report.sections["Packages"] = {name: _version(name) for name in _PACKAGES}
    store = SettingsStore(paths.settings)
    settings = store.load()
    report.warnings += store.problems
    library = scan(paths.models)
    if _imports_work(report):
        _hardware(report)
        _plan(report, paths, settings, library.models)
    _data(report, paths, library)
    _terminal(report)
    return report


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return NOT_INSTALLED


def _imports_work(report: Report) -> bool:
    """Whether the packages that the engine cannot do without can be imported."""
    for name in ("torch", "transformers", "safetensors"):
        try:
            importlib.import_module(name)
        except Exception as error:  # a broken build raises anything from ImportError to OSError
            report.problems.append(f"{name} cannot be imported ({error}): install it again.")
    return not report.problems


def _hardware(report: Report) -> None:
    import torch

    from ..engine.device import available_memory

    build = "CPU only"
    if torch.version.cuda:
        build = f"CUDA {torch.version.cuda}"
    elif torch.version.hip:
        build = f"ROCm {torch.version.hip}"
    report.sections["Packages"]["torch"] += f" ({build})"
    report.sections["CPU"] = {
        "cores": os.cpu_count(),
        "threads used": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "memory": Bytes(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")),
        "memory available": Bytes(available_memory(torch.device("cpu"))),
    }
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        report.sections[f"GPU {index}"] = {
            "name": properties.name,
            "architecture": getattr(properties, "gcnArchName", None)
            or f"compute capability {properties.major}.{properties.minor}",
            "memory": Bytes(properties.total_memory),
            "memory available": Bytes(torch.cuda.mem_get_info(index)[0]),
        }


def _plan(report: Report, paths: Paths, settings: Settings, models: tuple[Checkpoint, ...]) -> None:
    """Say what runs where, by the same rules by which the engine decides."""
    import torch

    from ..engine.device import resolve_device

    try:
        device = resolve_device(settings.device)
    except UserError:
        report.problems.append(
            f"{paths.settings} asks for a GPU and there is none: set device to auto there."
        )
        return
    if device.type == "cuda":
        _plan_gpu(report)
    elif torch.cuda.is_available():
        report.plan.append(
            f'Models run on the CPU because {paths.settings} says device = "cpu"; auto would take the GPU.'
        )
    else:
        report.plan.append(_why_no_gpu(report))
    report.plan.append(_dtype_sentence(device, settings))
    for checkpoint in models:
        try:
            report.plan.append(_fit(checkpoint, device, settings))
        except UserError as error:
            report.warnings.append(f"{checkpoint.path.name} cannot be loaded now: {error}")
    if not models:
        report.plan.append(NO_MODEL)


def _fit(checkpoint: Checkpoint, device: Any, settings: Settings) -> str:
    """How a model will run in the memory there is. Raises UserError when it does not fit."""
    from ..engine.device import resolve_dtype
    from ..engine.memory import plan_memory

    dtype = resolve_dtype(settings.dtype, device, checkpoint.manifest.dtype)
    plan = plan_memory(checkpoint.config, dtype, device)
    name, dtype_name = checkpoint.path.name, str(dtype).removeprefix("torch.")
    return f"{name} runs in {dtype_name} with up to {plan.max_context:,} tokens of context."


def _plan_gpu(report: Report) -> None:
    import torch

    properties = torch.cuda.get_device_properties(0)
    if report.sections["Packages"]["triton"] == NOT_INSTALLED:
        report.problems.append("A GPU needs the package triton: install it with pip install triton.")
        return
    report.plan.append(f"A GPU was found ({properties.name}): models run on it with the Triton kernels.")
    if torch.cuda.device_count() > 1:
        report.plan.append("One GPU is used, the first; CUDA_VISIBLE_DEVICES chooses another.")
    if torch.version.hip:
        report.warnings.append(
            "The kernels compile for ROCm but were never run on it: if a reply is wrong, use --device cpu."
        )
    elif (properties.major, properties.minor) < _LEAST_CAPABILITY:
        report.warnings.append(
            "The kernels are made for compute capability 8.0 and newer: if a model fails, use --device cpu."
        )


def _why_no_gpu(report: Report) -> str:
    """Why models run on the CPU; a GPU that is there but out of reach becomes a warning with its remedy."""
    import torch

    runs = "models run on the CPU with the plain PyTorch operators"
    nvidia, amd = Path("/proc/driver/nvidia/version").exists(), Path("/dev/kfd").exists()
    if not (nvidia or amd):
        return f"No GPU was found: {runs}."
    maker = "NVIDIA" if nvidia else "AMD"
    if torch.version.cuda or torch.version.hip:
        report.warnings.append(
            f"PyTorch cannot use the {maker} GPU that the driver knows: check CUDA_VISIBLE_DEVICES, your "
            "permissions, and that the driver is new enough for this build of PyTorch."
        )
    else:
        report.warnings.append(
            f"This PyTorch is a build without GPU support: install the one for {maker} from pytorch.org."
        )
    return f"PyTorch cannot reach the {maker} GPU: {runs}."


def _dtype_sentence(device: Any, settings: Settings) -> str:
    """Which dtype 16-bit weights run in, and why."""
    from ..engine.device import resolve_dtype
    from ..kernels.linear import cpu_has_bf16

    if settings.dtype != "auto":
        return f"Every model runs in {settings.dtype} because the settings say so."
    dtype = str(resolve_dtype("auto", device, "bfloat16")).removeprefix("torch.")
    if device.type == "cpu" and cpu_has_bf16():
        return "16-bit weights run in bfloat16, which this CPU multiplies in hardware."
    if device.type == "cpu":
        return "16-bit weights run in bfloat16, widened for prompts: this CPU has no 16-bit arithmetic."
    if dtype == "float16":
        return "bfloat16 weights run in float16, because this GPU has no bfloat16."
    return "Weights run in the dtype that they are stored in."


def _data(report: Report, paths: Paths, library: Library) -> None:
    there = next(path for path in (paths.models, *paths.models.parents) if path.exists())
    free = shutil.disk_usage(there).free
    report.sections["Data"] = {
        "models": str(paths.models),
        "downloads": str(paths.downloads),
        "conversations": str(paths.database),
        "settings": str(paths.settings),
        "log": str(paths.log),
        "free space": Bytes(free),
    }
    if not os.access(there, os.W_OK):
        report.problems.append(f"{there} cannot be written to: set {HOME_VARIABLE} to a directory that can.")
    if free < _LITTLE_SPACE:
        report.warnings.append(f"Only {format_bytes(free)} are free in {there}: most models need more.")
    if library.models:
        report.sections["Models"] = {
            checkpoint.path.name: f"{checkpoint.manifest.family}, "
            f"{format_count(checkpoint.manifest.parameter_count)} parameters, {checkpoint.manifest.dtype}, "
            f"{format_bytes(checkpoint.size)}"
            for checkpoint in library.models
        }
    report.warnings += library.damage.values()


def _terminal(report: Report) -> None:
    from rich.console import Console

    columns, rows = shutil.get_terminal_size()
    report.sections["Terminal"] = {
        "TERM": os.environ.get("TERM", "not set"),
        "size": f"{columns}x{rows}",
        "colours": Console().color_system or "none",
        "encoding": sys.stdout.encoding,
    }
