r"""Texts of others on a terminal: names of classes, of files, and what libraries say.

A terminal obeys control characters, and half a character (a lone surrogate, which JSON can write
and a file name can hold) cannot be encoded at all. Both are shown as what they are.
"""

from __future__ import annotations

import re

__all__ = ["one_sentence", "printable"]

LONGEST_SENTENCE, _END = 1500, 300

# C0 but for tab and line feed, DEL, C1, line and paragraph separators, what turns the direction of
# writing, and lone surrogates.
_NOT_SHOWN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


def printable(text: str) -> str:
    r"""A text with what a terminal would obey, or could not show, written as an escape.

    The escapes are those of JSON, so that it may be a JSON document.

    >>> printable("a\x1b[2J")
    'a\\u001b[2J'
    """
    return _NOT_SHOWN.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def one_sentence(message: str) -> str:
    """A message in one line, printable, and not too long; what it begins and ends with is kept."""
    line = printable(" ".join(part.strip() for part in message.splitlines()))
    if len(line) <= LONGEST_SENTENCE:
        return line
    return f"{line[: LONGEST_SENTENCE - _END]} [...] {line[-_END:]}"
