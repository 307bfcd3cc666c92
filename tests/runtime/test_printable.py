"""Texts of others on a terminal."""

from __future__ import annotations

import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mimiq_runtime.printable import LONGEST_SENTENCE, one_sentence, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b[2Jb", "a\\u001b[2Jb"),
        ("\x9b31m", "\\u009b31m"),
        ("a\rb\x08c\x7f", "a\\u000db\\u0008c\\u007f"),
        ("\u202eexe.png", "\\u202eexe.png"),
        ("\ud800", "\\ud800"),
        ("Zürich\t中文\n👍🏽", "Zürich\t中文\n👍🏽"),
    ],
)
def test_what_is_shown(text: str, shown: str) -> None:
    assert printable(text) == shown


@given(st.text(st.characters(exclude_categories=()), max_size=30))
def test_nothing_is_left_that_a_terminal_obeys(text: str) -> None:
    """By the categories of Unicode, and by whether it can be encoded."""
    shown = printable(text)
    shown.encode("utf-8")
    left = [c for c in shown if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")]
    assert set(left) <= {"\t", "\n"}
    assert not any(unicodedata.bidirectional(c) in ("RLO", "LRO", "RLE", "LRE") for c in shown)


@given(st.text(st.characters(exclude_categories=()), max_size=30))
def test_a_json_document_stays_one(text: str) -> None:
    document = json.dumps([text], ensure_ascii=False)
    assert json.loads(printable(document)) == [text]


def test_a_sentence_is_one_line_of_bounded_length() -> None:
    sentence = one_sentence("Expected \x1b\n  x" + "y" * 10**6 + "; do z.")
    assert len(sentence) <= LONGEST_SENTENCE + 10
    assert sentence.startswith("Expected \\u001b xyyy")
    assert sentence.endswith("yyy; do z.")
