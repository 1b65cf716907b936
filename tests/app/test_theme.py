"""The two themes are readable: contrast by WCAG 2.1 (relative luminance), 4.5 for text."""

import pytest
from textual.color import Color

from lite_llama.app.theme import THEMES


def luminance(color: Color) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in color.normalized]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: Color, other: Color) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", THEMES, ids=lambda theme: theme.name)
@pytest.mark.parametrize("ground", ["background", "surface"])
@pytest.mark.parametrize(
    "text",
    [
        "foreground",
        "text-muted",
        "text-primary",
        "text-secondary",
        "text-accent",
        "text-warning",
        "text-error",
        "text-success",
        "footer-key-foreground",
        "footer-description-foreground",
    ],
)
def test_text_stands_out(theme, ground, text):
    colors = theme.to_color_system().generate() | theme.variables
    assert contrast(Color.parse(colors[text]), Color.parse(colors[ground])) >= 4.5
