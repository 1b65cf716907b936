"""`ask` with the real engine: on a random model, and on the demo model where the answer has to make sense."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from lite_llama.app.paths import HOME_VARIABLE

GREEDY = ("--temperature", "0", "--device", "cpu")


@pytest.fixture
def ask(cli):
    """Asks with --json at temperature 0; returns the object."""

    def run(*arguments: str | Path, input: str | None = None):
        result = cli("ask", *arguments, *GREEDY, "--json", input=input)
        assert (result.exit_code, result.stderr) == (0, "")
        return json.loads(result.stdout)

    return run


def test_the_demo_model_answers(ask, demo_model):
    reply = ask("What is the capital of France?", "--model", demo_model, "--max-gen-len", "20")
    assert "Paris" in reply["text"]
    assert reply["finish_reason"] == "stop"
    assert reply["completion_tokens"] == len(reply["token_ids"]) < 20
    assert reply["prompt_tokens"] > 30  # the template's own system prompt is counted
    assert (reply["model"], reply["device"]) == (demo_model.name, "cpu")
    assert reply["ttft_s"] > 0
    assert reply["decode_tokens_per_s"] > 0


def test_a_model_that_sees_images_is_shown_some(ask, tiny_llava, tmp_path):
    for name, seed in (("a", 3), ("b", 4)):
        coarse = Image.frombytes("RGB", (5, 5), random.Random(seed).randbytes(75))
        coarse.resize((60, 40)).save(tmp_path / f"{name}.png")
    show = ("--max-gen-len", "16", "--dtype", "float32")
    paths = tmp_path / "a.png", tmp_path / "b.png"
    text, first, other = (
        ask("What is this?", *more, *show) for more in ((), ("--image", paths[0]), ("--image", paths[1]))
    )
    both = ask("What is this?", "--image", paths[0], "--image", paths[1], *show)
    assert other["prompt_tokens"] == first["prompt_tokens"] > text["prompt_tokens"] + 25
    # Another picture is 25 tokens, and the end of the line after it one.
    assert both["prompt_tokens"] == first["prompt_tokens"] + 26
    replies = {tuple(reply["token_ids"]) for reply in (text, first, other, both)}
    assert len(replies) == 4
    assert ask("What is this?", "--image", paths[0], *show)["token_ids"] == first["token_ids"]


def test_length_and_repeatability(ask, tiny_model):
    first = ask("Hello", "--max-gen-len", "30", "--dtype", "float32")
    assert first["finish_reason"] == "length"
    assert first["completion_tokens"] == len(first["token_ids"]) == 30
    assert first["dtype"] == "float32"
    assert ask("Hello", "--max-gen-len", "30", "--seed", "5")["token_ids"] == first["token_ids"]
    assert ask("-", "--max-gen-len", "30", input="Hello")["token_ids"] == first["token_ids"]


def test_a_seed_repeats_a_sampled_reply(cli, tiny_model):
    arguments = ("ask", "Hello", "--json", "--temperature", "1.5", "--max-gen-len", "20")
    replies = [json.loads(cli(*arguments, "--seed", seed).stdout) for seed in ("1", "1", "2")]
    assert replies[0]["token_ids"] == replies[1]["token_ids"] != replies[2]["token_ids"]
    assert [reply["seed"] for reply in replies] == [1, 1, 2]


def test_a_stop_string_ends_the_reply_before_it(ask, cli, tiny_model):
    whole = ask("Hello", "--max-gen-len", "30")["text"]
    end = whole[len(whole) // 2 :][:3]
    reply = ask("Hello", "--max-gen-len", "30", "--stop", "never to be seen", "--stop", end)
    assert reply["finish_reason"] == "stop"
    assert reply["text"] == whole[: whole.index(end)]
    streamed = cli("ask", "Hello", *GREEDY, "--max-gen-len", "30", "--stop", end).stdout
    assert streamed.rstrip("\n") == reply["text"].rstrip("\n")


def test_a_system_prompt_is_part_of_the_prompt(ask, tiny_model):
    plain = ask("Hello", "--max-gen-len", "1")
    told = ask("Hello", "--system", "You are a poet.", "--max-gen-len", "1")
    assert told["prompt_tokens"] > plain["prompt_tokens"]


def test_a_prompt_longer_than_the_context(fails, tiny_model):
    message = fails("ask", "-", input="word " * 3000)
    assert "can hold 2048" in message


def test_a_gpu_that_is_not_there(fails, tiny_model, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert "use --device cpu" in fails("ask", "Hi", "--device", "cuda")


def test_ctrl_c_in_the_middle_of_an_answer(cli, tiny_checkpoint, tmp_path, home):
    checkpoint = shutil.copytree(tiny_checkpoint, tmp_path / "endless")
    # Without an end-of-turn token the reply goes on until the context is full.
    (checkpoint / "generation_config.json").write_text('{"eos_token_id": []}')
    assert cli("convert", checkpoint).exit_code == 0
    process = subprocess.Popen(
        [sys.executable, "-m", "lite_llama", "ask", "Hello", *GREEDY],
        env=os.environ | {HOME_VARIABLE: str(home)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout
    beginning = process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    rest, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (1, b"")
    assert beginning
    assert rest.endswith(b"\n")
