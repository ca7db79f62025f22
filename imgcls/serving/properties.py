"""Java's properties syntax, to the letter: what TorchServe makes of a config.properties.

Unlike a look at the file suggests, a blank after a value belongs to it, and the last of two lines with one key wins.
"""

import re
from dataclasses import dataclass

_NEWLINE = re.compile(r"\r\n|\r|\n")
_BLANKS = " \t\f"
_ESCAPES = {"t": "\t", "n": "\n", "r": "\r", "f": "\f"}
_UNICODE = re.compile(r"[0-9a-fA-F]{4}")


@dataclass(frozen=True)
class Entry:
    """One key with its value; `separator` is `=` or `:`, or empty where neither stands between them."""

    line: int
    key: str
    value: str
    separator: str
    text: str  # as it stands in the file, continuation lines joined
    is_one_line: bool


def parse_properties(text: str) -> list[Entry]:
    """Returns the entries in their order, those of a key that comes twice too.

    Source: java.util.Properties.load
    """
    entries = []
    lines = _NEWLINE.split(text)
    index = 0
    while index < len(lines):
        first, logical = index, lines[index].lstrip(_BLANKS)
        index += 1
        if not logical or logical[0] in "#!":
            continue
        while _is_continued(logical):
            logical = logical[:-1] + (lines[index].lstrip(_BLANKS) if index < len(lines) else "")
            index += 1
        entries.append(_parse_entry(logical, line=first + 1, is_one_line=index == first + 1))
    return entries


def _is_continued(line: str) -> bool:
    return (len(line) - len(line.rstrip("\\"))) % 2 == 1


def _parse_entry(text: str, *, line: int, is_one_line: bool) -> Entry:
    end = 0
    while end < len(text) and text[end] not in "=:" + _BLANKS:
        end += 2 if text[end] == "\\" else 1
    rest = text[end:].lstrip(_BLANKS)
    separator = rest[:1] if rest[:1] in ("=", ":") else ""
    value = rest[len(separator) :].lstrip(_BLANKS)
    return Entry(line, _unescape(text[:end]), _unescape(value), separator, text, is_one_line)


def _unescape(text: str) -> str:
    parts, index = [], 0
    while index < len(text):
        if text[index] != "\\" or index + 1 == len(text):
            parts.append(text[index])
            index += 1
        elif text[index + 1] == "u" and (digits := _UNICODE.match(text, index + 2)):
            parts.append(chr(int(digits[0], 16)))
            index += 6
        else:
            parts.append(_ESCAPES.get(text[index + 1], text[index + 1]))
            index += 2
    return "".join(parts)
