"""What is found on this machine that can be converted."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from lite_llama.converter import convert, find_local, inspect
from lite_llama.models.config import ModelConfig

COMMIT = "1" * 40


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty Hugging Face cache."""
    from huggingface_hub import constants

    path = tmp_path / "cache" / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(path))
    return path


def add_snapshot(cache: Path, repo: str, commit: str, files: Path) -> Path:
    """Lay a checkpoint into the cache as huggingface_hub does: links from the snapshot to blobs."""
    root = cache / f"models--{repo.replace('/', '--')}"
    snapshot = root / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (root / "blobs").mkdir(exist_ok=True)
    (root / "refs").mkdir(exist_ok=True)
    (root / "refs" / "main").write_text(commit)
    for file in files.iterdir():
        blob = root / "blobs" / f"{commit[:4]}-{file.name}"
        shutil.copyfile(file, blob)
        (snapshot / file.name).symlink_to(blob)
    return snapshot


def test_no_cache_and_no_directories(cache, tmp_path):
    assert find_local([]) == []
    assert find_local([tmp_path / "nowhere"]) == []


def test_the_cache(cache, tiny_llama, models_dir, downloads_dir):
    snapshot = add_snapshot(cache, "someone/small-llama", COMMIT, tiny_llama)
    broken = add_snapshot(cache, "someone/half", COMMIT, tiny_llama)
    (broken / "model.safetensors").unlink()
    [local] = find_local([])
    assert (local.source, local.name, local.family) == (str(snapshot), "small-llama", "Llama")
    assert (local.repo, local.revision) == ("someone/small-llama", COMMIT)
    assert local.size == (tiny_llama / "model.safetensors").stat().st_size
    assert inspect(local.source, models_dir, downloads_dir).name == local.name
    list(convert(local.source, models_dir, downloads_dir))
    assert ModelConfig.from_file(models_dir / "small-llama" / "config.json").family == "Llama"


def test_directories(cache, llama, tiny_sharded, tmp_path):
    shelf = tmp_path / "shelf"
    shutil.copytree(llama, shelf / "a" / "Llama")
    shutil.copytree(tiny_sharded, shelf / "sharded")
    shutil.copytree(llama, shelf / "one" / "two" / "three" / "too-deep")
    shutil.copytree(llama, shelf / ".hidden")
    (shelf / "a" / "pickled").mkdir()
    (shelf / "a" / "pickled" / "config.json").write_text("{}")
    (shelf / "a" / "model.gguf").write_bytes(b"GGUF" + bytes(20))
    (shelf / "a" / "text.gguf").write_text("no such file")
    (shelf / "a" / "split-00001-of-00002.gguf").write_bytes(b"GGUF" + bytes(20))
    names = [local.name for local in find_local([shelf, shelf / "a"])]
    assert names == ["Llama", "model", "sharded"]
    (shelf / "a" / "split-00002-of-00002.gguf").write_bytes(b"GGUF" + bytes(20))
    [split] = [local for local in find_local([shelf]) if "split" in local.name]
    assert (split.source, split.size) == (str(shelf / "a" / "split-00001-of-00002.gguf"), 48)


def test_a_directory_that_cannot_be_read(cache, tmp_path, monkeypatch):
    def refuse(_: object) -> None:
        raise PermissionError

    (tmp_path / "shelf").mkdir()
    monkeypatch.setattr("os.scandir", refuse)
    assert find_local([tmp_path / "shelf"]) == []
