"""Keys that are typed faster than the focus moves."""

from typing import Any

from textual import events
from textual.screen import Screen
from textual.widgets import Input, OptionList


async def type_into_field(event: events.Key, screen: Screen[Any], options: OptionList, field: Input) -> None:
    """For `on_key` of what holds a list and a field that `/` leads to.

    All keys of a burst are sent to the widget that had the focus when it began, the list: those after the `/`
    are for the field, and must not act on the list. Here they come before they act. The field must not select
    its text when it gets the focus, which happens later.
    """
    focused = screen.focused  # a widget's own `has_focus` comes later
    if event.key == "slash" and focused is options:
        screen.set_focus(field)
        event.stop()
    elif isinstance(focused, Input) and event.key == "enter":
        event.stop()
        await focused.action_submit()
    elif isinstance(focused, Input) and event.is_printable and event.character:
        focused.insert_text_at_cursor(event.character)
        event.stop()
