"""The Markdown that models write, as a tree: nothing of it is dropped, and formulas are left as they are."""

from __future__ import annotations

from functools import cache

from markdown_it import MarkdownIt
from markdown_it.rules_block import StateBlock
from markdown_it.rules_inline import StateInline
from markdown_it.token import Token

_CLOSERS = {"\\(": "\\)", "\\[": "\\]", "$$": "$$", "$": "$"}


@cache
def parser() -> MarkdownIt:
    """GitHub's Markdown without HTML, which is shown as the text it is, and with formulas.

    Tokens called `math` and `math_block` hold a formula with its delimiters: to Markdown the underscores and
    backslashes of LaTeX would be markup.
    """
    made = MarkdownIt("gfm-like", {"html": False})
    made.inline.ruler.before("escape", "math", _math)
    made.block.ruler.before(
        "fence", "math_block", _math_block, {"alt": ["paragraph", "reference", "blockquote", "list"]}
    )
    return made


def code_blocks(text: str) -> list[str]:
    """The contents of the code blocks in Markdown, wherever they stand."""
    return [token.content for token in parser().parse(text) if token.type in ("fence", "code_block")]


def top_level(tokens: list[Token]) -> list[list[Token]]:
    """The tokens of each block that is in no other one."""
    blocks: list[list[Token]] = []
    for token in tokens:
        if token.level == 0 and token.nesting >= 0:
            blocks.append([])
        blocks[-1].append(token)
    return blocks


def _math(state: StateInline, silent: bool) -> bool:
    """A formula within a line: $x$, $$x$$, \\(x\\) or \\[x\\]."""
    source, start = state.src, state.pos
    opener = next((opener for opener in _CLOSERS if source.startswith(opener, start)), None)
    if opener is None:
        return False
    begin, closer = start + len(opener), _CLOSERS[opener]
    end = source.find(closer, begin, state.posMax)
    if opener == "$":
        if not _is_formula(source, begin, end):
            return False
    elif end <= begin:  # not closed, or not yet: the backslash is LaTeX's all the same
        if opener == "$$":
            return False
        end, closer = begin, ""
    if not silent:
        state.push("math", "", 0).content = source[start : end + len(closer)]
    state.pos = end + len(closer)
    return True


def _is_formula(source: str, begin: int, end: int) -> bool:
    """Whether the text between two dollar signs is a formula and not about money, by pandoc's rule."""
    return (
        end > begin
        and "\n" not in source[begin:end]
        and not source[begin].isspace()
        and not source[end - 1].isspace()
        and not source[end + 1 : end + 2].isdigit()
    )


def _math_block(state: StateBlock, first: int, last: int, silent: bool) -> bool:
    """A formula that begins a line and goes on in others, up to its end or an empty line."""
    start = state.bMarks[first] + state.tShift[first]
    opener = state.src[start : start + 2]
    if opener not in ("$$", "\\[") or state.is_code_block(first):
        return False
    closer = _CLOSERS[opener]
    if closer in state.src[start + 2 : state.eMarks[first]]:
        return False
    if silent:
        return True
    line = first + 1
    while line < last and not state.isEmpty(line) and state.sCount[line] >= state.blkIndent:
        line += 1
        if closer in state.src[state.bMarks[line - 1] : state.eMarks[line - 1]]:
            break
    token = state.push("math_block", "", 0)
    token.content = state.getLines(first, line, state.blkIndent, False)
    token.map = [first, line]
    state.line = line
    return True
