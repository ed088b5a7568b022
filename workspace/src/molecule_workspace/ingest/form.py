"""An incremental parser for multipart/form-data.

It interprets a body exactly as the platform does when it stages an upload (Go's mime/multipart and
mime.ParseMediaType, with the platform's limit on part headers and its rule for backslashes), so
that a body means the same whether it was pushed or polled. No existing parser for Python reads
names and unusual line ends that way, or limits the size of a whole part header.

It buffers at most one chunk and one part header, does no I/O, and gives the same result however
the body is split into chunks.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

MAX_PART_HEADER: Final = 32 << 10
"""Maximum size of a part's header, in bytes."""

MAX_LINE: Final = 4096
"""Maximum length of a line between two parts, in bytes, including the line end."""


class UploadRefusedError(Exception):
    """An upload is refused. ``status`` and ``body`` are the answer's status and JSON fields."""

    def __init__(self, status: int, code: str, message: str, **fields: str | int) -> None:
        """Create the error with ``message`` for a person and the stable ``code`` for a program."""
        super().__init__(message)
        self.status = status
        self.code = code
        self.body: dict[str, str | int] = {"error": message, "code": code, **fields}


def broken_body() -> UploadRefusedError:
    """Return the error for a malformed or truncated body."""
    return UploadRefusedError(
        400, "broken_body", "request body is broken or was cut; send it again"
    )


@dataclass(frozen=True)
class PartHeader:
    """The start of a part. ``fields`` maps lower-case names to the first header of that name."""

    fields: Mapping[bytes, bytes]

    def get(self, name: bytes) -> bytes:
        """Return a header's value as raw bytes, empty if there is none."""
        return self.fields.get(name, b"")


@dataclass(frozen=True)
class PartEnd:
    """The end of a part."""


PartEvent = PartHeader | PartEnd | memoryview
"""A form is a sequence of parts: a PartHeader, the content in pieces, and a PartEnd."""


# Header parameters, as mime.ParseMediaType reads them: white space is Unicode's, in UTF-8.
_SPACE: Final = (
    rb"(?:[\t-\r ]|\xc2[\x85\xa0]|\xe1\x9a\x80|\xe2\x80[\x80-\x8a\xa8\xa9\xaf]|\xe2\x81\x9f"
    rb"|\xe3\x80\x80)*+"
)
_TOKEN: Final = rb"[!#$%&'*+\-.^_`{|}~0-9A-Za-z]++"
_TYPE: Final = re.compile(_SPACE + rb"(" + _TOKEN + rb"(?:/" + _TOKEN + rb")?)" + _SPACE)
# A backslash escapes only the characters that need quotes; before any other it is literal.
_PARAMETER: Final = re.compile(
    rb'%b;%b(%b)%b=%b(?:(%b)|"((?:\\[()<>@,;:\\"/\[\]?=]|[^"\r\n])*+)")'
    % (_SPACE, _SPACE, _TOKEN, _SPACE, _SPACE, _TOKEN)
)
_END: Final = re.compile(_SPACE + rb";?" + _SPACE)
_ESCAPED: Final = re.compile(rb'\\([()<>@,;:\\"/\[\]?=])')
_PERCENT: Final = re.compile(rb"%([0-9A-Fa-f]{2})")
_BAD_PERCENT: Final = re.compile(rb"%(?![0-9A-Fa-f]{2})")


def form_boundary(content_type: bytes) -> bytes:
    """Return the boundary of a request's Content-Type. UploadRefusedError: it has none."""
    media = _media_type(content_type)
    if media is None or media[0] != b"multipart/form-data" or not media[1].get(b"boundary"):
        raise UploadRefusedError(
            400, "not_multipart", "Content-Type must be multipart/form-data with a boundary"
        )
    return media[1][b"boundary"]


def part_names(header: PartHeader) -> tuple[bytes, bytes | None] | None:
    """Return a part's field name and filename as raw bytes; None if the header is malformed.

    The field name is empty if it is missing; the filename is None if it is missing. Percent signs
    are not decoded: browsers write a quote as ``%22`` but do not escape ``%`` itself, so decoding
    would be ambiguous. ``filename*`` (RFC 5987) takes precedence if it can be decoded.
    """
    media = _media_type(_escape_backslashes(header.get(b"content-disposition")))
    if media is None or media[0] != b"form-data":
        return None
    return media[1].get(b"name", b""), media[1].get(b"filename")


def _escape_backslashes(disposition: bytes) -> bytes:
    r"""Double the literal backslashes in quoted strings.

    Browsers never escape; other clients write only ``\"`` and ``\\``. So only these two are
    escapes. At the end of the header a quote is always the closing one.
    """
    result = bytearray()
    quoted = False
    i = 0
    while i < len(disposition):
        c = disposition[i : i + 1]
        result += c
        if c == b'"':
            quoted = not quoted
        elif c == b"\\" and quoted:
            following = disposition[i + 1 : i + 2]
            if i + 2 < len(disposition) and following in (b'"', b"\\"):
                result += following
                i += 1
            else:
                result += b"\\"
        i += 1
    return bytes(result)


def _media_type(value: bytes) -> tuple[bytes, dict[bytes, bytes]] | None:
    """Return the lower-case type and the parameters; None if the value is malformed."""
    base = value.partition(b";")[0]
    found = _TYPE.fullmatch(base)
    if found is None:
        return None
    given: dict[bytes, bytes] = {}
    at = len(base)
    while not _END.fullmatch(value, at):
        parameter = _PARAMETER.match(value, at)
        if parameter is None:
            return None
        name, token, quoted = parameter.groups()
        text = token if token is not None else _ESCAPED.sub(rb"\1", quoted)
        if given.setdefault(name.lower(), text) != text:
            return None
        at = parameter.end()
    return found[1].lower(), _extended(given)


def _extended(given: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
    """Decode and join parameters that are encoded or continued (RFC 2231, RFC 5987)."""
    result = {name: text for name, text in given.items() if b"*" not in name}
    for name in {name.partition(b"*")[0] for name in given if b"*" in name}:
        whole = given.get(name + b"*")
        text = _decode(whole) if whole is not None else _joined(given, name)
        if text is not None:
            result[name] = text
    return result


def _joined(given: Mapping[bytes, bytes], name: bytes) -> bytes | None:
    pieces: list[bytes] = []
    while True:
        piece = b"%s*%d" % (name, len(pieces))
        if piece in given:
            pieces.append(given[piece])
        elif piece + b"*" in given:
            encoded = given[piece + b"*"]
            pieces.append((_unescape(encoded) if pieces else _decode(encoded)) or b"")
        else:
            return b"".join(pieces) if pieces else None


def _decode(value: bytes) -> bytes | None:
    charset, *rest = value.split(b"'", 2)
    if len(rest) < 2 or charset.lower() not in (b"us-ascii", b"utf-8"):
        return None
    return _unescape(rest[1])


def _unescape(value: bytes) -> bytes | None:
    if _BAD_PERCENT.search(value):
        return None
    return _PERCENT.sub(lambda match: bytes.fromhex(match[1].decode("ascii")), value)


class _State(Enum):
    BETWEEN = auto()
    HEADER = auto()
    CONTENT = auto()
    FINISHED = auto()


class _Ahead(Enum):
    """What follows a piece of content; UNKNOWN needs more bytes."""

    UNKNOWN = auto()
    CONTENT = auto()
    BOUNDARY = auto()


_FIELD_NAME: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z ]+")
_FIELD_VALUE: Final = re.compile(rb"[\t -~\x80-\xff]*")


class FormReader:
    """Parses one form. Call ``feed`` for every chunk, then ``end``; exhaust both iterators.

    A malformed body raises UploadRefusedError; after that the reader must not be used.
    """

    def __init__(self, boundary: bytes) -> None:
        """Create a parser for a form with this ``boundary``."""
        self._dashed = b"--" + boundary
        self._newline = b"\r\n"
        self._state = _State.BETWEEN
        self._rest = b""
        self._left = MAX_PART_HEADER
        self._began = False
        self._blank = False
        self._line: bytes | None = None
        self._fields: dict[bytes, bytes] = {}
        self._empty = True

    @property
    def finished(self) -> bool:
        """Whether the closing boundary was read. Anything after it is ignored."""
        return self._state is _State.FINISHED

    def end(self) -> Iterator[PartEvent]:
        """Finish. The body may lack only the line break after the closing boundary."""
        yield from self.feed(b"\r\n")
        if not self.finished:
            raise broken_body()

    def feed(self, chunk: bytes) -> Iterator[PartEvent]:
        """Parse a chunk and yield its events."""
        data = self._rest + chunk
        at = 0
        while not self.finished:
            if self._state is _State.CONTENT:
                end, ahead = self._scan(data, at)
                if end > at:
                    yield memoryview(data)[at:end]
                    self._empty, at = False, end
                if ahead is _Ahead.UNKNOWN:
                    break
                self._state, self._left, self._blank = _State.BETWEEN, MAX_PART_HEADER, False
                yield PartEnd()
                continue
            line = self._next_line(data, at)
            if line is None:
                break
            at += len(line)
            self._left -= len(line)
            if self._state is _State.BETWEEN:
                self._read_between(line)
            elif (header := self._read_header(line)) is not None:
                yield header
        self._rest = b"" if self.finished else data[at:]

    def _next_line(self, data: bytes, at: int) -> bytes | None:
        """Return the line at ``at``, or None if it is incomplete."""
        between = self._state is _State.BETWEEN
        window = min(self._left, MAX_LINE) if between else self._left
        end = data.find(b"\n", at, at + window)
        if end >= 0:
            return data[at : end + 1]
        if len(data) - at < window:
            return None
        if between and window == MAX_LINE:
            raise broken_body()
        raise UploadRefusedError(
            400,
            "part_header_too_large",
            f"a part's header is longer than {MAX_PART_HEADER} bytes",
            max=MAX_PART_HEADER,
        )

    def _read_between(self, line: bytes) -> None:
        if line.startswith(self._dashed):
            rest = line[len(self._dashed) :]
            padding = rest.lstrip(b" \t")
            if not self._began and padding == b"\n":
                # As in Go: the line end of the first boundary holds for the whole body.
                self._newline = b"\n"
            if padding == self._newline:
                self._began, self._state = True, _State.HEADER
                self._line, self._fields = None, {}
                return
            if rest.startswith(b"--") and rest[2:].lstrip(b" \t") == self._newline:
                self._state = _State.FINISHED
                return
        if self._began and (self._blank or line != self._newline):
            raise broken_body()
        self._blank = self._began

    def _read_header(self, line: bytes) -> PartHeader | None:
        """Read one line of a part's header; return the header at the empty line."""
        text = line[:-1].removesuffix(b"\r")
        if text.startswith((b" ", b"\t")):
            if self._line is None:
                raise broken_body()
            self._line += b" " + text.strip(b" \t")
            return None
        if self._line is not None:
            name, _, value = self._line.partition(b":")
            if not (_FIELD_NAME.fullmatch(name) and _FIELD_VALUE.fullmatch(value)):
                raise broken_body()
            self._fields.setdefault(name.lower(), value.lstrip(b" \t"))
        if not text:
            self._state, self._empty = _State.CONTENT, True
            return PartHeader(self._fields)
        if b":" not in text:
            raise broken_body()
        self._line = text.strip(b" \t")
        return None

    def _scan(self, data: bytes, at: int) -> tuple[int, _Ahead]:
        """Return up to where the bytes from ``at`` are certainly content, and what follows."""
        if self._empty:
            if data.startswith(self._dashed, at):
                after = at + len(self._dashed)
                ahead = self._after_boundary(data, after)
                if ahead is not _Ahead.CONTENT:
                    return at, ahead
            elif self._dashed.startswith(data[at : at + len(self._dashed)]):
                return at, _Ahead.UNKNOWN
        delimiter = self._newline + self._dashed
        found = data.find(delimiter, at)
        if found >= 0:
            # Content may contain lines that begin like a boundary but are none.
            sure = re.compile(re.escape(delimiter) + rb"(?=[ \t\r\n]|--|-?\Z)")
            if match := sure.search(data, found):
                return match.start(), self._after_boundary(data, match.end())
        # The last bytes may be the beginning of a boundary.
        tail = data.rfind(self._newline[:1], max(at, len(data) - len(delimiter) + 1))
        if tail >= 0 and delimiter.startswith(data[tail:]):
            return tail, _Ahead.UNKNOWN
        return len(data), _Ahead.UNKNOWN

    def _after_boundary(self, data: bytes, at: int) -> _Ahead:
        """Distinguish a boundary from content that begins with the same bytes."""
        following = data[at : at + 2]
        if following in (b"", b"-"):
            return _Ahead.UNKNOWN
        if following == b"--" or following[:1] in b" \t\r\n":
            return _Ahead.BOUNDARY
        return _Ahead.CONTENT
