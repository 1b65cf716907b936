"""Tiny random checkpoints, made by transformers, for the tests of every area."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Protocol

import pytest

# One thread per process, set before torch is imported: test workers that share cores then do not make each
# other's OpenMP threads wait.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

# Without a GPU Triton's interpreter runs the kernels; Triton decides when it is first imported.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# Digits, accents, CJK and code, so that the merges cover more than English.
CORPUS = [
    "The quick brown fox jumps over the lazy dog. What is the capital of France? It is Paris.",
    "def add(a, b):\n    return a + b\n\nfor i in range(10):\n    print(i, add(i, 1))\n",
    "Für die Straße, señor! Ça va très bien. 12345 + 67890 = 80235; 3.14159.",
    "你好，世界。こんにちは。🙂 Привет, мир! Hello there, how are you today?",
]
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# What Qwen3's template does about thinking: the switch closes an empty block in the prompt, and only turns
# after the last question keep their thinking.
THINKING_TEMPLATE = """\
{%- set ns = namespace(last_question=-1) -%}
{%- for message in messages -%}
  {%- if message.role == 'user' -%}{%- set ns.last_question = loop.index0 -%}{%- endif -%}
{%- endfor -%}
{%- for message in messages -%}
  {{- '<|im_start|>' + message.role + '\\n' -}}
  {%- if message.role != 'assistant' -%}
    {{- message.content -}}
  {%- else -%}
    {%- set thinking, content = message.reasoning_content or '', message.content -%}
    {%- if not thinking and '</think>' in content -%}
      {%- set thinking = content.split('</think>')[0].split('<think>')[-1] -%}
      {%- set content = content.split('</think>')[-1].lstrip('\\n') -%}
    {%- endif -%}
    {%- if loop.index0 > ns.last_question and (loop.last or thinking) -%}
      {{- '<think>\\n' + thinking.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') -}}
    {%- else -%}
      {{- content -}}
    {%- endif -%}
  {%- endif -%}
  {{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{- '<|im_start|>assistant\\n' -}}
  {%- if enable_thinking is defined and not enable_thinking -%}
    {{- '<think>\\n\\n</think>\\n\\n' -}}
  {%- endif -%}
{%- endif -%}
"""
THINKING_TEMPLATES = {
    "optional": THINKING_TEMPLATE,
    # Of models that cannot but think: the prompt opens the thinking of every reply.
    "always": CHAT_TEMPLATE.replace("assistant\n'", "assistant\n<think>\n'"),
}
THINKING_TOKENS = ["<think>", "</think>"]
SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
VOCAB_SIZE = 384

# The rule of Llama 3.1/3.2, with an original context so short that tiny prompts reach the scaled part.
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
    # Wide enough that the logits are far apart: greedy tokens then do not hang on rounding.
    "initializer_range": 0.2,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "LlamaForCausalLM": _SHAPE | {"rope_parameters": LLAMA3_ROPE},
    "Qwen2ForCausalLM": _SHAPE | {"num_attention_heads": 8},
    # As in Qwen3-0.6B, the heads together are wider than the hidden state.
    "Qwen3ForCausalLM": _SHAPE | {"head_dim": 32},
}


# As LLaVA-1.5's processor has it; `message.content` is a list of parts.
LLAVA_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] != 'system' %}{{ message['role'].upper() + ': ' }}{% endif %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}"
    "{% endfor %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}{{ part['text'] + ' ' }}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
IMAGE_SIZE, PATCH_SIZE = 70, 14
"""25 patches: no multiple of a page of the KV cache."""
_VISION: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": IMAGE_SIZE,
    "patch_size": PATCH_SIZE,
}


@pytest.fixture
def paths(tmp_path: Path) -> Any:
    """A home of the test's own, still empty (app.paths.Paths)."""
    from lite_llama.app.paths import Paths

    return Paths(data=tmp_path / "home", config=tmp_path / "home")


@pytest.fixture
def until() -> Callable[..., Awaitable[None]]:
    """`await until(pilot, condition)` lets the app run until the condition holds; see app_chat."""
    import app_chat

    return app_chat.until


class MakeLlava(Protocol):
    """Writes a random LLaVA checkpoint with its processor into `directory` and returns it.

    `text` is the architecture of the language model, as for MakeCheckpoint; `vision` are fields of the vision
    config, `processor` those of the image processor (CLIP's), and `config_overrides` those of LLaVA's config.
    """

    def __call__(
        self,
        directory: Path,
        text: str = "LlamaForCausalLM",
        *,
        seed: int = 0,
        vision: dict[str, Any] | None = None,
        processor: dict[str, Any] | None = None,
        max_shard_size: int | str = "5GB",
        **config_overrides: Any,
    ) -> Path: ...


class MakeCheckpoint(Protocol):
    """Writes a random Hugging Face checkpoint into `directory` and returns it.

    `architecture` is LlamaForCausalLM (llama3 rope scaling, untied head), Qwen2ForCausalLM (q/k/v bias) or
    Qwen3ForCausalLM (q/k norm, head_dim 32 with hidden 64); `config_overrides` are fields of the config,
    such as tie_word_embeddings=True. The weights depend on `seed` alone. `max_shard_size` as in
    save_pretrained; `dtype` is float32, float16 or bfloat16. `thinking` (optional or always) is that
    of the chat template, and gives the tokenizer <think> and </think>, which are not special, as in Qwen3's.
    """

    def __call__(
        self,
        architecture: str,
        directory: Path,
        *,
        seed: int = 0,
        dtype: str = "float32",
        max_shard_size: int | str = "5GB",
        thinking: str | None = None,
        **config_overrides: Any,
    ) -> Path: ...


def make_tokenizer(thinking: str | None = None) -> Any:
    """A byte-level BPE tokenizer with a ChatML template, as Qwen's is built; every text round-trips."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    added = THINKING_TOKENS if thinking else []
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - len(added),
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS * 4, trainer)
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=False) for token in added])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        clean_up_tokenization_spaces=False,
        chat_template=THINKING_TEMPLATES[thinking] if thinking else CHAT_TEMPLATE,
    )


def write_generation_config(directory: Path) -> None:
    generation = {"bos_token_id": 0, "eos_token_id": [2, 0], "pad_token_id": 0, "do_sample": True}
    generation |= {"temperature": 0.7, "top_p": 0.8, "top_k": 20}
    (directory / "generation_config.json").write_text(json.dumps(generation, indent=2), encoding="utf-8")


def draw(model: torch.nn.Module, image_encoder: float = 0.0) -> None:
    """Draw what transformers starts alike: norms at 1 and biases at 0, which would hide a mix-up of either.

    LLaVA's image encoder, which starts so small that no image differs from another, gets weights of the
    standard deviation `image_encoder`.
    """
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.5)
            elif "norm" in name:  # and CLIP's pre_layrnorm
                parameter.uniform_(0.5, 1.5)
            elif "vision_tower" in name or "projector" in name:
                parameter.normal_(0, image_encoder)


class MakeShape(Protocol):
    """Writes a random bfloat16 checkpoint of a `config.json` into `directory`; returns transformers' model.

    The model is made on `device`: at a real model's size a GPU draws the weights in no time. A LLaVA config's
    image token becomes that of the tests' tokenizer.
    """

    def __call__(self, raw_config: dict[str, Any], directory: Path, device: torch.device) -> Any: ...


@pytest.fixture(scope="session")
def make_shape() -> MakeShape:
    """A function that writes a random checkpoint of any shape; see MakeShape."""
    import transformers

    def make(raw_config: dict[str, Any], directory: Path, device: torch.device) -> Any:
        tokenizer, auto, image_encoder = make_tokenizer(), transformers.AutoModelForCausalLM, 0.0
        if vision := raw_config.get("vision_config"):
            image_encoder = 1.3 * vision["hidden_size"] ** -0.5  # so that a layer's output is as its input
            auto = transformers.AutoModelForImageTextToText
            tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
            image_token = tokenizer.convert_tokens_to_ids("<image>")
            raw_config = raw_config | {"image_token_index": image_token}
        config = transformers.AutoConfig.for_model(**raw_config)
        with torch.random.fork_rng(), torch.device(device):
            torch.manual_seed(0)
            model = auto.from_config(config, dtype=torch.bfloat16)
            draw(model, image_encoder)
        model.save_pretrained(directory)
        tokenizer.save_pretrained(directory)
        write_generation_config(directory)
        return model.eval()

    return make


@pytest.fixture(scope="session")
def make_checkpoint() -> MakeCheckpoint:
    """A function that writes a tiny random checkpoint; see MakeCheckpoint."""
    import transformers

    def make(
        architecture: str,
        directory: Path,
        *,
        seed: int = 0,
        dtype: str = "float32",
        max_shard_size: int | str = "5GB",
        thinking: str | None = None,
        **config_overrides: Any,
    ) -> Path:
        model_class = getattr(transformers, architecture)
        config = model_class.config_class(**(_DEFAULTS[architecture] | config_overrides))
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = model_class(config)
            draw(model)
        model.to(getattr(torch, dtype)).save_pretrained(directory, max_shard_size=max_shard_size)
        make_tokenizer(thinking).save_pretrained(directory)
        write_generation_config(directory)
        return directory

    return make


@pytest.fixture(scope="session")
def make_llava() -> MakeLlava:
    """A function that writes a tiny random LLaVA checkpoint; see MakeLlava."""
    import transformers
    from tokenizers import processors
    from transformers import CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    def make(
        directory: Path,
        text: str = "LlamaForCausalLM",
        *,
        seed: int = 0,
        vision: dict[str, Any] | None = None,
        processor: dict[str, Any] | None = None,
        max_shard_size: int | str = "5GB",
        **config_overrides: Any,
    ) -> Path:
        tokenizer = make_tokenizer()
        tokenizer.add_special_tokens({"bos_token": "<|endoftext|>", "additional_special_tokens": ["<image>"]})
        # As Llama's: it begins every text with a BOS token, which LLaVA's template leaves to it.
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
            single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
        )
        vision_config = CLIPVisionConfig(**(_VISION | (vision or {})))
        config = LlavaConfig(
            vision_config=vision_config,
            text_config=getattr(transformers, text).config_class(**(_DEFAULTS[text] | {"vocab_size": 400})),
            image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
            **config_overrides,
        )
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = LlavaForConditionalGeneration(config)
            draw(model, image_encoder=0.2)
        model.save_pretrained(directory, max_shard_size=max_shard_size)
        size = vision_config.image_size
        rule: dict[str, Any] = {"size": {"shortest_edge": size}, "crop_size": {"height": size, "width": size}}
        LlavaProcessor(
            image_processor=CLIPImageProcessorPil(**(rule | (processor or {}))),
            tokenizer=tokenizer,
            patch_size=vision_config.patch_size,
            vision_feature_select_strategy=config.vision_feature_select_strategy,
            num_additional_image_tokens=1,
            chat_template=LLAVA_TEMPLATE,
        ).save_pretrained(directory)
        write_generation_config(directory)
        return directory

    return make


# The demo model: real weights for the tests that need an answer that makes sense. It is downloaded once.
_REPOSITORY = Path(__file__).parents[1]
_CACHE_VARIABLE = "LITE_LLAMA_TEST_CACHE"


@pytest.fixture(scope="session")
def cache_directory() -> Path:
    """A directory that outlives the test run: LITE_LLAMA_TEST_CACHE, or .cache/tests in the repository."""
    path = Path(os.environ.get(_CACHE_VARIABLE) or _REPOSITORY / ".cache" / "tests")
    path.mkdir(parents=True, exist_ok=True)
    return path


@pytest.fixture(scope="session")
def demo_gguf(cache_directory: Path) -> Path:
    """The demo model's GGUF file (SmolLM2-135M-Instruct, Q4_1 but for Q8_0 embeddings)."""
    from filelock import FileLock

    from lite_llama.converter.demo import download_demo

    steps = download_demo(cache_directory / "demo")
    with FileLock(cache_directory / "demo.lock"):  # another worker of this run may be at it
        while True:
            try:
                next(steps)
            except StopIteration as done:
                return done.value


@pytest.fixture(scope="session")
def demo_model(demo_gguf: Path, cache_directory: Path) -> Path:
    """The demo model, converted to bfloat16."""
    return _converted(demo_gguf, cache_directory, "bfloat16")


@pytest.fixture(scope="session")
def demo_model_fp32(demo_gguf: Path, cache_directory: Path) -> Path:
    """The demo model, converted to float32: no rounding beyond the GGUF file's own."""
    return _converted(demo_gguf, cache_directory, "float32")


def _converted(gguf: Path, cache: Path, dtype: str) -> Path:
    """A conversion of `gguf` by the code as it is now, made only if there is none yet."""
    from filelock import FileLock

    from lite_llama.converter import Done, convert
    from lite_llama.models.checkpoint import MANIFEST

    sources = [path for area in ("converter", "models") for path in (_REPOSITORY / area).glob("*.py")]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(sources))).hexdigest()
    name = f"demo-{dtype}"
    with FileLock(cache / f"{name}.lock"):
        models = cache / name / digest[:16]
        if not (models / name / MANIFEST).is_file():
            shutil.rmtree(cache / name, ignore_errors=True)  # by the code as it was
            events = list(convert(str(gguf), models, cache / "downloads", name=name, dtype=dtype))
            assert isinstance(events[-1], Done)
        return models / name
