"""The app with endpoints, driven by keys, against server processes on loopback."""

import io
import sqlite3
import sys
from dataclasses import replace

import pytest
from huggingface_hub import constants
from textual.widgets import Button, Checkbox, Input, OptionList, Static

from lite_llama.app import plain
from lite_llama.app.exchange import write
from lite_llama.app.machine import Machine, MachineLoad
from lite_llama.app.remote import keys
from lite_llama.app.remote.client import ServedModel
from lite_llama.app.remote.endpoint import Endpoint, Endpoints
from lite_llama.app.remote.engine import _info
from lite_llama.app.screens import wizard
from lite_llama.app.screens.chat import ChatScreen
from lite_llama.app.screens.compare import CompareScreen
from lite_llama.app.screens.endpoint import EndpointScreen
from lite_llama.app.screens.figures import FiguresScreen
from lite_llama.app.screens.models import ConfirmScreen, ModelScreen
from lite_llama.app.screens.wizard import WizardScreen
from lite_llama.app.settings import SettingsStore
from lite_llama.app.tui import LiteLlamaApp
from lite_llama.app.widgets.prompt import PromptInput
from lite_llama.app.widgets.side import SideView
from lite_llama.models.errors import UserError

CAPITAL = "What is the capital of France?"


def no_engine():
    raise AssertionError("this machine's engine is not needed")


def offline(*_, **__):
    raise UserError("There is no network.")


def is_on(app, screen):
    return lambda: isinstance(app.screen, screen)


def shows(app, selector, text):
    return lambda: text in str(app.screen_stack[0].query_one(selector).render())


def outcome(app):
    return str(app.screen.query_one("#outcome", Static).render())


@pytest.fixture
def connected(paths, until):
    """`connected(server, model)`: an app that connects to the endpoint `cluster` by itself when it starts."""
    apps = []

    def make(server, model, **more):
        Endpoints(paths.endpoints).save(Endpoint("cluster", server.url, model, **more))
        paths.settings.write_text('model = "cluster"\ntemperature = 0\nmax_gen_len = 40\n')
        apps.append(LiteLlamaApp(paths, create_engine=no_engine))
        return apps[-1]

    yield make
    for app in apps:
        app.controller.loader.close_engines()


async def ready(app, pilot, until):
    await until(pilot, lambda: app.controller.loader.model is not None)
    await until(pilot, shows(app, "#telemetry", "Ready"))


async def test_an_endpoint_is_added_by_keys_and_answers(paths, demo_server, until):
    paths.data.mkdir()
    paths.settings.parent.mkdir(parents=True, exist_ok=True)
    paths.settings.write_text("temperature = 0\nmax_gen_len = 40\n")
    app = LiteLlamaApp(paths, create_engine=no_engine)
    Endpoints(paths.endpoints).save(Endpoint("other", "http://127.0.0.1:9", "m"))
    async with app.run_test(size=(100, 30)) as pilot:
        await until(pilot, is_on(app, ModelScreen))  # `other` is down
        await pilot.press("n")
        await until(pilot, is_on(app, EndpointScreen))
        await pilot.press(*"cluster", "tab")
        app.screen.query_one("#url", Input).value = demo_server.url
        await pilot.press("ctrl+t")
        await until(pilot, lambda: "choose one of its" in outcome(app))
        await pilot.press("enter")  # the first of the list
        await until(pilot, lambda: "answers and has demo with a context of 1,024 tokens" in outcome(app))
        await pilot.press("ctrl+s")
        await until(pilot, lambda: app.controller.loader.name == "cluster")
        assert Endpoints(paths.endpoints).get("cluster") == Endpoint("cluster", demo_server.url, "demo")
        await until(pilot, shows(app, "#header", f"cluster · demo at 127.0.0.1:{demo_server.port}"))
        await until(pilot, is_on(app, ChatScreen))
        await pilot.press(*"Hello", "enter")
        await until(pilot, shows(app, "#telemetry", "timed here"))
        assert app.controller.last_reply
        assert app.controller.last_reply.text
    app.controller.loader.close_engines()


async def choose_server(app, pilot, until, name, url):
    """In the wizard, the model `demo` of a server in place of one to convert."""
    await until(pilot, is_on(app, WizardScreen))
    options = app.screen.query_one("#choose OptionList", OptionList)
    options.highlighted = options.get_option_index("endpoint")
    await pilot.press("enter")
    await until(pilot, is_on(app, EndpointScreen))
    for field, value in (("name", name), ("url", url), ("model", "demo")):
        app.screen.query_one(f"#{field}", Input).value = value
    await pilot.press("ctrl+s")
    await until(pilot, is_on(app, ChatScreen))


async def test_the_first_run_begins_with_a_server(paths, demo_server, until, monkeypatch):
    monkeypatch.setattr(wizard, "inspect", offline)
    paths.settings.parent.mkdir()
    paths.settings.write_text("temperature = 0\nmax_gen_len = 40\n")
    app = LiteLlamaApp(paths)
    async with app.run_test(size=(100, 30)) as pilot:
        await choose_server(app, pilot, until, "cluster", demo_server.url)
        await ready(app, pilot, until)
        app.query_one(PromptInput).text = CAPITAL
        await pilot.press("enter")
        await until(pilot, shows(app, "#telemetry", "timed here"))
        assert app.controller.last_reply
        assert "Paris" in app.controller.last_reply.text
    app.controller.loader.close_engines()
    assert SettingsStore(paths.settings).load().model == "cluster"  # the next start opens with it


async def test_a_server_of_the_wizard_takes_the_models_place_unless_it_is_down(
    paths, demo_server, until, monkeypatch
):
    monkeypatch.setattr(wizard, "inspect", offline)
    Endpoints(paths.endpoints).save(Endpoint("cluster", demo_server.url, "demo"))
    app = LiteLlamaApp(paths)
    async with app.run_test(size=(100, 30)) as pilot:
        await ready(app, pilot, until)
        for name, url, used in (
            ("gone", "http://127.0.0.1:9", "cluster"),
            ("second", demo_server.url, "second"),
        ):
            await pilot.press("f3")
            await until(pilot, is_on(app, ModelScreen))
            await pilot.press("a")
            await choose_server(app, pilot, until, name, url)
            await until(pilot, lambda wanted=used: app.controller.loader.name == wanted)
            await ready(app, pilot, until)
        assert "Going back to cluster." in "".join(notice.message for notice in app._notifications)
    app.controller.loader.close_engines()


async def test_chat_with_an_endpoint(connected, demo_server, until, paths):
    app = connected(demo_server, "demo")
    async with app.run_test(size=(120, 30)) as pilot:
        await ready(app, pilot, until)
        app.query_one(PromptInput).text = CAPITAL
        await until(pilot, shows(app, "#context", " / 1,024"))
        await pilot.press("enter")
        await until(pilot, shows(app, "#telemetry", "timed here"))
        reply = app.controller.last_reply
        assert "Paris" in reply.text
        assert (reply.status, reply.figures.remote) == ("complete", True)
        tokens = reply.figures.prompt_tokens + reply.figures.completion_tokens
        await until(pilot, shows(app, "#context", f" {tokens:,} / 1,024"))  # counted, not about
        app.query_one(PromptInput).text = "And of Spain?"
        await until(pilot, shows(app, "#context", " ~"))
        assert app.controller.conversation.model == "cluster"
    stored = sqlite3.connect(paths.database)
    assert "Paris" in stored.execute("SELECT content FROM messages WHERE role = 'assistant'").fetchone()[0]
    stored.close()


async def test_esc_stops_and_ctrl_g_goes_on(connected, server, demo_server, until):
    app = connected(server, "stall")
    async with app.run_test(size=(120, 30)) as pilot:
        await ready(app, pilot, until)
        await pilot.press(*"Hi", "enter")
        await until(pilot, lambda: app.controller.last_reply and app.controller.last_reply.text)
        await pilot.press("escape")
        await until(pilot, lambda: app.controller.last_reply.status == "stopped")
        reply = app.controller.last_reply
        assert reply.text == "Once upon a time"
        assert reply.figures.completion_tokens == 2
        Endpoints(app.paths.endpoints).save(Endpoint("cluster", demo_server.url, "demo"))
        await app.controller.load_model("cluster")
        await until(pilot, lambda: not app.controller.loader.loading)
        await pilot.press("ctrl+g")
        await until(pilot, lambda: app.controller.last_reply.status in ("complete", "length"))
        assert app.controller.last_reply.text.startswith("Once upon a time")
        assert len(app.controller.last_reply.text) > 20
        assert demo_server.log()["asked"][-1]["continue_final_message"]


async def test_a_cut_reply_is_kept_and_a_refused_message_comes_back(connected, server, until):
    app = connected(server, "cut")
    async with app.run_test(size=(120, 30)) as pilot:
        await ready(app, pilot, until)
        await pilot.press(*"Hi", "enter")
        await until(pilot, lambda: app.controller.last_reply and app.controller.last_reply.status == "error")
        assert app.controller.last_reply.text == "Once upon a time"
        assert app.controller.last_reply.note.startswith("The connection to cluster was cut")
        assert app.controller.can_continue
        await app.controller.new_conversation()
        Endpoints(app.paths.endpoints).save(Endpoint("cluster", server.url, "busy"))
        await app.controller.load_model("cluster")
        await until(pilot, lambda: not app.controller.loader.loading)
        await pilot.press(*"Dear", "enter")
        await until(pilot, lambda: app._notifications)
        await until(pilot, lambda: app.query_one(PromptInput).text == "Dear")
        assert any("try again in 7 s" in notice.message for notice in app._notifications)
        assert app.controller.conversation.turns == []


async def test_a_server_without_a_context_length_has_a_meter_without_end(connected, server, until):
    app = connected(server, "vllm")
    async with app.run_test(size=(120, 30)) as pilot:
        await ready(app, pilot, until)
        await pilot.press(*"Hello there", "enter")
        await until(pilot, shows(app, "#telemetry", "timed here"))
        assert app.controller.last_reply.thinking.text == "Nine or ten?"
        await until(pilot, shows(app, "#context", "~"))
        assert "/" not in str(app.query_one("#context").render())
        assert "full" not in str(app.query_one("#context-label").render())


async def test_no_key_is_in_the_database_an_export_or_the_log(
    connected, locked_server, key, until, monkeypatch, paths
):
    monkeypatch.setenv("LITE_LLAMA_API_KEY_CLUSTER", key)
    app = connected(locked_server, "quoting")
    async with app.run_test(size=(120, 30)) as pilot:
        await ready(app, pilot, until)
        await pilot.press(*"Hi", "enter")
        await until(pilot, lambda: any("refuses the API key (401)" in n.message for n in app._notifications))
        assert not any(key in notice.message for notice in app._notifications)
        Endpoints(paths.endpoints).save(Endpoint("cluster", locked_server.url, "error-inside"))
        await app.controller.load_model("cluster")
        await until(pilot, lambda: not app.controller.loader.loading)
        await pilot.press("enter")  # the message came back
        await until(pilot, lambda: app.controller.last_reply and app.controller.last_reply.status == "error")
        assert "Out of memory" in app.controller.last_reply.note
        for suffix in ("md", "jsonl", "html"):
            write(paths.data / f"export.{suffix}", [app.controller.conversation])
    written = b"".join(path.read_bytes() for path in paths.data.rglob("*") if path.is_file())
    assert b"Out of memory" in written
    assert key.encode() not in written


async def test_a_message_reaches_no_server_that_was_left_for_a_local_model(connected, server, until):
    """A load that fails leaves no model, not the endpoint of before."""
    app = connected(server, "vllm")
    async with app.run_test(size=(120, 30)) as pilot:
        await ready(app, pilot, until)
        app.controller.loader._create_engine = lambda: 1 / 0
        await app.controller.load_model("gone")
        await until(pilot, is_on(app, ModelScreen))
        assert not app.controller.loader.loading
        assert app.controller.loader.model is None


# The dialogs


async def listed(app, pilot, until):
    await pilot.press("f3")
    await until(pilot, is_on(app, ModelScreen))
    return app.screen.query_one("#models", OptionList)


async def test_the_list_of_models_shows_changes_and_forgets_endpoints(connected, server, until, paths):
    app = connected(server, "vllm")
    Endpoints(paths.endpoints).save(Endpoint("spare", server.url, "ollama"))
    async with app.run_test(size=(100, 30)) as pilot:
        await ready(app, pilot, until)
        models = await listed(app, pilot, until)
        cluster, spare = (str(option.prompt) for option in models.options)
        assert cluster.splitlines()[0] == "● cluster  in use"
        assert f"ollama · 127.0.0.1:{server.port}" in spare
        await pilot.press("down", "e")
        await until(pilot, is_on(app, EndpointScreen))
        assert app.screen.query_one("#name", Input).disabled
        app.screen.query_one("#model", Input).value = "sglang"
        app.screen.query_one(Checkbox).value = False
        await pilot.press("ctrl+s")
        await until(pilot, lambda: app.controller.loader.name == "spare")
        changed = Endpoint("spare", server.url, "sglang", images=False)
        assert Endpoints(paths.endpoints).get("spare") == changed
        await until(pilot, is_on(app, ChatScreen))
        await listed(app, pilot, until)
        await pilot.press("up", "d")
        await until(pilot, is_on(app, ConfirmScreen))
        await pilot.press("y")
        await until(pilot, lambda: isinstance(app.screen, ModelScreen) and len(app.screen._endpoints) == 1)
        assert list(Endpoints(paths.endpoints).load()[0]) == ["spare"]


async def test_the_dialog_says_what_is_wrong_and_asks_before_a_key_goes_out_in_the_clear(
    connected, server, until, paths, monkeypatch
):
    stored = {}
    monkeypatch.setattr(keys, "store", lambda name, key: stored.update({name: key.get_secret_value()}))
    app = connected(server, "vllm")
    async with app.run_test(size=(100, 30)) as pilot:
        await ready(app, pilot, until)
        results = []
        app.push_screen(EndpointScreen(paths), results.append)
        await until(pilot, is_on(app, EndpointScreen))
        screen = app.screen

        async def save(expected, **values):
            for name, value in values.items():
                screen.query_one(f"#{name}", Input).value = value
            await pilot.press("ctrl+s")
            await until(pilot, lambda: expected in str(screen.query_one("#outcome", Static).render()))

        await save("cannot be an endpoint's name")
        await save("The address must look like", name="cluster")
        await save("The endpoint needs a model", url="http://gpu.example.org:8000")
        await save("There is already a model called cluster", model="m")
        await save("The context length must be", name="far", context="many")
        await save("has spaces or letters that no key has", context="4,096", key="sk 1")
        screen.query_one("#key", Input).value = "sk-12345678"
        await pilot.press("ctrl+s")
        await until(pilot, is_on(app, ConfirmScreen))
        await pilot.press("n")
        await until(pilot, is_on(app, EndpointScreen))
        assert (stored, results) == ({}, [])
        await pilot.press("ctrl+s")
        await until(pilot, is_on(app, ConfirmScreen))
        await pilot.press("y")
        await until(pilot, lambda: results)
    assert results == ["far"]
    assert stored == {"far": "sk-12345678"}
    expected = Endpoint("far", "http://gpu.example.org:8000/v1", "m", 4096)
    assert Endpoints(paths.endpoints).get("far") == expected
    assert "sk-12345678" not in paths.endpoints.read_text()


async def test_without_a_keyring_the_dialog_names_the_variable(connected, server, until, paths, monkeypatch):
    import keyring
    from keyring.backends.fail import Keyring

    monkeypatch.setattr(keyring, "set_password", Keyring().set_password)
    app = connected(server, "vllm")
    async with app.run_test(size=(100, 30)) as pilot:
        await ready(app, pilot, until)
        app.push_screen(EndpointScreen(paths, replace(Endpoint("far", server.url, "vllm"))))
        await until(pilot, is_on(app, EndpointScreen))
        app.screen.query_one("#key", Input).value = "sk-12345678"
        await pilot.click(app.screen.query_one("#save", Button))
        await until(pilot, lambda: "set the environment variable LITE_LLAMA_API_KEY_FAR" in outcome(app))
        assert "sk-12345678" not in outcome(app)


def test_the_plain_chat_has_endpoints(paths, server, monkeypatch, capsys):
    Endpoints(paths.endpoints).save(Endpoint("cluster", server.url, "vllm"))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"Hi\n/model\n/model cluster\n")))
    assert plain.run(paths, None, no_engine) == 0
    said = capsys.readouterr().out.splitlines()
    assert said.count("The model cluster is loaded.") == 2
    assert f"1. cluster: vllm at 127.0.0.1:{server.port}, loaded" in said
    assert any(line.startswith("Model: ") and len(line) > len("Model: ") for line in said)


async def test_the_figures_name_the_server_and_the_models_keep_their_own_speed(
    connected, server, until, paths
):
    app = connected(server, "vllm")
    (paths.models / "cluster").mkdir(parents=True)
    async with app.run_test(size=(100, 30)) as pilot:
        await ready(app, pilot, until)
        await pilot.press(*"Hi", "enter")
        await until(pilot, shows(app, "#telemetry", "timed here"))
        await pilot.press("f9")
        await until(pilot, is_on(app, FiguresScreen))
        figures = str(app.screen.query_one("#now", Static).render())
        assert f"vllm at 127.0.0.1:{server.port}" in figures
        assert "Weights" not in figures
    assert not list((paths.models / "cluster").iterdir())


@pytest.mark.parametrize("theme", ["lite-llama-dark", "lite-llama-light"])
@pytest.mark.parametrize("size", [(80, 24), (160, 48)], ids=lambda size: f"{size[0]}x{size[1]}")
@pytest.mark.parametrize("state", ["new", "served", "wrong", "list"])
def test_endpoints_look_as_accepted(snap_compare, paths, until, monkeypatch, state, size, theme):
    far = Endpoint("cluster", "https://gpu.example.org:8000/v1", "Qwen/Qwen3-32B", 32768)
    Endpoints(paths.endpoints).save(far)
    Endpoints(paths.endpoints).save(Endpoint("laptop", "http://localhost:11434/v1", "llama3.2"))
    paths.settings.write_text(f'theme = "{theme}"\n')
    app = LiteLlamaApp(paths, create_engine=no_engine)
    app.animation_level = "none"
    monkeypatch.setattr(app, "_find_model", lambda: None)  # nothing to connect to
    # Nothing in the picture may come from the machine of the test.
    monkeypatch.setattr(Machine, "sample", lambda self, *, gpu: MachineLoad(0.42, 400_000_000))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(paths.data / "hub-cache"))

    async def come_there(pilot):
        app.screen.query_one(PromptInput).cursor_blink = False
        await until(pilot, shows(app, "#telemetry", "CPU 42%"))  # it comes after a second
        dialog = EndpointScreen(paths, None if state == "new" else far)
        loaded = _info(far, ServedModel(far.model, "vllm", None))
        app.push_screen(ModelScreen(paths, app.settings, loaded) if state == "list" else dialog)
        await until(pilot, lambda: len(app.screen_stack) == 2)
        for field in app.screen.query(Input):
            field.cursor_blink = False
        if state == "served":
            names = ("Qwen/Qwen3-32B", "Qwen/Qwen3-8B", "meta-llama/Llama-3.3-70B-Instruct")
            dialog._show([ServedModel(name, "vllm", 32768) for name in names])
            dialog._say("gpu.example.org:8000 answers: choose one of its 3 models.")
        elif state == "wrong":
            app.screen.query_one("#key", Input).value = "sk-12345678"
            dialog._say("cluster refuses the API key (401): check the key, and what it allows.", "error")
        await pilot.pause()

    assert snap_compare(app, terminal_size=size, run_before=come_there)


async def test_two_endpoints_are_compared_and_one_is_gone_on_with(connected, server, paths, until):
    app = connected(server, "vllm")
    Endpoints(paths.endpoints).save(Endpoint("second", server.url, "ollama"))
    async with app.run_test(size=(100, 30)) as pilot:
        await ready(app, pilot, until)
        await pilot.press("ctrl+s")
        await until(pilot, is_on(app, CompareScreen))
        plan = app.screen.query_one("#plan", Static)
        await until(pilot, lambda: "Both at once, on servers." in str(plan.render()))
        app.screen.query_one(PromptInput).text = CAPITAL
        await pilot.press("enter")
        sides = list(app.screen.query(SideView))

        def figures(side):
            return str(side.query_one("#telemetry", Static).render())

        await until(pilot, lambda: all("timed here" in figures(side) for side in sides))
        assert all("memory elsewhere" in figures(side) for side in sides)
        await pilot.press("ctrl+r")
        await until(pilot, lambda: app.controller.loader.name == "second")
        assert app.controller.last_reply.text
        assert app.controller.conversation.model == "second"
