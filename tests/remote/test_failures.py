"""What can go wrong between here and a server: one sentence each, and what had come is kept."""

import contextlib
import logging
import socket
import threading
import traceback

import pytest

from lite_llama.app.remote.endpoint import Endpoint
from lite_llama.engine.events import Failed, LoadFailed

TOO_LONG = (
    "The conversation is too long for the context of 4,096 tokens of cluster: start a new one, or shorten it."
)
NO_ANSWER = {
    "forbidden": "cluster asks for an API key (403): give it one, or set LITE_LLAMA_API_KEY_CLUSTER.",
    "gone": "cluster has no model 'gone' (404): choose another one of its models.",
    "no-route": "There is no OpenAI-compatible API at {url} (404): the address mostly ends with /v1.",
    "busy": "cluster takes no more requests now (429: Rate limit reached): try again in 7 s.",
    "broken": "cluster failed (500: CUDA error at line 1): try again in a while.",
    "starting": "cluster failed (503: Loading model): try again in a while.",
    "too-large": "The message is too large for cluster (413): send fewer or smaller images.",
    "refusing": "cluster refused the request (400: temperature must be in [0, 1], got 5).",
    "page": "{host} answered with a web page and not with the API (200): check the address of cluster, which "
    "mostly ends with /v1, and a proxy between.",
    "gateway": "{host} answered with a web page and not with the API (502): check the address of cluster, "
    "which mostly ends with /v1, and a proxy between.",
    "moved": "{host} sends on to login.example.org: give cluster the address that it means.",
    "not-streaming": "cluster does not stream its replies: check that its address is the API's.",
    "long-vllm": TOO_LONG,
    "long-sglang": TOO_LONG,
    "long-llamacpp": TOO_LONG,
}
CUT = "The connection to cluster was cut: continue the reply, or try again."
MID_STREAM = {
    "cut": CUT,
    "unfinished": CUT,
    "no-json": "cluster sent something that is no JSON: continue the reply, or try again.",
    "error-inside": "The server broke off the reply (Out of memory, None): try again.",
    "abort": "The server broke off the reply: try again.",
    "filtered": "The server's content filter ended the reply: ask in other words.",
}


@pytest.mark.parametrize("fault", NO_ANSWER)
def test_a_request_that_is_not_answered(talk, server, fault):
    sentence = NO_ANSWER[fault].format(url=server.url, host=f"127.0.0.1:{server.port}")
    assert talk(server, fault).fails() == (sentence, False, "")


@pytest.mark.parametrize("fault", MID_STREAM)
def test_a_reply_that_breaks_off_keeps_what_had_come(talk, server, fault):
    assert talk(server, fault).fails() == (MID_STREAM[fault], True, "Once upon a time")


@pytest.fixture
def fails_at(talk, server):
    """`fails_at(url)` tries to connect there; returns the sentence."""

    def connect(url, key=None):
        one = talk(server, "cut", key)
        outcome = one.connect(Endpoint("cluster", url, "cut"))
        assert isinstance(outcome, LoadFailed)
        assert one.engine.model is None
        return outcome.message

    return connect


def test_nobody_listens(fails_at):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert fails_at(f"http://127.0.0.1:{port}") == (
        f"Nothing answers at 127.0.0.1:{port}: check that the server of cluster runs, and its address."
    )


def test_unknown_host(fails_at, monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    assert fails_at("http://no-such-host.invalid/v1") == (
        "The host no-such-host.invalid is unknown (DNS): check the address of cluster, and the network."
    )


def test_no_tls_where_it_is_expected(fails_at, server):
    assert fails_at(f"https://127.0.0.1:{server.port}") == (
        f"127.0.0.1:{server.port} does not speak TLS: check whether the address of cluster should begin with "
        "http://."
    )


def test_a_certificate_that_nobody_signed(fails_at, tls_server):
    said = fails_at(tls_server.url)
    assert said.startswith(f"The certificate of 127.0.0.1:{tls_server.port} is not trusted (")
    assert said.endswith("or point SSL_CERT_FILE to the authority's certificate.")


def test_an_address_without_the_api(fails_at, server):
    assert fails_at(f"http://127.0.0.1:{server.port}/api") == (
        f"There is no OpenAI-compatible API at http://127.0.0.1:{server.port}/api (404): the address mostly "
        "ends with /v1."
    )


def test_a_server_that_hangs_up(fails_at):
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def hang_up():
            with contextlib.suppress(OSError):  # closed before the client comes again
                for _ in range(2):
                    connection, _ = listener.accept()
                    connection.recv(1000)
                    connection.close()

        threading.Thread(target=hang_up, daemon=True).start()
        said = fails_at(f"http://127.0.0.1:{listener.getsockname()[1]}")
    assert said == "cluster closed the connection without an answer: try again."


# Keys


def test_a_key_opens_the_server(talk, locked_server, key):
    assert talk(locked_server, "vllm", key).ask("Hi")[-1].text == "Ten."


def test_a_missing_and_a_wrong_key(fails_at, locked_server):
    assert fails_at(locked_server.url) == (
        "cluster asks for an API key (401): give it one, or set LITE_LLAMA_API_KEY_CLUSTER."
    )
    assert fails_at(locked_server.url, "sk-wrong") == (
        "cluster refuses the API key (401): check the key, and what it allows."
    )


@pytest.mark.parametrize("fault", ["quoting", "error-inside", "cut", "broken", "refusing", "vllm"])
def test_the_key_appears_nowhere(talk, locked_server, key, caplog, capfd, fault):
    with caplog.at_level(logging.DEBUG):
        cluster = talk(locked_server, fault, key)
        events = cluster.ask("Hi")
    assert key not in caplog.text
    assert all(key not in str(vars(record)) for record in caplog.records)
    assert key not in repr(events)
    if isinstance(events[-1], Failed):
        assert key not in events[-1].message
    connection = cluster.engine._connection
    assert key not in repr(connection)
    assert key not in repr(vars(connection.client))
    captured = capfd.readouterr()
    assert key not in captured.out + captured.err


def test_a_crash_of_ours_shows_no_key_even_with_its_variables(talk, locked_server, key, caplog, monkeypatch):
    """Textual's tracebacks show the variables of each frame."""
    from rich.console import Console
    from rich.traceback import Traceback

    from lite_llama.app.remote import client

    def crash(*_, **__):
        raise RuntimeError("a bug")

    cluster = talk(locked_server, "vllm", key)
    seen = []
    monkeypatch.setattr(client.httpx2.AsyncClient, "send", crash)
    monkeypatch.setattr("lite_llama.app.remote.engine.log.error", lambda *_, exc_info: seen.append(exc_info))
    assert cluster.fails()[0] == "The request failed (RuntimeError): the log file has the details."
    (error,) = seen
    console = Console(width=200, record=True, quiet=True)
    console.print(Traceback.from_exception(type(error), error, error.__traceback__, show_locals=True))
    shown = console.export_text() + "".join(
        traceback.TracebackException.from_exception(error, capture_locals=True).format()
    )
    assert "a bug" in shown
    assert "locals" in shown
    assert key not in shown
