"""Pictures of the chat, compared with the accepted ones; update with `pytest --snapshot-update` and look."""

import asyncio

import pytest
from textual.widgets import Input, OptionList

from lite_llama.app.requests import messages
from lite_llama.app.screens.chat import ChatScreen
from lite_llama.app.widgets.prompt import PromptInput

REPLY = """\
Llamas are **domesticated camelids**. Two facts:

- They *hum* to one another
- They carry about `25 kg`

```python
def count(herd: list[str]) -> int:
    return sum(1 for animal in herd if animal == "llama")
```

| Name | Weight |
|------|--------|
| Ana  | 120 kg |
"""
THOUGHTS = """
The user asks about llamas, with code. What matters about them?

1. They are camelids, and domesticated: the herd could be counted in the code.
2. Sounds and loads are what most people do not know.

A short list, a function and a table will do.
"""
QUESTION = "Tell me about llamas.\nWith code, please."
DARK, LIGHT = "lite-llama-dark", "lite-llama-light"
SMALL, LARGE = (80, 24), (160, 48)


def play(engine, state):
    """Queue the reply that leads to the state; returns what the telemetry line says once it is reached."""
    pieces = [REPLY[i : i + 6] for i in range(0, len(REPLY), 6)]
    if state in ("streaming", "queue"):
        engine.reply(*pieces, hold_after=26)
        return "20.0 tok/s · 26 tokens"
    if state == "error":
        engine.reply("Llamas are", error="The GPU ran out of memory: load a smaller model.")
        return "Ready"
    if state in ("thinking", "thought", "thoughts"):
        thinking = [THOUGHTS[i : i + 6] for i in range(0, len(THOUGHTS), 6)]
        held = len(thinking) // 2 if state == "thinking" else None
        engine.reply("**Llamas** are domesticated camelids.", thinking=thinking, hold_after=held)
        tokens = held or len(thinking) + 1
        rate = "20.0 tok/s"
        return f"{rate} · {tokens} tokens" if held else f"{tokens} tokens · {rate} · first token 0.25 s"
    if state == "code":
        pieces += ["\n```sh\npip install llama\n```\n"]
    engine.reply(*pieces)
    return f"{len(pieces)} tokens · 20.0 tok/s · first token 0.25 s"


@pytest.mark.parametrize(
    ("state", "size", "theme"),
    [
        ("empty", SMALL, DARK),
        ("empty", LARGE, LIGHT),
        ("streaming", SMALL, LIGHT),
        ("streaming", LARGE, DARK),
        ("finished", SMALL, DARK),
        ("finished", LARGE, LIGHT),
        ("error", SMALL, LIGHT),
        ("error", LARGE, DARK),
        ("thinking", SMALL, DARK),
        ("thought", SMALL, LIGHT),
        ("thoughts", SMALL, DARK),
        ("thoughts", LARGE, LIGHT),
        ("branches", SMALL, DARK),
        ("branches", LARGE, LIGHT),
        ("editing", SMALL, LIGHT),
        ("help", SMALL, DARK),
        ("help", SMALL, LIGHT),
        ("help", LARGE, DARK),
        ("help", LARGE, LIGHT),
        ("conversations", SMALL, LIGHT),
        ("conversations", LARGE, DARK),
        ("search", SMALL, DARK),
        ("search", LARGE, LIGHT),
        ("sidebar", LARGE, DARK),
        ("sidebar", LARGE, LIGHT),
        ("queue", SMALL, LIGHT),
        ("commands", SMALL, DARK),
        ("commands", LARGE, LIGHT),
        ("figures", SMALL, DARK),
        ("figures", SMALL, LIGHT),
        ("figures", LARGE, DARK),
        ("figures", LARGE, LIGHT),
        ("full", SMALL, DARK),
        ("full", SMALL, LIGHT),
        ("full", LARGE, DARK),
        ("full", LARGE, LIGHT),
        ("code", SMALL, DARK),
        ("code", SMALL, LIGHT),
        ("code", LARGE, DARK),
        ("code", LARGE, LIGHT),
        ("left-out", SMALL, DARK),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{value[0]}x{value[1]}",
)
def test_chat_looks_as_accepted(
    snap_compare, make_app, make_model, engine, until, state, size, theme, monkeypatch
):
    make_model("SmolLM2-135M-Instruct")
    app = make_app(model="SmolLM2-135M-Instruct", settings=f'theme = "{theme}"\n')
    app.animation_level = "none"
    if state in ("full", "left-out"):
        engine.max_context = 80
    monkeypatch.setattr("time.localtime", lambda seconds: (2026, 1, 2, 3, 4, 5, 4, 2, 0))

    async def come_there(pilot):
        prompt = app.query_one(PromptInput)
        prompt.cursor_blink = False

        def says(text):
            if size == LARGE and text not in ("Starting", "Ready"):
                text += f" · KV 5/{engine.max_context // 16} · CPU 42% 400 MB"
            return lambda: str(app.query_one("#telemetry").render()).startswith(text)

        await until(pilot, says("Ready"))
        if state == "empty":
            await asyncio.sleep(0.3)  # the context meter waits for the typing to pause
            return
        expected = play(engine, state)
        prompt.text = QUESTION
        await pilot.press("enter")
        await until(pilot, says(expected))
        if state not in ("streaming", "thinking", "queue"):
            await until(pilot, lambda: not app.controller.replying)
            conversation = app.controller.conversation
            used = engine.count_tokens(messages(conversation, conversation.turns, engine.model))
            await until(
                pilot, lambda: f" {used} / {engine.max_context:,}" in str(app.query_one("#context").render())
            )
        if state == "thoughts":
            await pilot.press("shift+tab", "enter")
        if state in ("branches", "editing"):
            engine.reply("They hum, mostly.")
            await pilot.press("ctrl+r")
            await until(pilot, lambda: len(app.controller.conversation.all_turns) == 3)
            await until(pilot, lambda: not app.controller.replying)
            await pilot.press("alt+up", "up" if state == "editing" else "left")
            if state == "editing":
                await pilot.press("e")
            await asyncio.sleep(0.4)  # the meter counts again
        if key := {"help": "f1", "conversations": "ctrl+o", "search": "f8", "figures": "f9"}.get(state):
            await pilot.press(key)
            await until(pilot, lambda: app.screen.query("#dialog"))
        if state == "code":
            await pilot.press("alt+up", "b")
            await until(pilot, lambda: app.screen.query("#dialog"))
        if state == "search":
            app.screen.query_one("#search", Input).cursor_blink = False
            await pilot.press(*"llam")
            await until(pilot, lambda: app.screen.query_one(OptionList).option_count == 3)
        if state == "sidebar":
            await pilot.press("ctrl+b")
            await until(pilot, lambda: app.screen.query_one(OptionList).option_count == 1)
        if state == "commands":
            await pilot.press("slash", "s", "down")
            await until(pilot, lambda: " 62 / " in str(app.query_one("#context").render()))
        if state == "queue":
            for text in ("And alpacas?", "Compare the two, please.\nIn a table.", "Thanks", "Bye"):
                prompt.text = text
                await pilot.press("enter")
        if state in ("full", "left-out"):
            prompt.text = "And what do they say to one another, to people and to dogs that come near?"
            await pilot.press("enter")
            await until(pilot, lambda: app.screen.query("#dialog"))
        if state == "left-out":
            await pilot.press("enter")
            await until(pilot, lambda: isinstance(app.screen, ChatScreen) and len(engine.requests) == 3)
            await until(pilot, lambda: not app.controller.replying)
            conversation = app.controller.conversation
            used = engine.count_tokens(engine.requests[-1].messages) + 5
            await until(pilot, lambda: f" {used} / " in str(app.query_one("#context").render()))
        await pilot.pause()

    assert snap_compare(app, terminal_size=size, run_before=come_there)
