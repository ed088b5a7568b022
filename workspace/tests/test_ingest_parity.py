"""The same bytes to the platform and to the ingest: the same status and the same JSON.

The platform stages for a poll workspace; the ingest is served by a real uvicorn. What the HTTP
servers reject before the upload is seen is not compared: malformed HTTP, such as a bad chunk or an
invalid header.
"""

import json
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx
import pytest

from local_platform import LocalPlatform
from molecule_workspace.ingest.app import INGEST_PATH, IngestLimits, ingest_app
from test_ingest import MIB, SECRET, Served, file, form, left

FORM_TYPE: Final = b"multipart/form-data; boundary=b"
MAX_FILES: Final = 5


@dataclass
class Twins:
    """A workspace at the platform, and an ingest with the same limits."""

    platform: httpx.Client
    path: str
    ingest: httpx.Client
    folder: Path

    def post(self, body: bytes, content_type: bytes = FORM_TYPE, chunk: int = 0) -> httpx.Response:
        """Post a body to both, in chunks if ``chunk`` is not 0; return their common answer.

        Fields that only one side can have are left out: uri, digest, expiry.
        """
        for name in left(self.folder):
            os.unlink(self.folder / name)
        answers = []
        for client, path in ((self.platform, self.path), (self.ingest, INGEST_PATH)):
            pieces = (body[i : i + chunk] for i in range(0, len(body), chunk or 1))
            answers.append(
                client.post(
                    path,
                    content=pieces if chunk else body,
                    headers=[(b"Content-Type", content_type)],
                )
            )
        theirs, ours = answers
        label = f"{body[:2000]!r}, {content_type!r}, chunks of {chunk}"
        if theirs.status_code == 200:
            assert ours.status_code == 200, f"{label}: {ours.text}, the platform {theirs.text}"
            assert [seen(f) for f in ours.json()["files"]] == [
                seen(f) for f in theirs.json()["files"]
            ], label
        else:
            reported = (theirs.status_code, theirs.content)
            assert (ours.status_code, ours.content) == reported, label
        assert ours.headers["Content-Type"] == theirs.headers["Content-Type"]
        stored = len(ours.json().get("files", []))
        assert len(left(self.folder)) == stored, label
        return ours


def seen(described: dict[str, object]) -> tuple[object, ...]:
    """Return the fields of a file that both sides have."""
    return described["name"], described["mimeType"], described["size"]


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Twins]:
    """Both, with small limits."""
    settings = {"MAX_FILE_BYTES": "1MiB", "MAX_REQUEST_BYTES": "2MiB", "MAX_FILES": str(MAX_FILES)}
    folder = tmp_path_factory.mktemp("ingest")
    limits = IngestLimits(MIB, 2 * MIB, MAX_FILES)
    with (
        LocalPlatform(tmp_path_factory.mktemp("platform"), settings) as platform,
        Served(ingest_app(folder, lambda: SECRET, limits=limits)) as served,
    ):
        workspace = platform.operator.create("twin")
        path = f"/workspaces/{workspace.id}/chat/uploads"
        yield Twins(platform.operator.http, path, served.http, folder)


def part(header: bytes, content: bytes = b"a") -> bytes:
    """Return a part with that header."""
    return b"--b\r\n" + header + b"\r\n\r\n" + content + b"\r\n"


def field(name: bytes, content: bytes = b"") -> bytes:
    """Return a part that is not a file."""
    return part(b'Content-Disposition: form-data; name="' + name + b'"', content)


GOOD: Final = file("good.txt", b"stays out too")
FILES: Final = b"Content-Disposition: form-data; name=files"

REFUSED: Final[dict[str, tuple[bytes, str]]] = {
    "empty": (b"", "broken_body"),
    "not what it says": (b"just text", "broken_body"),
    "another boundary": (form(GOOD).replace(b"--b", b"--other"), "broken_body"),
    "no parts": (form(), "no_files"),
    "no part named files": (form(field(b"message", b"hello"), field(b"file")), "no_files"),
    "part without a disposition": (form(GOOD, part(b"Content-Type: a/b")), "broken_multipart"),
    "part without a header": (form(GOOD, b"--b\r\n\r\na\r\n"), "broken_multipart"),
    "part with an empty line for a header": (form(GOOD, part(b"")), "broken_multipart"),
    "part that is no form-data": (
        form(GOOD, part(b"Content-Disposition: attachment; name=files")),
        "broken_multipart",
    ),
    "part header that is none": (form(GOOD, part(b"no colon here")), "broken_body"),
    "header without a name": (form(GOOD, part(b": x\r\n" + FILES)), "broken_body"),
    "header name with a tab": (form(GOOD, part(b"A\t: x\r\n" + FILES)), "broken_body"),
    "header name beyond ASCII": (form(GOOD, part(b"\xc3\xa9: x\r\n" + FILES)), "broken_body"),
    "header with NUL": (form(GOOD, part(b"A: \0\r\n" + FILES)), "broken_body"),
    "header with CR": (form(GOOD, part(b"A: b\rc\r\n" + FILES)), "broken_body"),
    "header with DEL": (form(GOOD, part(b"A: \x7f\r\n" + FILES)), "broken_body"),
    "header that begins with a blank": (form(GOOD, part(b" " + FILES)), "broken_body"),
    "duplicate name": (form(part(FILES + b"; name=other")), "broken_multipart"),
    "too many files": (form(*[GOOD] * (MAX_FILES + 1)), "too_many_files"),
    "too many other parts": (form(*[field(b"other")] * 65, GOOD), "too_many_parts"),
    "part header too long": (form(GOOD, file("n" * (64 << 10), b"a")), "part_header_too_large"),
    "10,000 headers": (form(part(b"X-A: b\r\n" * 10_000 + FILES)), "part_header_too_large"),
    "5,000 headers": (b"--b\r\n" + b"a:\r\n" * 5000 + b"\r\n\r\n--b--", "broken_multipart"),
    "header continued too long": (form(part(b"A: b\r\n" + b" c\r\n" * 20_000)), "part_header_"),
    "long preamble": (b"preamble\r\n" * 5000 + form(GOOD), "part_header_too_large"),
    "one long line": (b"x" * 50_000 + b"\r\n" + form(GOOD), "broken_body"),
    "line of 4097 bytes": (b"x" * 4095 + b"\r\n" + form(GOOD), "broken_body"),
    "boundary padded too long": (b"--b" + b" " * 5000 + form(GOOD)[3:], "broken_body"),
    "file over the cap": (
        form(GOOD, file("a/too long.bin", b"x" * (MIB + 1)), GOOD),
        "file_too_large",
    ),
    "file over the cap at the end": (form(file("t.bin", b"x" * (MIB + 1))), "file_too_large"),
    "file without end": (GOOD + file("a", b"\r\n--c" * (MIB // 4))[:-2], "file_too_large"),
    "files over the cap together": (
        form(file("a", b"x" * MIB), file("b", b"x" * MIB), file("c", b"1")),
        "request_too_large",
    ),
    "fields over the cap": (form(GOOD, field(b"other", b"x" * (3 * MIB))), "request_too_large"),
    "text after the part's boundary": (GOOD + b"--b x\r\n" + form(GOOD), "broken_body"),
    "no boundary at the end": (GOOD, "broken_body"),
    "half a boundary at the end": (GOOD + b"--b-", "broken_body"),
    "text after the last boundary": (GOOD + b"--b--x\r\n", "broken_body"),
    "last boundary in other line ends": (GOOD + b"--b--\n", "broken_body"),
    "mixed line ends": (form(GOOD).replace(b"\r\n--b--", b"\n--b--"), "broken_body"),
}

ACCEPTED: Final[dict[str, bytes]] = {
    "one": form(GOOD),
    "empty file": form(file("empty", b"")),
    "empty file without a line": part(FILES)[:-3] + b"--b--",
    "as many as may be": form(*[GOOD] * MAX_FILES, *[field(b"other", b"x")] * 64),
    "exactly the caps": form(file("a", b"x" * MIB), file("b", b"x" * MIB), file("c", b"")),
    "no line break at the end": form(GOOD)[:-2],
    "line feeds only": form(GOOD).replace(b"\r\n", b"\n"),
    "preamble": b"preamble\r\n--c\r\n\r\n" + form(GOOD),
    "line of 4096 bytes": b"x" * 4094 + b"\r\n" + form(GOOD),
    "epilogue": form(GOOD) + b"epilogue\r\n--b\r\nmore",
    "padded boundaries": b"--b \t\r\n" + form(GOOD)[5:-2] + b" \t \r\n",
    "content that looks like a boundary": form(file("a", b"--bx\r\n--b-\r\n--bb--\r\n-\r\r\n--")),
    "content that begins like one": form(part(FILES, b"--b-x")),
    "headers in any order and case": form(
        part(b"content-TYPE: text/plain; charset=x\r\nX: y\r\ncontent-disposition:" + FILES[20:])
    ),
    "continued header": form(part(FILES + b';\r\n  filename="a.txt"\r\nX: y\r\n \r\n\t z')),
    "blank after the header's name": form(part(b"X : y\r\n" + FILES)),
    "blank after the disposition's name": form(part(FILES + b"\r\nContent-Type : a/b")),
    "first of two dispositions": form(part(FILES + b"\r\nContent-Disposition: form-data; name=x")),
    "header of 20 KiB": form(part(b"X-Padding: " + b"p" * (20 << 10) + b"\r\n" + FILES)),
    "encoded content stays": form(
        part(FILES + b"\r\nContent-Transfer-Encoding: quoted-printable", b"=41")
    ),
    "header beyond ASCII": form(part(b"X: \xff\xc3\xa9\r\n" + FILES)),
    "tab after the colon": form(part(FILES + b"; filename=a.png\r\nContent-Type:\t text/x-a \t")),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_alike(twins: Twins, name: str) -> None:
    """Byte for byte.

    Planted, each caught by a case of its name: limits and counts off by one, the line limit, a
    space allowed at the start of a header, any character allowed in headers, mixed line ends.
    """
    body, code = REFUSED[name]
    for chunk in (0, 65_537):
        answer = twins.post(body, chunk=chunk)
        assert answer.json()["code"].startswith(code)


@pytest.mark.parametrize("name", ACCEPTED)
def test_accepted_alike(twins: Twins, name: str) -> None:
    """With the same names, sizes and types. Planted: the last of two headers is used."""
    for chunk in (0, 7 if len(ACCEPTED[name]) < 10_000 else 65_537):
        assert twins.post(ACCEPTED[name], chunk=chunk).status_code == 200


@pytest.mark.parametrize(
    "content_type",
    [
        b"",
        b"application/json",
        b"multipart/mixed; boundary=b",
        b"multipart/form-data",
        b'multipart/form-data; boundary=""',
        b"multipart/form-data; boundary",
        b"multipart/form-data; boundary=b; boundary=c",
        b"multipart/form-data; boundary=b; charset",
        b"form-data; boundary=b",
        b"Multipart/Form-Data ; a=b ; BOUNDARY = b ;",
        b'multipart/form-data; boundary="\\b"',
        b"multipart/form-data; boundary=b; boundary=b",
        b"multipart/form-data; boundary*=utf-8''%62",
        b"multipart/form-data; boundary*0=b",
        b"multipart/form-data; boundary=b\xff",
        b"multipart/form-data;\xc2\xa0boundary=b",
    ],
)
def test_content_type_is_read_alike(twins: Twins, content_type: bytes) -> None:
    """Whether it is a form, and its boundary."""
    twins.post(form(GOOD), content_type)


def test_odd_boundaries_are_read_alike(twins: Twins) -> None:
    """With spaces, with regular expression characters, hyphens only, very long."""
    for boundary in [b"a b", b".*", b"-", b"--", b"----", b"(", b"[^b]", b"b" * 200, b"b" * 3000]:
        body = form(GOOD, field(b"x", b".*")).replace(b"--b", b"--" + boundary)
        answer = twins.post(body, b'multipart/form-data; boundary="' + boundary + b'"')
        assert answer.status_code == 200


def test_names_and_types_are_read_alike(twins: Twins) -> None:
    """All shared tables, as real parts, and each type that both know.

    Types that only the machine's tables have are left out: Go and Python read different ones.
    """
    folder = Path(__file__).parent.parent / "testdata"
    headers = json.loads((folder / "part_header_cases.json").read_text("ascii"))
    for case in headers["files"] + headers["fields"] + headers["unreadable"]:
        value = bytes.fromhex(case.get("header_hex", "")) or case["header"].encode()
        twins.post(form(part(b"Content-Disposition: " + value), GOOD))
    types = json.loads((folder / "mime_type_cases.json").read_text("ascii"))
    machine_types = types["machine_types"]
    for case in types["cases"]:
        if any(extension in case["filename"] for extension in machine_types):
            continue  # depends on the machine's tables
        value = bytes.fromhex(case.get("content_type_hex", "")) or case["content_type"].encode()
        disposition = FILES + b'; filename="' + case["filename"].encode() + b'"'
        twins.post(form(part(disposition + b"\r\nContent-Type: " + value)))
    for case in json.loads((folder / "sanitize_filename_cases.json").read_text("ascii"))["cases"]:
        disposition = FILES + b'; filename="' + case["name"].encode() + b'"'
        twins.post(form(part(disposition + b"\r\nContent-Type: a/b")))


@pytest.mark.parametrize("newline", [b"\r\n", b"\n"])
def test_body_cut_anywhere_is_answered_alike(twins: Twins, newline: bytes) -> None:
    """At every byte, with a matching length. Planted: the missing line break not accepted."""
    typed = file("b.txt", b"second").replace(b"\r\n\r\n", b"\r\nContent-Type: text/plain\r\n\r\n")
    whole = form(file("a.txt", b"first"), field(b"x", b"y"), typed).replace(b"\r\n", newline)
    accepted = [n for n in range(len(whole) + 1) if twins.post(whole[:n]).status_code == 200]
    end = whole.rindex(b"--") + len(b"--")
    assert accepted == ([end, end + 2] if newline == b"\r\n" else [end + 1])


def test_random_bodies_are_answered_alike(twins: Twins) -> None:
    """Random combinations of significant pieces; the seed is in the output."""
    seed = int(os.environ.get("PARITY_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 32)
    print(f"PARITY_SEED={seed}")
    rng = random.Random(seed)
    pieces = [
        b"--b\r\n", b"--b\n", b"--b--", b"--b--\r\n", b"--b \r\n", b"--bx", b"--", b"b", b"-",
        b"\r\n", b"\n", b"\r", b" ", b"\t", b"x", b"\r\n--b\r\n", b"\r\n--b--\r\n", b"\n--b\n",
        GOOD, GOOD, field(b"f"), FILES + b"\r\n\r\n", FILES + b'; filename="', b'"', b"\\", b";",
        b"=", b"filename*=utf-8''%41", b"; filename*0=a", b"A: b\r\n", b" c\r\n", b":", b"\0",
        b"Content-Type: text/html\r\n", b"\xff", "é".encode(), b"name=files", b"form-data",
    ]  # fmt: skip
    counts: dict[object, int] = {}
    for _ in range(600):
        start = rng.choice([b"", b"", GOOD, b"--b\r\n", b"--b\r\n" + FILES, b"--b\n" + FILES])
        end = rng.choice([b"", b"--b--", b"\r\n--b--\r\n", b"\n--b--\n"])
        body = start + b"".join(rng.choices(pieces, k=rng.randrange(8))) + end
        answer = twins.post(body, chunk=rng.choice([0, 1, 5]))
        code = answer.json().get("code")
        counts[code] = counts.get(code, 0) + 1
    print(counts)
    assert all(counts[code] > 10 for code in (None, "broken_body", "broken_multipart")), counts
