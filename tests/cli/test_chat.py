"""`chat`: the same app as without a command, or the plain chat."""

import pytest

from lite_llama.app import plain, tui


@pytest.fixture
def opened(monkeypatch):
    """What was opened: `app` or `plain`, with the model that was asked for."""
    calls = []
    monkeypatch.setattr(tui, "run", lambda _, model: calls.append(("app", model)) or 0)
    monkeypatch.setattr(plain, "run", lambda _, model: calls.append(("plain", model)) or 0)
    return calls


@pytest.fixture
def in_terminal(monkeypatch):
    monkeypatch.setattr("lite_llama.app.cli._in_terminal", lambda: True)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)


def test_chat_opens_the_app_as_the_bare_command_does(cli, opened, in_terminal, add_model):
    add_model("tiny")
    for command in ((), ("chat",), ("--model", "tiny"), ("chat", "--model", "tiny")):
        assert cli(*command).stderr == ""
    assert opened == [("app", None), ("app", None), ("app", "tiny"), ("app", "tiny")]


def test_plain_needs_no_terminal(cli, opened, fails, add_model):
    add_model("tiny")
    assert cli("chat", "--plain", "--model", "tiny").exit_code == 0
    assert opened == [("plain", "tiny")]
    assert "chat --plain" in fails("chat")
    assert "no converted model 'other'" in fails("chat", "--plain", "--model", "other")


@pytest.mark.parametrize(("variable", "value"), [("TERM", "dumb"), ("NO_COLOR", "1")])
def test_a_terminal_without_colours_is_told_of_the_plain_chat(
    cli, opened, in_terminal, monkeypatch, variable, value
):
    monkeypatch.setenv(variable, value)
    for command in ((), ("chat",)):
        (line,) = cli(*command).stderr.splitlines()
        assert "chat --plain" in line
    cli("chat", "--plain")
    assert opened == [("app", None), ("app", None), ("plain", None)]
