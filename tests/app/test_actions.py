"""Each action is reachable by all that suit it, and all of that comes from the one list."""

from __future__ import annotations

import re
from pathlib import Path

from textual.binding import Binding
from textual.widgets import Footer
from textual.widgets._footer import FooterKey

from lite_llama.app import keymap
from lite_llama.app.actions import ACTIONS, slash_command
from lite_llama.app.screens.chat import ChatScreen
from lite_llama.app.screens.help import HelpScreen
from lite_llama.app.widgets.transcript import Transcript


async def test_the_palette_offers_every_action_once(chat):
    async with chat() as c:
        offered = [command.title for command in c.app.get_system_commands(c.app.screen)]
        assert offered == [action.title for action in ACTIONS]
        await c.pilot.press("f1")
        await c.screen(HelpScreen)
        over = [command.title for command in c.app.get_system_commands(c.app.screen)]
        assert over == ["Close", *(action.title for action in ACTIONS if action.anywhere)]


async def test_every_key_runs_its_action_and_no_other(chat):
    """Also over the prompt, which has the focus and keys of its own."""
    async with chat() as c:
        active = c.app.screen.active_bindings
        for action in ACTIONS:
            for key in filter(None, action.keys.split(",")):
                bound = active[key].binding
                assert (bound.id, bound.action.removeprefix("app.")) == (
                    action.id,
                    action.name.removeprefix("app."),
                )
        ours = {binding.id for _, binding, *_ in active.values() if binding.id}
        assert ours == {action.id for action in ACTIONS if action.keys}


async def test_the_footer_has_what_the_list_says(chat):
    async with chat(size=(160, 48)) as c:
        entries = {
            key.action.removeprefix("app."): (key.description, key.key)
            for key in c.app.screen.query_one(Footer).query(FooterKey)
            if "palette" not in key.action
        }
        assert entries == {
            action.name.removeprefix("app."): (action.footer, action.keys.split(",")[0])
            for action in ACTIONS
            if action.footer
        }
        help_key = next(key for key in c.app.screen.query(FooterKey) if key.description == "Help")
        await c.pilot.click(help_key)
        await c.screen(HelpScreen)


def test_every_command_is_its_actions_alone():
    commands = [action.command for action in ACTIONS if action.command]
    assert len(commands) == len(set(commands))
    for action in ACTIONS:
        if action.command:
            assert slash_command(action.command) == action.name
            argument = slash_command(f"{action.command} some text")
            assert argument == (f"{action.name}('some text')" if action.argument else None)


def test_an_action_can_be_reached_without_the_palette():
    unreachable = [a.title for a in ACTIONS if not (a.keys or a.command or a.turn_keys or a.anywhere)]
    assert unreachable == []


def test_keys_of_a_selected_turn_are_the_lists():
    bindings = Binding.make_bindings(Transcript.BINDINGS)
    bound = {binding.key: binding.action for binding in bindings}
    for action in ACTIONS:
        for key in filter(None, action.turn_keys.split(",")):
            assert bound[key] == f'turn("{action.name}")'


def test_the_readme_knows_no_command_that_is_not_there():
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    told = set(re.findall(r"`(/[a-z]+)\b[^`/]*`", readme))
    assert told <= {each.command for each in ACTIONS}


def test_the_chat_binds_nothing_beside_the_list():
    ids = {action.id for action in ACTIONS}
    assert {binding.id for binding in Binding.make_bindings(ChatScreen.BINDINGS)} <= ids
    assert keymap.for_textual() == {}
