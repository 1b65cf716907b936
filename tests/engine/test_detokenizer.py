"""Streaming text: never half a character, never the beginning of a stop string."""

from __future__ import annotations

import random

import pytest

from lite_llama.engine.detokenizer import Detokenizer

TEXT = "Grüße, 世界! 👩‍👩‍👧 e\u0301 naïve — \t\r\n code: `x = {1: '🙂'}`   end"


def decode_bytes(ids):
    """A tokenizer of single bytes: the worst case for half characters."""
    return bytes(ids).decode("utf-8", errors="replace")


def test_pieces_are_whole_characters_and_add_up():
    detokenizer = Detokenizer(decode_bytes)
    pieces = [detokenizer.add(byte) for byte in TEXT.encode()]
    assert all("\ufffd" not in piece for piece in pieces)
    assert "".join(pieces) + detokenizer.flush() == TEXT
    assert detokenizer.text == TEXT


def test_flush_gives_the_unfinished_character():
    detokenizer = Detokenizer(decode_bytes)
    pieces = "".join(detokenizer.add(byte) for byte in "a🙂".encode()[:-1])
    assert pieces == "a"
    assert detokenizer.flush() == "\ufffd"
    assert detokenizer.text == "a\ufffd"


def test_leading_space_of_a_word_depends_on_its_neighbour():
    words = ["▁Hello", "▁world", "▁again"]

    def decode(ids):
        """As SentencePiece does: the very first space is dropped."""
        return "".join(words[index] for index in ids).replace("▁", " ").removeprefix(" ")

    detokenizer = Detokenizer(decode)
    assert [detokenizer.add(index) for index in (0, 1, 2)] == ["Hello", " world", " again"]


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("one two STOP three", ["STOP"], "one two "),
        ("one two STO three", ["STOP"], "one two STO three"),
        ("aaab tail", ["aab"], "a"),
        ("x</s>y", ["</s>", "s>"], "x"),
        ("no stop here ST", ["STOP"], "no stop here ST"),
        ("🙂🙂!🙂", ["🙂!"], "🙂"),
        ("STOP", ["STOP"], ""),
    ],
)
def test_stop_strings(text, stop, expected):
    detokenizer = Detokenizer(decode_bytes, stop)
    seen = ""
    for byte in text.encode():
        seen += detokenizer.add(byte)
        assert expected.startswith(seen)
        if detokenizer.stopped:
            break
    seen += detokenizer.flush()
    assert seen == expected
    assert detokenizer.stopped == (expected != text)


def test_random_cuts_agree_with_a_search_of_the_whole_text():
    seed = random.randrange(10**6)
    rng = random.Random(seed)
    for _ in range(300):
        text = "".join(rng.choice("ab🙂é") for _ in range(30))
        stops = [
            "".join(rng.choice("ab🙂é") for _ in range(rng.randint(1, 4))) for _ in range(rng.randint(0, 3))
        ]
        # The first stop string that is complete wins, as in a stream; the text is cut where it begins.
        ends = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
        end = min(ends)[0] if ends else None
        expected = text if end is None else text[: min(begin for last, begin in ends if last == end)]
        detokenizer = Detokenizer(decode_bytes, stops)
        seen = ""
        for byte in text.encode():
            seen += detokenizer.add(byte)
            if detokenizer.stopped:
                break
        assert seen + detokenizer.flush() == expected, (seed, text, stops)
