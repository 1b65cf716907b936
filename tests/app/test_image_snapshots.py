"""Pictures of the chat with images; update with `pytest --snapshot-update` and look."""

import shlex

import pytest
from PIL import Image as pillow
from PIL import ImageDraw
from textual import events

from lite_llama.app.screens.images import ImagesScreen, PreviewScreen, SeeingModelsScreen
from lite_llama.app.widgets.attachments import AttachedChip
from lite_llama.app.widgets.prompt import PromptInput

DARK, LIGHT = "lite-llama-dark", "lite-llama-light"
SMALL, LARGE = (80, 24), (160, 48)


@pytest.fixture
def pictures(tmp_path):
    """A flag, whose name needs quotes, and a tall picture, in flat colours that scale alike everywhere."""
    flag, tall = tmp_path / "the flag.png", tmp_path / "TALL.JPG"
    picture = pillow.new("RGB", (960, 640), "#2b5fa8")
    ImageDraw.Draw(picture).rectangle((0, 320, 960, 640), fill="#e0b43c")
    picture.save(flag)
    pillow.new("RGB", (512, 1024), "#4f8f4a").save(tall)
    return flag, tall


@pytest.mark.parametrize("theme", [DARK, LIGHT])
@pytest.mark.parametrize("size", [SMALL, LARGE], ids=lambda size: f"{size[0]}x{size[1]}")
@pytest.mark.parametrize("state", ["attached", "panel", "empty", "sent", "preview", "blind", "offer"])
def test_images_look_as_accepted(
    snap_compare, make_app, make_model, engine, until, pictures, state, size, theme
):
    model = "text-only" if state in ("blind", "offer") else "llava-1.5-7b-hf"
    make_model("llava-1.5-7b-hf")
    make_model("text-only")
    app = make_app(model=model, settings=f'theme = "{theme}"\nmodel = "{model}"\n')
    app.animation_level = "none"

    async def come_there(pilot):
        prompt = app.query_one(PromptInput)
        prompt.cursor_blink = False

        def shows(selector, text):
            return lambda: text in str(app.screen_stack[0].query_one(selector).render())

        await until(pilot, shows("#telemetry", "Ready"))
        if state == "empty":
            await until(pilot, shows("#context", " 0 / 2,048"))
            await pilot.press("f4")
            await until(pilot, lambda: isinstance(app.screen, ImagesScreen))
            return
        prompt.post_message(events.Paste(" ".join(shlex.quote(str(path)) for path in pictures)))
        await until(pilot, lambda: len(app.screen.query(AttachedChip)) == 2)
        prompt.text = "Which one is a flag?"
        if state in ("panel", "offer"):
            await pilot.press("f4" if state == "panel" else "enter")
            screen = ImagesScreen if state == "panel" else SeeingModelsScreen
            await until(pilot, lambda: isinstance(app.screen, screen))
        elif state in ("sent", "preview"):
            engine.reply("The **first** one: ", "two stripes, blue above yellow.")
            await pilot.press("enter")
            await until(pilot, shows("#telemetry", "first token 0.25 s"))
        if state == "preview":
            await pilot.press("shift+tab", "enter")
            await until(pilot, lambda: isinstance(app.screen, PreviewScreen))
        tokens = {"blind": 9, "offer": 9, "sent": 1173, "preview": 1173}.get(state, 1161)
        await until(pilot, shows("#context", f" {tokens:,} / 2,048"))
        await pilot.pause()

    assert snap_compare(app, terminal_size=size, run_before=come_there)
