"""The settings screen: a form generated from the fields of `Settings`, and one for this chat alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, ClassVar

from textual import events, on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widget import Widget
from textual.widgets import Button, Input, Label, Select, Static, TextArea

from ...models.errors import UserError
from .. import presets
from ..settings import AUTO, Settings, choices, form, invalid, requirement
from ..text import one_line

_SHOWN = {name: shown for name, info in Settings.model_fields.items() if (shown := form(info))}


@dataclass(frozen=True)
class Preferences:
    """What the screen edits."""

    settings: Settings
    own: Mapping[str, Any] = field(default_factory=dict)
    """What the chat has for itself, by the names in `presets.NAMES`."""


class SettingsField(Vertical):
    """One setting: its title, a widget that suits its type, its help text and, when wrong, why.

    `base` is what counts when the setting is not set here; `own` tells whether it is.
    """

    DEFAULT_CSS = """
    SettingsField {
        height: auto;
        margin-bottom: 1;

        .row { height: auto; }
        .title { width: 22; text-style: bold; }
        .help { padding-left: 22; color: $text-muted; }
        .why { padding-left: 22; color: $text-error; display: none; }
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

    def __init__(self, name: str, value: Any, base: Any, *, own: bool, chat: bool = False) -> None:
        super().__init__(id=f"{'chat' if chat else 'field'}-{name}")
        self.field, self.chat = name, chat
        self._value, self._base, self.own = value, base, own
        self._info = Settings.model_fields[name]

    def compose(self) -> ComposeResult:
        with Horizontal(classes="row"):
            yield Label(classes="title", markup=False)
            yield self._editor()
        yield Static(classes="help", markup=False)
        yield Static(classes="why", markup=False)

    def on_mount(self) -> None:
        self._seen = self.value
        self._tell()

    def _editor(self) -> Widget:
        kind = _SHOWN[self.field].widget
        values = choices(self._info)
        if "theme" in kind:
            themes = sorted(self.app.available_themes.items())
            values = tuple(name for name, theme in themes if kind in ("theme", _kind(theme.dark)))
            values = (AUTO, *values) if kind == "theme" else values
        if values:
            # A theme that is not there (any more) shows as the one that the app took in its place.
            value = next((v for v in (self._value, self.app.theme) if v in values), values[0])
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

    @property
    def result(self) -> Any:
        """The value as the setting has it; only for a field that is right."""
        if self.value == self._seen:
            return self._value
        return getattr(Settings.model_validate({self.field: self.value}), self.field)

    def check(self) -> bool:
        """Whether the value is allowed; says beneath the widget what it must be if not."""
        wrong = bool(invalid({self.field: self.value}))
        self.set_class(wrong, "-wrong")
        self.editor.set_class(wrong, "-invalid")
        self.query_one(".why", Static).update(f"This must be {requirement(self.field)}." if wrong else "")
        if not wrong and self.value != self._seen:
            self._value, self._seen = self.result, self.value
            self.own = self._value != self._base
            self._tell()
        return not wrong

    def reset(self) -> None:
        """Back to what counts when it is not set here."""
        self.put(self._base)
        self.own = False
        self._tell()

    def put(self, value: Any) -> None:
        """Enter `value` for the user."""
        self.value = value
        self.check()

    def rebase(self, base: Any) -> None:
        """`base` counts now when it is not set here."""
        self._base = base
        if not self.own:
            self.reset()

    def matches(self, words: list[str]) -> bool:
        """Whether all of these words, in lower case, are in what the user reads about the setting."""
        told = f"{self._info.title} {self.field} {self._info.description} {_SHOWN[self.field].group}"
        return all(word in told.casefold() for word in words)

    def _tell(self) -> None:
        """Mark the setting if it is set here, and say what counts otherwise."""
        mark = ("● ", "$text-primary") if self.own else ""
        self.query_one(".title", Label).update(Content.assemble(mark, self._info.title or self.field))
        told = Content(self._info.description or "")
        if self.own:
            base = one_line(self._shown(self._base)) or "empty"
            base = base if len(base) < 24 else f"{base[:23]}…"
            where = "In general" if self.chat else "Default"
            told = Content.assemble(told, (f" {where}: {base}, ^r.", "$text-primary"))
        self.query_one(".help", Static).update(told)


def _kind(dark: bool) -> str:
    return "dark theme" if dark else "light theme"


class _Form(VerticalScroll, inherit_bindings=False, can_focus=False):
    """The scrolled fields; the arrow keys go from one to the next rather than scroll."""


class SettingsScreen(ModalScreen[Preferences | None]):
    """Edits a copy of `before`; dismisses with the new Preferences, or None when nothing is to change.

    `model_defaults` are the model's own, which count where nothing is set. A theme is shown at once while it
    is being chosen and taken back on cancel.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+s", "save", "Save", priority=True),
        Binding("ctrl+r", "reset", "Reset", priority=True),
        Binding("ctrl+t", "switch", "All chats or this one", priority=True),
        Binding("ctrl+f", "search", "Search", priority=True),
        Binding("up", "app.focus_previous", show=False),
        Binding("down", "next", show=False),
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
        .fields {
            padding: 0 2;
            scrollbar-size-vertical: 1;
            scrollbar-background: $surface;
            scrollbar-color: $foreground 25%;
        }
        #chat { display: none; }
        &.-chat { #chat { display: block; } #general { display: none; } }
        .bar {
            height: 1;
            margin-bottom: 1;
            padding: 0 2;
            Input > .input--placeholder { color: $text-muted; }
            Input, SelectCurrent { background: $foreground 7%; padding: 0 1 !important; }
            Input:focus, Select:focus > SelectCurrent { background: $primary 25%; }
        }
        #search { width: 1fr; margin-right: 2; }
        #scope { width: auto; color: $text-muted; link-style: none; link-color: $text-muted; }
        #preset { width: 1fr; margin-right: 2; }
        #save-preset { width: 1fr; }
        .section { height: auto; }
        .group { color: $text-accent; margin-bottom: 1; }
        #nothing { padding: 0 2; color: $text-muted; display: none; }
        #buttons { height: 2; padding: 0 2; align-horizontal: right; border-top: solid $foreground 15%; }
        Button { margin-left: 2; min-width: 10; }
        #buttons Button:focus { text-style: bold underline; }
    }
    """

    def __init__(self, before: Preferences, model_defaults: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self._before = before
        self._settings = before.settings
        self._bases = {name: Settings.model_fields[name].default for name in _SHOWN}
        self._bases |= {name: value for name, value in (model_defaults or {}).items() if name in _SHOWN}
        self._presets = dict(before.settings.presets)
        self._theme = ""

    def compose(self) -> ComposeResult:
        with Vertical(id="dialog") as dialog:
            dialog.border_title = "Settings"
            with Horizontal(classes="bar"):
                yield Input(placeholder="Type to search", compact=True, id="search")
                yield Static(id="scope", markup=False)
            with Horizontal(classes="bar"):
                yield Select(self._preset_options, prompt="Take a preset", compact=True, id="preset")
                yield Input(placeholder="Save as preset: its name", compact=True, id="save-preset")
            with _Form(id="general", classes="fields"):
                for group, names in groupby(_SHOWN, lambda name: _SHOWN[name].group):
                    with Vertical(classes="section"):
                        yield Label(group, classes="group")
                        for name in names:
                            own, base = name in self._settings.model_fields_set, self._bases[name]
                            value = getattr(self._settings, name) if own else base
                            yield SettingsField(name, value, base, own=own)
            with _Form(id="chat", classes="fields"), Vertical(classes="section"):
                for name in presets.NAMES:
                    own, base = name in self._before.own, self._general(name)
                    value = self._before.own[name] if own else base
                    yield SettingsField(name, value, base, own=own, chat=True)
            yield Static("No setting is about that.", id="nothing", markup=False)
            with Horizontal(id="buttons"):
                yield Button("Reset ^r", id="reset", compact=True)
                yield Button("Reset all", id="reset-all", compact=True)
                yield Button("Cancel esc", id="cancel", compact=True)
                yield Button("Save ^s", id="save", variant="primary", compact=True)

    def _general(self, name: str) -> Any:
        """What counts for all chats, as it was before the screen was opened."""
        settings = self._settings
        return getattr(settings, name) if name in settings.model_fields_set else self._bases[name]

    @property
    def _preset_options(self) -> list[tuple[str, str]]:
        known = presets.known(self._settings.model_copy(update={"presets": self._presets}))
        return [(name, name) for name in known]

    def on_mount(self) -> None:
        self._theme = self.app.theme
        self._show_scope()
        self._field = self.query_one("#general SettingsField", SettingsField)
        self.query_one("#search").focus()

    def _fields(self, chat: bool) -> list[SettingsField]:
        return list(self.query_one("#chat" if chat else "#general").query(SettingsField))

    # What is shown: all chats or this one, and what is searched for

    @property
    def _of_chat(self) -> bool:
        return self.has_class("-chat")

    def action_switch(self) -> None:
        """From the settings for all chats to those of this one, and back."""
        for general in self._fields(chat=False) if not self._of_chat else ():
            if general.field in presets.NAMES and general.check():
                self.query_one(f"#chat-{general.field}", SettingsField).rebase(general.result)
        self.toggle_class("-chat")
        self._show_scope()
        self._searched()
        self.action_search()

    def _show_scope(self) -> None:
        scopes = ("All chats", "This chat")
        shown = [Content.from_markup(f"[@click=screen.switch]{scope}[/]") for scope in scopes]
        shown[self._of_chat] = Content.styled(scopes[self._of_chat], "bold $text-primary")
        self.query_one("#scope", Static).update(Content("  ").join([*shown, Content("^t")]))

    def action_search(self) -> None:
        self.query_one("#search").focus()

    @on(Input.Changed, "#search")
    def _searched(self) -> None:
        words = self.query_one("#search", Input).value.casefold().split()
        for section in self.query(".section"):
            fields = list(section.query(SettingsField))
            for each in fields:
                each.display = each.matches(words)
            section.display = any(each.display for each in fields)
        found = any(each.display for each in self._fields(self._of_chat))
        self.query_one("#nothing").display = not found

    @on(Input.Submitted, "#search")
    def action_next(self) -> None:
        """On to the next field; from the search to the first that was found."""
        found = [each for each in self._fields(self._of_chat) if each.display]
        if found and self.query_one("#search").has_focus:
            found[0].editor.focus()
        else:
            self.focus_next()

    # Editing

    @on(Input.Changed, "SettingsField Input")
    @on(TextArea.Changed, "SettingsField TextArea")
    @on(Select.Changed, "SettingsField Select")
    def _edited(self, event: Input.Changed | TextArea.Changed | Select.Changed) -> None:
        edited = next(node for node in event.control.ancestors if isinstance(node, SettingsField))
        # A Select tells its first value on mount: that changes nothing here, whatever comes first.
        if edited.check() and edited.field == "theme" and edited.value != AUTO:
            self.app.theme = edited.value

    @on(events.DescendantFocus, "SettingsField *")
    def _entered(self, event: events.DescendantFocus) -> None:
        self._field = next(node for node in event.widget.ancestors if isinstance(node, SettingsField))

    @on(Button.Pressed, "#reset")
    def action_reset(self) -> None:
        """Reset the field that the cursor is in, or was in last."""
        if self._field.chat == self._of_chat:
            self._field.reset()

    @on(Button.Pressed, "#reset-all")
    def _reset_all(self) -> None:
        """Fill in what counts without any setting; nothing is saved yet."""
        for each in self._fields(self._of_chat):
            each.reset()

    # Presets

    @on(Select.Changed, "#preset")
    def _take_preset(self, event: Select.Changed) -> None:
        known = presets.known(self._settings.model_copy(update={"presets": self._presets}))
        if (values := known.get(str(event.value))) is None:
            return
        for each in self._fields(self._of_chat):
            if each.field in values:
                each.put(values[each.field])
            elif each.field in presets.NAMES and each.field != "system_prompt":
                each.reset()

    @on(Input.Submitted, "#save-preset")
    def _save_preset(self, event: Input.Submitted) -> None:
        """Keep what is set here, for this chat with what is set for all, under a name."""
        scopes = (False, True) if self._of_chat else (False,)
        fields = [each for chat in scopes for each in self._fields(chat) if each.field in presets.NAMES]
        try:
            name = presets.checked_name(event.value)
            self._presets[name] = {each.field: each.result for each in fields if each.own and each.check()}
        except UserError as error:
            self.notify(str(error), severity="warning", markup=False)
            return
        event.input.value = ""
        self.query_one("#preset", Select).set_options(self._preset_options)
        self.notify(f"The preset {name} is kept once you save with Ctrl+S.", markup=False)

    # The end

    @on(Button.Pressed, "#save")
    def action_save(self) -> None:
        wrong = [each for each in self.query(SettingsField) if not each.check()]
        if wrong:
            self.query_one("#search", Input).value = ""
            if wrong[0].chat != self._of_chat:
                self.action_switch()
            wrong[0].display = True
            wrong[0].editor.focus()
            return
        before = self._settings
        # What the user never touched still counts as not set.
        values = {name: getattr(before, name) for name in before.model_fields_set if name not in _SHOWN}
        values |= {each.field: each.result for each in self._fields(chat=False) if each.own}
        if self._presets != before.presets:
            values["presets"] = self._presets
        own = {each.field: each.result for each in self._fields(chat=True) if each.own}
        self.dismiss(Preferences(Settings(**values), own))

    @on(Button.Pressed, "#cancel")
    def action_cancel(self) -> None:
        search = self.query_one("#search", Input)
        if search.value and search.has_focus:
            search.value = ""
            return
        self.app.theme = self._theme
        self.dismiss(None)
