"""GGUF as a source: tensors, config, and what is refused. The files are written by the `gguf` package."""

from __future__ import annotations

import functools
import json
import random
import re
import struct
import tracemalloc
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from safetensors.torch import load_file
from torch import Tensor

from lite_llama.converter import Done, convert, gguf_file
from lite_llama.converter.gguf import llama3_rope, open_gguf
from lite_llama.converter.gguf_file import GGUFFile
from lite_llama.models.checkpoint import WEIGHTS
from lite_llama.models.config import ModelConfig, RopeConfig
from lite_llama.models.errors import CheckpointError, UnsupportedModelError, UserError
from lite_llama.models.weights import targets

LLAMA, QWEN2, QWEN3 = "LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"
ARCHITECTURES = {LLAMA: gguf.MODEL_ARCH.LLAMA, QWEN2: gguf.MODEL_ARCH.QWEN2, QWEN3: gguf.MODEL_ARCH.QWEN3}
PRE_TOKENIZERS = {LLAMA: "llama-bpe", QWEN2: "qwen2", QWEN3: "qwen2"}


def permuted(weight: Tensor, heads: int) -> Tensor:
    """llama.cpp's order of the rows of q and k of `llama` models."""
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def encoded(tensor: Tensor, kind: Kind) -> tuple[np.ndarray, Kind]:
    """A tensor as llama.cpp stores it: vectors in F32, matrices in `kind`."""
    kind = kind if tensor.dim() > 1 else Kind.F32
    return gguf.quants.quantize(tensor.float().numpy(), kind), kind


def write_gguf(
    checkpoint: Path,
    path: Path,
    *,
    kind: Kind = Kind.F32,
    change: Callable[[gguf.GGUFWriter], None] = lambda writer: None,
    rope_divisors: Tensor | None = None,
    **writer_options: Any,
) -> Path:
    """Write a Hugging Face checkpoint as llama.cpp's converter does; `change` may add to the metadata."""
    config = json.loads((checkpoint / "config.json").read_text())
    architecture = config["architectures"][0]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    arch = ARCHITECTURES[architecture]
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[arch], **writer_options)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    tokenizer = json.loads((checkpoint / "tokenizer.json").read_text())
    special = {token["content"] for token in tokenizer["added_tokens"]}
    vocabulary = sorted(tokenizer["model"]["vocab"], key=tokenizer["model"]["vocab"].__getitem__)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(PRE_TOKENIZERS[architecture])
    writer.add_token_list(vocabulary)
    writer.add_token_types([3 if token in special else 1 for token in vocabulary])
    writer.add_token_merges([" ".join(merge) for merge in tokenizer["model"]["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    writer.add_chat_template((checkpoint / "chat_template.jinja").read_text())
    change(writer)
    if rope_divisors is not None:
        writer.add_tensor("rope_freqs.weight", rope_divisors.float().numpy())
    names = gguf.get_tensor_name_map(arch, config["num_hidden_layers"])
    for name, tensor in load_file(checkpoint / "model.safetensors").items():
        if architecture == LLAMA and ".q_proj." in name:
            tensor = permuted(tensor, heads)
        if architecture == LLAMA and ".k_proj." in name:
            tensor = permuted(tensor, kv_heads)
        stored = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert stored is not None
        data, tensor_kind = encoded(tensor, kind)
        writer.add_tensor(stored, data, raw_dtype=tensor_kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def transformers_inv_freq(head_dim: int, **parameters: Any) -> Tensor:
    """Inverse frequencies of the llama3 rope rule by transformers."""
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = LlamaConfig(head_dim=head_dim, max_position_embeddings=1 << 20, rope_parameters=parameters)
    return ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))[0]


def divisors_of(checkpoint: Path) -> Tensor:
    """What llama.cpp stores as rope_freqs.weight for a llama3 checkpoint."""
    config = ModelConfig.from_file(checkpoint / "config.json")
    theta, head_dim = config.rope.theta, config.head_dim
    scaled = transformers_inv_freq(
        head_dim, rope_type="llama3", rope_theta=theta, **dict(config.rope.parameters)
    )
    return 1 / theta ** (torch.arange(0, head_dim, 2) / head_dim) / scaled


@pytest.fixture(scope="module")
def llama(make_checkpoint: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama checkpoint without rope scaling."""
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    return make_checkpoint(LLAMA, tmp_path_factory.mktemp("llama"), rope_parameters=rope)


@pytest.fixture(scope="module")
def llama_gguf(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(llama, tmp_path_factory.mktemp("gguf") / "tiny.gguf", kind=Kind.Q8_0)


@pytest.mark.parametrize(
    ("architecture", "kind", "tied", "dtype"),
    [
        (LLAMA, Kind.F32, False, "float32"),
        (LLAMA, Kind.F16, True, "float16"),
        (LLAMA, Kind.Q4_1, False, "bfloat16"),
        (LLAMA, Kind.Q5_0, True, "bfloat16"),
        (QWEN2, Kind.BF16, True, "bfloat16"),
        (QWEN2, Kind.Q4_0, False, "bfloat16"),
        (QWEN3, Kind.F32, True, "float32"),
        (QWEN3, Kind.Q8_0, False, "bfloat16"),
    ],
)
def test_tensors_and_config_come_back(
    make_checkpoint: Any, tmp_path: Path, architecture: str, kind: Kind, tied: bool, dtype: str
) -> None:
    checkpoint = make_checkpoint(architecture, tmp_path / "hf", tie_word_embeddings=tied)
    divisors = divisors_of(checkpoint) if architecture == LLAMA else None
    path = write_gguf(checkpoint, tmp_path / "model.gguf", kind=kind, rope_divisors=divisors)
    source = open_gguf(path)
    config = ModelConfig.from_dict(source.config)
    wanted = {spec.name: spec.shape for target in targets(config) for spec in target.sources}
    assert dict(source.shapes) == wanted
    assert source.dtype == config.dtype == dtype
    original = load_file(checkpoint / "model.safetensors")
    assert set(original) == set(wanted)
    for name, tensor in original.items():
        data, stored_kind = encoded(tensor, kind)
        read = source.read(name)
        floats = {Kind.F16: torch.float16, Kind.BF16: torch.bfloat16}
        assert read.dtype == floats.get(stored_kind, torch.float32), name
        expected = torch.from_numpy(gguf.quants.dequantize(data, stored_kind).copy())
        assert torch.equal(read.float(), expected), name
        # Quantisation is coarse, but a wrong order of rows would be off by the weights' own size (0.2).
        assert (read.float() - tensor).abs().mean() < 0.02, name

    source.write_files(tmp_path)
    source.close()
    as_hugging_face = json.loads((checkpoint / "config.json").read_text()) | {"dtype": dtype}
    assert ModelConfig.from_file(tmp_path / "config.json") == ModelConfig.from_dict(as_hugging_face)
    from transformers import AutoConfig

    read_config = AutoConfig.from_pretrained(tmp_path)
    assert read_config.architectures == [architecture]
    assert (read_config.bos_token_id, read_config.eos_token_id, read_config.pad_token_id) == (0, 2, 0)


@pytest.mark.parametrize("architecture", [LLAMA, QWEN2, QWEN3])
def test_converted_like_its_checkpoint(make_checkpoint: Any, tmp_path: Path, architecture: str) -> None:
    """The same weights, byte for byte, whether the model comes as GGUF or as Hugging Face checkpoint."""
    checkpoint = make_checkpoint(architecture, tmp_path / "hf")
    divisors = divisors_of(checkpoint) if architecture == LLAMA else None
    path = write_gguf(checkpoint, tmp_path / "model.gguf", rope_divisors=divisors)
    converted = []
    for source in (checkpoint, path):
        *_, done = convert(str(source), tmp_path / "models", tmp_path / "downloads")
        assert isinstance(done, Done)
        converted.append(done.checkpoint)
    ours, theirs = converted
    assert ours.manifest.files[WEIGHTS] == theirs.manifest.files[WEIGHTS]
    assert ours.config == theirs.config


@pytest.mark.parametrize("kind", [kind for kind in Kind if gguf_file._can_dequantise(kind)])
def test_row_blocks_give_the_whole_tensor(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Kind
) -> None:
    """Every quantisation, on random bits, read in blocks of few rows and dequantised at once by gguf."""
    block, size = gguf.GGML_QUANT_SIZES[kind]
    bits = np.random.default_rng(0).integers(0, 256, (7, 512 // block * size), dtype=np.uint8)
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("x", bits, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    monkeypatch.setattr(gguf_file, "_DEQUANTISED_AT_ONCE", 3 * 512)
    file = GGUFFile(path)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        expected = gguf.quants.dequantize(bits, kind)
        read = file.read("x").float().numpy()
    np.testing.assert_array_equal(read, expected)
    assert read.shape == (7, 512)
    file.close()


def test_memory_is_bounded(tmp_path: Path) -> None:
    """Beside the fp32 result only a block's temporaries are held."""
    rows, columns = 8192, 2048
    bits = np.zeros((rows, columns // 32 * 34), np.uint8)
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("x", bits, raw_dtype=Kind.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = GGUFFile(path)
    tracemalloc.start()
    try:
        tensor = file.read("x")
        assert tensor.shape == (rows, columns)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        file.close()
    assert peak < rows * columns * 4 + 24 * 2**20


@pytest.mark.parametrize(
    ("head_dim", "theta", "factor", "original"),
    [
        (128, 500000.0, 8.0, 8192),  # Llama 3.1
        (64, 500000.0, 32.0, 8192),  # Llama 3.2 1B
        (128, 500000.0, 32.0, 8192),  # Llama 3.2 3B
        (16, 10000.0, 8.0, 64),
        (64, 1000000.0, 4.0, 16384),
    ],
)
def test_llama3_rope_is_recovered(head_dim: int, theta: float, factor: float, original: int) -> None:
    parameters = {"rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    parameters["original_max_position_embeddings"] = original
    scaled = transformers_inv_freq(head_dim, rope_theta=theta, **parameters)
    divisors = 1 / theta ** (torch.arange(0, head_dim, 2) / head_dim) / scaled
    assert llama3_rope(divisors.double(), theta, head_dim) == parameters
    wrong = divisors.double().clone()
    wrong[head_dim // 4 :] *= 1.5
    assert llama3_rope(wrong, theta, head_dim) is None
    assert llama3_rope(divisors.double()[1:], theta, head_dim) is None
    assert llama3_rope(torch.ones(head_dim // 2).double(), theta, head_dim) == {}


def test_foreign_rope_factors_are_refused(llama: Path, tmp_path: Path) -> None:
    path = write_gguf(llama, tmp_path / "m.gguf", rope_divisors=torch.linspace(1, 3, 8) ** 3)
    with pytest.raises(UnsupportedModelError, match="rope factors"):
        open_gguf(path)


def add_linear(writer: gguf.GGUFWriter) -> None:
    writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
    writer.add_rope_scaling_factor(4.0)


def add_yarn(writer: gguf.GGUFWriter) -> None:
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(4.0)
    writer.add_rope_scaling_orig_ctx_len(512)


def add_none(writer: gguf.GGUFWriter) -> None:
    writer.add_rope_scaling_type(gguf.RopeScalingType.NONE)


@pytest.mark.parametrize(
    ("change", "kind", "parameters"),
    [
        (add_none, "default", {}),
        (add_linear, "linear", {"factor": 4.0}),
        (add_yarn, "yarn", {"factor": 4.0, "original_max_position_embeddings": 512}),
    ],
)
def test_rope_scaling(llama: Path, tmp_path: Path, change: Any, kind: str, parameters: Any) -> None:
    source = open_gguf(write_gguf(llama, tmp_path / "m.gguf", change=change))
    rope = ModelConfig.from_dict(source.config).rope
    assert (rope.kind, rope.theta, dict(rope.parameters)) == (kind, 10000.0, parameters)
    source.close()


REFUSED = {
    "mixture of experts": lambda w: w.add_expert_count(8),
    "sliding-window": lambda w: w.add_sliding_window(64),
    "'longrope'": lambda w: w.add_rope_scaling_type(gguf.RopeScalingType.LONGROPE),
    "only a part of each": lambda w: w.add_rope_dimension_count(8),
    "blk.0.mystery.weight": lambda w: w.add_tensor("blk.0.mystery.weight", np.zeros(3, np.float32)),
    "Q8_1": lambda w: w.add_tensor("blk.0.x.weight", np.zeros((1, 40), np.uint8), raw_dtype=Kind.Q8_1),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_unsupported_models_are_refused(llama: Path, tmp_path: Path, reason: str) -> None:
    path = write_gguf(llama, tmp_path / "m.gguf", change=REFUSED[reason])
    with pytest.raises(UnsupportedModelError, match=reason) as refusal:
        open_gguf(path)
    assert str(path) in str(refusal.value)


def test_other_architectures_are_refused(llama: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(
        write_gguf(llama, path).read_bytes().replace(b"\5\0\0\0\0\0\0\0llama", b"\5\0\0\0\0\0\0\0mamba", 1)
    )
    with pytest.raises(UnsupportedModelError, match="'mamba'; supported are llama, qwen2, qwen3"):
        open_gguf(path)


def test_big_endian_and_old_files_are_refused(llama: Path, tmp_path: Path) -> None:
    path = write_gguf(llama, tmp_path / "m.gguf", endianess=gguf.GGUFEndian.BIG)
    with pytest.raises(UnsupportedModelError, match="big-endian"):
        open_gguf(path)
    path = write_gguf(llama, tmp_path / "m.gguf")
    path.write_bytes(b"GGUF" + struct.pack("<I", 1) + path.read_bytes()[8:])
    with pytest.raises(UnsupportedModelError, match="version 1"):
        open_gguf(path)


def test_split_files(llama: Path, tmp_path: Path) -> None:
    write_gguf(llama, tmp_path / "tiny.gguf", split_max_tensors=10)
    parts = sorted(tmp_path.glob("*.gguf"))
    assert len(parts) == 3
    assert parts[0].name == "tiny-00001-of-00003.gguf"
    original = load_file(llama / "model.safetensors")
    for part in parts:  # whichever the user names
        source = open_gguf(part)
        assert all(torch.equal(source.read(name), tensor) for name, tensor in original.items())
        source.close()
    lone = tmp_path / "first.gguf"
    lone.write_bytes(parts[0].read_bytes())
    with pytest.raises(CheckpointError, match="one part of a split model"):
        open_gguf(lone)
    parts[1].unlink()
    with pytest.raises(CheckpointError, match=re.escape(str(parts[1]))):
        open_gguf(parts[0])


def test_no_gguf_file(tmp_path: Path) -> None:
    for name, content in [("empty", b""), ("text", b"GGML and more"), ("zeros", bytes(4096))]:
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=re.escape(f"{path} is no GGUF file")):
            open_gguf(path)
    with pytest.raises(CheckpointError, match="No such file"):
        open_gguf(tmp_path / "missing.gguf")
    with pytest.raises(CheckpointError, match="cannot be read"):
        open_gguf(tmp_path)


def test_every_cut_is_noticed(llama_gguf: Path, tmp_path: Path) -> None:
    whole = llama_gguf.read_bytes()
    draw = random.Random(0)
    cuts = [4, 5, 8, 16, 23, 24, 30, len(whole) // 2, len(whole) - 33]
    cuts += [draw.randrange(4, len(whole) - 32) for _ in range(40)]  # the last 31 bytes may be padding
    path = tmp_path / "cut.gguf"
    for cut in cuts:
        path.write_bytes(whole[:cut])
        with pytest.raises(CheckpointError, match=re.escape(str(path))):
            open_gguf(path)


def test_flipped_bits_raise_user_errors_only(llama_gguf: Path, tmp_path: Path) -> None:
    """Any damage to the header is refused in one sentence or harmless, and takes no memory or time."""
    whole = bytearray(llama_gguf.read_bytes())
    file = GGUFFile(llama_gguf)
    header_size = min(tensor.position for tensor in file.tensors.values())
    file.close()
    draw = random.Random(1)
    path = tmp_path / "flipped.gguf"
    refusals = []
    tracemalloc.start()
    try:
        for _ in range(150):
            damaged = whole.copy()
            position = draw.randrange(header_size)
            damaged[position] ^= 1 << draw.randrange(8)
            path.write_bytes(damaged)
            try:
                source = open_gguf(path)
                ModelConfig.from_dict(source.config)
                for name in source.shapes:
                    source.read(name)
                source.write_files(tmp_path)
                source.close()
            except UserError as error:
                refusals.append(str(error))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(refusals) > 30
    assert all("\n" not in refusal and str(path) in refusal for refusal in refusals), refusals
    assert peak < 64 * 2**20


def test_a_file_cut_while_open_is_noticed(llama_gguf: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(llama_gguf.read_bytes())
    source = open_gguf(path)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)
    last = list(source.shapes)[-1]
    with pytest.raises(CheckpointError, match="it ends within"):
        source.read(last)
    source.close()


def test_demo_weights_are_what_transformers_reads(demo_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers' own GGUF import, whose weights (not its tokenizer) are the oracle."""
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    # transformers asks for this table once for every module of the model, which takes half a minute.
    monkeypatch.setattr(gguf, "get_tensor_name_map", functools.cache(gguf.get_tensor_name_map))
    source = open_gguf(demo_gguf)
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**source.config))
    theirs = load_gguf_checkpoint(str(demo_gguf), return_tensors=True, model_to_load=model)["tensors"]
    assert set(theirs) == set(source.shapes) == {name for name, _ in model.named_parameters()}
    for name, tensor in theirs.items():
        assert torch.equal(source.read(name), tensor), name
    source.close()


def test_demo_config_is_the_published_one(demo_gguf: Path) -> None:
    source = open_gguf(demo_gguf)
    assert ModelConfig.from_dict(source.config) == ModelConfig(
        architecture=LLAMA,
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_layers=30,
        num_heads=9,
        num_kv_heads=3,
        head_dim=64,
        rms_norm_eps=1e-5,
        max_position=8192,
        rope=RopeConfig(theta=100000.0),
        tie_word_embeddings=True,
        dtype="bfloat16",
    )
    source.close()
