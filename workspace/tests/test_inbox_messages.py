"""Messages: which rows are messages, which files they refer to, and how URIs are replaced."""

import copy
import json
from typing import Any

import pytest

from molecule_workspace.inbox.messages import Row, mentions, rewrite

WORKSPACE = "0a0a0a0a-0b0b-4c0c-8d0d-0e0e0e0e0e0e"
OTHER = "ffffffff-0b0b-4c0c-8d0d-0e0e0e0e0e0e"
FILE = "11111111-2222-4333-8444-555555555555"
SECOND = "22222222-2222-4333-8444-555555555555"
URI = f"platform-pending:{WORKSPACE}/{FILE}"
LOCAL = "workspace:/files/abc-notes.txt"

PART = {"kind": "file", "file": {"uri": URI, "name": "notes.txt"}}
LEGACY = {"type": "file", "uri": URI}
NEWER = {"url": URI, "filename": "notes.txt"}
NESTED = {"kind": "data", "data": {"deep": [{"list": [{"uri": URI}]}]}}


def local(file_id: str) -> str | None:
    """Know one file."""
    return LOCAL if file_id == FILE else None


@pytest.mark.parametrize("part", [PART, LEGACY, NEWER, NESTED])
@pytest.mark.parametrize(
    "envelope",
    [
        lambda parts: {"parts": parts},
        lambda parts: {"params": {"parts": parts}},
        lambda parts: {"params": {"message": {"parts": parts}}},
    ],
    ids=["parts", "params.parts", "params.message.parts"],
)
def test_a_uri_is_replaced_wherever_parts_are(envelope: Any, part: dict[str, Any]) -> None:
    """Every form of a part, in every place for parts; nothing else changes.

    Planted: params.parts ignored; ``url`` ignored; only ``file`` objects visited.
    """
    body = envelope([{"kind": "text", "text": "see"}, copy.deepcopy(part)])
    expected = json.loads(json.dumps(body).replace(URI, LOCAL))
    assert list(mentions(body, WORKSPACE)) == [FILE]
    rewrite(body, WORKSPACE, local)
    assert body == expected


def test_several_files_are_replaced_each_by_its_own() -> None:
    """Two in one message, one of them twice, and one that did not arrive."""
    other = f"platform-pending:{WORKSPACE}/{SECOND}"
    body = {"parts": [{"uri": URI}, {"uri": other}], "params": {"parts": [{"url": URI}]}}
    assert sorted(mentions(body, WORKSPACE)) == [FILE, FILE, SECOND]
    rewrite(body, WORKSPACE, local)
    assert body == {
        "parts": [{"uri": LOCAL}, {"uri": other}],
        "params": {"parts": [{"url": LOCAL}]},
    }


def test_a_uri_in_capitals_is_the_same() -> None:
    """UUIDs are not case-sensitive."""
    uri = f"platform-pending:{WORKSPACE.upper()}/{FILE.upper()}"
    assert list(mentions({"parts": [{"uri": uri}]}, WORKSPACE.upper())) == [FILE]


UNTOUCHED: list[Any] = [
    {"parts": [{"kind": "text", "text": URI}]},
    {"parts": [{"kind": "text", "text": f"see {URI} please"}]},
    {"parts": [{"file": {"uri": f"platform-pending:{OTHER}/{FILE}"}}]},
    {"parts": [{"file": {"uri": f"platform-pending:{WORKSPACE}/"}}]},
    {"parts": [{"file": {"uri": f"platform-pending:{WORKSPACE}"}}]},
    {"parts": [{"file": {"uri": f"platform-pending:/{FILE}"}}]},
    {"parts": [{"file": {"uri": f"{URI}/more"}}]},
    {"parts": [{"file": {"uri": f" {URI}"}}]},
    {"parts": [{"file": {"uri": f"see {URI}"}}]},
    {"parts": [{"file": {"uri": f"platform-pending:{WORKSPACE}/../../etc/passwd"}}]},
    {"parts": [{"file": {"uri": f"workspace:/x/{FILE}"}}]},
    {"parts": [{"file": {"uri": "https://elsewhere.example/x"}}]},
    {"parts": [{"file": {"uri": ["platform-pending:"]}}, {"uri": 7}, {"uri": None}, 8, "x", None]},
    {"parts": URI},
    {"parts": {"0": URI}},
    {"metadata": {"uri": URI}},
    {"params": {"metadata": {"uri": URI}}},
    {"params": [{"uri": URI}]},
    {"params": {"message": URI}},
    [{"uri": URI}],
    URI,
    None,
    17,
    [],
    {},
]


@pytest.mark.parametrize("body", UNTOUCHED, ids=lambda body: json.dumps(body)[:60])
def test_everything_else_stays_as_it_is(body: Any) -> None:
    """Text, other workspaces' files, incomplete URIs, other schemes, and other bodies.

    Planted: the workspace not compared; ``in`` instead of startswith; metadata visited too.
    """
    before = copy.deepcopy(body)
    assert list(mentions(body, WORKSPACE)) == []
    rewrite(body, WORKSPACE, lambda file_id: LOCAL)
    assert body == before


def test_a_body_nested_deeper_than_python_calls_is_walked() -> None:
    """A sender may nest as deeply as the platform, or an older one, accepts.

    Planted: a recursive walk.
    """
    inner: Any = {"uri": URI}
    for _ in range(5000):
        inner = [inner]
    body = {"parts": [inner]}
    assert list(mentions(body, WORKSPACE)) == [FILE]
    rewrite(body, WORKSPACE, local)
    assert list(mentions(body, WORKSPACE)) == []


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (
            {"id": FILE.upper(), "method": "message/send", "source_id": OTHER, "created_at": "t"},
            Row(FILE, "message/send", OTHER, "t", None),
        ),
        ({"id": FILE}, Row(FILE, "", None, "", None)),
        (
            {"id": FILE, "method": 7, "source_id": "", "created_at": None, "request_body": "?"},
            Row(FILE, "", None, "", "?"),
        ),
        ({"id": "7"}, None),
        ({"id": 7}, None),
        ({"id": None}, None),
        ({}, None),
        (None, None),
        ([FILE], None),
        (FILE, None),
    ],
)
def test_a_row_needs_an_id_and_no_more(row: Any, expected: Row | None) -> None:
    """A row needs an id; every other field has an empty default."""
    assert Row.parse(row) == expected


@pytest.mark.parametrize(
    ("method", "source", "expected"),
    [
        ("message/send", None, True),
        ("message/send", OTHER, True),
        ("", None, True),
        ("notify", None, False),
        ("notify", OTHER, True),
        ("message/send", WORKSPACE, False),
        ("message/send", WORKSPACE.upper(), False),
        ("notify", WORKSPACE, False),
    ],
)
def test_messages_of_the_agent_itself_are_not_for_it(
    method: str, source: str | None, expected: bool
) -> None:
    """Its own rows and its agent's notify rows are skipped; those of another agent are not.

    Planted: source_id compared case-sensitively; notify rows of others skipped; own ones handled.
    """
    assert Row(FILE, method, source, "", None).is_for(WORKSPACE) is expected
