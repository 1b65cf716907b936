"""Names and shapes of the tensors of a converted model, and the source tensors that each is fused from.

The converted names are Hugging Face's, but for the two fusions: q, k, v -> qkv and gate, up -> gate_up. Of
the names that LLaVA's tensors go by, they are those of `source_name`.
"""

from __future__ import annotations

from dataclasses import dataclass

from .config import ModelConfig, VisionConfig

# A source checkpoint may carry these; nothing is read from them.
IGNORED_SUFFIXES = (".rotary_emb.inv_freq", ".embeddings.position_ids")
_TOWER_LAYERS = "vision_tower.encoder.layers."

# LLaVA checkpoints were written in several layouts; see `source_name`.
_PREFIXES = {
    "language_model.model.": "model.",
    "language_model.lm_head.": "lm_head.",
    "model.language_model.": "model.",
    "model.vision_tower.": "vision_tower.",
    "model.multi_modal_projector.": "multi_modal_projector.",
}


def source_name(name: str) -> str:
    """The one name for a tensor that goes by several in LLaVA checkpoints; text models' stay as they are.

    The language model's is that of a text model, the others begin with `vision_tower.` (without the
    `vision_model.` that followed in older ones) or `multi_modal_projector.`.
    """
    for old, new in _PREFIXES.items():
        if name.startswith(old):
            name = new + name.removeprefix(old)
            break
    return name.replace("vision_tower.vision_model.", "vision_tower.", 1)


@dataclass(frozen=True)
class TensorSpec:
    """Name and shape of one tensor."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Target:
    """A tensor of the converted model: its sources, in order, joined along dimension 0."""

    name: str
    shape: tuple[int, ...]
    sources: tuple[TensorSpec, ...]


def _fuse(name: str, *sources: TensorSpec) -> Target:
    rows = sum(source.shape[0] for source in sources)
    return Target(name, (rows, *sources[0].shape[1:]), sources)


def _keep(name: str, *shape: int) -> Target:
    return Target(name, shape, (TensorSpec(name, shape),))


def _linear(prefix: str, name: str, parts: dict[str, int], inputs: int, bias: bool) -> list[Target]:
    """A (fused) linear layer: weight [sum of outputs, inputs] and, with `bias`, bias [sum of outputs]."""
    weight = [TensorSpec(f"{prefix}.{part}.weight", (rows, inputs)) for part, rows in parts.items()]
    targets = [_fuse(f"{prefix}.{name}.weight", *weight)]
    if bias:
        biases = [TensorSpec(f"{prefix}.{part}.bias", (rows,)) for part, rows in parts.items()]
        targets.append(_fuse(f"{prefix}.{name}.bias", *biases))
    return targets


def targets(config: ModelConfig) -> list[Target]:
    """Every tensor that the converted model of `config` holds, in file order."""
    hidden, ffn = config.hidden_size, config.intermediate_size
    found = [_keep("model.embed_tokens.weight", config.vocab_size, hidden)]
    for index in range(config.num_layers):
        layer = f"model.layers.{index}"
        attention, mlp = f"{layer}.self_attn", f"{layer}.mlp"
        qkv = {"q_proj": config.q_size, "k_proj": config.kv_size, "v_proj": config.kv_size}
        found.append(_keep(f"{layer}.input_layernorm.weight", hidden))
        found += _linear(attention, "qkv_proj", qkv, hidden, config.qkv_bias)
        if config.qk_norm:
            found.append(_keep(f"{attention}.q_norm.weight", config.head_dim))
            found.append(_keep(f"{attention}.k_norm.weight", config.head_dim))
        found += _linear(attention, "o_proj", {"o_proj": hidden}, config.q_size, config.o_bias)
        found.append(_keep(f"{layer}.post_attention_layernorm.weight", hidden))
        found += _linear(mlp, "gate_up_proj", {"gate_proj": ffn, "up_proj": ffn}, hidden, config.mlp_bias)
        found += _linear(mlp, "down_proj", {"down_proj": hidden}, ffn, config.mlp_bias)
    found.append(_keep("model.norm.weight", hidden))
    if not config.tie_word_embeddings:
        found.append(_keep("lm_head.weight", config.vocab_size, hidden))
    if config.vision:
        found += _vision_targets(config.vision, hidden)
    return found


def _vision_targets(vision: VisionConfig, text_size: int) -> list[Target]:
    """The tensors of the image encoder, its tower as far as it is computed."""
    size, ffn, patch = vision.hidden_size, vision.intermediate_size, vision.patch_size
    tower, projector = "vision_tower", "multi_modal_projector"

    def norm(name: str) -> list[Target]:
        return [_keep(f"{name}.weight", size), _keep(f"{name}.bias", size)]

    def linear(name: str, outputs: int, inputs: int, bias: bool = True) -> list[Target]:
        prefix, _, last = name.rpartition(".")
        return _linear(prefix, last, {last: outputs}, inputs, bias)

    # The convolution's steps are as long as its kernel is wide: a matrix product over the pixels of a patch.
    kernel = TensorSpec(f"{tower}.embeddings.patch_embedding.weight", (size, 3, patch, patch))
    found = [
        _keep(f"{tower}.embeddings.class_embedding", size),
        Target(kernel.name, (size, 3 * patch * patch), (kernel,)),
        _keep(f"{tower}.embeddings.position_embedding.weight", vision.num_patches + 1, size),
        *norm(f"{tower}.pre_layrnorm"),  # as CLIP spells it
    ]
    for index in range(vision.num_layers):
        layer = f"{_TOWER_LAYERS}{index}"
        qkv = {"q_proj": size, "k_proj": size, "v_proj": size}
        found += norm(f"{layer}.layer_norm1")
        found += _linear(f"{layer}.self_attn", "qkv_proj", qkv, size, True)
        found += linear(f"{layer}.self_attn.out_proj", size, size)
        found += norm(f"{layer}.layer_norm2")
        found += linear(f"{layer}.mlp.fc1", ffn, size)
        found += linear(f"{layer}.mlp.fc2", size, ffn)
    features = size * len(vision.feature_layers)
    found += linear(f"{projector}.linear_1", text_size, features, vision.projector_bias)
    found += linear(f"{projector}.linear_2", text_size, text_size, vision.projector_bias)
    return found


def is_ignored(name: str, config: ModelConfig) -> bool:
    """Whether a source tensor of this name is rightly left unread.

    These are rope buffers, a tied head's copy, and what comes after the image features in their tower.
    """
    if config.vision and name.startswith(_TOWER_LAYERS):
        index = name.removeprefix(_TOWER_LAYERS).partition(".")[0]
        return index.isdigit() and int(index) >= config.vision.num_layers
    if config.vision and name.startswith("vision_tower.post_layernorm."):
        return True
    return name.endswith(IGNORED_SUFFIXES) or (config.tie_word_embeddings and name == "lm_head.weight")


def parameter_count(config: ModelConfig) -> int:
    """Number of parameters of the model, tied weights counted once."""
    total = 0
    for target in targets(config):
        size = 1
        for extent in target.shape:
            size *= extent
        total += size
    return total
