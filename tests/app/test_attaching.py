"""Images in the app through its keys, with a scripted engine: attached, sent, kept, and politely refused."""

from __future__ import annotations

import asyncio
import io
import shlex
import shutil
import sys
import threading
import time
import zlib
from types import SimpleNamespace

import pytest
from app_chat import Chat
from PIL import Image as pillow
from PIL import ImageGrab
from textual import events
from textual.widgets import Input, OptionList, Static

from lite_llama.app import attachments, image_store
from lite_llama.app.database import Database
from lite_llama.app.screens.images import ImagesScreen, PreviewScreen, SeeingModelsScreen
from lite_llama.app.widgets.attachments import AttachedChip, AttachmentBar, Chip
from lite_llama.app.widgets.graphics import graphics_widget
from lite_llama.app.widgets.message import UserMessage
from lite_llama.app.widgets.picture import Picture
from lite_llama.app.widgets.queue import QueuedMessages


class ImageChat(Chat):
    """A chat with images in it."""

    async def drop(self, text):
        self.prompt.post_message(events.Paste(text))
        await self.pilot.pause()

    async def attach(self, *paths):
        """Drop the files and wait for their chips."""
        there = len(self.chips())
        await self.drop(" ".join(shlex.quote(str(path)) for path in paths))
        await self.until(lambda: len(self.chips()) == there + len(paths))

    def chips(self):
        """What the chips above the prompt say."""
        return [text_of(chip) for chip in self.main.query(AttachedChip) if chip.query(Static)]

    def sent(self):
        """What the chips in the conversation say."""
        sent = self.main.query(UserMessage).results()
        return [text_of(chip) for message in sent for chip in message.query(Chip) if chip.query(Static)]

    def remark(self):
        remark = self.main.query_one(AttachmentBar).query_one(".remark", Static)
        return str(remark.render()) if remark.display else ""


def text_of(chip):
    return str(chip.query(Static).first(Static).render()).split("\n")


@pytest.fixture
def chat(chat):
    """`async with chat() as c:` runs the app with a model that sees, until that is loaded."""

    def run(model="llava", size=(100, 30)):
        return chat(ImageChat, model=model, size=size)

    return run


@pytest.fixture
def draw(tmp_path):
    """`draw("cat.png")` makes a picture of a colour of its own."""

    def make(name="cat.png", size=(40, 30), **options):
        path = tmp_path / name
        pillow.new("RGB", size, (len(name) * 9 % 256, 120, 40)).save(path, **options)
        return path

    return make


def answered(engine):
    """The images of each message of the last request, by name."""
    return [[image.name for image in message.images] for message in engine.requests[-1].messages]


# Ways to attach


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("cat.png", "{path}"),
        ('my cat\'s "best".JPG', "{quoted}"),
        ("my cat's.png", "{path}"),
        ("my cat.webp", "{escaped}"),
        ("my cat.PNG", "{url}"),
        ("cat.tiff", "'{path}'\r\n"),
    ],
)
async def test_a_dropped_path_becomes_a_chip_and_no_text(chat, draw, name, written):
    path = draw(name)
    dropped = written.format(
        path=path,
        quoted=shlex.quote(str(path)),
        escaped=str(path).replace(" ", "\\ "),
        url=path.as_uri(),
    )
    async with chat() as c:
        c.prompt.text = "What is this?"
        await c.drop(dropped)
        await c.until(c.chips)
        assert c.chips() == [[name, "40 x 30", "576 tokens"]]
        assert c.prompt.text == "What is this?"
        assert c.notices() == []
        await c.until(lambda: " 583 / 2,048" in c.text_of("#context"))  # 4 + 3 words + 576


async def test_several_at_once_keep_their_order(chat, draw):
    big, small = draw("big.png", (2000, 2000)), draw("small.png")
    async with chat() as c:
        await c.attach(big, small)
        assert [name for name, *_ in c.chips()] == ["big.png", "small.png"]
        await c.drop(str(small))
        await c.until(c.notices)
        assert c.notices() == ["small.png is attached already."]
        assert len(c.chips()) == 2


async def test_a_path_within_a_sentence_is_text(chat, draw, engine):
    question = f"What is in {draw()} then?"
    async with chat() as c:
        await c.drop(question)
        assert c.prompt.text == question
        await c.pilot.press("enter")
        await c.until(lambda: engine.requests)
        assert engine.requests[0].messages[-1].content == question
        assert c.chips() == []


async def test_a_written_path_attaches_and_is_not_sent(chat, draw, engine):
    async with chat() as c:
        await c.send(str(draw()))
        await c.until(c.chips)
        assert c.prompt.text == ""
        assert engine.requests == []


async def test_a_path_of_nothing_stays_text_and_comes_back(chat, tmp_path, engine):
    path = tmp_path / "no.png"
    async with chat() as c:
        await c.drop(str(path))
        assert c.prompt.text == str(path)
        await c.pilot.press("enter")
        await c.until(c.notices)
        assert c.notices() == [f"There is no image file {path}: check the path."]
        await c.until(lambda: c.prompt.text == str(path))
        assert engine.requests == []


async def test_the_command_takes_any_path(chat, draw, tmp_path):
    draw("my cat.png").rename(tmp_path / "my cat")  # without a suffix: only the command takes it
    async with chat() as c:
        await c.send(f"/image {tmp_path / 'my cat'}")
        await c.until(c.chips)
        await c.send(f"/image {draw('a.png')} '{draw('b c.png')}'")
        await c.until(lambda: len(c.chips()) == 3)
        assert [name for name, *_ in c.chips()] == ["my cat", "a.png", "b c.png"]
        await c.send("/image")
        await c.screen(ImagesScreen)


async def test_the_picker(chat, draw, tmp_path, monkeypatch):
    (tmp_path / "notes.txt").write_text("no image")
    draw("cat.png")
    monkeypatch.setattr("pathlib.Path.home", lambda: tmp_path)
    async with chat() as c:
        await c.pilot.press("f4")
        await c.screen(ImagesScreen)
        await c.pilot.press("f")
        await c.until(lambda: len(c.app.screen_stack) == 3)
        field = c.app.screen.query_one(Input)
        field.value = "cat.png"
        field.focus()
        await c.pilot.press("enter")
        await c.screen(ImagesScreen)
        await c.until(lambda: c.app.screen.query_one(OptionList).option_count == 1)
        await c.pilot.press("escape")
        assert c.chips() == [["cat.png", "40 x 30", "576 tokens"]]


@pytest.mark.parametrize("size", [(80, 24), (160, 48)])
async def test_many_images_leave_the_panel_whole_and_enter_closes_it(chat, draw, size):
    async with chat(size=size) as c:
        paths = [str(draw(f"{number}.png", (40 + number, 30))) for number in range(20)]
        await c.send(f"/image {' '.join(paths)}")
        await c.until(lambda: len(c.app.screen.attachments.items) == 20)
        await c.pilot.press("f4")
        await c.screen(ImagesScreen)
        await c.until(lambda: c.app.screen.query_one(OptionList).option_count == 20)
        screen = c.app.screen
        await c.until(lambda: screen.query_one(OptionList).size.height > 2)
        inside = screen.query_one("#dialog").content_region
        assert all(inside.contains_region(screen.query_one(part).region) for part in ("#preview", "#keys"))
        await c.pilot.press("enter")
        await c.until(lambda: c.app.screen is not screen)


async def test_many_models_that_see_leave_their_dialog_whole(chat, make_model):
    for number in range(30):
        make_model(f"llava-{number}")
    async with chat(model="a-text-only", size=(80, 24)) as c:
        await c.app.run_action("seeing_models")
        await c.screen(SeeingModelsScreen)
        await c.pilot.press("end")
        options = c.app.screen.query_one(OptionList)
        assert c.app.screen.query_one("#dialog").content_region.contains_region(options.region)


async def test_the_clipboards_image(chat, monkeypatch):
    grabbed = pillow.new("CMYK", (64, 48))
    monkeypatch.setattr(ImageGrab, "grabclipboard", lambda: grabbed)
    async with chat() as c:
        c.app.copy_to_clipboard("text of long ago")
        await c.pilot.press("ctrl+v")
        await c.until(c.chips)
        assert c.chips() == [["clipboard.png", "64 x 48", "576 tokens"]]
        assert c.prompt.text == ""
        await c.pilot.press("f4")
        await c.screen(ImagesScreen)
        grabbed = pillow.new("RGB", (20, 10))
        await c.pilot.press("v")
        await c.until(lambda: len(c.chips()) == 2)


def raises(error):
    def grab():
        raise error

    return grab


@pytest.mark.parametrize(
    ("grab", "words"),
    [
        (lambda: None, "There is no image on the clipboard: copy one first, or attach a file."),
        (raises(NotImplementedError("wl-paste or xclip is required")), attachments.NO_CLIPBOARD_TOOL),
        (raises(ChildProcessError("xclip error:\nno display")), "cannot be read (xclip error:): attach"),
        (lambda: pillow.new("1", (10_000, 10_000)), "64 million are the most: copy a part of it."),
    ],
    ids=["empty", "no tool", "failure", "bomb"],
)
async def test_a_clipboard_without_an_image(chat, monkeypatch, grab, words):
    monkeypatch.setattr(ImageGrab, "grabclipboard", grab)
    async with chat() as c:
        await c.pilot.press("ctrl+v")
        await c.until(c.notices)
        assert words in c.notices()[0]
        c.app.copy_to_clipboard("some text")
        await c.pilot.press("ctrl+v")
        await c.until(lambda: c.prompt.text == "some text")
        assert len(c.notices()) == 1
        assert c.chips() == []


async def test_a_copied_file_on_the_clipboard(chat, monkeypatch, draw):
    path = draw()
    monkeypatch.setattr(ImageGrab, "grabclipboard", lambda: [str(path)])
    async with chat() as c:
        await c.pilot.press("ctrl+v")
        await c.until(c.chips)
        assert c.chips()[0][0] == "cat.png"


async def test_the_panel_may_be_closed_before_an_image_is_read(chat, draw, monkeypatch):
    held = threading.Event()
    make = attachments.attachment_of
    monkeypatch.setattr(attachments, "attachment_of", lambda image: (held.wait(20), make(image))[1])
    async with chat() as c:
        await c.pilot.press("f4")
        await c.screen(ImagesScreen)
        c.app.screen.post_message(events.Paste(str(draw())))
        await c.until(lambda: c.remark() == "Reading 1 image…")
        await c.pilot.press("escape")
        await c.until(lambda: c.app.screen is c.main)
        held.set()
        await c.until(c.chips)
        assert c.chips()[0][0] == "cat.png"


# Removing and looking


async def test_a_chip_is_removed_by_mouse_and_by_key(chat, draw):
    async with chat() as c:
        await c.attach(draw("a.png"), draw("bb.png"), draw("ccc.png"))
        await c.pilot.click(c.main.query(".remove").first())
        await c.until(lambda: [name for name, *_ in c.chips()] == ["bb.png", "ccc.png"])
        await c.pilot.press("shift+tab", "delete")
        await c.until(lambda: [name for name, *_ in c.chips()] == ["bb.png"])
        assert c.app.focused is c.prompt
        await c.pilot.press("shift+tab", "enter")
        await c.screen(ImagesScreen)
        await c.pilot.press("d")
        await c.until(lambda: not c.main.query_one(AttachmentBar).display)
        assert "No image is attached." in str(c.app.screen.query_one("#remark", Static).render())


def colours(c):
    """Of the image that the dialog shows."""
    view = c.app.screen.query_one("#preview > Picture", Picture)
    strips = [view.render_line(y) for y in range(view.size.height)]
    return {segment.style.color.triplet for strip in strips for segment in strip if segment.text == "▀"}


async def test_the_panel_previews_the_chosen_image(chat, draw):
    async with chat() as c:
        await c.attach(draw("a.png"), draw("bb.png"))
        await c.pilot.click(c.main.query(AttachedChip).first())
        await c.screen(ImagesScreen)
        await c.until(lambda: colours(c) == {(9 * len("bb.png"), 120, 40)})
        await c.pilot.press("up")
        await c.until(lambda: colours(c) == {(9 * len("a.png"), 120, 40)})
        c.app.screen.post_message(events.Paste(str(draw("ccc.png"))))  # a drop on the panel
        await c.until(lambda: colours(c) == {(9 * len("ccc.png"), 120, 40)})


# Sending, keeping, showing again


async def test_images_go_with_their_message_and_again_with_later_ones(chat, draw, engine):
    async with chat() as c:
        await c.attach(draw("a.png"), draw("bb.png"))
        await c.ask("Compare them.")
        assert c.chips() == []
        assert c.sent() == [["a.png", "40 x 30"], ["bb.png", "40 x 30"]]
        assert answered(engine) == [["a.png", "bb.png"]]
        await c.attach(draw("ccc.png"))
        await c.ask("And this?")
        assert answered(engine) == [["a.png", "bb.png"], [], ["ccc.png"]]
        await c.ask("Which is lazier?")
        assert answered(engine) == [["a.png", "bb.png"], [], ["ccc.png"], [], []]


async def test_an_image_may_go_without_words(chat, draw, engine):
    async with chat() as c:
        await c.pilot.press("enter")  # nothing at all is not sent
        await c.attach(draw())
        await c.ask("")
        assert answered(engine) == [["cat.png"]]
        assert c.controller.conversation.title == "cat.png"


async def test_a_reopened_chat_has_its_images_though_the_file_is_gone(chat, draw, engine):
    path = draw()
    async with chat() as c:
        await c.attach(path)
        await c.ask("What is this?")
        conversation = c.controller.conversation.id
    path.unlink()
    async with chat() as c:
        await c.controller.open_conversation(conversation)
        await c.until(lambda: c.sent() == [["cat.png", "40 x 30"]])
        await c.until(lambda: " 588 / 2,048" in c.text_of("#context"))
        await c.ask("Are you sure?")
        assert answered(engine) == [["cat.png"], [], []]
        assert engine.requests[0].messages[0] == engine.requests[1].messages[0]


async def test_images_are_on_disk_before_the_reply_begins(chat, draw, engine, paths):
    engine.reply("Fine.", hold_after=0)
    async with chat() as c:
        await c.attach(draw())
        await c.send("What is this?")
        await c.until(lambda: engine.requests)
        other = await Database.open(paths.database)  # as after a kill -9
        try:
            loaded = await other.load(c.controller.conversation.id)
        finally:
            await other.close()
        assert loaded.turns[0].images[0].image == engine.requests[0].messages[0].images[0]


async def test_continue_and_try_again_keep_the_images(chat, draw, engine):
    engine.reply("It is ", "a cat.", reason="length")
    async with chat() as c:
        await c.attach(draw())
        await c.ask("What is this?")
        for key in ("ctrl+g", "ctrl+r"):
            await c.pilot.press(key)
            await c.until(lambda: not c.controller.replying)
        assert len(engine.requests) == 3
        for request in engine.requests:
            assert [image.name for image in request.messages[0].images] == ["cat.png"]


async def test_a_copy_that_is_gone_is_said_and_the_text_goes(chat, draw, engine, paths):
    async with chat() as c:
        await c.attach(draw())
        await c.ask("What is this?")
        conversation = c.controller.conversation.id
        (copy,) = (paths.data / "images").iterdir()
        copy.unlink()
        await c.pilot.press("ctrl+n")
        await c.controller.open_conversation(conversation)
        await c.until(c.notices)
        assert c.notices() == ["The conversation goes on without images whose copies are gone: cat.png."]
        assert c.sent() == [["cat.png", "its copy is gone"]]
        await c.ask("Are you sure?")
        assert answered(engine) == [[], [], []]


async def test_a_refused_message_comes_back_with_its_images(chat, draw, engine):
    engine.reply(refuse="The prompt is too long: start a new conversation.")
    async with chat() as c:
        await c.attach(draw("a.png"))
        await c.send("What is this?")
        await c.until(lambda: c.prompt.text == "What is this?")
        await c.until(c.chips)
        assert c.sent() == []
        await c.pilot.press("enter")
        await c.until(lambda: len(engine.requests) == 2)
        assert answered(engine) == [["a.png"]]


async def test_a_sent_image_is_looked_at_by_mouse_and_by_key(chat, draw, paths):
    async with chat() as c:
        await c.attach(draw("a.png"), draw("bb.png"))
        await c.ask("Compare them.")
        sent = c.main.query(UserMessage).first().query(Chip)
        await c.pilot.click(sent.first())
        await c.screen(PreviewScreen)
        await c.until(lambda: colours(c) == {(9 * len("a.png"), 120, 40)})
        await c.pilot.press("down")
        await c.until(lambda: colours(c) == {(9 * len("bb.png"), 120, 40)})
        await c.pilot.press("d")  # what was sent stays
        await c.pilot.press("enter")
        await c.until(lambda: c.app.screen is c.main)
        assert c.app.focused is c.prompt
        await c.pilot.press("shift+tab", "shift+tab", "enter")
        await c.screen(PreviewScreen)
        await c.until(lambda: colours(c) == {(9 * len("a.png"), 120, 40)})
        await c.pilot.press("escape")
        await c.until(lambda: c.app.screen is c.main)
        assert c.app.focused is sent.first()
        await c.pilot.press("tab", "tab")
        assert c.app.focused is c.prompt
        assert c.sent() == [["a.png", "40 x 30"], ["bb.png", "40 x 30"]]
        conversation = c.controller.conversation.id
        for copy in (paths.data / "images").iterdir():
            copy.unlink()
        await c.controller.open_conversation(conversation)
        await c.until(lambda: c.sent() == [["a.png", "its copy is gone"], ["bb.png", "its copy is gone"]])
        await c.pilot.click(c.main.query(UserMessage).first().query(Chip).first())
        await c.pilot.press("shift+tab")
        assert (c.app.screen, c.app.focused) == (c.main, c.prompt)


# Queued


def queued(c):
    """The lines of the messages that wait, without the links before them."""
    widget = c.main.query_one(QueuedMessages)
    lines = str(widget.render()).split("\n")[1:] if widget.display else []
    return [line.removeprefix("edit  remove  ") for line in lines]


async def test_images_are_queued_with_their_message(chat, draw, engine):
    engine.reply("Well, ", "hello.", hold_after=1)
    async with chat() as c:
        await c.send("Hello")
        await c.until(lambda: c.shown()[-1:] == ["Well, "])
        await c.attach(draw("a.png"), draw("bb.png"))
        await c.send("Compare them.")
        await c.attach(draw("ccc.png"))
        await c.send("")
        await c.send("Sure?")
        await c.until(lambda: queued(c) == ["2 images  Compare them.", "1 image  ccc.png", "Sure?"])
        assert c.chips() == []
        engine.release()
        await c.until(lambda: len(engine.requests) == 4)
        await c.replied()
        assert answered(engine) == [[], [], ["a.png", "bb.png"], [], ["ccc.png"], [], []]
        assert [name for name, _ in c.sent()] == ["a.png", "bb.png", "ccc.png"]


async def test_a_queued_message_and_its_images_survive_a_kill_and_come_back_to_the_prompt(
    chat, draw, engine, paths
):
    path = draw()
    engine.reply("Well, ", "hello.", hold_after=1)
    async with chat() as c:
        await c.send("Hello")
        await c.until(lambda: c.shown()[-1:] == ["Well, "])
        await c.attach(path)
        await c.send("What is this?")
        await c.until(lambda: queued(c))
        killed = paths.data.with_name("killed")  # the files as a kill -9 leaves them
        shutil.copytree(paths.data, killed)
        conversation = c.controller.conversation.id
    path.unlink()
    shutil.rmtree(paths.data)
    killed.rename(paths.data)
    async with chat() as c:
        assert c.controller.conversation.id == conversation
        await c.until(lambda: queued(c) == ["1 image  What is this?"])
        await c.attach(draw("dog.png"))
        await c.pilot.press("up")
        await c.until(lambda: [name for name, *_ in c.chips()] == ["cat.png", "dog.png"])
        assert c.prompt.text == "What is this?"
        assert queued(c) == []
        await c.pilot.press("enter")
        await c.until(lambda: len(engine.requests) == 2)
        assert answered(engine)[-1] == ["cat.png", "dog.png"]


async def test_images_that_were_not_sent_are_there_at_the_next_start(chat, draw, engine, paths):
    """Also after a kill, without their files; they stand before what is attached meanwhile."""
    files = [draw("a.png"), draw("bb.png"), draw("ccc.png")]
    async with chat() as c:
        await c.attach(*files)
        await c.send("")
        await c.replied()
        await c.attach(*files[:2])
        await c.pilot.press(*"hm")
        await c.until(lambda: paths.draft.exists() and '"hm"' in paths.draft.read_text(encoding="utf-8"))
        killed = paths.data.with_name("killed")  # the files as a kill -9 leaves them
        shutil.copytree(paths.data, killed)
        await c.pilot.click(c.main.query(".remove").first())
        c.prompt.text = ""
    shutil.rmtree(paths.data)
    killed.rename(paths.data)
    for path in files[:2]:
        path.unlink()
    async with chat() as c:
        await c.until(lambda: len(c.chips()) == 2)
        await c.attach(files[2])
        assert [name for name, *_ in c.chips()] == ["a.png", "bb.png", "ccc.png"]
        assert c.prompt.text == "hm"
        await c.pilot.press("enter")
        await c.until(lambda: len(engine.requests) == 2)
        assert answered(engine)[-1] == ["a.png", "bb.png", "ccc.png"]
        await c.until(lambda: not paths.draft.exists())
    async with chat() as c:
        assert c.prompt.text == ""
        assert c.chips() == []


async def test_an_app_that_ends_before_it_has_read_the_images_of_its_draft_keeps_them(
    chat, draw, paths, monkeypatch
):
    async with chat() as c:
        await c.attach(draw())
    held = threading.Event()
    make = image_store.attachment_of
    monkeypatch.setattr(image_store, "attachment_of", lambda image: (held.wait(20), make(image))[1])
    async with chat() as c:
        await c.until(lambda: c.remark() == "Reading 1 image…")
        await c.pilot.press(*"hm", "enter")
        assert c.prompt.text == "hm"
        assert "still being read" in c.notices()[-1]
    held.set()
    async with chat() as c:
        await c.until(lambda: [name for name, *_ in c.chips()] == ["cat.png"])
        assert c.prompt.text == "hm"


async def test_an_image_of_a_draft_whose_copy_is_gone_is_left_out(chat, draw, paths):
    async with chat() as c:
        await c.attach(draw("a.png"), draw("bb.png"))
        digest = c.main.attachments.items[0].sha256
    (paths.draft.with_name("draft-images") / digest).unlink()
    async with chat() as c:
        await c.until(lambda: [name for name, *_ in c.chips()] == ["bb.png"])
        await c.until(lambda: digest not in paths.draft.read_text(encoding="utf-8"))


async def test_a_queued_message_with_images_is_kept_from_a_model_that_does_not_see(
    chat, draw, engine, make_model
):
    make_model("blind")
    engine.reply("Well, ", "hello.", hold_after=1)
    async with chat() as c:
        await c.send("Hello")
        await c.until(lambda: c.shown()[-1:] == ["Well, "])
        await c.attach(draw())
        await c.send("What is this?")
        await c.send("And now?")
        await c.until(lambda: len(queued(c)) == 2)
        await c.controller.load_model("blind")
        await c.until(lambda: c.controller.loader.model and c.controller.loader.model.name == "blind")
        await c.pilot.press("enter")  # on with the queue
        await c.screen(SeeingModelsScreen)
        await c.pilot.press("escape")
        await c.until(lambda: c.chips() == [["cat.png", "40 x 30"]])
        assert c.prompt.text == "What is this?"
        assert queued(c) == ["And now?"]
        assert len(engine.requests) == 1


# Models that do not see


async def test_a_model_that_sees_is_offered_and_the_message_kept(chat, draw, engine, make_model):
    make_model("llava-1.5-7b")
    async with chat(model="blind") as c:
        await c.attach(draw())
        assert c.remark() == "blind reads text only: Enter shows the models that see."
        assert c.chips() == [["cat.png", "40 x 30"]]
        await c.send("What is this?")
        await c.screen(SeeingModelsScreen)
        assert engine.requests == []
        options = c.app.screen.query_one(OptionList).options
        assert [str(option.prompt) for option in options] == [
            "Load llava-1.5-7b",
            "Add a model",
            "Stay with blind",
        ]
        await c.pilot.press("enter")
        await c.until(lambda: c.controller.loader.model and c.controller.loader.model.name == "llava-1.5-7b")
        await c.until(lambda: c.chips() == [["cat.png", "40 x 30", "576 tokens"]])
        assert c.prompt.text == "What is this?"
        await c.pilot.press("enter")
        await c.until(lambda: engine.requests)
        assert answered(engine) == [["cat.png"]]


async def test_staying_keeps_the_message_too(chat, draw, engine):
    async with chat(model="blind") as c:
        await c.attach(draw())
        await c.send("What is this?")
        await c.screen(SeeingModelsScreen)
        text = str(c.app.screen.query(Static).first().render())
        assert text.startswith("None of your models sees images: add one")
        await c.pilot.press("end", "enter")
        await c.until(lambda: c.app.screen is c.main)
        assert c.prompt.text == "What is this?"
        assert len(c.chips()) == 1
        assert engine.requests == []


async def test_the_panel_offers_models_too(chat, draw, make_model):
    make_model("llava-1.5-7b")
    async with chat(model="blind") as c:
        await c.pilot.press("f4")
        await c.screen(ImagesScreen)
        remark = str(c.app.screen.query_one("#remark", Static).render())
        assert remark.endswith("blind reads text only: s shows the models that see.")
        await c.pilot.press("s")
        await c.screen(SeeingModelsScreen)
        await c.pilot.press("escape")
        await c.until(lambda: c.app.screen is c.main)


async def test_a_message_that_waited_for_a_model_that_does_not_see(make_app, draw, engine):
    engine.load_hold.clear()
    app = make_app(model="blind")
    async with app.run_test() as pilot:
        c = ImageChat(app, pilot)
        await c.attach(draw())
        await c.send("What is this?")
        await c.until(lambda: c.sent() == [["cat.png", "40 x 30"]])
        engine.load_hold.set()
        await c.screen(SeeingModelsScreen)
        assert c.prompt.text == "What is this?"
        await c.until(lambda: len(c.chips()) == 1)
        assert c.sent() == []


async def test_another_model_goes_on_without_earlier_images_and_says_so(chat, draw, engine, make_model):
    make_model("text-only")
    async with chat() as c:
        await c.attach(draw())
        await c.ask("What is this?")
        await c.controller.load_model("text-only")
        await c.until(lambda: c.controller.loader.model and c.controller.loader.model.name == "text-only")
        await c.until(lambda: " 12 / 2,048" in c.text_of("#context"))
        await c.ask("And what is 1 + 1?")
        assert answered(engine) == [[], [], []]
        assert c.notices() == ["text-only reads text only: it answers without this conversation's images."]


# What is no image


def bomb():
    """A PNG of 20,000 x 20,000 pixels, all of them there."""

    def chunk(kind, data):
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    header = (20_000).to_bytes(4, "big") * 2 + bytes([1, 0, 0, 0, 0])
    rows = zlib.compress(bytes(20_000 * 2_501))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def truncated():
    data = io.BytesIO()
    pillow.effect_noise((200, 200), 90).save(data, "JPEG")
    return data.getvalue()[:2000]


BAD = {
    "cut.jpg": (truncated, "cut.jpg is damaged (image file is truncated"),
    "empty.png": (lambda: b"", "empty.png is empty: choose another image."),
    "text.png": (lambda: b"no image at all\n", "text.png is no image that can be read: choose a PNG"),
    "bomb.png": (bomb, "bomb.png has too many pixels, and 64 million are the most: make it smaller first."),
    "a.svg": (lambda: b"<svg xmlns='http://www.w3.org/2000/svg'/>", "a.svg is an SVG drawing"),
    'it\'s a "cat".png': (lambda: b"GIF", 'it\'s a "cat".png is no image that can be read'),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("way", ["dropped", "written"])
async def test_a_bad_file_is_refused_in_a_sentence(chat, tmp_path, engine, name, way):
    content, words = BAD[name]
    path = tmp_path / name
    path.write_bytes(content())
    command = f"/image {path}"
    async with chat() as c:
        if way == "dropped":
            c.prompt.text = "What is this?"
            await c.drop(shlex.quote(str(path)))
        else:
            await c.send(command)
        await c.until(c.notices)
        assert len(c.notices()) == 1
        assert c.notices()[0].startswith(words)
        assert c.notices()[0].endswith(".")
        await c.until(lambda: c.prompt.text == ("What is this?" if way == "dropped" else command))
        assert c.chips() == []
        assert engine.requests == []


async def test_no_file_no_permission(chat, tmp_path, draw, monkeypatch):
    def denied(self):
        raise PermissionError(13, "Permission denied")

    async with chat() as c:
        await c.send(f"/image {tmp_path}")
        await c.until(c.notices)
        assert c.notices() == [f"{tmp_path} is a directory: name an image file in it."]
        monkeypatch.setattr("pathlib.Path.read_bytes", denied)  # the tests may run as root
        await c.drop(str(draw()))
        await c.until(lambda: len(c.notices()) == 2)
        assert c.notices()[1].startswith(f"You may not read {tmp_path / 'cat.png'}: change its permissions")
        assert c.chips() == []


async def test_good_ones_among_bad_ones_are_attached(chat, tmp_path, draw):
    (tmp_path / "empty.png").touch()
    async with chat() as c:
        await c.send(f"/image {draw()} {tmp_path / 'empty.png'}")
        await c.until(lambda: c.chips() and c.notices())
        await c.until(lambda: c.prompt.text)  # with both paths: what is attached already is passed over
        assert [name for name, *_ in c.chips()] == ["cat.png"]


async def test_odd_images_are_shown_as_they_are_to_be_seen(chat, tmp_path):
    exif = pillow.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    frames = [pillow.new("RGB", (20, 20), colour) for colour in ("red", "green", "blue")]
    palette = pillow.new("P", (30, 20), 3)
    palette.putpalette([200, 10, 10] * 4)
    pillow.new("CMYK", (30, 20), (0, 255, 255, 0)).save(tmp_path / "cmyk.jpg")
    palette.save(tmp_path / "palette.png", transparency=3)
    pillow.new("I;16", (30, 20), 65535).save(tmp_path / "deep.png")
    pillow.new("RGB", (40, 20)).save(tmp_path / "turned.jpg", exif=exif)
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    async with chat() as c:
        await c.attach(*(tmp_path / name for name in ("cmyk.jpg", "palette.png", "deep.png", "turned.jpg")))
        assert [size for _, size, _ in c.chips()] == ["30 x 20", "30 x 20", "30 x 20", "20 x 40"]
        assert c.notices() == []
        red, *white = [item.thumbnail.getpixel((5, 5)) for item in c.main.attachments.items][:3]
        assert red[0] > 230
        assert max(red[1:]) < 60
        assert white == [(255, 255, 255)] * 2
        await c.attach(tmp_path / "moving.gif")
        await c.until(c.notices)
        assert c.notices() == ["moving.gif is animated: the model sees the first of its 3 frames."]


# Reading takes its time


async def test_a_message_waits_for_its_image(chat, draw, engine, monkeypatch):
    held = threading.Event()
    make = attachments.attachment_of
    monkeypatch.setattr(attachments, "attachment_of", lambda image: (held.wait(20), make(image))[1])
    async with chat() as c:
        await c.drop(str(draw()))
        await c.until(lambda: c.remark() == "Reading 1 image…")
        await c.send("What is this?")
        await c.until(c.notices)
        assert c.notices() == ["An image is still being read: send the message in a moment."]
        assert c.prompt.text == "What is this?"
        held.set()
        await c.until(c.chips)
        assert c.remark() == ""
        await c.pilot.press("enter")
        await c.until(lambda: engine.requests)
        assert answered(engine) == [["cat.png"]]


async def test_a_huge_picture_does_not_stall_the_screen(chat, draw):
    path = draw("huge.png", (7_900, 8_000), compress_level=1)
    gaps = []
    async with chat() as c:
        start = last = time.monotonic()
        c.prompt.post_message(events.Paste(str(path)))
        while not c.chips():
            await asyncio.sleep(0.005)  # no pilot.pause(), which waits until the processor is idle
            gaps.append(time.monotonic() - last)
            last = time.monotonic()
            assert last < start + 60
    took = last - start
    print(f"read in {took:.2f} s, longest gap {max(gaps):.3f} s")
    assert max(gaps) < took / 2


# True pictures


@pytest.mark.parametrize("found", ["SixelImage", "TGPImage", "HalfcellImage"])
def test_textual_image_is_used_where_the_terminal_shows_pictures(monkeypatch, found):
    kinds = {name: type(name, (), {}) for name in ("SixelImage", "TGPImage", "HalfcellImage")}
    renderable = SimpleNamespace(**kinds, Image=kinds[found])
    widget = SimpleNamespace(Image=object())
    monkeypatch.setitem(sys.modules, "textual_image", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "textual_image.renderable", renderable)
    monkeypatch.setitem(sys.modules, "textual_image.widget", widget)
    expected = None if found == "HalfcellImage" else widget.Image
    assert graphics_widget.__wrapped__() is expected


def test_half_blocks_do_without_textual_image(monkeypatch):
    monkeypatch.setitem(sys.modules, "textual_image", None)
    assert graphics_widget.__wrapped__() is None
