"""The text of a reply: cheap while it streams, complete, and without power over the terminal."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from markdown_it.token import Token
from textual.content import Content
from textual.geometry import Region, Size
from textual.selection import Selection
from textual.strip import Strip
from textual.style import Style
from textual.visual import Visual
from textual.widget import Widget

from ..text import inert
from .markdown_lines import EMPTY, Code, Line, lay_out
from .markdown_parser import parser, top_level

_OPENED = ("http://", "https://", "mailto:")
_colouring = ThreadPoolExecutor(1, "colouring")
"""One block at a time: each thread that computes takes its share of the interpreter from the screen."""


@dataclass
class Block:
    """A top-level block: its source, its code if it is some, and the lines that it takes at `width`."""

    source: str
    environment: dict[str, Any]
    """The parser's."""
    tokens: list[Token]
    """Empty once it streamed: those of a long table would keep the garbage collector busy."""
    code: Code | None = None
    width: int = 0
    lines: list[Line] = field(default_factory=list)

    def lay_out(self, width: int) -> list[Line]:
        if self.code is not None:
            return self.code.lines(width)
        if width != self.width:
            tokens = self.tokens or parser().parse(self.source, self.environment)
            self.width, self.lines = width, lay_out(tokens, width)
        return self.lines


class ReplyMarkdown(Widget):
    """Markdown in one widget, drawn a line at a time.

    Of a text that grows only the last block is parsed and laid out again, and only lines in view that have
    changed are drawn: what an addition costs does not depend on the length of the reply. Feed it ten times
    a second at most.
    """

    def __init__(self, text: str) -> None:
        super().__init__()
        self.source = ""
        self._environment: dict[str, Any] = {}
        """The parser's: where the references of the text lead."""
        self._blocks: list[Block] = []
        self._finished = self._finished_at = 0
        """So many of the blocks cannot change any more, and where in the source they end."""
        self._lines: list[Line] = []
        """Lines at `_width` of the blocks, as far as they are laid out."""
        self._starts: list[int] = []
        """Which of the lines is the first one of each block that is laid out."""
        self._width = 0
        self._drawn: dict[int, tuple[Content, Strip]] = {}
        """The lines that are in view, as they were drawn last."""
        self._look: object = None
        """What else that depended on."""
        self._grow(text)

    # The text

    async def stream(self, text: str) -> None:
        """Add to the text. The time that it takes is all spent here, but for drawing."""
        finished = self._finished
        self._grow(text)
        self.lines(self._width)
        for block in self._blocks[finished:]:  # what was finished before has none any more
            block.tokens = []
        self.refresh(layout=True)

    async def show(self, text: str) -> None:
        """End the stream with `text`, all that there is."""
        # A reference may be used in a block that was finished before it was defined.
        if not text.startswith(self.source) or "references" in self._environment:
            self.source, self._environment, self._blocks = "", {}, []
            self._finished = self._finished_at = 0
            self._forget_lines(0)
        if text != self.source:
            self._grow(text[len(self.source) :])
        self.refresh(layout=True)
        self._colour_long_code()

    def on_mount(self) -> None:
        self._colour_long_code()

    def on_unmount(self) -> None:
        """Free the text at once: the widget itself waits for the garbage collector."""
        self._blocks, self._lines, self._starts, self._drawn = [], [], [], {}

    def _grow(self, text: str) -> None:
        self.source += text
        rest = self.source[self._finished_at :]
        lines = rest.split("\n")
        groups = top_level(parser().parse(rest, self._environment))
        growing = self._blocks[self._finished :]
        del self._blocks[self._finished :]
        self._forget_lines(self._finished)
        for number, group in enumerate(groups):
            known = growing[number].code if number < len(growing) else None
            source = "\n".join(lines[slice(*_lines_of(group))])
            self._blocks.append(Block(source, self._environment, group, _code(group[0], known)))
        if groups:
            self._finish(groups, lines)

    def _finish(self, groups: list[list[Token]], lines: list[str]) -> None:
        """Tell which of the blocks that were parsed from `lines` cannot change: all but the last.

        If that is no more than the beginning of a line, it may turn out to belong to the block before: after
        a list item and an empty line, `2` is a paragraph, and `2. two` the next item.
        """
        last = len(groups) - 1
        if last and _lines_of(groups[last]) == (len(lines) - 1, len(lines)):
            last -= 1
        first, _ = _lines_of(groups[last])
        self._finished += last
        self._finished_at += sum(len(line) + 1 for line in lines[:first])

    def _colour_long_code(self) -> None:
        for block in self._blocks:
            if block.code is not None and block.code.is_paged:
                self.run_worker(self._recolour(block, block.code))

    async def _recolour(self, block: Block, code: Code) -> None:
        recoloured = await asyncio.get_running_loop().run_in_executor(_colouring, code.recoloured)
        if recoloured.text == code.text:  # it has not grown meanwhile
            block.code = recoloured
            self._forget_lines(0)
            self.refresh()

    # Its lines

    def _forget_lines(self, block: int) -> None:
        """Lay that block and those after it out again."""
        if block < len(self._starts):
            del self._lines[self._starts[block] :], self._starts[block:]

    def lines(self, width: int) -> list[Line]:
        """The lines at that width, with an empty one after each block."""
        if width != self._width:
            self._forget_lines(0)
            self._width = width
        for block in self._blocks[len(self._starts) :]:
            self._starts.append(len(self._lines))
            self._lines += [*block.lay_out(width), EMPTY]
        return self._lines

    def get_content_width(self, container: Size, viewport: Size) -> int:
        return container.width

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        return len(self.lines(width))

    def render_lines(self, crop: Region) -> list[Strip]:
        """Draw of the lines in view those that have changed; Textual would draw all when the widget grows."""
        look = (crop.column_span, self.background_colors, self.highlight_link_id)
        if look != self._look:
            self._look, self._drawn = look, {}
        lines = self.lines(self.size.width)
        drawn: dict[int, tuple[Content, Strip]] = {}
        for y in crop.line_range:
            content = lines[y].content if y < len(lines) else EMPTY.content
            if y not in self._drawn or not content.is_same(self._drawn[y][0]):
                (strip,) = super().render_lines(Region(crop.x, y, crop.width, 1))
                self._drawn[y] = content, strip
            drawn[y] = self._drawn[y]
        self._drawn = drawn
        return [strip for _, strip in drawn.values()]

    def render_line(self, y: int) -> Strip:
        width = self.size.width
        lines = self.lines(width)
        if y >= len(lines):
            return Strip.blank(width, self.visual_style.rich_style)
        content = lines[y].content
        if self.text_selection and (span := self.text_selection.get_span(y)) is not None:
            start, end = span
            style = Style.from_styles(self.screen.get_component_styles("screen--selection"))
            content = content.stylize(style, start, len(content) if end < 0 else end)
        drawn = Visual.to_strips(self, content, width, 1, self.visual_style, apply_selection=False, pad=True)
        return drawn[0].apply_offsets(0, y)

    def forget_drawn(self) -> None:
        """Draw all lines again, when they are next in view."""
        self._drawn = {}

    def notify_style_update(self) -> None:
        self.forget_drawn()
        super().notify_style_update()

    def selection_updated(self, selection: Selection | None) -> None:
        self.forget_drawn()
        self.refresh()

    def get_selection(self, selection: Selection) -> tuple[str, str]:
        """The text that is selected, without bullets' margins and with its own line breaks only."""
        text, joint = "", ""
        for number, line in enumerate(self.lines(self.size.width)):
            if (span := selection.get_span(number)) is not None:
                start, end = span
                plain = line.content.plain
                text += joint + plain[max(start, line.indent) : len(plain) if end < 0 else end].rstrip()
                joint = line.joint
        return text.rstrip("\n"), "\n"

    def action_link(self, address: str) -> None:
        """A link was clicked."""
        if address.lower().startswith(_OPENED):  # never a file or a program of this machine
            self.app.open_url(address)
        else:
            self.notify(f"Not opened: {inert(address)}", markup=False)


def _lines_of(group: list[Token]) -> tuple[int, int]:
    """Of a block: its first line, and the one after its last."""
    first, end = group[0].map or (0, 0)
    return first, end


def _code(head: Token, known: Code | None) -> Code | None:
    """The code of a block that begins with this token: `known`, which has grown, if it is the same."""
    if head.type not in ("fence", "code_block"):
        return None
    code = Code(head.info)
    if known and known.language == code.language and head.content.startswith(known.text):
        code = known
    return code.grow(head.content)
