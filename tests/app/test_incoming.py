"""What is typed or dropped: titles and image paths."""

from pathlib import Path

import pytest

from lite_llama.app.actions import slash_command
from lite_llama.app.incoming import image_paths, title_of


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("/home/x/cat.png", ["/home/x/cat.png"]),
        ("'/home/x/my cat.JPG'", ["/home/x/my cat.JPG"]),
        ('"/home/x/my cat.jpeg" ', ["/home/x/my cat.jpeg"]),
        ("/home/x/my\\ cat.webp", ["/home/x/my cat.webp"]),
        ("file:///home/x/my%20cat.PNG", ["/home/x/my cat.PNG"]),
        ("~/cat.gif\n", [str(Path("~/cat.gif").expanduser())]),
        ("/home/x/a.png '/home/x/b c.bmp'", ["/home/x/a.png", "/home/x/b c.bmp"]),
        ("/help.png", ["/help.png"]),
    ],
)
def test_pasted_images_are_found(text, names):
    assert image_paths(text) == [Path(name) for name in names]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/help",
        "/home/x/notes.txt",
        "what is /home/x/cat.png?",
        "/home/x/cat.png and some words",
        "it's a cat.png",
        "cat.png",
        "x" * 5000 + ".png",
        "/" + "x" * 5000 + ".png and words",
        "a\0b.png",
        "/a\nb.png words",
    ],
)
def test_messages_are_no_images(text):
    assert image_paths(text) == []


def test_files_that_are_there_need_no_slash_and_no_quotes(tmp_path, monkeypatch):
    for name in ("cat.png", "my cat's.png"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    assert image_paths("cat.png") == [Path("cat.png")]
    assert image_paths(f"{tmp_path}/my cat's.png") == [tmp_path / "my cat's.png"]


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ("Why is the sky blue?", "Why is the sky blue?"),
        ("  two\n\nlines ", "two lines"),
        ("word " * 30, "word word word word word word word word word…"),
        ("x" * 100, "x" * 48 + "…"),
        ("\x1b[31mred\x07", "[31mred"),
        ("\x00", "Untitled"),
    ],
)
def test_titles(text, title):
    assert title_of(text) == title


def test_commands_are_whole_words():
    assert slash_command(" /new ") == "new_conversation"
    assert slash_command("/export") == "export"
    assert slash_command("/export  it's.md ") == 'export("it\'s.md")'
    for text in ("/newer", "/new idea", "new", "/", "/home/x.png", ""):
        assert slash_command(text) is None
