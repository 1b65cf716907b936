"""Quantities in words."""

from __future__ import annotations


def format_bytes(count: float) -> str:
    """Bytes in decimal units, as disks and downloads are sold: 269 MB, 2.5 GB."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{_three_digits(count)} {unit}"
        count /= 1000
    return f"{_three_digits(count)} TB"


def format_count(count: float) -> str:
    """A number of parameters: 135M, 1.24B."""
    for unit in ("", "K", "M"):
        if count < 999.5:
            return f"{_three_digits(count)}{unit}"
        count /= 1000
    return f"{_three_digits(count)}B"


def _three_digits(value: float) -> str:
    """Three significant digits without an exponent or trailing zeros."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
