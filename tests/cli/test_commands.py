"""Help, models, doctor and how quickly the command line starts."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lite_llama import __version__
from lite_llama.app.conversation import Conversation, Turn
from lite_llama.app.database import Database
from lite_llama.app.library import remember_speed
from lite_llama.app.paths import HOME_VARIABLE


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), ["ask", "convert", "models", "doctor", "--model", "--version", HOME_VARIABLE]),
        (("ask",), ["--json", "--image", "generation_config.json", "Ctrl-C", "--repetition-penalty"]),
        (("convert",), ["--name", "--dtype", "--force", ".gguf", "demo"]),
        (("models",), ["rm", "verify", "--json"]),
        (("doctor",), ["--json"]),
    ],
)
def test_help(cli, arguments, words):
    result = cli(*arguments, "--help")
    assert (result.exit_code, result.stderr) == (0, "")
    for word in words:
        assert word in result.stdout


def test_version(cli):
    assert cli("--version").stdout == f"lite-llama-tui {__version__}\n"


def test_the_app_needs_a_terminal(fails):
    assert "needs a terminal" in fails()


def test_an_option_of_the_app_before_a_command(cli):
    result = cli("--model", "tiny", "ask", "Hi")
    assert result.exit_code == 2
    assert "after the command" in result.stderr


def test_the_list_of_models(cli, add_model):
    result = cli("models")
    assert result.exit_code == 0
    assert "lite-llama-tui convert demo" in result.stdout
    add_model("tiny", source="someone/a-rather-long-name-that-a-table-of-80-columns-cuts\x1b[31m")
    add_model("other")
    (add_model("broken") / "config.json").unlink()
    result = cli("models")
    assert result.exit_code == 0
    rows = [line.split() for line in result.stdout.splitlines() if "Llama" in line]
    assert [row[0] for row in rows] == ["other", "tiny"]
    assert rows[1][1:4] == ["Llama", "135M", "bfloat16"]
    assert rows[1][-1] == "someone/a-rather-long-name-that-a-table-of-80-columns-cuts[31m"
    assert rows[1][-3:-1] == ["2,048", "text"]
    assert result.stderr.startswith("warning: broken lacks its file config.json")


def test_the_list_says_which_models_see_images(cli, tiny_llava):
    (row,) = [line.split() for line in cli("models").stdout.splitlines() if "LLaVA-1.5" in line]
    assert "text, images" in " ".join(row)
    (model,) = json.loads(cli("models", "--json").stdout)
    assert (model["name"], model["family"], model["images"]) == ("llava", "LLaVA-1.5", True)


def test_the_list_as_json(cli, add_model):
    assert json.loads(cli("models", "--json").stdout) == []
    path = add_model("tiny")
    (model,) = json.loads(cli("models", "--json").stdout)
    assert model.pop("bytes") == sum(
        file.stat().st_size for file in path.iterdir() if file.name != "manifest.json"
    )
    assert model == {
        "name": "tiny",
        "family": "Llama",
        "parameters": 134515008,
        "dtype": "bfloat16",
        "context": 2048,
        "images": False,
        "tokens_per_s": None,
        "source": "someone/some-model",
        "path": str(path),
    }


def test_the_list_says_what_fits_and_how_fast_it_was(cli, add_model, monkeypatch):
    remember_speed(add_model("tiny"), 41.96)
    monkeypatch.setattr("lite_llama.engine.memory.available_memory", lambda _: 10**12)
    (model,) = json.loads(cli("models", "--fit", "--json").stdout)
    assert (model["fits"], model["tokens_per_s"]) == (True, 41.96)
    (row,) = [line.split() for line in cli("models", "--fit").stdout.splitlines() if "Llama" in line]
    assert row[-3:] == ["42.0", "yes", "someone/some-model"]
    monkeypatch.setattr("lite_llama.engine.memory.available_memory", lambda _: 10**3)
    (model,) = json.loads(cli("models", "--fit", "--json").stdout)
    assert model["fits"] is False


def test_found(cli, home, tmp_path, make_checkpoint, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    assert "There is none" in cli("models", "found").stdout
    source = make_checkpoint("LlamaForCausalLM", tmp_path / "my shelf" / "small")
    home.mkdir()
    (home / "settings.toml").write_text(f"checkpoint_directories = {json.dumps(str(source.parent))}\n")
    line = cli("models", "found").stdout
    assert line.startswith(f"'{source}'  (small, Llama, ")
    assert cli("convert", str(source)).exit_code == 0
    assert "There is none" in cli("models", "found").stdout


def test_rename(cli, fails, add_model, home):
    async def conversation(read: bool = False):
        database = await Database.open(home / "conversations.db")
        try:
            if read:
                (summary,) = await database.summaries()
                return summary.model
            made = Conversation(title="Hi", model="old", turns=[Turn("user", "Hi")])
            return await database.save(made, made.turns)
        finally:
            await database.close()

    add_model("old")
    add_model("taken")
    asyncio.run(conversation())
    (home / "settings.toml").write_text('model = "old"\n')
    assert "already a model called taken" in fails("models", "rename", "old", "taken")
    assert cli("models", "rename", "old", "new").stdout == "Renamed old to new.\n"
    assert [model["name"] for model in json.loads(cli("models", "--json").stdout)] == ["new", "taken"]
    assert 'model = "new"' in (home / "settings.toml").read_text()
    assert asyncio.run(conversation(read=True)) == "new"
    assert "There is no model called old" in fails("models", "rename", "old", "newer")


def test_verify(cli, fails, add_model):
    assert "no converted model" in fails("models", "verify")
    add_model("good")
    weights = add_model("bad") / "model.safetensors"
    assert cli("models", "verify").exit_code == 0
    content = bytearray(weights.read_bytes())
    content[3] ^= 1
    weights.write_bytes(content)
    result = cli("models", "verify")
    assert result.exit_code == 1
    assert result.stdout == "good: all 2 files are sound\n"
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: bad/model.safetensors is damaged (its checksum differs)")
    assert "checksum differs" in fails("models", "verify", "bad")
    assert cli("models", "verify", "good").exit_code == 0


def test_doctor(cli, add_model, home):
    add_model("tiny")
    (add_model("broken") / "config.json").unlink()
    result = cli("doctor")
    assert (result.exit_code, result.stderr) == (0, "")
    for words in (
        "torch",
        "free space",
        "tiny",
        "broken lacks its file config.json",
        "Nothing keeps",
        str(home),
    ):
        assert words in result.stdout
    report = json.loads(cli("doctor", "--json").stdout)
    assert report["problems"] == []
    assert isinstance(report["sections"]["CPU"]["memory available"], int)
    assert set(report["sections"]["Models"]) == {"tiny"}
    assert any(sentence.startswith("tiny runs in ") for sentence in report["plan"])


def test_doctor_says_what_keeps_the_program_from_running(cli, home, monkeypatch):
    home.mkdir()
    (home / "settings.toml").write_text('device = "cuda"\n')
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("lite_llama.app.doctor.os.access", lambda *_: False)
    result = cli("doctor")
    assert result.exit_code == 1
    problems = result.stdout.split("Problems\n")[1]
    assert "set device to auto" in problems
    assert f"{home} cannot be written to: set {HOME_VARIABLE}" in problems


def test_doctor_with_a_broken_torch(cli, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    result = cli("doctor", "--json")
    assert result.exit_code == 1
    (problem,) = json.loads(result.stdout)["problems"]
    assert problem.startswith("torch cannot be imported")


@pytest.mark.parametrize("arguments", [["--help"], ["ask", "--help"], ["--version"], ["models"]])
def test_quick_commands_import_nothing_heavy(arguments, tmp_path):
    code = (
        "import sys\n"
        "from lite_llama.app.cli import app\n"
        "try:\n"
        f"    app({arguments!r})\n"
        "except SystemExit as end:\n"
        "    assert not end.code, end.code\n"
        "heavy = {'torch', 'transformers', 'textual', 'numpy', 'huggingface_hub'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    environment = os.environ | {HOME_VARIABLE: str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_reader_that_goes_away_is_no_error(tmp_path: Path):
    command = f"{sys.executable} -m lite_llama models --help; {sys.executable} -m lite_llama models | true"
    done = subprocess.run(
        ["bash", "-c", command],
        env=os.environ | {HOME_VARIABLE: str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Usage: lite-llama-tui models" in done.stdout
    assert done.stderr == ""
