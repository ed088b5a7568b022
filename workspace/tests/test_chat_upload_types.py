"""Tests of MIME types; the platform's tests read the same table and cases."""

import json
import mimetypes
import random
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from molecule_workspace.ingest.app import sanitize_filename
from molecule_workspace.ingest.types import COMMON_MIME_TYPES, clean_mime_type

TABLE = json.loads(
    (Path(__file__).parent.parent / "testdata" / "mime_type_cases.json").read_text("ascii")
)


@dataclass(frozen=True)
class Case:
    """A Content-Type, a name, the expected type, and why."""

    why: str
    filename: str
    want: str
    content_type: str = ""
    content_type_hex: str = ""
    """Bytes that are not UTF-8, which JSON cannot represent."""


@pytest.mark.parametrize("case", [Case(**c) for c in TABLE["cases"]], ids=lambda case: case.why)
def test_type_is_what_the_table_says(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """One case of the shared table.

    Planted: the table of common types after the machine's; parameters kept; braces allowed;
    the extension by os.path.splitext; no check of the machine's types.
    """
    mimetypes.init()
    for extension, mime_type in TABLE["machine_types"].items():
        monkeypatch.setitem(mimetypes.types_map, extension, mime_type)
    raw = bytes.fromhex(case.content_type_hex) or case.content_type.encode()
    name = sanitize_filename(case.filename)
    assert clean_mime_type(raw.decode("latin-1"), name) == case.want


def test_common_types_are_the_platforms() -> None:
    """The platform's tests check its table against the same file. Planted: an entry changed."""
    assert dict(COMMON_MIME_TYPES) == TABLE["common_types"]


def test_result_is_safe_in_a_header_whatever_is_sent() -> None:
    """Any type and any name give two lower-case tokens."""
    rng = random.Random(20260505)
    alphabet = 'ab/;.-+ \t\r\n\0"=,Zé\xff{}'
    for _ in range(5000):
        content_type = "".join(rng.choices(alphabet, k=rng.randrange(12)))
        name = sanitize_filename("".join(rng.choices("abpdf.Z9_/", k=rng.randrange(12))))
        result = clean_mime_type(content_type, name)
        token = "[!#$%&'*+.^_`|~0-9a-z-]{1,127}"
        assert re.fullmatch(f"{token}/{token}", result), (content_type, name)
