"""The files of the demo model: its shape, tokenizer, chat template and image processor, as LLaVA-1.5's."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from .conversations import asked, random_conversation

IMAGE_SIZE, PATCH_SIZE = 96, 12
WIDTH, CONTEXT = 128, 1024
SIDE = IMAGE_SIZE // PATCH_SIZE
VOCAB_SIZE = 640
SPECIAL = ("<pad>", "<s>", "</s>", "<image>")
MEAN = [0.48145466, 0.4578275, 0.40821073]
STD = [0.26862954, 0.26130258, 0.27577711]

# Every part ends in a newline or a special token: a reply's tokens are the same when it is read again.
TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role != 'system' %}{{ message.role.upper() + ':\n' }}{% endif %}"
    "{% for part in message.content if part.type == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message.content if part.type == 'text' %}{{ part.text }}{% endfor %}"
    "{{ '</s>' if message.role == 'assistant' else '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:\n' }}{% endif %}"
)


def make_tokenizer(conversations: int = 4000) -> Tokenizer:
    """Byte-level BPE that knows the demo's words, and spells all others."""
    rng = random.Random("tokenizer")
    corpus = []
    for _ in range(conversations):
        system, turns = random_conversation(rng)
        corpus += [system, *(asked(turn, "") + turn.answer for turn in turns)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    # As Llama's: a text begins with a BOS token, which LLaVA's template leaves to the tokenizer.
    tokenizer.post_processor = processors.TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
        single="<s> $A", special_tokens=[("<s>", SPECIAL.index("<s>"))]
    )
    return tokenizer


def make_config() -> LlavaConfig:
    ids: dict[str, Any] = {
        f"{name}_token_id": SPECIAL.index(token)
        for name, token in (("pad", "<pad>"), ("bos", "<s>"), ("eos", "</s>"))
    }
    return LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=WIDTH,
            intermediate_size=256,
            num_hidden_layers=4,
            num_attention_heads=4,
            image_size=IMAGE_SIZE,
            patch_size=PATCH_SIZE,
            projection_dim=WIDTH,
        ),
        text_config=LlamaConfig(
            vocab_size=VOCAB_SIZE,
            hidden_size=WIDTH,
            intermediate_size=256,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            **ids,
        ),
        image_token_index=SPECIAL.index("<image>"),
        image_seq_length=SIDE**2,
        tie_word_embeddings=True,
        **ids,
    )


def write(model: LlavaForConditionalGeneration, tokenizer: Tokenizer, directory: Path) -> None:
    """Write the whole checkpoint, with the model's weights as bfloat16."""
    ids = {f"{name}_token_id": getattr(model.config, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    rounded: Any = copy.deepcopy(model)
    rounded.to(torch.bfloat16)
    rounded.generation_config = GenerationConfig(do_sample=False, **ids)
    rounded.save_pretrained(directory)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        additional_special_tokens=["<image>"],
        clean_up_tokenization_spaces=False,
        model_max_length=CONTEXT,
    ).save_pretrained(directory)
    (directory / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    edge = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    processor = {
        "processor_class": "LlavaProcessor",
        "image_token": "<image>",
        "num_additional_image_tokens": 1,
        "patch_size": PATCH_SIZE,
        "vision_feature_select_strategy": "default",
        "image_processor": {
            "image_processor_type": "CLIPImageProcessor",
            "do_convert_rgb": True,
            "do_resize": True,
            "size": {"shortest_edge": IMAGE_SIZE},
            "resample": 3,
            "do_center_crop": True,
            "crop_size": edge,
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": MEAN,
            "image_std": STD,
        },
    }
    (directory / "processor_config.json").write_text(json.dumps(processor, indent=2) + "\n", encoding="utf-8")
