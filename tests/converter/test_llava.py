"""LLaVA checkpoints: every layout that they were saved in, and what of them is kept."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lite_llama.converter import Progress, convert, inspect
from lite_llama.models.config import ModelConfig
from lite_llama.models.errors import CheckpointError, UnsupportedModelError
from lite_llama.models.weights import targets

OLD = {  # as transformers saved them up to 4.51, and llava-hf's checkpoints are
    r"^language_model\.(model|lm_head)\.": r"language_model.\1.",
    r"^vision_tower\.": "vision_tower.vision_model.",
}
NEW = {  # as its modules are called from 4.52 on
    r"^language_model\.model\.": "model.language_model.",
    r"^language_model\.lm_head\.": "lm_head.",
    r"^vision_tower\.": "model.vision_tower.vision_model.",
    r"^multi_modal_projector\.": "model.multi_modal_projector.",
}
NEWEST = NEW | {r"^vision_tower\.": "model.vision_tower."}
LAYOUTS = {"as-saved": {}, "old": OLD, "new": NEW, "newest": NEWEST}


def rename(directory: Path, rules: dict[str, str]) -> None:
    """Rename the tensors of a checkpoint, and in its index if it has one."""

    def renamed(name: str) -> str:
        for pattern, replacement in rules.items():
            if re.search(pattern, name):
                return re.sub(pattern, replacement, name)
        return name

    for path in directory.glob("*.safetensors"):
        save_file({renamed(name): tensor for name, tensor in load_file(path).items()}, path)
    for path in directory.glob("*.index.json"):
        index = json.loads(path.read_text())
        index["weight_map"] = {renamed(name): file for name, file in index["weight_map"].items()}
        path.write_text(json.dumps(index))


@pytest.fixture(scope="module")
def expected(make_llava, tmp_path_factory) -> Callable[[str], dict[str, torch.Tensor]]:
    """The tensors of a converted model, made from those that transformers saved by hand."""

    def make(text: str) -> dict[str, torch.Tensor]:
        source = make_llava(tmp_path_factory.mktemp("llava"), text)
        config = ModelConfig.from_file(source / "config.json")
        saved = {
            name.replace("language_model.model.", "model.").replace(
                "language_model.lm_head", "lm_head"
            ): tensor
            for name, tensor in load_file(source / "model.safetensors").items()
        }
        return {
            target.name: torch.cat([saved[part.name] for part in target.sources]).reshape(target.shape)
            for target in targets(config)
        }

    return make


@pytest.mark.parametrize("text", ["LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"])
@pytest.mark.parametrize("shard_size", ["5GB", "200KB"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_all_layouts_convert_to_the_same_weights(
    layout, shard_size, text, make_llava, expected, run, tmp_path
):
    source = make_llava(tmp_path / "source", text, max_shard_size=shard_size)
    assert (len(list(source.glob("*.safetensors"))) > 1) == (shard_size == "200KB")
    rename(source, LAYOUTS[layout])
    checkpoint = run(source)
    converted, wanted = load_file(checkpoint.weights), expected(text)
    assert list(converted) == list(wanted)
    for name, tensor in wanted.items():
        assert torch.equal(converted[name], tensor), name
    checkpoint.verify(force=True)
    assert checkpoint.manifest.family == "LLaVA-1.5"
    assert checkpoint.manifest.parameter_count == sum(tensor.numel() for tensor in converted.values())


def test_what_is_not_computed_is_not_kept_and_the_rest_of_the_files_is(make_llava, run, tmp_path):
    source = make_llava(tmp_path / "source")
    position_ids = torch.arange(26)[None]
    tensors = load_file(source / "model.safetensors")
    tensors["vision_tower.vision_model.embeddings.position_ids"] = position_ids  # of old checkpoints
    save_file(tensors, source / "model.safetensors")
    (source / "preprocessor_config.json").write_text("{}")
    checkpoint = run(source)
    names = "\n".join(load_file(checkpoint.weights))
    assert "vision_tower.encoder.layers.1." in names  # the features are those before the last of 3 layers
    for unused in ("vision_tower.encoder.layers.2.", "post_layernorm", "position_ids"):
        assert unused not in names
    kept = {path.name for path in checkpoint.path.iterdir()}
    assert {"processor_config.json", "preprocessor_config.json", "chat_template.jinja"} <= kept
    for name in ("processor_config.json", "config.json"):
        assert (checkpoint.path / name).read_bytes() == (source / name).read_bytes()
    everything = make_llava(tmp_path / "last", vision_feature_layer=-1)
    assert "vision_tower.encoder.layers.2." in "\n".join(load_file(run(everything).weights))


def test_progress_counts_the_tower(make_llava, models_dir, downloads_dir, tmp_path):
    source = make_llava(tmp_path / "source")
    steps = list(convert(str(source), models_dir, downloads_dir, dtype="bfloat16"))
    shown = [step for step in steps if isinstance(step, Progress) and step.phase == "convert"]
    assert shown[-1].done == shown[-1].total
    assert shown[-1].item.startswith("multi_modal_projector.")
    assert (
        shown[-1].total == inspect(str(source), models_dir, downloads_dir, dtype="bfloat16").converted_bytes
    )


def test_a_tied_head(make_llava, run, tmp_path):
    source = make_llava(tmp_path / "source", tie_word_embeddings=True)
    tensors = load_file(source / "model.safetensors")
    tensors["language_model.lm_head.weight"] = tensors["language_model.model.embed_tokens.weight"].clone()
    save_file(tensors, source / "model.safetensors")
    checkpoint = run(source)
    assert checkpoint.config.tie_word_embeddings
    assert "lm_head.weight" not in load_file(checkpoint.weights)


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("vision_tower.encoder.layers.1.mlp.fc1.bias", None, r"lacks 1 tensor \(vision_tower.*fc1\.bias"),
        ("multi_modal_projector.linear_3.weight", torch.ones(3), r"has 1 tensor \(multi_modal_projector"),
        ("vision_tower.embeddings.patch_embedding.weight", torch.ones(32, 588), r"not \[32, 3, 14, 14\]"),
        ("language_model.model.norm.weight", None, r"lacks 1 tensor \(model\.norm\.weight"),
    ],
)
def test_wrong_tensors_are_named(name, change, words, make_llava, run, tmp_path):
    source = make_llava(tmp_path / "source")
    tensors = load_file(source / "model.safetensors")
    if change is None:
        del tensors[name]
    else:
        tensors[name] = change
    save_file(tensors, source / "model.safetensors")
    with pytest.raises(CheckpointError, match=words):
        run(source)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"vision_config": {"model_type": "siglip_vision_model"}}, "siglip_vision_model"),
        ({"vision_config": {"hidden_act": "relu"}}, "relu"),
        ({"projector_hidden_act": "silu"}, "silu"),
        ({"vision_feature_select_strategy": "cls_patch"}, "cls_patch"),
        ({"text_config": {"model_type": "mistral"}}, "mistral"),
    ],
)
def test_refusals_name_what_is_unsupported(change, word, make_llava, run, tmp_path):
    source = make_llava(tmp_path / "source")
    config = json.loads((source / "config.json").read_text())
    for name, value in change.items():
        config[name] = config[name] | value if isinstance(value, dict) else value
    (source / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedModelError, match=word):
        run(source)
