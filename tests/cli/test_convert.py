"""`convert` and `models rm` on a real, tiny checkpoint. Bad input: test_bad_input.py."""

from __future__ import annotations

import json

import pytest

from lite_llama.app import cli as commands


def test_convert_names_the_next_command(cli, tiny_checkpoint, home):
    result = cli("convert", tiny_checkpoint, "--name", "my-model", "--dtype", "bfloat16")
    assert (result.exit_code, result.stderr) == (0, "")
    (line,) = result.stdout.splitlines()
    assert line.startswith("Converted my-model (179K parameters, ")
    assert line.endswith("lite-llama-tui --model my-model")
    (model,) = json.loads(cli("models", "--json").stdout)
    assert (model["name"], model["dtype"], model["family"]) == ("my-model", "bfloat16", "Llama")


def test_a_model_is_replaced_only_by_force(cli, fails, tiny_checkpoint, tiny_model):
    assert "--force" in fails("convert", tiny_checkpoint)
    assert cli("convert", tiny_checkpoint, "--force", "--dtype", "float16").exit_code == 0
    (model,) = json.loads(cli("models", "--json").stdout)
    assert (model["name"], model["dtype"]) == ("tiny", "float16")


@pytest.mark.parametrize("name", ["../escape", ".hidden", "a/b", "-x"])
def test_names_that_are_none(fails, tiny_checkpoint, home, name):
    assert "name" in fails("convert", tiny_checkpoint, "--name", name)
    assert not home.exists() or not list(home.rglob("manifest.json"))


def test_a_wrong_dtype_is_wrong_usage(cli, tiny_checkpoint):
    assert cli("convert", tiny_checkpoint, "--dtype", "int3").exit_code == 2
    assert cli("convert").exit_code == 2


def test_rm_asks_first(cli, fails, tiny_model, monkeypatch):
    assert "--yes" in fails("models", "rm", "tiny")
    monkeypatch.setattr(commands, "_stdin_is_terminal", lambda: True)
    refused = cli("models", "rm", "tiny", input="n\n")
    assert refused.exit_code == 1
    assert tiny_model.is_dir()
    accepted = cli("models", "rm", "tiny", input="y\n")
    assert accepted.exit_code == 0
    assert "Deleted tiny: " in accepted.stdout
    assert not tiny_model.exists()


def test_rm_of_what_is_not_there(fails, home, tmp_path):
    assert "no model called ghost" in fails("models", "rm", "ghost", "--yes")
    (tmp_path / "precious").mkdir()
    fails("models", "rm", "../../precious", "--yes")
    assert (tmp_path / "precious").is_dir()
