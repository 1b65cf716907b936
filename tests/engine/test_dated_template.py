"""A template like Llama 3's: it puts the start of text and today's date into the prompt by itself."""

from __future__ import annotations

from datetime import datetime

import pytest
from transformers import AutoTokenizer
from transformers.utils import chat_template_utils

from lite_llama.engine.request import Message
from lite_llama.engine.tokenizer import Tokenizer

TEMPLATE = (
    "{{- bos_token }}"
    "{%- if not date_string is defined %}"
    "{%- set date_string = strftime_now('%d %b %Y') if strftime_now is defined else '26 Jul 2024' %}"
    "{%- endif %}"
    "{%- set system = messages[0].content if messages[0].role == 'system' else '' %}"
    "{{- '<|im_start|>system\n\nToday Date: ' + date_string + '\n\n' + system + '<|im_end|>' }}"
    "{%- for message in messages if message.role != 'system' %}"
    "{{- '<|im_start|>' + message.role + '\n\n' + message.content | trim + '<|im_end|>' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n\n' }}{%- endif %}"
)
MESSAGES = (Message("system", "Be brief."), Message("user", " What day is it? "))


@pytest.fixture
def pinned(monkeypatch) -> None:
    class Pinned(datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2024, 9, 5)

    monkeypatch.setattr(chat_template_utils, "datetime", Pinned)


@pytest.mark.usefixtures("pinned")
def test_the_prompt_has_the_date_and_one_start_of_text(make_checkpoint, tmp_path):
    theirs = AutoTokenizer.from_pretrained(make_checkpoint("LlamaForCausalLM", tmp_path))
    theirs.chat_template, theirs.bos_token = TEMPLATE, "<|endoftext|>"
    theirs.save_pretrained(tmp_path)
    ours = Tokenizer(tmp_path).encode_chat(MESSAGES)
    turns = [{"role": message.role, "content": message.content} for message in MESSAGES]
    assert ours == theirs.apply_chat_template(turns, add_generation_prompt=True)["input_ids"]
    assert ours.count(theirs.bos_token_id) == 1
    text = theirs.decode(ours)
    assert "Today Date: 05 Sep 2024\n\nBe brief." in text
    assert text.endswith("<|im_start|>user\n\nWhat day is it?<|im_end|><|im_start|>assistant\n\n")
