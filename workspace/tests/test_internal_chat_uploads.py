"""Tests of sanitize_filename; the platform's tests read the same cases."""

import json
import random
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from molecule_workspace.ingest.app import sanitize_filename

CASES = Path(__file__).parent.parent / "testdata" / "sanitize_filename_cases.json"


@dataclass(frozen=True)
class Case:
    """A name, its sanitized form, and why."""

    name: str
    want: str
    why: str


def load_cases() -> list[Case]:
    """Read the table that the tests of both languages use."""
    return [Case(**case) for case in json.loads(CASES.read_text(encoding="ascii"))["cases"]]


@pytest.mark.parametrize("case", load_cases(), ids=lambda case: case.why)
def test_name_becomes_what_the_table_says(case: Case) -> None:
    """One case of the shared table."""
    assert sanitize_filename(case.name) == case.want


def test_bytes_that_are_not_utf8_are_one_underscore_each() -> None:
    """JSON cannot represent such names, so they are not in the table."""
    name = b"a\xff\xe2\x82\xed\xa0\x80.txt".decode("utf-8", "surrogateescape")
    assert sanitize_filename(name) == "a______.txt"


def test_result_is_acceptable_and_stable_for_any_name() -> None:
    """For any name, the result is valid and sanitizing is idempotent."""
    rng = random.Random(20260505)
    alphabet = "ab./\\ _-\0\n\"'%é\u0301\U0001f600\udcff"
    for _ in range(2000):
        name = "".join(rng.choices(alphabet, k=rng.randrange(130)))
        result = sanitize_filename(name)
        assert re.fullmatch(r"[A-Za-z0-9._-]{1,100}", result), ascii(name)
        assert result not in (".", ".."), ascii(name)
        assert sanitize_filename(result) == result, ascii(name)
