"""One odd value in the inbox costs that value, not the inbox."""

import json
from typing import Any

import pytest

from molecule_workspace.inbox.tolerant import Unreadable, load_rows, loads

DEEP_ARRAY = b"[" * 9_000 + b"]" * 9_000
DEEP = b'{"a":' * 3000 + b"1" + b"}" * 3000


@pytest.mark.parametrize(
    ("raw", "value"),
    [
        (b"[1, 2.5, -3e2, true, null]", [1, 2.5, -300.0, True, None]),
        (b"9" * 400, int("9" * 400)),
        (b"9" * 5000, "9" * 5000),
        (b"1e400", "1e400"),
        (b"-1e400", "-1e400"),
        (b"[NaN, Infinity]", ["NaN", "Infinity"]),
        (b'"\\ud83d\\ude80"', "🚀"),
        (b'{"\\ud800":["\\udfff", {"a":"x\\ud800"}]}', {"\ufffd": ["\ufffd", {"a": "x\ufffd"}]}),
    ],
)
def test_loads_keeps_what_does_not_fit_as_text(raw: bytes, value: Any) -> None:
    """Planted: json.loads; floats left as infinity; surrogates left in."""
    got = loads(raw)
    assert got == value
    json.dumps(got, allow_nan=False, ensure_ascii=False).encode()


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (DEEP, "it is nested too deeply"),
        (b'"\xff"', "it is not UTF-8"),
        (b"{1}", "it is not JSON"),
    ],
)
def test_load_rows_loses_only_the_field_that_cannot_be_read(body: bytes, reason: str) -> None:
    """Planted: the whole page refused; the whole row lost; brackets in strings counted."""
    good = b'{"id":"a","request_body":{"text":"[{,\\"]"}}'
    raw = b"[" + good + b' , {"id":"b","request_body":' + body + b',"seq":7}, ' + good + b"]\n"
    rows = load_rows(raw)
    assert rows[0] == rows[2] == {"id": "a", "request_body": {"text": '[{,"]'}}
    assert rows[1] == {"id": "b", "request_body": Unreadable(reason), "seq": 7}


@pytest.mark.parametrize("raw", [b"", b"<html>", b'{"error":', b'[{"id":1}', DEEP_ARRAY])
def test_load_rows_refuses_what_is_no_page(raw: bytes) -> None:
    """A proxy's page is not an inbox."""
    with pytest.raises((ValueError, RecursionError)):
        load_rows(raw)
