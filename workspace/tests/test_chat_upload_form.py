"""Tests of the form parser.

The parity test compares it with the platform's parser. Here are the shared table of
part headers, and what that test cannot show: that the result does not depend on chunks, and that
hostile bodies are cheap.
"""

import itertools
import json
import random
import time
import tracemalloc
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from molecule_workspace.ingest.form import (
    MAX_PART_HEADER,
    FormReader,
    PartEnd,
    PartHeader,
    UploadRefusedError,
    form_boundary,
    part_names,
)

TABLE = json.loads(
    (Path(__file__).parent.parent / "testdata" / "part_header_cases.json").read_text("ascii")
)
FILE = b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.txt"\r\n\r\ncontent\r\n'


@dataclass(frozen=True)
class Case:
    """A Content-Disposition and the expected result."""

    why: str
    header: str = ""
    header_hex: str = ""
    want: str = ""
    want_hex: str = ""
    field: str = ""

    @property
    def part(self) -> PartHeader:
        """A part's header with this Content-Disposition."""
        return disposition(bytes.fromhex(self.header_hex) or self.header.encode())


def disposition(value: bytes) -> PartHeader:
    """Return the header of a part with such a Content-Disposition."""
    return PartHeader({b"content-disposition": value})


def cases(section: str) -> list[Case]:
    """Return the cases of one section of the table."""
    return [Case(**case) for case in TABLE[section]]


@pytest.mark.parametrize("case", cases("files"), ids=lambda case: case.why)
def test_filename_is_what_the_client_sent(case: Case) -> None:
    r"""One case of the shared table.

    Planted: backslashes not escaped; a quote at the header's end taken as escaped; \" and \\ not
    unescaped; filename* ignored, or used although it cannot be decoded; ASCII white space only.
    """
    assert part_names(case.part) == (b"files", bytes.fromhex(case.want_hex) or case.want.encode())


@pytest.mark.parametrize("case", cases("fields"), ids=lambda case: case.why)
def test_field_without_filename_is_not_a_file(case: Case) -> None:
    """One case of the shared table."""
    assert part_names(case.part) == (case.field.encode(), None)


@pytest.mark.parametrize("case", cases("unreadable"), ids=lambda case: case.why)
def test_header_is_unreadable(case: Case) -> None:
    """One case of the shared table. Planted: the second of two parameters wins."""
    assert part_names(case.part) is None
    assert part_names(PartHeader({})) is None


def test_any_name_with_escapes_is_read_back() -> None:
    """A name in which a client escaped quotes and backslashes is read back unchanged."""
    rng = random.Random(20260505)
    alphabet = [
        b'"',
        b"\\",
        b"%",
        b"'",
        b"*",
        b";",
        b"=",
        b" ",
        b"a",
        b"\xff",
        "é".encode(),
        b"\x0b",
    ]
    for _ in range(3000):
        name = b"".join(rng.choices(alphabet, k=rng.randrange(12)))
        escaped = name.replace(b"\\", b"\\\\").replace(b'"', b'\\"')
        value = b'form-data; name="files"; filename="' + escaped + b'"'
        assert part_names(disposition(value)) == (b"files", name)


@pytest.mark.parametrize(
    "value",
    [
        b"form-data" + b" " * MAX_PART_HEADER + b"x",
        b"form-data;" + b" " * MAX_PART_HEADER + b"x",
        b"form-data; a=b" + b" " * MAX_PART_HEADER + b"x",
        b'form-data; name="' + b"\\" * MAX_PART_HEADER,
        b'form-data; name="' + b'\\"' * (MAX_PART_HEADER // 2) + b"x",
        b"form-data" + b';a="b"' * (MAX_PART_HEADER // 6) + b"x",
        b"form-data" + b" ;a=b" * (MAX_PART_HEADER // 5) + b";;",
        b"form-data; name*0=" + b"a; name*0=" * (MAX_PART_HEADER // 10),
    ],
    ids=lambda value: repr(value[:20]),
)
def test_hostile_header_is_read_in_no_time(value: bytes) -> None:
    """The longest header takes milliseconds. Planted: white space that backtracks."""
    start = time.process_time()
    assert part_names(disposition(value)) is None
    assert time.process_time() - start < 0.5


def read(chunks: Iterable[bytes], boundary: bytes = b"b") -> list[tuple[PartHeader, bytes]]:
    """Return the parts of a form."""
    reader = FormReader(boundary)
    parts: list[tuple[PartHeader, bytes]] = []
    header, content = PartHeader({}), bytearray()
    fed = itertools.chain.from_iterable(reader.feed(chunk) for chunk in chunks)
    for event in itertools.chain(fed, reader.end()):
        if isinstance(event, PartHeader):
            header, content = event, bytearray()
        elif isinstance(event, PartEnd):
            parts.append((header, bytes(content)))
        else:
            content += event
    return parts


def outcome(chunks: Iterable[bytes], boundary: bytes = b"b") -> object:
    """Return the parts of a form, or the error code."""
    try:
        return read(chunks, boundary)
    except UploadRefusedError as refused:
        return refused.body["code"]


def odd_body(rng: random.Random) -> bytes:
    """Return a random body of pieces that are significant to a form parser."""
    pieces = [
        b"--b\r\n", b"--b--", b"--b", b"\r\n", b"\n", b"\r", b"-", b"--", b"b", b" ", b"\t",
        FILE, b"Content-Disposition: form-data; name=files\r\n\r\n", b"A: b\r\n", b" c\r\n", b"x",
        b"\r\n--b\r\n", b"\r\n--b--\r\n", b"\r\n--bx", b"--b \r\n",
    ]  # fmt: skip
    return rng.choice([b"", FILE]) + b"".join(rng.choices(pieces, k=rng.randrange(12)))


def test_chunks_do_not_matter() -> None:
    """A body gives the same result in one piece, byte by byte, and split in two anywhere.

    Planted: the tail that may begin a boundary not kept; the lookahead one byte short.
    """
    rng = random.Random(20260505)
    accepted = 0
    for _ in range(1500):
        body = odd_body(rng)
        whole = outcome([body])
        accepted += isinstance(whole, list)
        assert outcome(body[i : i + 1] for i in range(len(body))) == whole, body
        cut = rng.randrange(len(body) + 1)
        assert outcome([body[:cut], body[cut:]]) == whole, (body, cut)
    assert accepted > 100


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, (1 << 16) + 1, (1 << 20) + 7])
@pytest.mark.parametrize("chunk", [1021, 1 << 16])
def test_every_byte_is_kept(size: int, chunk: int) -> None:
    """Content that resembles boundaries is read unchanged."""
    pattern = b"\r\n--b-x\x00--bb\r\r\n--b-\r\n--"
    content = (pattern * (size // len(pattern) + 1))[:size].replace(b"\r\n--b--", b"\r\n--b-_")
    body = FILE.replace(b"content", content) + FILE + b"--b--"
    parts = read(body[i : i + chunk] for i in range(0, len(body), chunk))
    assert [part[1] for part in parts] == [content, b"content"]


def test_header_bound_is_exact_and_each_parts_own() -> None:
    """A header of 32 KiB, boundary line included, is accepted; one byte more is not.

    Planted: the limit not reset after a part; the boundary line not counted.
    """

    def part(size: int) -> bytes:
        bare = b"--b\r\nX: \r\nContent-Disposition: form-data; name=files\r\n\r\n"
        return bare.replace(b"X: ", b"X: " + b"p" * (size - len(bare)))

    content = b"c" * 100_000 + b"\r\n"
    full = part(MAX_PART_HEADER)
    later = part(MAX_PART_HEADER - len(b"\r\n"))  # with the line break before its boundary
    assert len(full) == MAX_PART_HEADER
    assert len(read([full + content + later + content + b"--b--"])) == 2
    for body in (part(MAX_PART_HEADER + 1), full + content + full):
        assert outcome([body + content + b"--b--"]) == "part_header_too_large"


def endless(text: bytes, size: int = 1 << 16) -> Iterator[bytes]:
    """Yield a text again and again."""
    while True:
        yield text * (size // len(text))


HOSTILE: dict[str, tuple[bytes, bytes, str]] = {
    "a header line without end": (b"--b\r\nContent-Disposition: ", b"x", "part_header_too_large"),
    "endless headers": (b"--b\r\n", b"X-A: b\r\n", "part_header_too_large"),
    "an endless continued header": (b"--b\r\nA: b\r\n", b" c\r\n", "part_header_too_large"),
    "endless quotes": (b'--b\r\nContent-Disposition: "', b'\\"', "part_header_too_large"),
    "an endless preamble": (b"", b"preamble\r\n", "part_header_too_large"),
    "an endless line": (b"", b"x", "broken_body"),
    "an endlessly padded boundary": (b"--b", b" ", "broken_body"),
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("size", [64, 1 << 18])
def test_hostile_body_is_refused_cheaply(name: str, size: int) -> None:
    """Endless headers and lines are refused. Planted: no limit for a header; none for a line."""
    start, repeated, code = HOSTILE[name]
    tracemalloc.start()
    try:
        assert outcome(itertools.chain([start], endless(repeated, size))) == code
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * size + (1 << 20)


@pytest.mark.parametrize(
    "content", [b"\x00", b"\r\n--c", b"\r\n-", b"\r\n--bX", b"\r", b"\r\n--b-"]
)
def test_endless_content_is_not_buffered(content: bytes) -> None:
    """Content that resembles a boundary is not buffered: each chunk yields one."""
    reader = FormReader(b"b")
    list(reader.feed(FILE[: FILE.index(b"content")]))
    chunks = endless(content)
    tracemalloc.start()
    try:
        passed = sum(
            len(event)
            for chunk in itertools.islice(chunks, 300)
            for event in reader.feed(chunk)
            if isinstance(event, memoryview)
        )
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert passed > 299 * 65000
    assert peak < 1 << 20


def test_an_epilogue_is_not_buffered() -> None:
    """An epilogue is ignored. Planted: it is buffered with the rest of the last chunk."""
    reader = FormReader(b"b")
    list(reader.feed(FILE + b"--b--\r\n"))
    assert reader.finished
    tracemalloc.start()
    try:
        for chunk in itertools.islice(endless(b"epilogue"), 100):
            assert not list(reader.feed(chunk))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20


@pytest.mark.parametrize(
    ("content_type", "boundary"),
    [
        (b"multipart/form-data; boundary=b", b"b"),
        (b'Multipart/Form-Data; charset=utf-8; BOUNDARY="a b:c"', b"a b:c"),
        (b"multipart/form-data;boundary*=utf-8''b", b"b"),
        (b"multipart/form-data; boundary=" + b"b" * 5000, b"b" * 5000),
        (b"multipart/mixed; boundary=b", None),
        (b"multipart/form-data", None),
        (b'multipart/form-data; boundary=""', None),
        (b"multipart/form-data; boundary", None),
        (b"multipart/form-data; boundary=b; boundary=c", None),
        (b"", None),
    ],
)
def test_boundary_comes_from_the_content_type(content_type: bytes, boundary: bytes | None) -> None:
    """Any Content-Type other than a form with a boundary is refused."""
    if boundary is not None:
        assert form_boundary(content_type) == boundary
        return
    with pytest.raises(UploadRefusedError) as refused:
        form_boundary(content_type)
    assert refused.value.body["code"] == "not_multipart"
