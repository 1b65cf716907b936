"""The settings file: what is read from where, and what a save leaves alone."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from lite_llama.app.settings import Settings, SettingsStore, invalid, requirement
from lite_llama.engine.request import SamplingParams
from lite_llama.models.errors import UserError

FILE = """\
# Mine.
seed = 42            # the answer
temperature = 0.25   # cool

unknown_key = "kept"
system_prompt = '''
Be brief.
And kind.'''

[notes]              # not ours either
author = "me"
"""


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"LITE_LLAMA_{name.upper()}", raising=False)


@pytest.fixture
def store(tmp_path: Path) -> SettingsStore:
    return SettingsStore(tmp_path / "config" / "settings.toml")


def write(store: SettingsStore, text: str) -> None:
    store.path.parent.mkdir(exist_ok=True)
    store.path.write_text(text, encoding="utf-8")


def changed(settings: Settings, **values: object) -> Settings:
    return Settings(**{**settings.model_dump(), **values})


def test_missing_file_gives_defaults(store: SettingsStore):
    assert store.load() == Settings()
    assert store.problems == []
    assert not store.path.exists()


def test_sampling_params_carry_every_setting():
    settings = Settings(
        temperature=0.5, top_p=0.8, top_k=40, min_p=0.1, repetition_penalty=1.1, seed=3, max_gen_len=7
    )
    assert settings.sampling_params({}) == SamplingParams(0.5, 0.8, 40, 0.1, 1.1, 3, 7)


@pytest.mark.parametrize(
    ("name", "lowest", "highest"),
    [
        ("temperature", 0, 2),
        ("top_p", 1e-9, 1),
        ("top_k", 0, 10**6),
        ("min_p", 0, 0.999),
        ("repetition_penalty", 0.1, 10),
        ("seed", 0, 2**63 - 1),
        ("max_gen_len", 1, 10**6),
    ],
)
def test_the_engine_takes_whatever_the_settings_allow(name: str, lowest: float, highest: float):
    for value in (lowest, highest):
        Settings.model_validate({name: value}).sampling_params({})
    assert invalid({name: -1}) == [name]
    assert invalid({name: "nan"}) == [name]


def test_save_keeps_comments_order_and_unknown_keys(store: SettingsStore):
    write(store, FILE)
    settings = store.load()
    assert (settings.seed, settings.temperature, settings.system_prompt) == (42, 0.25, "Be brief.\nAnd kind.")
    store.save(changed(settings, temperature=0.5, top_k=20))
    expected = FILE.replace("temperature = 0.25   # cool", "temperature = 0.5   # cool")
    head, notes = expected.split("\n[notes]")
    text = store.path.read_text(encoding="utf-8")
    assert text.startswith(head)
    assert text.endswith("[notes]" + notes)
    # The new key stands before the table, not in it.
    assert tomllib.loads(text) == {**tomllib.loads(FILE), "temperature": 0.5, "top_k": 20}
    assert SettingsStore(store.path).load() == changed(settings, temperature=0.5, top_k=20)


def test_save_without_a_change_writes_nothing(store: SettingsStore):
    store.save(store.load())
    assert not store.path.exists()


def test_save_of_nothing_takes_the_key_away(store: SettingsStore):
    write(store, FILE)
    store.save(changed(store.load(), seed=None))
    assert "seed" not in tomllib.loads(store.path.read_text(encoding="utf-8"))
    assert SettingsStore(store.path).load().seed is None


@pytest.mark.parametrize(
    "prompt", ["two\nlines", "quotes ''' \"\"\" \\ and\n\nblank", "\n", "ünïcode 🙂", ""]
)
def test_any_system_prompt_comes_back(store: SettingsStore, prompt: str):
    store.save(changed(store.load(), system_prompt=prompt, seed=1))
    assert SettingsStore(store.path).load().system_prompt == prompt


def test_save_keeps_what_the_user_wrote_meanwhile(store: SettingsStore):
    write(store, "seed = 1\n")
    settings = store.load()
    write(store, "seed = 2  # edited while the app ran\n")
    store.save(changed(settings, top_k=5))
    assert store.path.read_text(encoding="utf-8").startswith(
        "seed = 2  # edited while the app ran\ntop_k = 5"
    )


def test_second_save_writes_the_second_change(store: SettingsStore):
    first = changed(store.load(), seed=1)
    store.save(first)
    store.save(changed(first, seed=None, top_k=3))
    assert tomllib.loads(store.path.read_text(encoding="utf-8")) == {"top_k": 3}


def test_environment_counts_above_the_file_and_is_not_saved(
    store: SettingsStore, monkeypatch: pytest.MonkeyPatch
):
    write(store, "temperature = 0.25\n")
    monkeypatch.setenv("LITE_LLAMA_TEMPERATURE", "1.5")
    monkeypatch.setenv("LITE_LLAMA_SEED", "9")
    monkeypatch.setenv("LITE_LLAMA_MODEL", "")
    monkeypatch.setenv("LITE_LLAMA_HOME", "/elsewhere")  # not a setting
    settings = store.load()
    assert (settings.temperature, settings.seed, settings.model) == (1.5, 9, None)
    store.save(changed(settings, top_k=7))
    assert tomllib.loads(store.path.read_text(encoding="utf-8")) == {"temperature": 0.25, "top_k": 7}
    store.save(changed(settings, top_k=7, seed=10))
    assert tomllib.loads(store.path.read_text(encoding="utf-8"))["seed"] == 10
    assert store.load().seed == 9


def test_invalid_environment_leaves_the_file_in_force(store: SettingsStore, monkeypatch: pytest.MonkeyPatch):
    write(store, "temperature = 0.25\n")
    monkeypatch.setenv("LITE_LLAMA_TEMPERATURE", "hot")
    assert store.load().temperature == 0.25
    assert store.problems == [
        "LITE_LLAMA_TEMPERATURE in the environment is 'hot' but must be a number from 0 to 2: it is ignored."
    ]


def test_constructor_does_not_look_at_the_environment(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LITE_LLAMA_TEMPERATURE", "1.5")
    assert Settings().temperature == Settings.model_fields["temperature"].default


def test_invalid_values_give_defaults_and_a_sentence_each(store: SettingsStore):
    text = 'temperature = 7.5\ntop_k = "many"\ndevice = "tpu"\nseed = 3\n[top_p]\nx = 1\n'
    write(store, text)
    assert store.load() == Settings(seed=3)
    assert set(store.problems) == {
        f"temperature in {store.path} is 7.5 but must be a number from 0 to 2: it is ignored.",
        f"top_k in {store.path} is 'many' but must be a whole number, at least 0: it is ignored.",
        f"device in {store.path} is 'tpu' but must be one of auto, cpu, cuda: it is ignored.",
        f"top_p in {store.path} is {{'x': 1}} but must be a number, above 0 and at most 1: it is ignored.",
    }
    assert store.path.read_text(encoding="utf-8") == text
    store.save(changed(store.load(), seed=4))
    assert SettingsStore(store.path).load() == Settings(seed=4)


def test_broken_toml_is_left_alone_until_saved_and_then_kept_aside(store: SettingsStore):
    write(store, "temperature = = 1\n")
    assert store.load() == Settings()
    [problem] = store.problems
    assert problem.startswith(f"{store.path} is no valid TOML")
    assert "settings.toml.broken" in problem
    assert store.path.read_text(encoding="utf-8") == "temperature = = 1\n"
    store.save(Settings(seed=5))
    assert store.path.with_name("settings.toml.broken").read_text(encoding="utf-8") == "temperature = = 1\n"
    assert tomllib.loads(store.path.read_text(encoding="utf-8")) == {"seed": 5}
    assert store.load() == Settings(seed=5)
    assert store.problems == []


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"seed = 1\nseed = 2\n"])
def test_undecodable_and_ambiguous_files_are_broken_too(store: SettingsStore, content: bytes):
    store.path.parent.mkdir()
    store.path.write_bytes(content)
    assert store.load() == Settings()
    assert len(store.problems) == 1


def test_failed_save_leaves_the_old_file_and_no_other(store: SettingsStore, monkeypatch: pytest.MonkeyPatch):
    write(store, FILE)
    settings = store.load()

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(UserError, match=r"cannot be saved to .*settings\.toml \(No space left on device\)"):
        store.save(changed(settings, seed=1))
    assert store.path.read_text(encoding="utf-8") == FILE
    assert [path.name for path in store.path.parent.iterdir()] == ["settings.toml"]


def test_save_replaces_the_file_whole(store: SettingsStore):
    """A reader that holds the old file sees it unchanged: the new one was renamed into its place."""
    write(store, FILE)
    settings = store.load()
    with store.path.open(encoding="utf-8") as old:
        store.save(changed(settings, seed=1))
        assert old.read() == FILE


def test_save_goes_through_a_symlink(store: SettingsStore, tmp_path: Path):
    real = tmp_path / "dotfiles.toml"
    real.write_text("seed = 1\n", encoding="utf-8")
    store.path.parent.mkdir()
    store.path.symlink_to(real)
    store.save(changed(store.load(), seed=2))
    assert store.path.is_symlink()
    assert tomllib.loads(real.read_text(encoding="utf-8")) == {"seed": 2}


def test_every_field_explains_itself():
    for name, field in Settings.model_fields.items():
        assert field.title, name
        assert field.description, name
        assert requirement(name), name


def test_settings_do_not_import_torch():
    code = "import sys, lite_llama.app.settings; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_what_the_user_never_set_gives_way_to_the_models_defaults() -> None:
    defaults = {"temperature": 0.2, "top_k": 20}
    assert Settings().sampling_params(defaults) == SamplingParams(0.2, 0.9, 20, max_new_tokens=1024)
    # Set to the very value that is the default: set all the same.
    params = Settings(temperature=0.7, max_gen_len=50).sampling_params(defaults)
    assert params == SamplingParams(0.7, 0.9, 20, max_new_tokens=50)
