"""`ask` around a scripted engine: options, output, errors, Ctrl-C. The real engine: test_end_to_end.py."""

from __future__ import annotations

import io
import json
import sys
from contextlib import closing
from pathlib import Path

import pytest
from PIL import Image

from lite_llama.app import cli as commands
from lite_llama.app.log import DEBUG_VARIABLE
from lite_llama.engine.request import Message, SamplingParams


def write_settings(home: Path, text: str) -> None:
    home.mkdir(parents=True, exist_ok=True)
    (home / "settings.toml").write_text(text, encoding="utf-8")


def test_the_reply_is_all_of_stdout(cli, engine, add_model):
    add_model("tiny")
    result = cli("ask", "Hi")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "Hello there.\n", "")
    assert engine.requests[0].messages == (Message("user", "Hi"),)
    assert engine.closed


def test_a_reply_that_ends_its_line_gets_no_second_newline(cli, engine, add_model):
    add_model("tiny")
    engine.pieces = ("one\n", "two\n")
    assert cli("ask", "Hi").stdout == "one\ntwo\n"


@pytest.mark.parametrize("arguments", [("ask", "-"), ("ask",)])
def test_the_prompt_comes_from_a_pipe(cli, engine, add_model, arguments):
    add_model("tiny")
    assert cli(*arguments, input="Grüße\nzwei Zeilen").exit_code == 0
    assert engine.requests[0].messages == (Message("user", "Grüße\nzwei Zeilen"),)


def test_the_json_object(cli, engine, add_model):
    add_model("tiny")
    result = cli("ask", "Hi", "--json", "--seed", "11")
    assert result.exit_code == 0
    assert json.loads(result.stdout) == {
        "text": "Hello there.",
        "thinking": "",
        "thinking_tokens": 0,
        "finish_reason": "stop",
        "prompt_tokens": 9,
        "completion_tokens": 3,
        "token_ids": [0, 1, 2],
        "cached_prompt_tokens": 0,
        "ttft_s": 0.25,
        "decode_tokens_per_s": 20.0,
        "model": "tiny",
        "device": "cpu",
        "dtype": "float32",
        "seed": 11,
    }


def test_every_option_reaches_the_engine(cli, engine, add_model):
    path = add_model("tiny")
    arguments = "--temperature 0.5 --top-p 0.8 --top-k 7 --min-p 0.1 --repetition-penalty 1.2 --seed 3"
    arguments += " --max-gen-len 12 --stop END --stop STOP --device cpu --dtype float32 --system Terse."
    assert cli("ask", "Hi", "--model", "tiny", *arguments.split()).exit_code == 0
    assert (engine.loads[0].path, engine.loads[0].device, engine.loads[0].dtype) == (path, "cpu", "float32")
    assert engine.requests[0].messages == (Message("system", "Terse."), Message("user", "Hi"))
    assert engine.requests[0].params == SamplingParams(
        temperature=0.5,
        top_p=0.8,
        top_k=7,
        min_p=0.1,
        repetition_penalty=1.2,
        seed=3,
        max_new_tokens=12,
        stop=("END", "STOP"),
    )


def test_options_win_over_settings_and_these_over_the_models_defaults(cli, engine, add_model, home):
    add_model("tiny")
    write_settings(home, 'temperature = 0.3\ntop_k = 5\nmax_gen_len = 33\nsystem_prompt = "Be brief."\n')
    engine.defaults = {"temperature": 0.6, "top_k": 20, "top_p": 0.95}
    assert cli("ask", "Hi", "--temperature", "0.1").exit_code == 0
    params = engine.requests[0].params
    assert (params.temperature, params.top_k, params.top_p, params.min_p) == (0.1, 5, 0.95, 0.0)
    assert params.max_new_tokens == 33
    assert engine.requests[0].messages[0] == Message("system", "Be brief.")
    cli("ask", "Hi", "--system", "")
    assert engine.requests[1].messages == (Message("user", "Hi"),)
    write_settings(home, 'system_prompt = " \\n"\n')
    cli("ask", "Hi")
    assert engine.requests[2].messages == (Message("user", "Hi"),)


def test_a_wrong_setting_is_a_warning(cli, engine, add_model, home):
    add_model("tiny")
    write_settings(home, "temperature = 99\n")
    result = cli("ask", "Hi")
    assert result.exit_code == 0
    assert result.stdout == "Hello there.\n"
    (warning,) = result.stderr.splitlines()
    assert warning.startswith("warning: temperature in ")


def test_which_model(cli, fails, engine, add_model, home, tmp_path):
    assert "lite-llama-tui convert demo" in fails("ask", "Hi")
    only = add_model("one")
    assert cli("ask", "Hi").exit_code == 0
    add_model("two")
    assert fails("ask", "Hi").endswith("--model: one, two.")
    assert fails("ask", "Hi", "--model", "three").endswith("there are: one, two.")
    write_settings(home, 'model = "two"\n')
    assert cli("ask", "Hi").exit_code == 0
    elsewhere = only.rename(tmp_path / "moved")
    assert cli("ask", "Hi", "--model", elsewhere).exit_code == 0
    assert [options.path.name for options in engine.loads] == ["one", "two", "moved"]


def test_an_unconverted_checkpoint_is_told_apart(fails, tmp_path):
    directory = tmp_path / "checkpoint"
    directory.mkdir()
    (directory / "config.json").write_text("{}")
    (tmp_path / "model.GGUF").write_bytes(b"GGUF")
    for path in (directory, tmp_path / "model.GGUF"):
        assert f"is not converted yet: run lite-llama-tui convert {path} first" in fails(
            "ask", "Hi", "--model", path
        )


def test_a_damaged_model(fails, engine, add_model):
    (add_model("tiny") / "model.safetensors").write_bytes(b"short")
    for arguments in ((), ("--model", "tiny")):
        message = fails("ask", "Hi", *arguments)
        assert "tiny/model.safetensors has 5 bytes instead of" in message
        assert "convert it again" in message
    assert not engine.loads


def test_images_need_a_model_that_sees_them(fails, engine, add_model, tmp_path):
    add_model("tiny")
    assert "There is no image file" in fails("ask", "Hi", "--image", tmp_path / "cat.png")
    Image.new("RGB", (9, 9)).save(tmp_path / "cat.png")
    sentence = fails("ask", "Hi", "--image", tmp_path / "cat.png")
    assert sentence.startswith("tiny is a text-only model (Llama) and takes no image")
    assert not engine.loads


def test_images_go_with_the_question_in_order(cli, engine, tiny_llava, tmp_path):
    for name, colour in (("red", "red"), ("blue", "blue")):
        Image.new("RGB", (9, 9), colour).save(tmp_path / f"{name}.png")
    paths = [tmp_path / "blue.png", tmp_path / "red.png"]
    result = cli("ask", "Hi", "--system", "Terse.", "--image", paths[0], "--image", paths[1])
    assert (result.exit_code, result.stdout, result.stderr) == (0, "Hello there.\n", "")
    system, question = engine.requests[0].messages
    assert (system.images, question.content) == ((), "Hi")
    assert [image.content for image in question.images] == [path.read_bytes() for path in paths]


@pytest.mark.parametrize("arguments", [(), ("--json",)])
def test_of_an_animated_image_one_frame_is_seen_and_that_is_said(
    arguments, cli, engine, tiny_llava, tmp_path
):
    frames = [Image.new("RGB", (9, 9), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    result = cli("ask", "Hi", "--image", tmp_path / "a.gif", *arguments)
    assert result.exit_code == 0
    assert result.stderr == "note: a.gif is animated: the model sees the first of its 2 frames.\n"


def test_a_bad_image_is_told_before_the_model_is_loaded(fails, engine, tiny_llava, tmp_path):
    (tmp_path / "a.png").write_text("no image")
    Image.new("RGB", (99, 99)).save(tmp_path / "b.jpg")
    (tmp_path / "b.jpg").write_bytes((tmp_path / "b.jpg").read_bytes()[:-200])
    assert "a.png is no image that can be read" in fails("ask", "Hi", "--image", tmp_path / "a.png")
    assert "b.jpg is damaged" in fails("ask", "Hi", "--image", tmp_path / "b.jpg")
    assert "is a directory" in fails("ask", "Hi", "--image", tmp_path)
    assert not engine.loads


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--temperature", "7"), "temperature must be between 0 and 5"),
        (("--temperature", "nan"), "temperature must be between 0 and 5"),
        (("--top-p", "0"), "top_p must be above 0"),
        (("--seed", "-1"), "seed must be between 0"),
        (("--stop", ""), "stop strings must not be empty"),
        (("--max-gen-len", "0"), "max_new_tokens must be 1 or more"),
        (("--device", "tpu"), "--device"),
        (("--dtype", "int4"), "--dtype"),
        (("--top-k", "many"), "--top-k"),
        (("--colour",), "--colour"),
    ],
)
def test_wrong_usage_exits_with_2(cli, engine, add_model, arguments, words):
    add_model("tiny")
    result = cli("ask", "Hi", *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert words in result.stderr
    assert "Traceback" not in result.stderr
    assert not engine.loads


def test_prompts_that_are_none(fails, add_model):
    add_model("tiny")
    assert "is empty" in fails("ask", "   ")
    assert "is empty" in fails("ask", "-", input="\n")
    assert "not UTF-8" in fails("ask", "-", input=b"caf\xe9")
    assert "not UTF-8" in fails("ask", "caf\udce9")


def test_no_prompt_on_a_terminal(cli, monkeypatch):
    monkeypatch.setattr(commands, "_stdin_is_terminal", lambda: True)
    result = cli("ask")
    assert result.exit_code == 2
    assert "PROMPT" in result.stderr


def test_errors_of_the_engine(cli, fails, engine, add_model):
    add_model("tiny")
    engine.answer_error = "The GPU ran out of memory: close other programs on it."
    result = cli("ask", "Hi")
    assert (result.exit_code, result.stdout) == (1, "Hello there.\n")
    assert result.stderr == f"error: {engine.answer_error}\n"
    assert fails("ask", "Hi", "--json") == engine.answer_error
    engine.load_error = "It does not fit."
    assert fails("ask", "Hi") == "It does not fit."
    assert engine.closed


def test_ctrl_c_keeps_what_was_generated(cli, engine, add_model):
    add_model("tiny")
    engine.interrupt_after = 2
    result = cli("ask", "Hi")
    assert (result.exit_code, result.stdout, result.stderr) == (1, "Hello there\n", "")
    assert engine.closed


def test_ctrl_c_with_json_says_cancelled(cli, engine, add_model):
    add_model("tiny")
    engine.interrupt_after = 1
    result = cli("ask", "Hi", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["finish_reason"] == "cancelled"
    assert json.loads(result.stdout)["text"] == "Hello"


def test_ctrl_c_while_the_model_is_loaded(fails, engine, add_model):
    add_model("tiny")
    engine.interrupt_load = True
    assert fails("ask", "Hi") == "Loading was cancelled."
    assert engine.closed


def test_a_fault_of_ours_goes_to_the_log(fails, cli, engine, add_model, home, monkeypatch):
    add_model("tiny")
    engine.load = lambda *_: 1 / 0
    log = home / "lite-llama-tui.log"
    message = fails("ask", "Hi")
    assert "ZeroDivisionError" in message
    assert str(log) in message
    assert "Traceback" in log.read_text()
    monkeypatch.setenv(DEBUG_VARIABLE, "1")
    assert isinstance(cli("ask", "Hi").exception, ZeroDivisionError)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_reply_cannot_drive_the_terminal(monkeypatch):
    hostile = "a\x1b]0;owned\x07b\r\x9b2Jc\u200d\td\n"
    for stream, expected in ((Terminal(), "a]0;ownedb2Jc\u200d\td\n"), (io.StringIO(), hostile)):
        monkeypatch.setattr(sys, "stdout", stream)
        with closing(commands.ReplyPrinter()) as printer:
            printer.answer(hostile)
        assert stream.getvalue() == expected


# Thinking


def test_thinking_is_no_part_of_stdout(cli, engine, add_model):
    add_model("tiny")
    engine.thinking, engine.thoughts = "optional", ("Hm", ", well")
    result = cli("ask", "Hi")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "Hello there.\n", "")


def test_the_json_object_has_the_thinking(cli, engine, add_model):
    add_model("tiny")
    engine.thinking, engine.thoughts = "optional", ("Hm", ", well")
    printed = json.loads(cli("ask", "Hi", "--json").stdout)
    assert (printed["text"], printed["thinking"], printed["thinking_tokens"]) == (
        "Hello there.",
        "Hm, well",
        2,
    )


@pytest.mark.parametrize(
    ("setting", "option", "wish"),
    [
        (None, None, None),
        ("on", None, True),
        ("off", None, False),
        ("off", "--think", True),
        ("on", "--no-think", False),
        ("auto", "--think", True),
    ],
)
def test_the_option_goes_before_the_setting(cli, engine, add_model, home, setting, option, wish):
    add_model("tiny")
    engine.thinking = "optional"
    if setting:
        write_settings(home, f'thinking = "{setting}"\n')
    assert cli("ask", "Hi", *([option] if option else [])).exit_code == 0
    assert engine.requests[0].thinking is wish


def test_a_wish_that_the_model_cannot_fulfil(cli, fails, engine, add_model, home):
    add_model("tiny")
    assert fails("ask", "Hi", "--think") == "tiny has no thinking mode: ask without --think."
    assert cli("ask", "Hi", "--no-think").exit_code == 0
    engine.thinking = "always"
    assert fails("ask", "Hi", "--no-think") == "tiny cannot answer without thinking: ask without --no-think."
    assert cli("ask", "Hi", "--think").exit_code == 0
    write_settings(home, 'thinking = "off"\n')  # a setting is for whichever model can follow it
    assert cli("ask", "Hi").exit_code == 0


def test_a_limit_that_is_reached_while_thinking_is_a_warning(cli, engine, add_model):
    add_model("tiny")
    engine.thinking, engine.thoughts, engine.pieces, engine.reason = "always", ("Hm", "m"), (), "length"
    for options in ((), ("--json",)):
        result = cli("ask", "Hi", *options)
        assert result.exit_code == 0
        assert result.stderr == (
            "warning: the limit of 2 tokens was reached before the answer: allow more with --max-gen-len.\n"
        )


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (("Yes", "."), "\x1b[2mHm\x1b[0m\x1b[2m, well[2J\x1b[0m\n\nYes.\n"),
        ((), "\x1b[2mHm\x1b[0m\x1b[2m, well[2J\x1b[0m\n"),  # stopped before the answer
    ],
)
def test_on_a_terminal_thinking_is_shown_dimmed(monkeypatch, answer, expected):
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm-256color")
    with closing(commands.ReplyPrinter()) as printer:
        for piece in ("Hm", ", well\x1b[2J"):
            printer.think(piece)
        for piece in answer:
            printer.answer(piece)
    assert screen.getvalue() == expected
