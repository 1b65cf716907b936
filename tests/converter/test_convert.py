"""What a source may be, what is known of it beforehand, what a conversion tells, and what it needs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import save_file
from transformers import LlamaForCausalLM

from lite_llama import __version__
from lite_llama.converter import Done, Progress, convert, demo, inspect
from lite_llama.converter.convert import identify
from lite_llama.models.checkpoint import Checkpoint
from lite_llama.models.config import ModelConfig
from lite_llama.models.errors import UserError
from lite_llama.models.weights import targets

# Converts a checkpoint and prints the growth of the process's peak memory in MB. The imports come first:
# they are no part of what a conversion needs. Arguments: source, models and downloads directory, dtype.
PEAK = """
import sys
from pathlib import Path
import tokenizers, torch
from lite_llama.converter import convert

def status(field):
    line = next(line for line in open("/proc/self/status") if line.startswith(field))
    return int(line.split()[1]) / 1024

torch.zeros(1 << 20).aminmax()  # starts torch's threads
before = status("VmRSS")
source, models, downloads, dtype = sys.argv[1:]
*_, done = convert(source, Path(models), Path(downloads), dtype=dtype)
print(status("VmHWM") - before)
"""


def write_big_checkpoint(tiny: Path, directory: Path, **shape: int) -> int:
    """A bfloat16 checkpoint of random weights in 3 shards; returns the bytes of its largest tensor."""
    import torch

    directory.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (directory / name).write_bytes((tiny / name).read_bytes())
    config = json.loads((tiny / "config.json").read_text()) | {"dtype": "bfloat16"} | shape
    (directory / "config.json").write_text(json.dumps(config))
    parts = [part for target in targets(ModelConfig.from_dict(config)) for part in target.sources]
    shards: dict[str, dict[str, torch.Tensor]] = {}
    weight_map = {}
    for index, part in enumerate(parts):
        shard = f"model-{index * 3 // len(parts) + 1:05}-of-00003.safetensors"
        # A random row, repeated: hundreds of millions of random numbers would take longer than the test.
        row = torch.randn(part.shape[-1], dtype=torch.bfloat16)
        shards.setdefault(shard, {})[part.name] = row.expand(part.shape).contiguous()
        weight_map[part.name] = shard
    for shard, tensors in shards.items():
        save_file(tensors, directory / shard)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return max(tensor.nbytes for tensors in shards.values() for tensor in tensors.values())


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_peak_memory_is_the_largest_tensor(tiny_llama, tmp_path):
    # gate, up and down of 64 MB each, in a row: two of them at once, or one fused, would be seen.
    shape = {"hidden_size": 1024, "intermediate_size": 32768, "num_attention_heads": 16, "head_dim": 64}
    largest = write_big_checkpoint(tiny_llama, tmp_path / "big", **shape)
    assert largest == 64 << 20
    assert sum(path.stat().st_size for path in (tmp_path / "big").glob("*.safetensors")) > 580e6
    command = [sys.executable, "-c", PEAK, tmp_path / "big", tmp_path / "models", tmp_path / "downloads"]
    done = subprocess.run([*command, "float16"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 64 + 80, f"{done.stdout} MB"


def test_events(llama, models_dir, downloads_dir):
    events = list(convert(str(llama), models_dir, downloads_dir, dtype="bfloat16"))
    *progress, finish, done = events
    assert isinstance(done, Done)
    assert done.seconds > 0
    assert finish == Progress("finish", 0, 0, "tiny-llama")
    steps = [event for event in progress if isinstance(event, Progress)]
    assert len(steps) == len(progress)
    assert {step.phase for step in steps} == {"convert"}
    assert [step.done for step in steps] == sorted({step.done for step in steps})
    assert {step.total for step in steps} == {steps[-1].done}
    assert steps[-1].done == 2 * done.checkpoint.manifest.parameter_count
    assert steps[-1].item == "lm_head.weight"


def test_manifest_and_result(llama, run, models_dir):
    model = run(llama, name="mine")
    assert model == Checkpoint.open(models_dir / "mine")
    manifest = model.manifest
    assert (manifest.name, manifest.source, manifest.revision) == ("mine", str(llama), None)
    assert (manifest.architecture, manifest.family) == ("LlamaForCausalLM", "Llama")
    assert (manifest.dtype, manifest.tool_version) == ("float32", __version__)
    assert manifest.parameter_count == LlamaForCausalLM.from_pretrained(llama).num_parameters()
    # The checksums taken while writing are believed until a file changes.
    model.verify(progress=lambda _: pytest.fail("was read again"))
    model.verify(force=True)


def test_a_relative_source_is_remembered_in_full(llama, run, monkeypatch):
    monkeypatch.chdir(llama.parent)
    assert run(llama.name).manifest.source == str(llama)


def test_two_conversions_at_once(llama, sharded, models_dir, downloads_dir):
    first = convert(str(llama), models_dir, downloads_dir)
    second = convert(str(sharded), models_dir, downloads_dir)
    last = {}
    for pair in zip(first, second, strict=False):
        last = dict(zip("ab", pair, strict=True))
    *_, last["a"] = (last["a"], *first)
    *_, last["b"] = (last["b"], *second)
    assert all(isinstance(event, Done) for event in last.values())
    assert sorted(path.name for path in models_dir.iterdir()) == ["tiny-llama", "tiny-sharded"]


@pytest.mark.parametrize(
    "source", ["org/name", "https://huggingface.co/org/name", "https://huggingface.co/org/name/"]
)
def test_hub_ids(source):
    assert identify(source) == ("hub", "org/name")


def test_local_paths_come_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "name").mkdir(parents=True)
    (tmp_path / "demo").mkdir()
    (tmp_path / "a.gguf").touch()
    (tmp_path / "no-suffix").write_bytes(b"GGUF....")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert identify("org/name") == ("directory", "org/name")
    assert identify("~/org") == ("directory", str(tmp_path / "org"))
    assert identify("a.gguf") == ("gguf", "a.gguf")
    assert identify("no-suffix") == ("gguf", "no-suffix")
    assert identify("demo") == ("demo", "demo")
    assert identify("./demo")[0] == "directory"
    assert identify("demo-vision") == ("demo-vision", str(demo.DEMO_VISION))


@pytest.mark.parametrize(
    "source", ["nowhere", "/no/such/directory", "org/name/file", "org/model.gguf", "", "a b/c"]
)
def test_there_is_no_such_source(source, run):
    with pytest.raises(UserError, match="There is no file or directory"):
        run(source)


def test_a_file_that_is_no_gguf(llama, run):
    with pytest.raises(UserError, match="is no GGUF file"):
        run(llama / "model.safetensors")


@pytest.mark.parametrize("name", [".hidden", "a/b", "..", "a b", "-x", "x" * 101, "ü"])
def test_bad_names(llama, run, models_dir, name):
    with pytest.raises(UserError, match="cannot be a model's name"):
        run(llama, name=name)
    assert not models_dir.exists()


@pytest.mark.parametrize(
    ("directory", "name"),
    [
        ("My Model (v2)", "My-Model-v2"),
        (".cache", "cache"),
        ("模型", "model"),
        ("Llama-3.2_1B", "Llama-3.2_1B"),
        ("models--org--some-model/snapshots/0123abcd", "some-model"),
    ],
)
def test_default_names(llama, tmp_path, models_dir, downloads_dir, directory, name):
    (tmp_path / directory).parent.mkdir(parents=True, exist_ok=True)
    moved = llama.rename(tmp_path / directory)
    assert inspect(str(moved), models_dir, downloads_dir).name == name


@pytest.mark.parametrize(("dtype", "size"), [("auto", 4), ("bfloat16", 2)])
def test_inspect(llama, run, models_dir, downloads_dir, dtype, size):
    info = inspect(str(llama), models_dir, downloads_dir, dtype=dtype)
    assert not models_dir.exists()
    model = run(llama, dtype=dtype)
    assert (info.kind, info.name, info.family) == ("directory", "tiny-llama", "Llama")
    assert info.parameter_count == model.manifest.parameter_count
    assert info.converted_bytes == size * info.parameter_count
    assert 0 <= model.weights.stat().st_size - info.converted_bytes < 10_000
    assert info.download_bytes == 0
    assert info.free_bytes > 0


def test_inspect_finds_faults(llama, models_dir, downloads_dir):
    config = json.loads((llama / "config.json").read_text())
    (llama / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 4}))
    with pytest.raises(UserError, match=r"lacks 9 tensors \(model\.layers\.3\."):
        inspect(str(llama), models_dir, downloads_dir)


def test_inspect_demo(models_dir, downloads_dir):
    info = inspect("demo", models_dir, downloads_dir)
    assert (info.kind, info.name, info.family) == ("demo", demo.DEMO_NAME, "Llama")
    assert info.download_bytes == demo.DEMO_BYTES
    assert info.converted_bytes == 2 * 134_515_008


def test_inspect_the_demo_that_sees(models_dir, downloads_dir):
    info = inspect("demo-vision", models_dir, downloads_dir)
    assert (info.kind, info.name, info.family) == ("demo-vision", "demo-vision", "LLaVA-1.5")
    assert info.parameter_count
    assert (info.download_bytes, info.converted_bytes) == (0, 2 * info.parameter_count)


def test_the_package_does_not_load_torch():
    """The app imports it as it starts."""
    code = "import sys, lite_llama.converter; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
