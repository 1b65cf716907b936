"""The app's own two themes, wool on slate and ink on paper, and which theme the settings mean."""

from __future__ import annotations

from collections.abc import Mapping

from textual.theme import Theme

from .settings import AUTO, Settings

DARK = Theme(
    name="lite-llama-dark",
    dark=True,
    primary="#e3b778",
    secondary="#7fb6a8",
    accent="#8fb3e0",
    foreground="#dcdfe4",
    background="#14171c",
    surface="#1c2027",
    panel="#262b34",
    success="#8fc78a",
    warning="#e6c35c",
    error="#ee8277",
    variables={
        "text-muted": "#939aa6",
        "border": "#e3b778",
        "border-blurred": "#343b46",
        "footer-background": "#14171c",
        "footer-key-foreground": "#e3b778",
        "footer-description-foreground": "#939aa6",
        "input-selection-background": "#e3b778 30%",
        "block-cursor-background": "#e3b778",
        "block-cursor-foreground": "#14171c",
        "scrollbar": "#343b46",
        "scrollbar-hover": "#4b5463",
        "scrollbar-active": "#e3b778",
        "scrollbar-background": "#14171c",
        "scrollbar-background-hover": "#14171c",
        "scrollbar-background-active": "#14171c",
        "scrollbar-corner-color": "#14171c",
    },
)

LIGHT = Theme(
    name="lite-llama-light",
    dark=False,
    primary="#8a4f12",
    secondary="#1d6a5e",
    accent="#285a9c",
    foreground="#2a2722",
    background="#fbf9f5",
    surface="#f3efe8",
    panel="#e8e2d7",
    success="#2f6b2c",
    warning="#7d5700",
    error="#b02a1e",
    variables={
        "text-muted": "#696257",
        "border": "#8a4f12",
        "border-blurred": "#d5cdbf",
        "footer-background": "#fbf9f5",
        "footer-key-foreground": "#8a4f12",
        "footer-description-foreground": "#696257",
        "input-selection-background": "#8a4f12 25%",
        "block-cursor-background": "#8a4f12",
        "block-cursor-foreground": "#fbf9f5",
        "scrollbar": "#d5cdbf",
        "scrollbar-hover": "#b8ad9a",
        "scrollbar-active": "#8a4f12",
        "scrollbar-background": "#fbf9f5",
        "scrollbar-background-hover": "#fbf9f5",
        "scrollbar-background-active": "#fbf9f5",
        "scrollbar-corner-color": "#fbf9f5",
    },
)

THEMES = (DARK, LIGHT)


def theme_for(settings: Settings, available: Mapping[str, Theme], *, dark: bool) -> str:
    """The name of the theme to show on a terminal that is `dark` or not; ours for one that is not there."""
    if settings.theme != AUTO:
        name = settings.theme
    else:
        name = settings.dark_theme if dark else settings.light_theme
    return name if name in available else (DARK if dark else LIGHT).name
