"""Hugging Face directories: what is converted, and what is said about those that cannot be."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lite_llama.models.config import ModelConfig
from lite_llama.models.errors import CheckpointError, UnsupportedModelError, UserError
from lite_llama.models.weights import targets


def load(directory: Path) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint, by safetensors' own reader."""
    tensors = {}
    for path in directory.glob("*.safetensors"):
        tensors.update(load_file(path))
    return tensors


def shard_names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.glob("model-*.safetensors"))


def edit_config(directory: Path, **fields: object) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def edit_tensors(directory: Path, **changes: torch.Tensor | None) -> None:
    """Replace, add or (None) drop tensors of a single-file checkpoint."""
    path = directory / "model.safetensors"
    tensors: dict[str, torch.Tensor | None] = dict(load_file(path)) | changes
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, path)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("shard_size", ["5GB", "100KB"])
@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"])
def test_every_tensor_arrives(make_checkpoint, run, tmp_path, architecture, shard_size, tied):
    source = make_checkpoint(
        architecture, tmp_path / "source", max_shard_size=shard_size, tie_word_embeddings=tied
    )
    assert (len(list(source.glob("*.safetensors"))) > 1) == (shard_size == "100KB")
    checkpoint = run(source)
    before, after = load(source), load_file(checkpoint.weights)
    plan = targets(ModelConfig.from_file(source / "config.json"))
    assert list(after) == [target.name for target in plan]
    for target in plan:
        expected = torch.cat([before[part.name] for part in target.sources])
        assert torch.equal(after[target.name], expected)
    assert checkpoint.manifest.parameter_count == sum(tensor.numel() for tensor in after.values())
    assert checkpoint.manifest.dtype == "float32"
    checkpoint.verify(force=True)


def test_data_starts_aligned(llama, run):
    with run(llama).weights.open("rb") as file:
        assert (8 + int.from_bytes(file.read(8), "little")) % 64 == 0


def test_companions_are_copied_unchanged(llama, run):
    for name in ("special_tokens_map.json", "merges.txt", "preprocessor_config.json", "README.md"):
        (llama / name).write_text(name)
    model = run(llama)
    copied = {path.name for path in model.path.iterdir()} - {".verified.json"}
    expected = {path.name for path in llama.iterdir()} - {"README.md"} | {"manifest.json"}
    assert copied == expected
    for name in expected - {"manifest.json", "model.safetensors"}:
        assert (model.path / name).read_bytes() == (llama / name).read_bytes()
    assert set(model.manifest.files) == expected - {"manifest.json"}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_dtype_is_cast(sharded, run, dtype):
    model = run(sharded, dtype=dtype)
    assert model.manifest.dtype == dtype
    embedding = load_file(model.weights)["model.embed_tokens.weight"]
    assert torch.equal(embedding, load(sharded)["model.embed_tokens.weight"].to(getattr(torch, dtype)))


@pytest.mark.parametrize(
    ("declared", "expected"), [("float16", "float16"), (None, "bfloat16"), ("float8_e4m3fn", "bfloat16")]
)
def test_auto_dtype_is_the_configs_or_else_the_tensors(sharded, run, declared, expected):
    edit_config(sharded, dtype=declared)
    assert run(sharded).manifest.dtype == expected


def test_dtype_unknown(llama, run):
    with pytest.raises(UserError, match="'int8' is no dtype for a model: use auto, float32"):
        run(llama, dtype="int8")


def test_beyond_float16(llama, run):
    edit_tensors(llama, **{"model.norm.weight": torch.full((64,), 70000.0)})
    with pytest.raises(UserError, match=r"Tensor model\.norm\.weight holds values beyond .* float16"):
        run(llama, dtype="float16")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_not_finite(llama, run, value):
    weight = torch.ones(64)
    weight[13] = value
    edit_tensors(llama, **{"model.norm.weight": weight})
    with pytest.raises(CheckpointError, match=r"Tensor model\.norm\.weight holds NaN or infinity"):
        run(llama)


def test_foreign_dtype(llama, run):
    edit_tensors(llama, **{"model.norm.weight": torch.ones(64).to(torch.float8_e4m3fn)})
    with pytest.raises(UnsupportedModelError, match=r"model\.norm\.weight is stored as F8_E4M3"):
        run(llama)


def test_missing_tensors_are_named(llama, run):
    names = [f"model.layers.{index}.self_attn.k_proj.weight" for index in range(3)]
    edit_tensors(llama, **dict.fromkeys([*names, "model.norm.weight"]))
    with pytest.raises(CheckpointError, match=rf"lacks 4 tensors \({', '.join(names)} and 1 more\)"):
        run(llama)


def test_unknown_tensors_are_named(llama, run):
    edit_tensors(llama, **{"model.layers.0.self_attn.q_proj.bias": torch.ones(64)})
    with pytest.raises(CheckpointError, match=r"has 1 tensor \(model\.layers\.0\.self_attn\.q_proj\.bias\)"):
        run(llama)


def test_rope_buffers_and_a_tied_heads_copy_are_passed_over(make_checkpoint, run, tmp_path):
    source = make_checkpoint("LlamaForCausalLM", tmp_path / "tied", tie_word_embeddings=True)
    head = load(source)["model.embed_tokens.weight"].clone()
    buffer = torch.ones(8, dtype=torch.float64)
    edit_tensors(source, **{"lm_head.weight": head, "model.layers.0.self_attn.rotary_emb.inv_freq": buffer})
    assert "lm_head.weight" not in load_file(run(source).weights)


def test_wrong_shape(llama, run):
    edit_tensors(llama, **{"model.layers.1.mlp.up_proj.weight": torch.ones(161, 64)})
    with pytest.raises(CheckpointError, match=r"up_proj\.weight has shape \[161, 64\], not \[160, 64\]"):
        run(llama)


def test_missing_shard(sharded, run):
    shards = shard_names(sharded)
    (sharded / shards[1]).unlink()
    with pytest.raises(CheckpointError, match=rf"lacks {shards[1]}, 1 of {len(shards)} shards"):
        run(sharded)


def test_index_lists_a_tensor_that_is_in_no_shard(sharded, run):
    path = sharded / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    first = shard_names(sharded)[0]
    index["weight_map"]["model.extra.weight"] = first
    path.write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=rf"{first} lacks model\.extra\.weight"):
        run(sharded)


def test_index_lacks_a_tensor_of_a_shard(sharded, run):
    path = sharded / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    del index["weight_map"]["model.norm.weight"]
    path.write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"holds model\.norm\.weight, which .*index\.json lacks"):
        run(sharded)


@pytest.mark.parametrize("content", ["{", "[]", '{"weight_map": {}}', '{"weight_map": {"a": "../b"}}'])
def test_damaged_index(sharded, run, content):
    (sharded / "model.safetensors.index.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"index\.json is damaged"):
        run(sharded)


@pytest.mark.parametrize("kept", [0, 5, 8, 100, -1])
def test_truncated(llama, run, kept):
    path = llama / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged"):
        run(llama)


def test_a_flipped_bit_anywhere_in_the_header_is_noticed(llama, run, models_dir):
    path = llama / "model.safetensors"
    sound = path.read_bytes()
    length = 8 + int.from_bytes(sound[:8], "little")
    unnoticed = []
    for position in [*range(8), *range(8, length, 97)]:
        damaged = bytearray(sound)
        damaged[position] ^= 1 << (position % 7)
        path.write_bytes(damaged)
        try:
            run(llama, force=True)
        except UserError:
            continue
        unnoticed.append(bytes(damaged[position - 20 : position + 20]))
    # The padding and the free-form metadata may change without harm.
    assert all(b"format" in near or b"   " in near for near in unnoticed)


def test_pickle_only(llama, run):
    (llama / "model.safetensors").rename(llama / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"only as pickle \(pytorch_model\.bin\).*safetensors"):
        run(llama)


def test_no_weights(llama, run):
    (llama / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"has neither model\.safetensors nor"):
        run(llama)


def test_no_tokenizer(llama, run):
    (llama / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match="has no tokenizer"):
        run(llama)


def test_damaged_tokenizer(llama, run, models_dir):
    (llama / "tokenizer.json").write_text('{"model": ')
    with pytest.raises(CheckpointError, match="The tokenizer cannot be loaded"):
        run(llama)
    assert not any(models_dir.iterdir())


def test_tokenizer_of_vocab_and_merges(make_checkpoint, run, tmp_path):
    """Older Qwen and GPT-2 style checkpoints have no tokenizer.json."""
    source = make_checkpoint("Qwen2ForCausalLM", tmp_path / "qwen")
    model = json.loads((source / "tokenizer.json").read_text())["model"]
    (source / "tokenizer.json").unlink()
    (source / "vocab.json").write_text(json.dumps(model["vocab"]))
    (source / "merges.txt").write_text("\n".join(" ".join(pair) for pair in model["merges"]))
    (source / "tokenizer_config.json").write_text('{"tokenizer_class": "Qwen2Tokenizer"}')
    assert (run(source).path / "merges.txt").is_file()
    (source / "vocab.json").write_text("[")
    with pytest.raises(CheckpointError, match="The tokenizer cannot be loaded"):
        run(source, name="again")


def test_unsupported_architecture(llama, run):
    edit_config(llama, architectures=["GPT2LMHeadModel"])
    with pytest.raises(UnsupportedModelError, match="GPT2LMHeadModel"):
        run(llama)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"architectures": ["LlamaForCausalLM"]}'])
def test_damaged_config(llama, run, content):
    (llama / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        run(llama)


def test_no_config(llama, run):
    (llama / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        run(llama)


def test_empty_directory(run, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="is empty"):
        run(tmp_path / "empty")


def test_converted_model_as_source(llama, run):
    with pytest.raises(UserError, match="is a converted model already"):
        run(run(llama).path, name="again")


def test_directory_of_gguf_files(run, tmp_path):
    (tmp_path / "ggufs").mkdir()
    (tmp_path / "ggufs" / "model.Q4_0.gguf").touch()
    with pytest.raises(UserError, match=r"holds GGUF files: name one of them, such as model\.Q4_0\.gguf"):
        run(tmp_path / "ggufs")


def test_symlinked_files_are_followed(llama, run, tmp_path):
    """The Hub's cache is made of symbolic links."""
    linked = tmp_path / "models--org--linked" / "snapshots" / ("a" * 40)
    linked.mkdir(parents=True)
    for path in llama.iterdir():
        (linked / path.name).symlink_to(path)
    model = run(linked)
    shutil.rmtree(llama)
    model.verify(force=True)
    assert model.manifest.name == "linked"
