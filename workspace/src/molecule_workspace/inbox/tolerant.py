"""Reads the platform's JSON so that one odd value does not stop an inbox.

``loads`` keeps numbers that Python cannot represent as text: an integer of more digits than Python
converts, a float beyond the range of a double. ``load_rows`` reads an array of rows and, where that
fails, reads it again row by row and field by field, so that only the field that cannot be read is
lost. It becomes an ``Unreadable``.
"""

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

MAX_DIGITS: Final = 400
"""Longer integers stay text. Python converts up to 4,300 digits, other readers fewer."""


@dataclass(frozen=True)
class Unreadable:
    """Stands for a value that could not be read. ``reason`` is a clause for a person."""

    reason: str


_TOKEN: Final = re.compile(rb'"(?:[^"\\]|\\.)*+"|[\[\]{},:]', re.DOTALL)
_SURROGATE: Final = re.compile(r"[\ud800-\udfff]")


def _integer(digits: str) -> int | str:
    return int(digits) if len(digits) <= MAX_DIGITS else digits


def _float(digits: str) -> float | str:
    value = float(digits)
    return value if math.isfinite(value) else digits


def _constant(name: str) -> str:
    return name  # NaN and Infinity are not JSON, but some encoders write them


_DECODER: Final = json.JSONDecoder(parse_int=_integer, parse_float=_float, parse_constant=_constant)


def loads(raw: bytes) -> Any:
    """Parse JSON. ValueError or RecursionError if it cannot be read."""
    value = _DECODER.decode(raw.decode("utf-8"))
    return _without_surrogates(value) if b"\\u" in raw else value


def load_rows(raw: bytes) -> Any:
    """Parse an array of rows; what cannot be read becomes an ``Unreadable``.

    ValueError or RecursionError if ``raw`` is not an array of objects.
    """
    try:
        return loads(raw)
    except (ValueError, RecursionError):
        if raw.strip()[:1] != b"[":
            raise
    return [_row(raw[begin:end]) for begin, end in _elements(raw)]


def _row(raw: bytes) -> Any:
    try:
        return loads(raw)
    except (ValueError, RecursionError):
        if raw.strip()[:1] != b"{":
            raise
    row: dict[str, Any] = {}
    for begin, end in _elements(raw):
        key, _, rest = raw[begin:end].partition(b":")  # the platform's keys have no colon
        try:
            name = str(loads(key))
        except (ValueError, RecursionError):
            continue
        try:
            row[name] = loads(rest)
        except (ValueError, RecursionError) as error:
            row[name] = Unreadable(_why(error))
    return row


def _elements(raw: bytes) -> Iterator[tuple[int, int]]:
    """Yield where the elements of the outermost array or object begin and end."""
    depth, begin = 0, 0
    for token in _TOKEN.finditer(raw):
        match token[0]:
            case b"[" | b"{":
                depth += 1
                if depth == 1:
                    begin = token.end()
            case b"]" | b"}":
                depth -= 1
                if depth == 0:
                    if raw[begin : token.start()].strip():
                        yield begin, token.start()
                    return
            case b"," if depth == 1:
                yield begin, token.start()
                begin = token.end()
    raise ValueError("the outermost bracket is not closed")


def _why(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        return "it is not UTF-8"
    return "it is not JSON"


def _without_surrogates(value: Any) -> Any:
    """Replace halves of surrogate pairs, which no text encoding can represent, with U+FFFD."""
    if isinstance(value, str):
        return _SURROGATE.sub("\ufffd", value)
    todo = [value]
    while todo:
        item = todo.pop()
        if isinstance(item, list):
            for i, element in enumerate(item):
                if isinstance(element, str):
                    item[i] = _SURROGATE.sub("\ufffd", element)
                else:
                    todo.append(element)
        elif isinstance(item, dict):
            for key in list(item):
                element = item.pop(key)
                if isinstance(element, str):
                    element = _SURROGATE.sub("\ufffd", element)
                else:
                    todo.append(element)
                item[_SURROGATE.sub("\ufffd", key)] = element
    return value
