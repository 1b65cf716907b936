"""What a user sees of bad input: exit code 1 and one line that names the trouble (`fails` checks both)."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lite_llama.app.paths import HOME_VARIABLE


@pytest.fixture
def checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy to be spoilt."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "tiny"))


def edit_config(checkpoint: Path, **fields: object) -> None:
    path = checkpoint / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def flip_bit(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 0x10
    path.write_bytes(content)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size * 2 // 3)


def assert_nothing_left(home: Path) -> None:
    models = home / "models"
    assert [path.name for path in models.iterdir()] == [] if models.exists() else True


def test_truncated_weights(fails, checkpoint, home):
    cut(checkpoint / "model.safetensors")
    message = fails("convert", checkpoint)
    assert "model.safetensors" in message
    assert_nothing_left(home)


def test_a_flipped_bit_in_the_header(fails, checkpoint, home):
    flip_bit(checkpoint / "model.safetensors", 3)
    assert "model.safetensors" in fails("convert", checkpoint)
    assert_nothing_left(home)


def test_a_flipped_bit_in_converted_weights(fails, tiny_model):
    (tiny_model / ".verified.json").unlink()  # as when the model was copied from another machine
    flip_bit(tiny_model / "model.safetensors", -5)
    message = fails("ask", "Hi")
    assert "tiny/model.safetensors is damaged (its checksum differs): convert it again" in message
    assert fails("models", "verify") == message


def test_truncated_converted_weights(fails, tiny_model):
    cut(tiny_model / "model.safetensors")
    assert "convert it again" in fails("ask", "Hi")


def test_a_missing_shard(fails, make_checkpoint, tmp_path, home):
    checkpoint = make_checkpoint("LlamaForCausalLM", tmp_path / "sharded", max_shard_size="200KB")
    shard = sorted(checkpoint.glob("model-*.safetensors"))[1]
    shard.unlink()
    assert shard.name in fails("convert", checkpoint)
    assert_nothing_left(home)


def test_wrong_shapes(fails, checkpoint, home):
    edit_config(checkpoint, vocab_size=400)
    message = fails("convert", checkpoint)
    for words in ("model.embed_tokens.weight", "[384, 64]", "[400, 64]"):
        assert words in message
    assert_nothing_left(home)


def test_an_unsupported_architecture(fails, checkpoint):
    edit_config(checkpoint, architectures=["MambaForCausalLM"])
    message = fails("convert", checkpoint)
    assert "'MambaForCausalLM' is not supported" in message
    assert "Qwen3ForCausalLM" in message


def test_an_unsupported_rope_rule(fails, checkpoint):
    edit_config(checkpoint, rope_parameters={"rope_type": "longrope", "rope_theta": 10000.0})
    assert "'longrope' is not supported" in fails("convert", checkpoint)


def test_a_config_that_is_no_json(fails, checkpoint):
    (checkpoint / "config.json").write_text("{")
    assert "config.json cannot be read as JSON" in fails("convert", checkpoint)


def test_pickled_weights_only(fails, checkpoint):
    (checkpoint / "model.safetensors").rename(checkpoint / "pytorch_model.bin")
    assert "pickle" in fails("convert", checkpoint)


def test_no_tokenizer(fails, checkpoint, home):
    (checkpoint / "tokenizer.json").unlink()
    assert "tokenizer" in fails("convert", checkpoint)
    assert_nothing_left(home)


def test_a_gguf_file_cut_short(fails, tmp_path, home):
    import numpy as np
    from gguf import GGUFWriter

    path = tmp_path / "model.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_tensor("token_embd.weight", np.zeros((64, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    whole = path.read_bytes()
    for size in (len(whole) - 64, 40, 6):  # within the tensors, the metadata, the header
        path.write_bytes(whole[:size])
        message = fails("convert", path)
        assert "model.gguf" in message
        assert "download it again" in message
    assert_nothing_left(home)


def test_sources_that_are_none(fails, tmp_path):
    assert "no file or directory" in fails("convert", tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("hello")
    assert "no GGUF file" in fails("convert", tmp_path / "notes.txt")
    (tmp_path / "empty").mkdir()
    assert "empty is empty" in fails("convert", tmp_path / "empty")


@contextlib.contextmanager
def small_disk(path: Path, size: str) -> Iterator[None]:
    """A tmpfs at `path`; skips the test where mounting is not permitted."""
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a tmpfs is not permitted here")
    try:
        yield
    finally:
        subprocess.run(["umount", str(path)], check=True)


def test_too_little_space(fails, checkpoint, home):
    with small_disk(home, "1m"):
        message = fails("convert", checkpoint)
        assert "are needed on the disk" in message
        assert "LITE_LLAMA_HOME" in message
        assert_nothing_left(home)


def test_a_disk_that_becomes_full(fails, checkpoint, home, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: shutil._ntuple_diskusage(10**12, 0, 10**12))  # pyright: ignore
    with small_disk(home, "400k"):
        assert "The disk became full" in fails("convert", checkpoint)
        assert_nothing_left(home)


def test_not_enough_memory(fails, tiny_model, monkeypatch):
    monkeypatch.setattr("lite_llama.engine.memory.available_memory", lambda _: 1_000_000)
    message = fails("ask", "Hi")
    assert "needs" in message
    assert "1 MB are free on CPU" in message


def start_conversion(checkpoint: Path, home: Path) -> subprocess.Popen[str]:
    """A conversion in a process of its own, slowed down, in the middle of the weights; it keeps no part."""
    code = (
        "import sys, time\n"
        "from lite_llama.converter.huggingface import HuggingFaceSource\n"
        "read = HuggingFaceSource.read\n"
        "HuggingFaceSource.read = lambda self, name: (time.sleep(0.1), read(self, name))[1]\n"
        "sys.modules['lite_llama.converter.convert'].KEEP_EVERY_S = 60\n"
        "from lite_llama.app.cli import main\n"
        "main()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, "convert", str(checkpoint)],
        env=os.environ | {HOME_VARIABLE: str(home)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not any(path.stat().st_size > 20_000 for path in home.rglob("model.safetensors")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return process


def test_ctrl_c_in_the_middle_of_a_conversion(checkpoint, home):
    process = start_conversion(checkpoint, home)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout, stderr) == (1, "", "error: Stopped: nothing was left behind.\n")
    assert_nothing_left(home)


def test_a_killed_conversion_is_cleaned_up_by_the_next(cli, checkpoint, home):
    process = start_conversion(checkpoint, home)
    process.kill()
    process.communicate(timeout=60)
    assert json.loads(cli("models", "--json").stdout) == []
    result = cli("convert", checkpoint)
    assert result.exit_code == 0
    assert result.stderr.startswith("Removed ")
    assert [path.name for path in (home / "models").iterdir()] == ["tiny"]
    assert cli("models", "verify").exit_code == 0
