"""Images seen large: those of a message that was sent, and the panel for those of the one being written."""

from __future__ import annotations

from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from textual import events, on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container, Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import OptionList, Static
from textual.widgets.option_list import Option

from ..actions import named
from ..attachments import Attachment
from ..incoming import IMAGE_SUFFIXES, image_paths
from ..text import format_tokens, one_line
from ..widgets.attachments import size_in_words
from ..widgets.graphics import graphics_widget
from ..widgets.picture import Picture

if TYPE_CHECKING:
    from .attaching import AttachingScreen

_EMPTY = (
    "No image is attached. Drop image files on the terminal, or paste their paths; write /image PATH in the "
    "prompt; or take one of the keys below."
)


class PreviewScreen(ModalScreen[None]):
    """The images of a message, one of them large; Up and Down go to another."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,enter", "dismiss", "Close")]
    KEYS = "Up Down another one   Esc closes"

    def __init__(self, images: Sequence[Attachment] = (), first: Attachment | None = None) -> None:
        """`first` is the one to begin with; without it, it is the last."""
        super().__init__()
        self._images = images
        self._first = first
        self._list = OptionList(markup=False)
        self._picture = (graphics_widget() or Picture)()
        self._remark = Static(id="remark", markup=False)

    def compose(self) -> ComposeResult:
        with Vertical(id="dialog", classes="dialog") as dialog:
            dialog.border_title = "Images"
            yield self._list
            yield Container(self._picture, id="preview")
            yield self._remark
            yield Static(self.KEYS, id="keys", markup=False)

    def on_mount(self) -> None:
        self._fill()
        if self._first is not None:
            self._list.highlighted = self.images.index(self._first)
        self._list.focus()

    @property
    def images(self) -> Sequence[Attachment]:
        """As they are now."""
        return self._images

    @property
    def cost(self) -> str:
        """What each costs, empty where that is of no interest."""
        return ""

    @property
    def remark(self) -> str:
        """What there is to say about them, if anything."""
        return ""

    @property
    def _chosen(self) -> Attachment | None:
        items, line = self.images, self._list.highlighted
        return items[line] if line is not None and line < len(items) else None

    def _fill(self) -> None:
        """Show the images as they are now; the cursor stays, or goes to the one that was added."""
        items = self.images
        grown, line = len(items) > self._list.option_count, self._list.highlighted or 0
        details = [" · ".join(filter(None, (size_in_words(item), self.cost))) for item in items]
        self._list.set_options(
            Option(Content.assemble((one_line(item.name), "bold"), (f"  {detail}", "$text-muted")))
            for item, detail in zip(items, details, strict=True)
        )
        self._list.display = self.query_one("#preview").display = bool(items)
        if items:
            self._list.highlighted = len(items) - 1 if grown else min(line, len(items) - 1)
        self._remark.update(self.remark)
        self._remark.display = bool(self.remark)

    @on(OptionList.OptionHighlighted)
    def _moved(self) -> None:
        chosen = self._chosen
        self._picture.image = chosen.thumbnail if chosen else None

    @on(OptionList.OptionSelected)
    def _close(self) -> None:
        """The list takes Enter for itself."""
        self.dismiss()


class ImagesScreen(PreviewScreen):
    """The panel: works on the attachments of the message that `target` has."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("f", "choose", "File"),
        Binding("v,ctrl+v", "clipboard", "Clipboard"),
        Binding("d,delete,backspace", "remove", "Remove"),
        Binding("s", "models", "Models that see"),
        *PreviewScreen.BINDINGS,
        named("app.images").closing,
    ]
    KEYS = "f a file   v the clipboard's image   d removes one   Esc closes"

    def __init__(self, target: AttachingScreen[Any]) -> None:
        super().__init__()
        self._target = target

    @property
    def images(self) -> Sequence[Attachment]:
        return self._target.attachments.items

    @property
    def cost(self) -> str:
        model = self._target.asked_model
        return format_tokens(model.image_tokens) if model and model.sees_images else ""

    @property
    def remark(self) -> str:
        model = self._target.asked_model
        remark = "" if self.images else _EMPTY
        if model and not model.sees_images:
            remark += f"\n\n{one_line(model.name)} reads text only: s shows the models that see."
        return remark.strip()

    def action_remove(self) -> None:
        if chosen := self._chosen:
            self._target.attachments.remove(chosen)
            self._fill()

    @work
    async def action_choose(self) -> None:
        from textual_fspicker import FileOpen, Filters  # takes a while, which a start should not

        images = Filters(
            ("Images", lambda path: path.suffix.lower() in IMAGE_SUFFIXES), ("All files", lambda _: True)
        )
        path = await self.app.push_screen_wait(FileOpen(Path.home(), "Attach an image", filters=images))
        if path is not None:
            self._see_to(self._target.attach([path]))

    def action_clipboard(self) -> None:
        self._see_to(self._target.attach_from_clipboard())

    def on_paste(self, event: events.Paste) -> None:
        self._see_to(self._target.attach(image_paths(event.text)))

    def _see_to(self, attaching: Coroutine[None, None, bool]) -> None:
        """Attach on behalf of that screen: it goes on when the panel is closed before it is done."""

        async def attach() -> None:
            await attaching
            if self.is_attached:
                self._fill()

        self._target.run_worker(attach())

    def action_models(self) -> None:
        if self._target.asked_model:
            self.dismiss()
            self.app.call_later(self.app.run_action, "seeing_models")


class SeeingModelsScreen(ModalScreen[str | None]):
    """Offers models that see in place of one that does not.

    Dismisses with the name of the one to load, with an empty one to add a model, and None to stay.
    """

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "dismiss", "Stay")]

    def __init__(self, current: str, names: list[str]) -> None:
        super().__init__()
        self._current = current
        self._names = names

    def compose(self) -> ComposeResult:
        current = one_line(self._current)
        offer = (
            "The message and its images are kept; send it again once another model is loaded."
            if self._names
            else "None of your models sees images: add one such as llava-hf/llava-1.5-7b-hf."
        )
        with Vertical(id="dialog", classes="dialog") as dialog:
            dialog.border_title = f"{current} reads text only"
            yield Static(offer, markup=False)
            yield OptionList(
                *(Option(f"Load {one_line(name)}") for name in self._names),
                Option("Add a model"),
                Option(f"Stay with {current}"),
                markup=False,
            )

    def on_mount(self) -> None:
        self.query_one(OptionList).focus()

    @on(OptionList.OptionSelected)
    def _choose(self, event: OptionList.OptionSelected) -> None:
        self.dismiss([*self._names, "", None][event.option_index])
