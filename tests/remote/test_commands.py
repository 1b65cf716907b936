"""The command line with endpoints: `endpoints`, and `ask --model`, against a server process."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest


@pytest.fixture
def command(tmp_path):
    """`command("endpoints", "add", …)` runs the program; returns exit code, stdout and stderr."""
    # As on a machine without a desktop: no keyring is asked.
    own = {
        "LITE_LLAMA_HOME": str(tmp_path / "home"),
        "PYTHON_KEYRING_BACKEND": "keyring.backends.fail.Keyring",
    }
    environment = {key: value for key, value in os.environ.items() if not key.startswith("LITE_LLAMA")}
    environment |= own | {"PYTHONPATH": os.pathsep.join(sys.path)}

    def run(*arguments, input="", start=False, **variables):
        line = [sys.executable, "-m", "lite_llama", *arguments]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        process = subprocess.Popen(line, env=environment | variables, **pipes)
        if start:
            return process
        out, err = process.communicate(input, timeout=120)
        return process.returncode, out, err

    return run


def test_add_list_ask_and_remove(command, demo_server):
    code, out, err = command("endpoints", "add", "cluster", demo_server.url, "--model", "demo")
    assert (code, err) == (0, "")
    assert (
        out == f"Added cluster: demo at 127.0.0.1:{demo_server.port}. Try: lite-llama-tui --model cluster\n"
    )
    (row,) = json.loads(command("endpoints", "--json")[1])
    assert (row["name"], row["model"], row["url"]) == ("cluster", "demo", demo_server.url)
    table = command("endpoints")[1]
    assert "cluster" in table
    assert "as the server says" in table
    greedy = ("--model", "cluster", "--temperature", "0", "--max-gen-len", "20")
    code, out, err = command("ask", "What is the capital of France?", *greedy)
    assert (code, "Paris" in out, err) == (0, True, "")
    reply = json.loads(command("ask", "What is the capital of France?", *greedy, "--json")[1])
    assert "Paris" in reply["text"]
    assert (reply["device"], reply["finish_reason"]) == ("remote", "stop")
    assert command("endpoints", "rm", "cluster")[:2] == (0, "Removed cluster.\n")
    assert command("endpoints")[1].startswith("There is no endpoint")


def test_ctrl_c_ends_a_reply(command, demo_server):
    command("endpoints", "add", "cluster", demo_server.url, "--model", "demo")
    cancelled = len(demo_server.log()["cancelled"])
    process = command("ask", "Write a very long story.", "--model", "cluster", start=True)
    process.stdin.close()
    process.stdout.read(5)
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 1
    assert "Traceback" not in process.stderr.read()
    end = time.monotonic() + 10
    while len(demo_server.log()["cancelled"]) == cancelled:
        assert time.monotonic() < end
        time.sleep(0.05)
    process.stdout.close()
    process.stderr.close()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("nowhere",), "The address must look like https://host:8000/v1: correct it."),
        (("{url}", "--model", "nothing"), "cluster has no model 'nothing': it has forbidden, "),
        (("{url}",), "Say which model with --model; the server has: forbidden, "),
        (("{url}", "--model", ""), "The endpoint needs a model: list the server's models and choose one."),
        (("{url}", "--model", " "), "The endpoint needs a model: list the server's models and choose one."),
        (("http://127.0.0.1:9/v1",), "Nothing answers at 127.0.0.1:9: check that the server of cluster runs"),
    ],
)
def test_an_endpoint_that_does_not_work_is_not_added(command, server, arguments, sentence):
    code, out, err = command(
        "endpoints", "add", "cluster", *(each.format(url=server.url) for each in arguments)
    )
    assert (code, out) == (1, "")
    assert err.startswith(f"error: {sentence}")
    assert len(err.splitlines()) == 1
    assert command("endpoints")[1].startswith("There is no endpoint")


def test_a_key_from_the_environment(command, locked_server, key, tmp_path):
    add = ("endpoints", "add", "cluster", locked_server.url, "--model", "vllm")
    assert "asks for an API key (401)" in command(*add)[2]
    assert command(*add, LITE_LLAMA_API_KEY_CLUSTER=key)[0] == 0
    assert command("ask", "Hi", "--model", "cluster", LITE_LLAMA_API_KEY_CLUSTER=key)[:2] == (0, "Ten.\n")
    code, _, err = command("ask", "Hi", "--model", "cluster", LITE_LLAMA_API_KEY_CLUSTER=f"{key}-wrong")
    assert (code, "refuses the API key (401)" in err) == (1, True)
    assert command(*add, "--key-variable", "MY_KEY", MY_KEY=key)[0] == 0
    assert command("ask", "Hi", "--model", "cluster", MY_KEY=key)[:2] == (0, "Ten.\n")
    assert "set" in command("ask", "Hi", "--model", "cluster")[2]
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert key.encode() not in written


def test_a_key_without_a_keyring_is_told_where_it_can_go(command, locked_server, key):
    add = ("endpoints", "add", "cluster", locked_server.url, "--model", "vllm", "--key-stdin")
    code, _, err = command(*add, input=f"{key}\n")
    assert (code, key in err) == (1, False)
    assert "LITE_LLAMA_API_KEY_CLUSTER" in err


def test_a_key_does_not_go_over_plain_http_unasked(command, key):
    add = ("endpoints", "add", "cluster", "http://gpu.invalid:8000", "--model", "m", "--key-stdin")
    code, _, err = command(*add, input=f"{key}\n")
    assert (code, err) == (
        1,
        "error: The key goes to gpu.invalid:8000 without encryption, for anyone on the way to read. "
        "Use https, or say --yes.\n",
    )
    assert "unknown (DNS)" in command(*add, "--yes", input=f"{key}\n")[2]


def test_usage(command, server):
    command("endpoints", "add", "cluster", server.url, "--model", "vllm")
    code, _, err = command("ask", "Hi", "--model", "cluster", "--device", "cpu")
    assert (code, "runs elsewhere" in err) == (2, True)
    assert "error: There is no endpoint 'other'" in command("endpoints", "rm", "other")[2]
