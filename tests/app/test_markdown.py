"""Replies as they are laid out: streamed or whole the same, complete, formulas readable, cheap to add to."""

import gc
import time

import pytest
from rich.segment import Segment
from textual.app import App
from textual.geometry import Offset
from textual.selection import Selection
from textual.strip import Strip

from lite_llama.app import collector
from lite_llama.app.widgets import markdown as markdown_module
from lite_llama.app.widgets.markdown import ReplyMarkdown
from lite_llama.app.widgets.markdown_lines import PAGE_LINES, Code, lay_out
from lite_llama.app.widgets.markdown_parser import parser, top_level

WIDTH = 40
LONG_CODE = "```python\n" + 'x = """a\n' * 3 * PAGE_LINES
TEXTS = {
    "paragraphs": "One\ntwo  \nthree.\n\nFour **bold *both*** ~~gone~~ `code`.",
    "headings": "# One\n\nTwo\n===\n\nThree\n---\nfour\n\n---\n",
    "lists": "- a\n- b\n  - c\n\n    more of c\n- d\n\n3. three\n4. four\n\n   ```sh\n   ls\n   ```\n10. ten",
    "quotes": "> one\n> > two\n\n> - three\n",
    "code": "Before\n```python\ndef f():\n\treturn 1\n\n\n```\nafter\n\n    indented\n",
    "open code": "```python\ndef f():\n",
    "long code": LONG_CODE + "```\n\nDone.",
    "long open code": LONG_CODE,
    "table": "| a | b |\n|:-:|--:|\n| 1 | 2 |\n| long cell that has to be broken | `x` |\n| 3 |\n\nafter",
    "references": "See [it][1] and ![that][1].\n\nText.\n\n[1]: https://example.org",
    "html": "<script>alert(1)</script>\n\n<b>no</b> &amp; &lt;",
    "formulas": "Let $a_1 * b_1$ be \\(x_i * y_i\\).\n\n$$\na_b\n= c_d\n$$\n\n\\[\nx\n\\]\nend",
    "loose lists": "1. one\n\n2. two\n\n10. ten\n\n- a\n\n- b\n\n-not one",
    "nothing": "\n\n",
}


def laid_out(text, width=WIDTH):
    tokens = parser().parse(text, {})
    return [line.content.plain.rstrip() for group in top_level(tokens) for line in lay_out(group, width)]


def shown(widget, width=WIDTH):
    return [(line.content.plain, line.content.spans) for line in widget.lines(width)]


class Host(App):
    CSS = "ReplyMarkdown { height: auto }"

    def __init__(self, text):
        super().__init__()
        self.reply = ReplyMarkdown(text)

    def compose(self):
        yield self.reply


@pytest.mark.parametrize("size", [1, 7, 100])
@pytest.mark.parametrize("name", sorted(TEXTS.keys() - {"references", "long code", "long open code"}))
def test_a_text_that_grows_is_laid_out_as_if_it_had_been_there_at_once(name, size):
    text = TEXTS[name]
    growing = ReplyMarkdown("")
    for start in range(0, len(text), size):
        growing._grow(text[start : start + size])
        growing.lines(WIDTH)  # as drawing it does
        assert shown(growing) == shown(ReplyMarkdown(growing.source))


@pytest.mark.parametrize("name", sorted(TEXTS))
@pytest.mark.parametrize("width", [20, 100])
async def test_at_another_width_a_reply_that_streamed_is_as_if_it_had_not(name, width):
    text = TEXTS[name]
    app = Host("")
    async with app.run_test():
        for start in range(0, len(text), 300):
            await app.reply.stream(text[start : start + 300])
        whole = ReplyMarkdown(app.reply.source)
        wanted = [line.content for line in whole.lines(width)]
        assert [line.content for line in app.reply.lines(width)] == wanted


@pytest.mark.parametrize("name", ["references", "long code", "long open code"])
async def test_at_its_end_all_of_a_reply_is_right(name, until):
    text = TEXTS[name]
    app = Host("")
    async with app.run_test() as pilot:
        whole = ReplyMarkdown(text)
        await app.mount(whole)
        for start in range(0, len(text), 50):
            await app.reply.stream(text[start : start + 50])
        await app.reply.show(text)
        assert app.reply.source == text
        await until(pilot, lambda: shown(app.reply) == shown(whole))
        assert not any(block.code.is_paged for block in whole._blocks if block.code)


async def test_long_code_is_coloured_a_block_at_a_time(monkeypatch, until):
    running, most, done = [], [], []

    def watched(code):
        running.append(code)
        most.append(len(running))
        time.sleep(0.02)
        running.remove(code)
        done.append(code)
        return recoloured(code)

    recoloured = Code.recoloured
    monkeypatch.setattr(Code, "recoloured", watched)
    app = Host((LONG_CODE + "```\n\n") * 3)
    async with app.run_test() as pilot:
        await until(pilot, lambda: len(done) == 3)
        assert max(most) == 1


async def test_another_text_takes_the_place_of_what_was_streamed():
    app = Host("old *text*\n\n")
    async with app.run_test():
        await app.reply.stream("more")
        await app.reply.show("")
        assert app.reply.lines(WIDTH) == []
        await app.reply.stream("new")
        assert shown(app.reply) == shown(ReplyMarkdown("new"))


def test_only_the_last_block_is_parsed_and_laid_out_again(monkeypatch):
    parsed, laid = [], []
    original = markdown_module.lay_out
    monkeypatch.setattr(
        markdown_module, "lay_out", lambda tokens, w: laid.append(tokens) or original(tokens, w)
    )
    real = parser()

    class Watched:
        def parse(self, text, environment):
            parsed.append(text)
            return real.parse(text, environment)

    monkeypatch.setattr(markdown_module, "parser", Watched)
    reply = ReplyMarkdown("".join(f"Paragraph {number}.\n\n" for number in range(100)))
    reply.lines(WIDTH)
    parsed.clear()
    laid.clear()
    reply._grow("And on.")
    assert parsed == ["Paragraph 99.\n\nAnd on."]
    reply.lines(WIDTH)
    assert len(laid) == 2


@pytest.fixture
def left_over():
    """What only the garbage collector can free since the test began: its number of objects."""
    gc.collect()
    gc.disable()
    yield gc.collect
    gc.enable()


@pytest.mark.parametrize("name", sorted(TEXTS))
def test_what_was_laid_out_is_freed_at_once(name, left_over):
    groups = top_level(parser().parse(TEXTS[name], {}))
    left_over()
    for group in groups:
        lay_out(group, WIDTH)
    assert left_over() == 0


@pytest.mark.parametrize("cuts", [[4], [1, 4], [2]])
def test_a_drawn_line_is_freed_at_once(cuts, left_over):
    collector.spare()
    line = Strip([Segment("line")])
    parts = [part.text for part in line.divide(cuts)]
    assert parts == ["line"[start:end] for start, end in zip([0, *cuts], cuts, strict=False)]
    del line
    assert left_over() == 0


def test_the_finished_part_of_growing_code_is_coloured_once(monkeypatch):
    from lite_llama.app.widgets import markdown_lines

    coloured = []
    original = markdown_lines.coloured
    monkeypatch.setattr(
        markdown_lines, "coloured", lambda text, *rest: coloured.append(text) or original(text, *rest)
    )
    code, text = Code("python"), ""
    for number in range(4 * PAGE_LINES):
        text += f"value = {number}\n"
        code.grow(text)
        assert coloured.pop().count("\n") < PAGE_LINES
    assert len(coloured) == 3
    assert [line.content.plain.strip() for line in code.lines(WIDTH)] == text.splitlines()


async def test_only_lines_that_have_changed_are_drawn_again(monkeypatch):
    app, drawn = Host("One.\n\n```python\nx = 1\n"), []
    draw = ReplyMarkdown.render_line
    monkeypatch.setattr(ReplyMarkdown, "render_line", lambda self, y: drawn.append(y) or draw(self, y))

    async def drawn_after(pilot):
        drawn.clear()
        await pilot.pause()
        return sorted(drawn)

    async with app.run_test(size=(WIDTH, 10)) as pilot:
        everything = [0, 1, 2, 3, 4]
        assert await drawn_after(pilot) == []
        await app.reply.stream("y = ")
        assert await drawn_after(pilot) == [3, 4]
        await app.reply.stream("2\n")
        assert await drawn_after(pilot) == [3]
        app.screen.selections = {app.reply: Selection(Offset(0, 2), Offset(3, 2))}
        assert await drawn_after(pilot) == everything
        app.screen.styles.background = "red"
        assert await drawn_after(pilot) == everything
        app.theme = "textual-light"
        assert await drawn_after(pilot) == everything


def test_formulas_are_left_as_they_are():
    formulas = [
        r"$a_1 * b_1 * c_1$",
        r"\(x_i * y_i * z_i\)",
        r"\[\frac{a}{b}\]",
        r"$$E_x = m*c*2$$",
        r"\(not closed_yet_",
    ]
    for formula in formulas:
        assert laid_out(f"So {formula}") == [f"So {formula}"]
    block = "$$\nx_{1,2} = \\frac{-b \\pm \\sqrt{b^2}}{2a}\n- 3 * 4\n= 5\n$$"
    assert [line.strip() for line in laid_out(block, 80)] == block.split("\n")
    assert laid_out("It costs $5 and *not* $6, or $7-$8.", 80) == ["It costs $5 and not $6, or $7-$8."]


def test_html_is_text():
    assert laid_out("<script>alert(1)</script>", 80) == ["<script>alert(1)</script>"]


def test_a_table_has_aligned_columns_as_wide_as_they_need():
    assert laid_out("| Name | Weight |\n|------|------:|\n| Ana | 120 kg |\n| Bea | 7 kg |") == [
        "Name  Weight",
        "────────────",
        "Ana   120 kg",
        "Bea     7 kg",
    ]


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("width", [1, 2, 3, 5, 8, 13, 200])
def test_every_width_shows_all_of_the_text(name, width):
    def letters(lines):
        return sorted(character for line in lines for character in line if character.isalnum())

    assert letters(laid_out(TEXTS[name], width)) == letters(laid_out(TEXTS[name], 1000))
    assert all(len(line) <= max(width, 24) for line in laid_out(TEXTS[name], width))


@pytest.mark.parametrize(
    "text", ["x" * 100_000, "word " * 20_000, "*x " * 33_000, "```python\n" + "x" * 100_000]
)
def test_a_line_of_100_000_characters_is_laid_out(text):
    lines = laid_out(text, 100)
    assert sum(line.count("x") + line.count("word") for line in lines) == text.count("x") + text.count("word")
    assert all(len(line) <= 100 for line in lines)


def test_a_link_that_pretends_to_be_another_address_is_told():
    assert laid_out("[bank.com](https://evil.example/bank.com/login)", 80) == ["bank.com (evil.example)"]
    assert laid_out("[https://bank.com/x](https://evil.example)", 80) == ["https://bank.com/x (evil.example)"]
    assert laid_out("[the bank](https://bank.com)", 80) == ["the bank"]
    assert laid_out("[bank.com](https://bank.com/login) https://bank.com/x", 80) == [
        "bank.com https://bank.com/x"
    ]


async def test_selected_text_has_the_line_breaks_of_the_text():
    text = "A paragraph that is so long that it takes several lines.\n\n- item\n\n```\ncode\n  more\n```"
    app = Host(text)
    async with app.run_test(size=(20, 20)):
        reply = app.reply
        everything, _ = reply.get_selection(Selection(None, None))
        assert everything == text.replace("- item", "item").replace("```\n", "").replace("\n```", "")
        part, _ = reply.get_selection(Selection(Offset(2, 0), Offset(5, 0)))
        assert part == "par"


async def test_links_of_the_web_are_opened_and_no_others(monkeypatch):
    app, opened = Host(""), []
    async with app.run_test():
        monkeypatch.setattr(app, "open_url", opened.append)
        for address in ("https://a.example", "mailto:a@b.c", "file:///etc/passwd", "javascript:alert(1)"):
            app.reply.action_link(address)
        assert opened == ["https://a.example", "mailto:a@b.c"]
