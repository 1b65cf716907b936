"""What an endpoint is, the file that endpoints live in, and where their keys are."""

import sys
import tomllib
from dataclasses import replace

import keyring
import pytest
from keyring.backend import KeyringBackend
from keyring.errors import NoKeyringError, PasswordDeleteError

from lite_llama.app.remote import keys
from lite_llama.app.remote.endpoint import Endpoint, Endpoints
from lite_llama.models.errors import UserError

CLUSTER = Endpoint("cluster", "https://gpu.example.org:8000/v1", "Qwen/Qwen3-32B", 32768)
SECRET = "sk-0123456789abcdef"


@pytest.fixture
def endpoints(tmp_path):
    return Endpoints(tmp_path / "home" / "endpoints.toml")


@pytest.mark.parametrize(
    ("typed", "url"),
    [
        ("https://host", "https://host/v1"),
        ("https://host:8000/v1/", "https://host:8000/v1"),
        (" http://127.0.0.1:11434/v1/chat/completions ", "http://127.0.0.1:11434/v1"),
        ("https://gateway/openai/v3", "https://gateway/openai/v3"),
        ("http://[::1]:8000", "http://[::1]:8000/v1"),
    ],
)
def test_addresses_are_brought_into_one_form(typed, url):
    assert Endpoint("a", typed, "m").url == url


@pytest.mark.parametrize(
    "wrong",
    [
        {"url": "host:8000"},
        {"url": "ftp://host/v1"},
        {"url": "http://host:eighty/v1"},
        {"url": "https://user:secret@host/v1"},
        {"url": "https://host/v1?api_key=secret"},
        {"url": ""},
        {"name": "../etc"},
        {"name": ""},
        {"model": " "},
        {"context": 0},
        {"context": "many"},
        {"context": True},
        {"images": 1},
        {"key_variable": SECRET},
    ],
)
def test_what_cannot_be_an_endpoint_is_said_without_showing_secrets(wrong):
    values = {"name": "a", "url": "https://host", "model": "m"} | wrong
    with pytest.raises(UserError) as refused:
        Endpoint(**values)
    assert "secret" not in str(refused.value)
    assert SECRET not in str(refused.value)
    assert str(refused.value).endswith((".", "correct it."))


def test_plain_http_exposes_a_key_unless_it_stays_here():
    def exposes(url):
        return Endpoint("a", url, "m").exposes_key

    assert exposes("http://gpu.example.org/v1")
    assert exposes("http://192.168.1.5:8000")
    assert not any(
        exposes(url) for url in ("https://gpu.example.org", "http://localhost", "http://127.0.0.5:1")
    )
    assert not exposes("http://[::1]:8000")


def test_endpoints_are_kept(endpoints):
    assert endpoints.load() == ({}, [])
    other = Endpoint("here", "http://localhost:11434", "llama3", key_variable="MY_KEY", images=False)
    endpoints.save(CLUSTER)
    endpoints.save(other)
    assert endpoints.load() == ({"cluster": CLUSTER, "here": other}, [])
    assert endpoints.get("here") == other
    assert endpoints.get(None) is None
    endpoints.save(replace(CLUSTER, context=None, model="other"))
    assert endpoints.get("cluster") == replace(CLUSTER, context=None, model="other")
    endpoints.remove("cluster")
    assert list(endpoints.load()[0]) == ["here"]
    with pytest.raises(UserError, match="no endpoint 'cluster'"):
        endpoints.remove("cluster")


def test_what_the_user_wrote_into_the_file_stays(endpoints):
    endpoints.save(CLUSTER)
    text = (
        endpoints.path.read_text() + "# the one in the cellar\n[cellar]\nurl = 'http://cellar'\nmodel = 'm'\n"
    )
    endpoints.path.write_text(text)
    endpoints.save(replace(CLUSTER, model="other"))
    assert "# the one in the cellar" in endpoints.path.read_text()
    assert tomllib.loads(endpoints.path.read_text())["cluster"]["model"] == "other"


def test_what_is_wrong_in_the_file_is_told_and_the_rest_counts(endpoints):
    endpoints.save(CLUSTER)
    broken = "[a]\nurl = 'https://a'\n[b]\nurl = 'nowhere'\nmodel = 'm'\n[c]\nurl = 1\nmodel = 'm'\n"
    endpoints.path.write_text(endpoints.path.read_text() + broken)
    found, problems = endpoints.load()
    assert list(found) == ["cluster"]
    assert [problem.split(" in ")[0] for problem in problems] == [
        *("The endpoint a", "The endpoint b", "The endpoint c")
    ]


def test_a_file_that_is_no_toml_is_left_alone(endpoints):
    endpoints.path.parent.mkdir()
    endpoints.path.write_text("[cluster\n")
    assert "cannot be read" in endpoints.load()[1][0]
    with pytest.raises(UserError, match="correct it or move it away"):
        endpoints.save(CLUSTER)
    assert endpoints.path.read_text() == "[cluster\n"


# Keys


@pytest.fixture
def ring():
    """`ring()` sets a keyring in memory and returns what it keeps; `ring(error)` one that fails."""
    before = keyring.get_keyring()

    def make(error=None):
        kept = {}

        class Ring(KeyringBackend):
            priority = 1  # pyright: ignore[reportAssignmentType]

            def get_password(self, service, username):
                if error:
                    raise error
                return kept.get((service, username))

            def set_password(self, service, username, password):
                if error:
                    raise error
                kept[service, username] = password

            def delete_password(self, service, username):
                if (service, username) not in kept:
                    raise PasswordDeleteError
                del kept[service, username]

        keyring.set_keyring(Ring())
        return kept

    yield make
    keyring.set_keyring(before)


def found(endpoint):
    key = keys.find(endpoint)
    assert key is not None
    return key.get_secret_value()


def test_the_keyring_keeps_keys(ring):
    kept = ring()
    assert keys.find(CLUSTER) is None
    keys.store("cluster", keys.checked(SECRET, "given"))
    assert kept == {("lite-llama-tui", "cluster"): SECRET}
    assert found(CLUSTER) == SECRET
    assert SECRET not in f"{keys.find(CLUSTER)} {keys.find(CLUSTER)!r}"
    keys.forget("cluster")
    keys.forget("cluster")
    assert kept == {}


def test_the_environment_counts_above_the_keyring(ring, monkeypatch):
    ring()
    keys.store("cluster", keys.checked("from-keyring", "given"))
    monkeypatch.setenv("LITE_LLAMA_API_KEY_CLUSTER", "from-variable")
    assert found(CLUSTER) == "from-variable"
    own = replace(CLUSTER, key_variable="MY_KEY")
    with pytest.raises(UserError, match="variable MY_KEY, for the key of cluster, is not set"):
        keys.find(own)
    monkeypatch.setenv("MY_KEY", "mine")
    assert found(own) == "mine"


def test_a_name_s_variable():
    assert keys.variable("my-cluster.2") == "LITE_LLAMA_API_KEY_MY_CLUSTER_2"


def test_a_system_without_a_keyring_is_told_of_the_variable(ring):
    ring(NoKeyringError())
    assert keys.find(CLUSTER) is None
    with pytest.raises(UserError) as refused:
        keys.store("cluster", keys.checked(SECRET, "given"))
    assert str(refused.value) == (
        "This system has no keyring to keep the key in: set the environment variable "
        "LITE_LLAMA_API_KEY_CLUSTER to the key instead."
    )


def test_a_keyring_that_fails_shows_nothing_of_the_key(ring):
    ring(RuntimeError(f"bad secret {SECRET}"))
    for action in (lambda: keys.find(CLUSTER), lambda: keys.store("cluster", keys.checked(SECRET, "given"))):
        with pytest.raises(UserError, match="LITE_LLAMA_API_KEY_CLUSTER") as refused:
            action()
        assert SECRET not in str(refused.value)
        assert refused.value.__suppress_context__


def test_without_the_package_the_environment_does(monkeypatch):
    monkeypatch.setitem(sys.modules, "keyring", None)
    assert keys.find(CLUSTER) is None
    keys.forget("cluster")
    with pytest.raises(UserError, match="set the environment variable LITE_LLAMA_API_KEY_CLUSTER"):
        keys.store("cluster", keys.checked(SECRET, "given"))


@pytest.mark.parametrize("key", ["", "  ", "sk two", "sk-ключ", "sk-\x1b[31m"])
def test_what_is_no_key_is_refused_without_showing_it(key):
    with pytest.raises(UserError) as refused:
        keys.checked(key, "given")
    assert not key.strip() or key not in str(refused.value)


def test_no_file_of_ours_holds_the_key(ring, endpoints):
    ring()
    keys.store("cluster", keys.checked(SECRET, "given"))
    endpoints.save(CLUSTER)
    written = [path.read_text() for path in endpoints.path.parent.rglob("*") if path.is_file()]
    assert len(written) == 1
    assert SECRET not in written[0]
