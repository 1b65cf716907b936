"""The settings screen: a form generated from the fields of `Settings`."""

from __future__ import annotations

from itertools import groupby
from typing import Any, ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.screen import ModalScreen
from textual.widget import Widget
from textual.widgets import Button, Input, Label, Select, Static, TextArea

from ..settings import Settings, choices, form, invalid, requirement

_SHOWN = {name: shown for name, field in Settings.model_fields.items() if (shown := form(field))}


class SettingsField(Vertical):
    """One setting: its title, a widget that suits its type, its help text and, when wrong, why."""

    DEFAULT_CSS = """
    SettingsField {
        height: auto;
        margin-bottom: 1;

        .row { height: auto; }
        .title { width: 20; text-style: bold; }
        .help { padding-left: 20; color: $text-muted; }
        .why { padding-left: 20; color: $text-error; display: none; }
        &.-wrong .why { display: block; }

        Input, SelectCurrent, TextArea {
            background: $foreground 7%;
            padding: 0 1 !important;
        }
        Input:focus, TextArea:focus, Select:focus > SelectCurrent { background: $primary 25%; }
        TextArea { height: 4; }
        Select { width: 1fr; }
    }
    """

    def __init__(self, name: str, value: Any) -> None:
        super().__init__(id=f"field-{name}")
        self.field = name
        self._value = value

    def compose(self) -> ComposeResult:
        info = Settings.model_fields[self.field]
        with Horizontal(classes="row"):
            yield Label(info.title or self.field, classes="title")
            yield self._editor()
        yield Static(info.description or "", classes="help", markup=False)
        yield Static(classes="why", markup=False)

    def _editor(self) -> Widget:
        kind = _SHOWN[self.field].widget
        values = choices(Settings.model_fields[self.field])
        if kind == "theme":
            values = tuple(sorted(self.app.available_themes))
        if values:
            # A theme that is not there (any more) shows as the one that the app took in its place.
            value = self._value if self._value in values else self.app.theme
            options = [(choice, choice) for choice in values]
            return Select(options, value=value, allow_blank=False, compact=True)
        if kind == "text":
            return TextArea(self._value, compact=True, tab_behavior="focus")
        return Input(self._shown(self._value), compact=True, select_on_focus=False)

    @staticmethod
    def _shown(value: Any) -> str:
        return "" if value is None else str(value)

    @property
    def editor(self) -> Widget:
        return self.query_one(".row").children[1]

    @property
    def value(self) -> Any:
        """What the user entered, not validated yet; an empty line stands for None."""
        editor = self.editor
        if isinstance(editor, Select):
            return editor.value
        if isinstance(editor, TextArea):
            return editor.text
        assert isinstance(editor, Input)
        return editor.value.strip() or None

    @value.setter
    def value(self, value: Any) -> None:
        editor = self.editor
        if isinstance(editor, Select):
            editor.value = value
        elif isinstance(editor, TextArea):
            editor.text = value
        elif isinstance(editor, Input):
            editor.value = self._shown(value)

    def check(self) -> bool:
        """Whether the value is allowed; says beneath the widget what it must be if not."""
        wrong = bool(invalid({self.field: self.value}))
        self.set_class(wrong, "-wrong")
        self.editor.set_class(wrong, "-invalid")
        self.query_one(".why", Static).update(f"This must be {requirement(self.field)}." if wrong else "")
        return not wrong


class _Form(VerticalScroll, inherit_bindings=False, can_focus=False):
    """The scrolled fields; the arrow keys go from one to the next rather than scroll."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up", "app.focus_previous", show=False),
        Binding("down", "app.focus_next", show=False),
    ]


class SettingsScreen(ModalScreen[Settings | None]):
    """Edits a copy of `settings`; dismisses with the new Settings, or None when nothing is to change.

    A theme is shown at once while it is being chosen and taken back on cancel.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+s", "save", "Save", priority=True),
        Binding("ctrl+r", "defaults", "Defaults", priority=True),
        Binding("escape", "cancel", "Cancel"),
    ]
    DEFAULT_CSS = """
    SettingsScreen {
        align: center middle;
        background: $background 60%;

        #dialog {
            width: 90%;
            max-width: 88;
            height: 92%;
            max-height: 58;
            padding: 1 0 0 0;
            background: $surface;
            border: round $primary 60%;
            border-title-color: $text-primary;
            border-title-style: bold;
        }
        #fields {
            padding: 0 2;
            scrollbar-size-vertical: 1;
            scrollbar-background: $surface;
            scrollbar-color: $foreground 25%;
        }
        .group { color: $text-accent; margin-bottom: 1; }
        #buttons { height: 2; padding: 0 2; align-horizontal: right; border-top: solid $foreground 15%; }
        Button { margin-left: 2; min-width: 10; }
        #buttons Button:focus { text-style: bold underline; }
    }
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self._settings = settings
        self._theme = ""

    def compose(self) -> ComposeResult:
        with Vertical(id="dialog") as dialog:
            dialog.border_title = "Settings"
            with _Form(id="fields"):
                for group, names in groupby(_SHOWN, lambda name: _SHOWN[name].group):
                    yield Label(group, classes="group")
                    for name in names:
                        yield SettingsField(name, getattr(self._settings, name))
            with Horizontal(id="buttons"):
                yield Button("Defaults ^r", id="defaults", compact=True)
                yield Button("Cancel esc", id="cancel", compact=True)
                yield Button("Save ^s", id="save", variant="primary", compact=True)

    def on_mount(self) -> None:
        self._theme = self.app.theme
        self.query_one(SettingsField).editor.focus()

    @on(Input.Changed)
    @on(TextArea.Changed)
    @on(Select.Changed)
    def _edited(self, event: Input.Changed | TextArea.Changed | Select.Changed) -> None:
        field = next(node for node in event.control.ancestors if isinstance(node, SettingsField))
        # A Select tells its first value on mount: that changes nothing here, whatever comes first.
        if field.check() and _SHOWN[field.field].widget == "theme":
            self.app.theme = field.value

    @on(Button.Pressed, "#save")
    def action_save(self) -> None:
        fields = list(self.query(SettingsField))
        wrong = [field for field in fields if not field.check()]
        if wrong:
            wrong[0].editor.focus()
            return
        values = {field.field: field.value for field in fields}
        entered = Settings(**values)
        changed = {name: getattr(entered, name) for name in values}
        changed = {name: value for name, value in changed.items() if value != getattr(self._settings, name)}
        # A copy, so that what the user never touched still counts as not set.
        self.dismiss(self._settings.model_copy(update=changed))

    @on(Button.Pressed, "#defaults")
    def action_defaults(self) -> None:
        """Fill in the defaults; nothing is saved yet."""
        for field in self.query(SettingsField):
            field.value = Settings.model_fields[field.field].default

    @on(Button.Pressed, "#cancel")
    def action_cancel(self) -> None:
        self.app.theme = self._theme
        self.dismiss(None)
