"""What is done with models in the whole app: switched, renamed, deleted, converted, and what comes of it."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from app_chat import Chat
from textual.widgets import Input, OptionList

from lite_llama.app.library import last_speed
from lite_llama.app.screens.chat import ChatScreen
from lite_llama.app.screens.models import ConfirmScreen, ModelScreen, NameScreen
from lite_llama.app.screens.wizard import WizardScreen
from lite_llama.converter import Cancelled, convert, parts
from lite_llama.converter.huggingface import HuggingFaceSource
from lite_llama.models.checkpoint import Checkpoint


class ModelChat(Chat):
    """The app with the models alpha and tiny, the second one loaded."""

    async def manager(self) -> None:
        """Open the model manager."""
        await self.pilot.press("f3")
        await self.screen(ModelScreen)
        await self.until(lambda: self.app.screen.focused)

    def telemetry(self) -> str:
        return self.text_of("#telemetry")

    def header(self) -> str:
        return self.text_of("#header")


@pytest.fixture
def running(chat: Any, make_model: Any, engine: Any) -> Any:
    def run(size: tuple[int, int] = (80, 24)) -> Any:
        make_model("alpha")
        return chat(ModelChat, size=size, settings='model = "tiny"\n')

    return run


async def test_switching(running: Any, engine: Any):
    async with running() as r:
        await r.manager()
        engine.load_hold.clear()
        await r.pilot.press("home", "enter")
        await r.until(lambda: "Loading alpha" in r.telemetry() and "50%" in r.telemetry())
        engine.load_hold.set()
        await r.until(lambda: "alpha" in r.header())
        assert [load.path.name for load in engine.loads] == ["tiny", "alpha"]


async def test_a_switch_that_fails_goes_back(running: Any, engine: Any):
    engine.unloadable["alpha"] = "alpha does not fit: 3 GB needed, 1 GB free."
    async with running() as r:
        await r.manager()
        await r.pilot.press("home", "enter")
        await r.until(lambda: len(engine.loads) == 3 and "tiny" in r.header())
        assert r.notices() == ["alpha: alpha does not fit: 3 GB needed, 1 GB free. Going back to tiny."]
        assert isinstance(r.app.screen, ChatScreen)
        await r.ask("Hi")


async def test_a_switch_that_is_cancelled_goes_back(running: Any, engine: Any):
    async with running() as r:
        await r.manager()
        engine.load_hold.clear()
        await r.pilot.press("home", "enter")
        await r.until(lambda: "Loading alpha" in r.telemetry() and "Esc cancels" in r.telemetry())
        await r.pilot.press("escape")
        await r.until(lambda: "Loading tiny" in r.telemetry())
        engine.load_hold.set()
        await r.until(lambda: "tiny" in r.header())
        assert r.notices() == ["alpha: Loading was cancelled. Going back to tiny."]


async def test_when_the_old_model_fails_too_the_manager_opens(running: Any, engine: Any):
    async with running() as r:
        engine.load_error = "No memory is left."
        await r.manager()
        await r.pilot.press("home", "enter")
        await r.until(lambda: len(engine.loads) == 3)
        await r.screen(ModelScreen)
        assert r.notices()[-1] == "No memory is left."
        engine.load_error = None
        await r.pilot.press("home", "enter")
        await r.until(lambda: "alpha" in r.header())


async def test_rename_of_the_model_in_use(running: Any, engine: Any, paths: Any):
    async with running() as r:
        await r.ask("Hi")
        await r.manager()
        await r.pilot.press("r")
        await r.screen(NameScreen)
        r.app.screen.query_one(Input).value = "small"
        await r.pilot.press("enter")
        await r.until(lambda: isinstance(r.app.screen, ModelScreen) and "small" in r.header())
        assert r.app.screen.query_one("#models", OptionList).highlighted_option.id == "small"
        await r.pilot.press("escape")
        conversation = await r.app.controller.archive.database.load(r.app.controller.conversation.id)
        assert conversation.model == r.app.controller.conversation.model == "small"
        assert 'model = "small"' in paths.settings.read_text()
        await r.ask("Again")  # the conversation goes on, and is saved with the new name
        conversation = await r.app.controller.archive.database.load(conversation.id)
        assert (conversation.model, len(conversation.turns)) == ("small", 4)
    assert not (paths.models / "tiny").exists()
    assert Checkpoint.open(paths.models / "small").manifest.name == "small"


async def test_the_model_in_use_is_unloaded_before_it_is_deleted(running: Any, engine: Any, paths: Any):
    async with running() as r:
        await r.manager()
        await r.pilot.press("d")
        await r.screen(ConfirmScreen)
        await r.pilot.press("y", "y")
        await r.until(lambda: "No model is loaded" in r.telemetry() and isinstance(r.app.screen, ModelScreen))
        assert engine.model is None
        assert any(text.startswith("Deleted tiny: ") for text in r.notices())
        assert [path.name for path in paths.models.iterdir()] == ["alpha"]
        await r.pilot.press("enter")
        await r.until(lambda: "alpha" in r.header())


async def test_the_palette_has_what_the_manager_can_do(running: Any, engine: Any):
    async with running() as r:
        await r.manager()
        commands = {command.title: command for command in r.app.get_system_commands(r.app.screen)}
        assert commands["Rename"].help == "Key R"
        assert {"Add", "Verify", "Delete", "Close", "Quit"} <= set(commands)
        await r.pilot.press("ctrl+p")
        await r.until(lambda: not isinstance(r.app.screen, ModelScreen))
        await r.pilot.press(*"rename")
        await r.until(lambda: r.app.screen.query_one(OptionList).option_count)
        await r.pilot.press("enter")
        await r.screen(NameScreen)


async def test_the_speed_of_the_last_reply_is_listed(running: Any, engine: Any, paths: Any):
    engine.reply("a", "b", "c")
    async with running() as r:
        await r.ask("Hi")
        await r.until(lambda: last_speed(paths.models / "tiny") == 20.0)
        await r.manager()
        assert "20.0 tok/s" in str(r.app.screen.query_one("#models", OptionList).get_option("tiny").prompt)


async def test_a_checkpoint_of_this_machine_is_converted_and_a_stopped_conversion_resumed(
    running: Any, engine: Any, paths: Any, tmp_path: Path, make_checkpoint: Any, monkeypatch: Any
):
    make_checkpoint("LlamaForCausalLM", tmp_path / "shelf" / "fresh")
    source = make_checkpoint("LlamaForCausalLM", tmp_path / "source")
    monkeypatch.setattr(sys.modules[convert.__module__], "KEEP_EVERY_S", 0)
    cancel = threading.Event()
    with pytest.raises(Cancelled):  # noqa: PT012
        for step, _ in enumerate(
            convert(str(source), paths.models, paths.downloads, name="half", dtype="float16", cancel=cancel)
        ):
            if step == 12:
                cancel.set()
    reads: list[str] = []
    read = HuggingFaceSource.read
    monkeypatch.setattr(
        HuggingFaceSource, "read", lambda self, name: (reads.append(name), read(self, name))[1]
    )
    async with running() as r:
        directories = {"checkpoint_directories": str(tmp_path / "shelf")}
        r.app.controller.set_settings(r.app.settings.model_copy(update=directories))
        await r.manager()
        options = r.app.screen.query_one("#models", OptionList)
        await r.until(lambda: options.option_count == 4)
        assert "half  stopped at" in str(options.options[2].prompt)
        assert "fresh  not converted yet" in str(options.options[3].prompt)
        for key, name in ((("end", "up"), "half"), (("end",), "fresh")):
            await r.pilot.press(*key, "enter")
            await r.screen(WizardScreen)
            await r.until(lambda: r.app.screen.query_one("ContentSwitcher").current == "check")
            assert r.app.screen.query_one("#name", Input).value == name
            await r.pilot.press("enter")
            await r.until(lambda: "Start chatting" in str(r.app.screen.query_one("#next").label))
            if name == "half":
                assert 0 < len(reads) < len(HuggingFaceSource(source).shapes)
            await r.pilot.press("enter")
            await r.until(lambda n=name: n in r.header())
            await r.screen(ChatScreen)
            await r.manager()
        assert r.app.screen.query_one("#models", OptionList).option_count == 4
    assert parts(paths.models) == []
    assert Checkpoint.open(paths.models / "half").manifest.dtype == "float16"


async def test_leaving_the_wizard_while_its_model_loads_brings_the_old_one_back(
    running: Any, engine: Any, tmp_path: Path, make_checkpoint: Any
):
    source = make_checkpoint("LlamaForCausalLM", tmp_path / "fresh")
    engine.unloadable["fresh"] = "fresh does not fit."
    async with running() as r:
        await r.manager()
        await r.pilot.press("a")
        await r.screen(WizardScreen)
        options = r.app.screen.query_one("#choose OptionList", OptionList)
        options.highlighted = options.get_option_index("directory")
        await r.pilot.pause()
        r.app.screen.query_one("#choose Input", Input).value = str(source)
        await r.pilot.press("enter")
        await r.until(lambda: r.app.screen.query_one("ContentSwitcher").current == "check")
        await r.pilot.press("enter")
        await r.until(lambda: "Try again" in str(r.app.screen.query_one("#next").label))
        await r.pilot.press("escape", "escape")
        await r.screen(ChatScreen)
        await r.until(lambda: "tiny" in r.header())
        assert engine.model.name == "tiny"
