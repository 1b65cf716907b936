"""Markdown laid out: blocks of it as the lines that they take at some width."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

from markdown_it.token import Token
from markdown_it.tree import SyntaxTreeNode
from textual.content import Content, Span
from textual.highlight import highlight
from textual.style import Style

BULLETS = "•▪‣"
HEADING = "bold $text-primary"
MARKER = "$text-primary"
QUOTE = "$text-muted"
RULE = "$border-blurred"
CODE = "on $surface"
CODE_INLINE = "$text-secondary on $surface"
MATH = "$text-secondary"
EMPHASIS = {"em": "italic", "strong": "bold", "s": "strike"}
CODE_MARGIN = 2
COLUMN_GAP = 2
NARROWEST_COLUMN = 4
PAGE_LINES = 40
"""So many lines of code are coloured together while more is coming."""
LONGEST_COLOURED = 1_000
"""Characters of a line of code; longer ones are data, and their colours would take long."""


@dataclass(frozen=True, slots=True)
class Line:
    """A line on the screen. `indent` of its characters are no text of the reply, but bullets and margins."""

    content: Content
    indent: int = 0
    joint: str = "\n"
    """What is between this line and the next in the text: nothing or a space where it was only too long."""


EMPTY = Line(Content(""))


def lay_out(tokens: Sequence[Token], width: int) -> list[Line]:
    """The lines of one top-level block."""
    root = SyntaxTreeNode(list(tokens))
    lines = _stacked(root.children, width)
    for node in root.walk():
        node.parent = None  # a tree that knows its parents would wait for the garbage collector
    return lines


def _stacked(nodes: Sequence[SyntaxTreeNode], width: int, depth: int = 0) -> list[Line]:
    """Blocks below one another, with an empty line between them unless they are of a tight list."""
    lines: list[Line] = []
    width = max(width, 2)
    for node in nodes:
        if lines and not (node.type.endswith("_list") and depth) and not _is_tight(node):
            lines.append(EMPTY)
        lines += _block(node, width, depth)
    return lines


def _is_tight(node: SyntaxTreeNode) -> bool:
    return node.type == "paragraph" and node.hidden


def _block(node: SyntaxTreeNode, width: int, depth: int) -> list[Line]:
    match node.type:
        case "paragraph":
            return _wrapped(inline(node.children[0]), width)
        case "heading":
            return _wrapped(inline(node.children[0]).stylize(HEADING), width)
        case "bullet_list" | "ordered_list":
            return _list(node, width, depth)
        case "blockquote":
            inner = _stacked(node.children, width - 2, depth)
            bar = Content.styled("▌ ", RULE)
            return [_prefixed(replace(line, content=line.content.stylize(QUOTE)), bar) for line in inner]
        case "table":
            return _table(node, width)
        case "fence" | "code_block":
            return Code(node.info).grow(node.content).lines(width)
        case "math_block":
            margin = Content("  ")
            lines = [
                _wrapped(Content.styled(line, MATH), max(width - 2, 2)) for line in node.content.split("\n")
            ]
            return [_prefixed(line, margin) for wrapped in lines for line in wrapped]
        case "hr":
            return [Line(Content.styled("─" * width, RULE), width)]
        case _:  # there is no other kind without HTML; if there is one day, its text is shown
            return _wrapped(Content(node.content), width)


def _prefixed(line: Line, prefix: Content) -> Line:
    return Line(prefix + line.content, len(prefix) + line.indent, line.joint)


def _wrapped(content: Content, width: int) -> list[Line]:
    lines: list[Line] = []
    for part in content.split("\n", allow_blank=True):
        wrapped = [piece.rstrip() for piece in part.wrap(width)] if part else [part]
        lines += [Line(piece, 0, " ") for piece in wrapped[:-1]]
        lines.append(Line(wrapped[-1]))
    return lines


def _list(node: SyntaxTreeNode, width: int, depth: int) -> list[Line]:
    if node.type == "ordered_list":
        markers = [f"{item.info}." for item in node.children]
    else:
        markers = [BULLETS[depth % len(BULLETS)]] * len(node.children)
    room = max(len(marker) for marker in markers) + 1
    lines: list[Line] = []
    for marker, item in zip(markers, node.children, strict=True):
        loose = any(child.type == "paragraph" and not child.hidden for child in item.children)
        if lines and loose:
            lines.append(EMPTY)
        inner = _stacked(item.children, width - room, depth + 1) or [EMPTY]
        head = Content.styled(marker.rjust(room - 1) + " ", MARKER)
        lines.append(_prefixed(inner[0], head))
        lines += [_prefixed(line, Content(" " * room)) for line in inner[1:]]
    return lines


# Tables


def _table(node: SyntaxTreeNode, width: int) -> list[Line]:
    rows = [
        [inline(cell.children[0]) if cell.children else Content("") for cell in row.children]
        for part in node.children
        for row in part.children
    ]
    aligns = [str(cell.attrs.get("style", "")) for cell in node.children[0].children[0].children]
    natural = [max(1, *(row[column].cell_length for row in rows)) for column in range(len(aligns))]
    available = width - COLUMN_GAP * (len(aligns) - 1)
    if available < NARROWEST_COLUMN * len(aligns):  # no room for columns: a paragraph for each row
        return [line for row in rows for line in _wrapped(Content(" · ").join(row), width)]
    widths = _column_widths(natural, available)
    head = [replace(line, content=line.content.stylize(HEADING)) for line in _row(rows[0], widths, aligns)]
    gap = "─" * COLUMN_GAP
    rule = Line(Content.styled(gap.join("─" * column for column in widths), RULE), width)
    return [*head, rule, *(line for row in rows[1:] for line in _row(row, widths, aligns))]


def _column_widths(natural: list[int], available: int) -> list[int]:
    """As wide as they want to be; if that is too much, the wide ones share what the narrow ones leave."""
    widths, left = [0] * len(natural), available
    ascending = sorted(range(len(natural)), key=natural.__getitem__)
    for place, column in enumerate(ascending):
        widths[column] = min(natural[column], left // (len(natural) - place))
        left -= widths[column]
    return widths


def _row(cells: list[Content], widths: list[int], aligns: list[str]) -> list[Line]:
    columns = [
        [piece.rstrip() for piece in cell.wrap(width)] if cell.cell_length > width else [cell]
        for cell, width in zip(cells, widths, strict=True)
    ]
    lines = []
    for number in range(max(map(len, columns))):
        pieces = [column[number] if number < len(column) else Content("") for column in columns]
        aligned = [_aligned(*each) for each in zip(pieces, widths, aligns, strict=True)]
        lines.append(Line(Content(" " * COLUMN_GAP).join(aligned)))
    return lines


def _aligned(cell: Content, width: int, align: str) -> Content:
    free = max(0, width - cell.cell_length)
    left = free if "right" in align else free // 2 if "center" in align else 0
    return cell.pad(left, free - left) if free else cell


# Code


class Code:
    """A block of code that may still be growing.

    While it grows, each PAGE_LINES finished lines are coloured once and left alone; what is coloured again
    and again are the few lines after them. A string that goes over such a border looks wrong until all of it
    is coloured at once, which for a long block takes so long that it is for another thread.
    """

    def __init__(self, language: str) -> None:
        self.language = language.split(" ")[0]
        self.text = ""
        self._done: list[Content] = []
        """Lines that stay as they are."""
        self._rest: list[Content] = []
        self._laid_out: list[Line] = []
        """Of the first `_laid_out_of` lines that are done, at `_width`."""
        self._laid_out_of = self._width = 0
        self.is_paged = False
        """Whether it was not coloured all at once."""

    def grow(self, text: str) -> Code:
        """The text is now `text`, which begins with what it was before; returns the block itself."""
        self.text = text.removesuffix("\n")
        rest = self.text.split("\n")[len(self._done) :]
        while len(rest) > PAGE_LINES:
            self._done += coloured("\n".join(rest[:PAGE_LINES]), self.language)
            rest = rest[PAGE_LINES:]
            self.is_paged = True
        self._rest = coloured("\n".join(rest), self.language)
        return self

    def recoloured(self) -> Code:
        """The same, coloured all at once and laid out; it may still grow."""
        code = Code(self.language)
        code.text = self.text
        lines = coloured(self.text, self.language)
        code._done, code._rest, code.is_paged = lines[:-1], lines[-1:], False
        code.lines(self._width)
        return code

    def lines(self, width: int) -> list[Line]:
        if width != self._width:
            self._width, self._laid_out, self._laid_out_of = width, [], 0
        new = self._done[self._laid_out_of :]
        self._laid_out_of = len(self._done)
        self._laid_out += [line for content in new for line in _code_line(content, width)]
        return self._laid_out + [line for content in self._rest for line in _code_line(content, width)]


def coloured(code: str, language: str) -> list[Content]:
    """The lines of `code`, coloured if its language is known."""
    lines = code.expandtabs(4).split("\n")
    if language and max(map(len, lines)) <= LONGEST_COLOURED:
        highlighted = highlight("\n".join(lines), language=language).split("\n", allow_blank=True)
        highlighted += [Content("")] * (len(lines) - len(highlighted))  # it drops an empty one at the end
        if [line.plain for line in highlighted] == lines:
            return highlighted
    return [Content(line) for line in lines]


def _code_line(content: Content, width: int) -> list[Line]:
    """A line of code over the whole width, cut where it is too long."""
    room = max(2, width - 2 * CODE_MARGIN)
    pieces = content.fold(room) or [content]
    margin = Content(" " * CODE_MARGIN)
    filled = [
        (margin + piece).pad_right(max(0, width - CODE_MARGIN - piece.cell_length)).stylize_before(CODE)
        for piece in pieces
    ]
    return [Line(piece, CODE_MARGIN, "" if piece is not filled[-1] else "\n") for piece in filled]


# Text


def inline(node: SyntaxTreeNode) -> Content:
    """The text of a paragraph, heading or cell, with its styles."""
    parts: list[str] = []
    spans: list[Span] = []
    _collect(node.children, parts, spans, 0)
    return Content("".join(parts), spans)


def _collect(nodes: Sequence[SyntaxTreeNode], parts: list[str], spans: list[Span], start: int) -> int:
    """Append text and styles of the nodes, which begin at the offset `start`; returns the offset after."""
    at = start
    for node in nodes:
        begin, style, text = at, None, ""
        match node.type:
            case "em" | "strong" | "s":
                style = EMPHASIS[node.type]
                at = _collect(node.children, parts, spans, at)
            case "link":
                style = link(str(node.attrs.get("href", "")))
                at = _collect(node.children, parts, spans, at)
                text = _true_address(str(node.attrs.get("href", "")), "".join(parts)[begin:])
            case "image":
                style, text = link(str(node.attrs.get("src", ""))), f"🖼 {node.content}"
            case "code_inline":
                style, text = CODE_INLINE, node.content
            case "math":
                style, text = MATH, node.content
            case "softbreak" | "hardbreak":
                text = "\n"
            case _:
                text = node.content
        parts.append(text)
        at += len(text)
        if style is not None:
            spans.append(Span(begin, at, style))
    return at


def link(address: str) -> Style:
    """The style of what opens an address when it is clicked."""
    return Style.from_meta({"@click": f"link({address!r})"})


def _true_address(address: str, text: str) -> str:
    """What is added to a link's text that reads like another address than the one it leads to."""
    shown = text.strip().lower().removeprefix("https://").removeprefix("http://").split("/")[0]
    host = urlsplit(address).netloc.lower() or address.lower().removeprefix("mailto:")
    looks_like_one = "." in shown and " " not in shown
    return f" ({host})" if looks_like_one and shown.removeprefix("www.") != host.removeprefix("www.") else ""
