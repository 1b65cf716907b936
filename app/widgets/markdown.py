"""Markdown that a model writes: cheap while it streams, complete, and without power over the terminal."""

from __future__ import annotations

from markdown_it import MarkdownIt
from markdown_it.rules_core import StateCore
from markdown_it.token import Token
from textual import on
from textual.app import ComposeResult
from textual.widgets import Label, Markdown
from textual.widgets.markdown import MarkdownBlock, MarkdownFence, MarkdownStream

PAGE_LINES = 40
_OPENED = ("http://", "https://", "mailto:")


def make_parser() -> MarkdownIt:
    """A Markdown parser that drops nothing of a reply.

    HTML is shown as the text it is (Textual has no widget for it and would leave it out), and a single
    newline is kept, as the model meant it.
    """
    parser = MarkdownIt("gfm-like", {"html": False})
    parser.core.ruler.push("keep_newlines", _keep_newlines)
    return parser


def code_blocks(text: str) -> list[str]:
    """The contents of the code blocks in Markdown, wherever they stand."""
    return [token.content for token in make_parser().parse(text) if token.type in ("fence", "code_block")]


def _keep_newlines(state: StateCore) -> None:
    for block in state.tokens:
        for token in block.children or ():
            if token.type == "softbreak":
                token.type = "hardbreak"


class ReplyFence(MarkdownFence):
    """A code block whose finished part is left alone while it is still being written.

    To colour and lay out all of it anew for each line that is added would take longer than the model takes
    to write the line. So while the block is open, each PAGE_LINES lines become a label of their own, and only
    the label with the lines after them changes. Once it is closed it is one label again.
    """

    def __init__(self, markdown: Markdown, token: Token, code: str) -> None:
        lines = code.split("\n")
        done = (len(lines) - 1) // PAGE_LINES * PAGE_LINES if _is_open(token) else 0
        self._pages = ["\n".join(lines[start : start + PAGE_LINES]) for start in range(0, done, PAGE_LINES)]
        super().__init__(markdown, token, "\n".join(lines[done:]))

    def compose(self) -> ComposeResult:
        yield from self._labels(self._pages)
        yield from super().compose()

    def _labels(self, pages: list[str]) -> list[Label]:
        ansi, dark = self.app.native_ansi_color, self.app.current_theme.dark
        return [
            Label(self.highlight(page, self.lexer, ansi=ansi, dark=dark), classes="page") for page in pages
        ]

    async def _update_from_block(self, block: MarkdownBlock) -> None:
        if isinstance(block, ReplyFence):
            if block._pages:
                new = self._labels(block._pages[len(self._pages) :])
                await self.mount_all(new, before="#code-content")
            else:
                await self.query(".page").remove()
            self._pages = block._pages
        await super()._update_from_block(block)


def _is_open(token: Token) -> bool:
    """Whether the closing line of a fence has not come yet: a closed one has a line more."""
    if token.type != "fence" or token.map is None:
        return False
    first, end = token.map
    lines = token.content.count("\n") + (token.content[-1:] not in ("", "\n"))
    return end - first < lines + 2


class ReplyMarkdown(Markdown):
    """The text of a reply. Feed it ten times a second at most."""

    BLOCKS = Markdown.BLOCKS | {"fence": ReplyFence, "code_block": ReplyFence}

    def __init__(self, text: str) -> None:
        super().__init__(text, parser_factory=make_parser, open_links=False)
        self._stream: MarkdownStream | None = None

    async def stream(self, text: str) -> None:
        """Add to the text; what comes faster than it can be shown is gathered."""
        if self._stream is None:
            self._stream = Markdown.get_stream(self)
        await self._stream.write(text)

    async def show(self, text: str) -> None:
        """End the stream and show `text`, parsed as a whole: pieces may have read differently."""
        if self._stream is not None:
            await self._stream.stop()
            self._stream = None
        await self.update(text)

    @on(Markdown.LinkClicked)
    def _open(self, event: Markdown.LinkClicked) -> None:
        event.stop()
        if event.href.lower().startswith(_OPENED):  # never a file or a program of this machine
            self.app.open_url(event.href)
        else:
            self.notify(f"Not opened: {event.href}", markup=False)
