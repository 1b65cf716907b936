"""Quantities in words, and foreign text made harmless."""

from __future__ import annotations

import pytest

from lite_llama.app.text import format_seconds, inert, one_line
from lite_llama.models.units import format_bytes, format_count


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1 kB"),
        (999_600, "1 MB"),
        (269_060_552, "269 MB"),
        (2.47e9, "2.47 GB"),
    ],
)
def test_bytes(count, text):
    assert format_bytes(count) == text


@pytest.mark.parametrize(
    ("count", "text"), [(7, "7"), (134_515_008, "135M"), (1_235_814_400, "1.24B"), (70e9, "70B")]
)
def test_parameters(count, text):
    assert format_count(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (9.96, "10 s"), (59.7, "1 min 0 s")],
)
def test_seconds(seconds, text):
    assert format_seconds(seconds) == text


def test_inert_text_keeps_its_letters_and_loses_what_terminals_obey():
    assert inert("a\x1b[31mb\x07\x9b2J\x7f\tc\n\ud800é🙂") == "a[31mb2J\tc\né🙂"
    assert one_line(" a\n\tb\r\x00 c ") == "a b c"
