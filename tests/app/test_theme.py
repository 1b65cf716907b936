"""Our themes are readable: contrast by WCAG 2.1 (relative luminance), level AA.

The colours are those that the style sheets and the widgets really name, each text on each ground.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from textual.color import Color
from textual.theme import Theme

from lite_llama.app.theme import THEMES

APP = Path(__file__).parents[2] / "app"
SOURCES = "\n".join(
    path.read_text(encoding="utf-8") for path in sorted(APP.rglob("*")) if path.suffix in (".py", ".tcss")
)
# `color: $text-muted;`, `link-color-hover: ...`, and styles in code, as in ("text", "bold $text-primary").
TEXTS = set(re.findall(r"(?<!border-title-)(?<!scrollbar-)(?<!-)color(?:-hover)?: \$([\w-]+);", SOURCES))
TEXTS |= set(re.findall(r"(?:border-title|border-subtitle|link)-color(?:-hover)?: \$([\w-]+)", SOURCES))
TEXTS |= set(re.findall(r"\$(text-[\w-]+)\"", SOURCES))
TEXTS -= {"panel", "primary"}  # a hidden check mark, a bar
GROUNDS = set(re.findall(r"(?<!scrollbar-)(?<!link-)background: \$([\w-]+(?: \d+%)?)", SOURCES))
# The veil over what is behind a dialog, and the empty part of a progress bar: nothing is to be read there.
GROUNDS -= {"background 60%", "foreground 10%"}
# A list's cursor has a text colour of its own, and neither meets any other.
TEXTS -= {"block-cursor-foreground"}
GROUNDS -= {"block-cursor-background"}
BASES = ("background", "surface")
# Muted text is never on these (the cursor, an unlikely token): text there has the foreground's colour.
STRONG = {"primary 25%", "accent 15%", "success 20%", "warning 22%", "warning 39%", "error 50%"}
SIGNS = ("primary", "secondary", "warning", "error", "success", "primary 75%")
"""Bars, marks and the frame of the prompt that has the focus: 3 for what is no text. Other frames and lines,
and the empty part of a bar, tell nothing that is not told otherwise."""


def luminance(color: Color) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in color.normalized]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: Color, other: Color) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def colour(theme: Theme, value: str, base: str) -> Color:
    """`primary 25%` as it shows on the base."""
    colors = theme.to_color_system().generate() | theme.variables
    name, _, percent = value.partition(" ")
    share = int(percent.rstrip("%")) / 100 if percent else 1.0
    return Color.parse(colors[base]).blend(Color.parse(colors[name]), share)


def test_the_style_sheets_are_read():
    assert {"foreground", "text-muted", "text-primary", "text-accent", "text-error"} <= TEXTS
    assert {"background", "surface", "primary 25%", "foreground 7%"} <= GROUNDS


@pytest.mark.parametrize("theme", THEMES, ids=lambda theme: theme.name)
@pytest.mark.parametrize("base", BASES)
def test_text_stands_out(theme: Theme, base: str):
    pairs = [
        *((text, ground) for text in TEXTS for ground in GROUNDS - STRONG),
        *(("foreground", ground) for ground in STRONG),
        ("footer-key-foreground", "footer-background"),
        ("footer-description-foreground", "footer-background"),
        ("block-cursor-foreground", "block-cursor-background"),
    ]
    faint = {
        (text, ground): round(ratio, 2)
        for text, ground in pairs
        if (ratio := contrast(colour(theme, text, base), colour(theme, ground, base))) < 4.5
    }
    assert faint == {}


@pytest.mark.parametrize("theme", THEMES, ids=lambda theme: theme.name)
@pytest.mark.parametrize("ground", BASES)
def test_what_is_no_text_can_be_told_from_its_ground(theme: Theme, ground: str):
    ratios = {sign: contrast(colour(theme, sign, ground), colour(theme, ground, ground)) for sign in SIGNS}
    assert min(ratios.values()) >= 3, ratios
