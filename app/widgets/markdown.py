"""Markdown that a model writes: cheap while it streams, complete, and without power over the terminal."""

from __future__ import annotations

from markdown_it import MarkdownIt
from markdown_it.rules_core import StateCore
from markdown_it.token import Token
from textual import on
from textual.widgets import Markdown
from textual.widgets.markdown import MarkdownFence, MarkdownStream

PLAIN_ABOVE = 2000
"""Characters from which a code block stays without colours until it is complete."""
_OPENED = ("http://", "https://", "mailto:")


def make_parser() -> MarkdownIt:
    """A Markdown parser that drops nothing of a reply.

    HTML is shown as the text it is (Textual has no widget for it and would leave it out, thoughts between
    `<think>` tags included), and a single newline is kept, as the model meant it.
    """
    parser = MarkdownIt("gfm-like", {"html": False})
    parser.core.ruler.push("keep_newlines", _keep_newlines)
    return parser


def _keep_newlines(state: StateCore) -> None:
    for block in state.tokens:
        for token in block.children or ():
            if token.type == "softbreak":
                token.type = "hardbreak"


class ReplyFence(MarkdownFence):
    """A code block. A long one that is still open is not highlighted: to do so anew with each line that is
    added would take longer than the model takes to write it."""

    def __init__(self, markdown: Markdown, token: Token, code: str) -> None:
        if len(code) > PLAIN_ABOVE and _is_open(token):
            token = token.copy(info="text")
        super().__init__(markdown, token, code)


def _is_open(token: Token) -> bool:
    """Whether the closing line of a fence has not come yet: a closed one has a line more."""
    if token.type != "fence" or token.map is None:
        return False
    first, end = token.map
    return end - first < token.content.count("\n") + 2


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
