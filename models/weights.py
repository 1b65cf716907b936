"""Names and shapes of the tensors of a converted model, and the source tensors that each is fused from.

The converted names are Hugging Face's, but for the two fusions: q, k, v -> qkv and gate, up -> gate_up.
"""

from __future__ import annotations

from dataclasses import dataclass

from .config import ModelConfig

# A source checkpoint may carry these; nothing is read from them.
IGNORED_SUFFIXES = (".rotary_emb.inv_freq",)


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
    return found


def is_ignored(name: str, config: ModelConfig) -> bool:
    """Whether a source tensor of this name is rightly left unread (rope buffers, a tied head's copy)."""
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
