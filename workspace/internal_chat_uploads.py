"""The workspace's side of chat uploads that the platform pushes.

A file that a person attaches in the canvas reaches the workspace under a name that
``sanitize_filename`` lets through. The platform applies the very same rule before it stages
a file (``SanitizeFilename``, in Go), so a file has one name however it travels.

``ingest_app`` serves the uploads themselves, ``POST /internal/chat/uploads/ingest``, to whoever
has the workspace's inbound secret; without a secret, to nobody. It promises:

- An upload's files are all in the folder, synced, before the answer says so, or none of them is:
  not after a broken, cut, slow or oversize body, not if the disk is full, not if the client or
  the server goes. Only a kill leaves parts behind, hidden ones, which the next start removes.
- Each is ``<folder>/<32 hex digits>-<sanitized name>``, mode 0600. Nothing that a client sends
  chooses a path, and no link is followed.
- Memory is bounded by one chunk of the network's, whatever is sent.
- Limits, error bodies, codes and statuses are the platform's, so a sender cannot tell
  by them whether a file was pushed or staged.

It does not bound how many uploads are in flight; the server in front of it does.
"""

import asyncio
import contextlib
import fcntl
import hmac
import json
import logging
import os
import posixpath
import re
import secrets
import threading
import uuid
import weakref
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from chat_upload_form import (
    FormReader,
    PartEnd,
    PartEvent,
    PartHeader,
    UploadRefusedError,
    form_boundary,
    part_names,
)
from chat_upload_types import clean_mime_type

INGEST_PATH: Final = "/internal/chat/uploads/ingest"
"""Where the platform posts uploads, below the url that the workspace registered."""

FILES_FIELD: Final = b"files"
"""The form field whose parts are the files."""

MAX_OTHER_PARTS: Final = 64
"""How many parts that are no files an upload may have."""

BODY_ALLOWANCE: Final = 1 << 20
"""Bytes that a body may have beside its files: boundaries, part headers, other fields."""

MIN_BODY_RATE: Final = 1 << 10
"""The least rate of a body, in bytes per second; who sends less keeps a connection for nothing."""

MAX_FILENAME_LENGTH: Final = 100
"""Characters in the longest name that is accepted."""

MAX_EXTENSION_LENGTH: Final = 16
"""Characters in the longest extension that survives a cut, dot included."""

FALLBACK_FILENAME: Final = "file"
"""Stands in for names that name nothing: the empty one, ``.`` and ``..``."""

_UNSAFE: Final = re.compile(r"[^A-Za-z0-9._-]")


def sanitize_filename(name: str) -> str:
    """Return the name under which a file called ``name`` by its sender is kept.

    The result has 1 to 100 characters of ``[A-Za-z0-9._-]`` and is never ``.`` or ``..``.
    Sanitizing it again changes nothing.

    Only the text after the last ``/`` counts, on every operating system. In it each code
    point that is not allowed, a space among them, becomes one ``_``. A name of more than 100
    characters is cut to 100; the text from its last dot stays at the end if that is at most
    16 characters, dot included.

    Bytes that are not UTF-8 should be decoded with ``surrogateescape``: that is one code
    point a byte, which is how the platform counts them.
    """
    base = _UNSAFE.sub("_", posixpath.basename(name))
    if len(base) > MAX_FILENAME_LENGTH:
        dot = base.rfind(".")
        keep_extension = dot >= 0 and len(base) - dot <= MAX_EXTENSION_LENGTH
        extension = base[dot:] if keep_extension else ""
        base = base[: MAX_FILENAME_LENGTH - len(extension)] + extension
    return FALLBACK_FILENAME if base in ("", ".", "..") else base


@dataclass(frozen=True)
class IngestLimits:
    """What one upload may have. The defaults are the platform's."""

    max_file_bytes: int = 100 << 20
    max_request_bytes: int = 100 << 20
    """All files together."""
    max_files: int = 64
    body_window: float = 30.0
    """Seconds in which a body must bring its share of MIN_BODY_RATE."""
    drain_timeout: float = 10.0
    """Seconds for which a client whose upload is refused may go on sending."""


@dataclass(frozen=True)
class StoredFile:
    """A file that arrived: where it is, and what the answer says of it."""

    path: Path
    name: str
    mime_type: str
    size: int


def ingest_app(
    folder: Path,
    secret: Callable[[], str | None],
    *,
    limits: IngestLimits = IngestLimits(),
    on_stored: Callable[[StoredFile], None] | None = None,
) -> Starlette:
    """Return an application that stores uploads in ``folder`` and serves nothing else.

    ``secret`` is asked at every request. ``on_stored`` hears of each file before the answer is
    sent. The folder is made if it is missing; OSError if it cannot be used.
    """
    route = ingest_route(folder, secret, limits=limits, on_stored=on_stored)
    app = Starlette(routes=[route], exception_handlers={404: _not_found})
    app.router.redirect_slashes = False
    return app


def ingest_route(
    folder: Path,
    secret: Callable[[], str | None],
    *,
    limits: IngestLimits = IngestLimits(),
    on_stored: Callable[[StoredFile], None] | None = None,
) -> Route:
    """Return what ``ingest_app`` serves, for a Starlette application that serves more."""
    return Route(INGEST_PATH, _Ingest(Path(os.path.abspath(folder)), secret, limits, on_stored))


_LOG: Final = logging.getLogger(__name__)
_SANE_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
_REQUEST_ID: Final = "molecule.request_id"
_PART: Final = re.compile(r"\.[0-9a-f]{32}-[A-Za-z0-9._-]{1,100}\.part")


class _DisconnectedError(Exception):
    """The client is gone."""


class _StageError(Exception):
    """The disk does not take the files."""


def _too_large(limits: IngestLimits) -> UploadRefusedError:
    return UploadRefusedError(
        413, "request_too_large", "request body exceeds limit", max=limits.max_request_bytes
    )


def _header(scope: Scope, name: bytes) -> bytes:
    """Return the first header line of that name, as the platform does."""
    return next((value for key, value in scope["headers"] if key == name), b"")


def _request_id(scope: Scope) -> str:
    """Return the caller's id of the request if it is sane, else a new one."""
    if _REQUEST_ID not in scope:
        given = _header(scope, b"x-request-id").decode("latin-1")
        scope[_REQUEST_ID] = given if _SANE_REQUEST_ID.fullmatch(given) else str(uuid.uuid4())
    return str(scope[_REQUEST_ID])


def _json(
    scope: Scope, status: int, body: Mapping[str, object], headers: Mapping[str, str] | None = None
) -> Response:
    content = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False) + "\n"
    return Response(
        content,
        status,
        {"X-Request-ID": _request_id(scope), **(headers or {})},
        "application/json; charset=utf-8",
    )


async def _not_found(request: Request, _: Exception) -> Response:
    message = f"no such path; uploads go to {INGEST_PATH}"
    return _json(request.scope, 404, {"error": message, "code": "not_found"})


class _Ingest:
    """The endpoint. One for all requests."""

    def __init__(
        self,
        folder: Path,
        secret: Callable[[], str | None],
        limits: IngestLimits,
        on_stored: Callable[[StoredFile], None] | None,
    ) -> None:
        self._folder, self._secret, self._limits = folder, secret, limits
        self._on_stored = on_stored
        self._lock = _clear_parts(folder)
        weakref.finalize(self, os.close, self._lock)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        request_id = _request_id(scope)
        body = _Body(scope, receive, self._limits)
        try:
            self._admit(scope, body)
            files = await self._store(scope, body)
        except _DisconnectedError:
            _LOG.info("upload cut by the client, request %s", request_id)
            return
        except UploadRefusedError as refused:
            _LOG.info("upload refused, request %s: %s", request_id, refused.body["code"])
            await self._refuse(scope, send, body, refused)
            return
        except Exception as error:
            staging = isinstance(error, _StageError)
            code = "stage_failed" if staging else "internal"
            message = "could not stage file" if staging else "internal error; it has been logged"
            cause = error.__cause__ if staging else error
            _LOG.error("upload failed, request %s: %s", request_id, message, exc_info=cause)
            await self._refuse(scope, send, body, UploadRefusedError(500, code, message))
            return
        for file in files:
            _LOG.info("stored %s, %d bytes, request %s", file.path.name, file.size, request_id)
            self._tell(file)
        views = [
            {
                "uri": f"workspace:{file.path}",
                "name": file.name,
                "mimeType": file.mime_type,
                "size": file.size,
            }
            for file in files
        ]
        await _json(scope, 200, {"files": views})(scope, receive, send)

    def _tell(self, file: StoredFile) -> None:
        if self._on_stored is not None:
            try:
                self._on_stored(file)
            except Exception:
                # The file is stored all the same, and that is what the answer is about.
                _LOG.exception("on_stored failed for %s", file.path.name)

    def _admit(self, scope: Scope, body: "_Body") -> None:
        """Refuse what can be refused before a byte of the body is read."""
        if scope["method"] != "POST":
            raise UploadRefusedError(
                405, "method_not_allowed", "this path has other methods; see the Allow header"
            )
        scheme, _, token = _header(scope, b"authorization").partition(b" ")
        bearer = token.strip() if scheme.lower() == b"bearer" else b""
        secret = (self._secret() or "").encode()
        if not secret or not hmac.compare_digest(bearer, secret):
            raise UploadRefusedError(
                401, "unauthorized", "missing or invalid token for this workspace"
            )
        if int(_header(scope, b"content-length") or 0) > body.limit:
            raise _too_large(self._limits)

    async def _refuse(
        self, scope: Scope, send: Send, body: "_Body", refused: UploadRefusedError
    ) -> None:
        """Answer at once, and let the client finish sending: one cut off seldom reads an answer."""
        # Who is not let in is not waited for either. The server goes on for a while to throw away
        # what such a client sends; closing would often lose the answer on its way.
        headers = {401: {"WWW-Authenticate": "Bearer"}, 405: {"Allow": "POST"}}.get(
            refused.status, {"Connection": "close"}
        )
        answer = _json(scope, refused.status, refused.body, headers)
        await send(
            {
                "type": "http.response.start",
                "status": answer.status_code,
                "headers": answer.raw_headers,
            }
        )
        await send({"type": "http.response.body", "body": answer.body, "more_body": True})
        if refused.status not in (401, 405, 408):
            await body.drain()
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _store(self, scope: Scope, body: "_Body") -> list[StoredFile]:
        """Read the whole body and keep its files."""
        reader = FormReader(form_boundary(_header(scope, b"content-type")))
        with _Upload(self._folder, self._limits) as upload:
            async with contextlib.aclosing(body.chunks()) as chunks:
                async for chunk in chunks:
                    for event in reader.feed(chunk):
                        await upload.take(event)
            if body.over and not reader.finished:
                raise _too_large(self._limits)
            if not reader.finished:
                for event in reader.end():
                    await upload.take(event)
            return await upload.keep()


class _Body:
    """A request's body: at most so many bytes, and at least so many a second."""

    def __init__(self, scope: Scope, receive: Receive, limits: IngestLimits) -> None:
        self.limit = limits.max_request_bytes + BODY_ALLOWANCE
        self.over = False
        """There was more than the limit."""
        self._receive = receive
        self._window, self._drain_timeout = limits.body_window, limits.drain_timeout
        self._more = True
        self._expected = _header(scope, b"expect").lower() == b"100-continue"

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """Yield the body up to its limit. A client that is slow or gone is an error."""
        share = max(1, int(self._window * MIN_BODY_RATE))
        left, patience = share, self._window
        now = asyncio.get_running_loop().time
        room = self.limit
        while self._more and not self.over:
            start = now()
            try:
                async with asyncio.timeout(patience):
                    chunk = await self._next()
            except TimeoutError as error:
                raise UploadRefusedError(
                    408,
                    "body_too_slow",
                    "request body arrived too slowly; try again on a better connection",
                ) from error
            # A window lasts until its share has come, so single bytes buy no time; and only what
            # is spent waiting for the client counts.
            left -= len(chunk)
            patience -= now() - start
            if left <= 0:
                left, patience = share, self._window
            self.over = len(chunk) > room
            yield chunk[:room]
            room -= len(chunk)

    async def _next(self) -> bytes:
        message: Message = await self._receive()
        if message["type"] != "http.request":
            raise _DisconnectedError
        self._more = message.get("more_body", False)
        body: bytes = message.get("body", b"")
        return body

    async def drain(self) -> None:
        """Let the client finish sending, for a while.

        One that sends Expect reads the answer first, and must not be asked for what nobody wants.
        """
        if self._expected:
            return
        with contextlib.suppress(TimeoutError, _DisconnectedError):
            async with asyncio.timeout(self._drain_timeout):
                while self._more:
                    await self._next()


class _Upload:
    """The files of one upload on their way to the disk: all of them stay, or none.

    Whatever happens between ``with`` and the end of ``keep`` removes them. What blocks is done by
    threads, which a cancelled request does not wait for; so a lock decides who cleans up.
    """

    def __init__(self, folder: Path, limits: IngestLimits) -> None:
        self._folder, self._limits = folder, limits
        self._files: list[StoredFile] = []
        self._others = 0
        self._total = 0
        self._current: StoredFile | None = None
        # What threads use too.
        self._lock = threading.Lock()
        self._fd = -1
        self._names: list[str] = []
        self._renaming = False
        self._gone = False

    def __enter__(self) -> Self:
        with _staging():
            self._dir = _open_folder(self._folder)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._lock:
            self._gone = True
            if not self._renaming:
                self._close(remove=kind is not None)

    async def take(self, event: PartEvent) -> None:
        """Take the next piece of the form."""
        if isinstance(event, PartHeader):
            self._begin(event)
        elif self._current is None:
            pass
        elif isinstance(event, PartEnd):
            with _staging():
                await asyncio.to_thread(self._seal)
            self._files.append(self._current)
            self._current = None
        else:
            self._write(self._current, event)

    async def keep(self) -> list[StoredFile]:
        """Give the files their names: the form is complete. Return them in its order."""
        if not self._files:
            raise UploadRefusedError(
                400, "no_files", "no part named files; send each file as a part of that name"
            )
        with _staging():
            await asyncio.to_thread(self._rename)
        return self._files

    def _begin(self, header: PartHeader) -> None:
        names = part_names(header)
        if names is None:
            raise UploadRefusedError(
                400, "broken_multipart", "a part has no readable Content-Disposition: form-data"
            )
        field, filename = names
        if field != FILES_FIELD:
            if self._others == MAX_OTHER_PARTS:
                raise UploadRefusedError(
                    400,
                    "too_many_parts",
                    "too many parts that are not files",
                    max=MAX_OTHER_PARTS,
                )
            self._others += 1
            return
        if len(self._files) == self._limits.max_files:
            raise UploadRefusedError(
                400, "too_many_files", "too many files", max=self._limits.max_files
            )
        name = sanitize_filename((filename or b"").decode("utf-8", "surrogateescape"))
        mime_type = clean_mime_type(header.get(b"content-type").decode("latin-1"), name)
        stored = f"{secrets.token_hex(16)}-{name}"
        part = f".{stored}.part"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with _staging():
            self._fd = os.open(part, flags, 0o600, dir_fd=self._dir)
        self._names.append(part)
        self._current = StoredFile(self._folder / stored, name, mime_type, 0)

    def _write(self, file: StoredFile, data: memoryview) -> None:
        self._current = file = replace(file, size=file.size + len(data))
        self._total += len(data)
        if file.size > self._limits.max_file_bytes:
            raise UploadRefusedError(
                413,
                "file_too_large",
                "file exceeds per-file cap",
                filename=file.name,
                max=self._limits.max_file_bytes,
            )
        if self._total > self._limits.max_request_bytes:
            raise _too_large(self._limits)
        with _staging():
            while data:
                data = data[os.write(self._fd, data) :]

    def _seal(self) -> None:
        """Sync the file that was written last. In a thread."""
        with self._lock:
            fd, self._fd = self._fd, -1
        if fd >= 0:
            try:
                os.fsync(fd)
            finally:
                os.close(fd)

    def _rename(self) -> None:
        """Rename all files, unless the request is gone meanwhile. In a thread."""
        with self._lock:
            if self._gone:
                return
            self._renaming = True
        try:
            for i, part in enumerate(self._names):
                stored = part[len(".") : -len(".part")]
                os.rename(part, stored, src_dir_fd=self._dir, dst_dir_fd=self._dir)
                self._names[i] = stored
            os.fsync(self._dir)
        finally:
            with self._lock:
                self._renaming = False
                if self._gone:
                    self._close(remove=True)

    def _close(self, remove: bool) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        for name in self._names if remove else ():
            _remove(name, self._dir)
        os.close(self._dir)


@contextlib.contextmanager
def _staging() -> Iterator[None]:
    """Tell what the disk refuses from every other error."""
    try:
        yield
    except OSError as error:
        raise _StageError from error


def _open_folder(folder: Path) -> int:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def _remove(name: str, folder: int) -> None:
    try:
        os.unlink(name, dir_fd=folder)
    except OSError:
        _LOG.warning("cannot remove %s", name, exc_info=True)


def _clear_parts(folder: Path) -> int:
    """Remove what a killed process left, unless another one serves the folder right now.

    Return a descriptor whose lock tells others that this one does.
    """
    fd = _open_folder(folder)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        _LOG.debug("%s is served by another process too", folder)
    else:
        for name in os.listdir(fd):
            if _PART.fullmatch(name):
                _remove(name, fd)
    with contextlib.suppress(OSError):
        fcntl.flock(fd, fcntl.LOCK_SH)
    return fd
