"""The token view: how likely each token of a reply was, and what else might have come."""

from __future__ import annotations

from typing import ClassVar

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.markup import escape
from textual.screen import ModalScreen
from textual.widgets import OptionList, Static
from textual.widgets.option_list import Option

from ...engine.events import Alternative, Failed, PrefillProgress, Scored
from ..controller import Controller
from ..conversation import Turn
from ..text import format_percent, format_tokens, one_line
from ..widgets.tokens import LEVELS, UNLIKELY, TokenText, probability, shown

BAR = 8
_BLOCKS = " ▏▎▍▌▋▊▉█"
_KEYS = "Arrows move   n p to unlikely ones   Enter other tokens   Esc closes"
_CHOOSE_KEYS = "Up Down choose   Enter goes on from there   Esc back to the text"
_ENCODED = "The tokens are those of the text now: the ones that were generated are not known."


class TokensScreen(ModalScreen[tuple[int, ...] | None]):
    """Dismisses with the token ids that a new reply is to begin with, or None."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "back", "Back")]
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (70, "-wide")]  # noqa: RUF012 - declared so by Textual

    def __init__(self, controller: Controller, turn: Turn) -> None:
        super().__init__()
        self._controller = controller
        self._turn = turn
        self._shown: list[Alternative] = []
        self._text = TokenText()
        self._place = Static(id="place", markup=False)
        self._list = OptionList(markup=False)
        self._remark = Static(id="remark", markup=False)
        self._keys = Static(_KEYS, id="keys", markup=False)

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog") as dialog:
            dialog.border_title = "Tokens"
            if model := self._controller.loader.model:
                dialog.border_subtitle = escape(f"probabilities of {one_line(model.name)} at temperature 1")
            with Horizontal(id="panes"):
                yield self._text
                with Vertical(id="panel"):
                    yield self._place
                    yield self._list
            yield self._remark
            yield self._keys

    def on_mount(self) -> None:
        self._text.focus()
        self._remark.update("Reading the reply again…")
        self._read()

    @work
    async def _read(self) -> None:
        async for event in self._controller.score(self._turn):
            match event:
                case PrefillProgress(done=done, total=total):
                    self._remark.update(f"Reading the reply again… {done:,} / {format_tokens(total)}")
                case Failed(message=message):
                    self._remark.update(Content.styled(one_line(message), "$text-error"))
                case Scored(tokens=tokens):
                    self._text.show(tokens)
                    self._remark.update(self._summary(as_generated=event.as_generated))

    def _summary(self, *, as_generated: bool) -> Content:
        unlikely = sum(probability(token) < UNLIKELY for token in self._text.tokens)
        parts = [
            f"{format_tokens(len(self._text.tokens))}, {unlikely} below {100 * UNLIKELY:.0f}%   ",
            *self._legend(),
        ]
        if not as_generated:
            parts.append((f"\n{_ENCODED}", "$text-warning"))
        return Content.assemble(*parts)

    def _legend(self) -> list[Content]:
        """The colours of the levels below the first."""
        parts = []
        for number, limit in enumerate(LEVELS, 1):
            style = self._text.get_visual_style(f"token--level-{number}")
            parts += [Content.styled(f"<{100 * limit:.0f}%", style), Content(" ")]
        return parts

    # The panel

    @on(TokenText.Moved)
    def _show_place(self, event: TokenText.Moved) -> None:
        token = self._text.tokens[event.token]
        others = list(token.alternatives)
        if all(other.id != token.id for other in others):
            others.append(Alternative(token.id, token.text, token.logprob))
        self._shown = others
        self._place.update(
            Content.assemble(
                (shown(token.text), "bold"),
                (f"  {format_percent(probability(token))}\n", "$text-primary"),
                (f"token {event.token + 1:,} of {len(self._text.tokens):,}", "$text-muted"),
            )
        )
        self._list.set_options([Option(_line(other, came=other.id == token.id)) for other in others])
        self._list.highlighted = next(at for at, other in enumerate(others) if other.id == token.id)

    @on(TokenText.Chosen)
    def _choose(self) -> None:
        if self._text.tokens:
            self._list.focus()
            self._keys.update(_CHOOSE_KEYS)

    @on(OptionList.OptionSelected)
    def _go_on(self, event: OptionList.OptionSelected) -> None:
        before = [token.id for token in self._text.tokens[: self._text.cursor]]
        self.dismiss((*before, self._shown[event.option_index].id))

    def action_back(self) -> None:
        if self._list.has_focus:
            self._text.focus()
            self._keys.update(_KEYS)
        else:
            self.dismiss(None)


def _line(token: Alternative, *, came: bool) -> Content:
    """A token, a bar as long as it is likely, and the figure; `came`: it is the one in the reply."""
    share = probability(token)
    text = shown(token.text)
    eighths = round(share * BAR * 8)
    bar = _BLOCKS[8] * (eighths // 8) + _BLOCKS[eighths % 8].strip()
    return Content.assemble(
        ("▸" if came else " ", "bold $text-primary"),
        Content(text).truncate(11, ellipsis=True, pad=True),
        " ",
        (bar.ljust(BAR), "$primary"),
        f"{format_percent(share):>8}",
    )
