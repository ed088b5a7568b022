"""The HTTP endpoint for uploads that the platform pushes to a workspace.

``ingest_app`` serves ``POST /internal/chat/uploads/ingest``. The bearer token is the workspace's
inbound secret; while there is no secret, every request is refused. Guarantees:

- When the answer is 200, all files of the upload are in the folder and synced. After any error
  (malformed, truncated, slow or oversize body, full disk, lost client) none of them is. Only a
  killed process leaves partial files; they are hidden, and the next start deletes them.
- Each file is ``<folder>/<32 hex digits>-<sanitized name>``, mode 0600. Nothing that a client sends
  chooses a path, and no symbolic link is followed.
- Memory is bounded by one network chunk per upload, whatever is sent.
- Limits, statuses, error codes and error texts are the platform's, so that a client sees the same
  answer whether the file was pushed or staged.

The number of concurrent uploads is not limited here; the server in front must do that.
"""

import asyncio
import contextlib
import hmac
import json
import logging
import os
import re
import uuid
import weakref
from collections.abc import AsyncGenerator, Callable, Mapping
from pathlib import Path
from typing import Final

from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from molecule_workspace.ingest.form import FormReader, UploadRefusedError, form_boundary
from molecule_workspace.ingest.store import (
    DEFAULT_LIMITS,
    IngestLimits,
    StageError,
    StoredFile,
    Upload,
    clear_parts,
    request_too_large,
)
from molecule_workspace.names import sanitize_filename

__all__ = [
    "INGEST_PATH",
    "IngestLimits",
    "StoredFile",
    "ingest_app",
    "ingest_route",
    "sanitize_filename",
]

INGEST_PATH: Final = "/internal/chat/uploads/ingest"
"""Path to which the platform posts uploads, below the URL that the workspace registered."""

BODY_ALLOWANCE: Final = 1 << 20
"""Bytes of a body that are not file content: boundaries, part headers, other fields."""

MIN_BODY_RATE: Final = 1 << 10
"""Minimum rate of a body, in bytes per second; a slower client only occupies a connection."""


def ingest_app(
    folder: Path,
    secret: Callable[[], str | None],
    *,
    limits: IngestLimits = DEFAULT_LIMITS,
    on_stored: Callable[[StoredFile], None] | None = None,
) -> Starlette:
    """Return an application that stores uploads in ``folder`` and serves nothing else.

    ``secret`` is called for every request. ``on_stored`` is called for each file before the answer
    is sent. The folder is created if it is missing; OSError: it cannot be used.
    """
    route = ingest_route(folder, secret, limits=limits, on_stored=on_stored)
    return Starlette(routes=[route, Route("/{path:path}", _NotFound(limits))])


def ingest_route(
    folder: Path,
    secret: Callable[[], str | None],
    *,
    limits: IngestLimits = DEFAULT_LIMITS,
    on_stored: Callable[[StoredFile], None] | None = None,
) -> Route:
    """Return the route of ``ingest_app``, for a Starlette application with other routes."""
    return Route(INGEST_PATH, _Ingest(Path(os.path.abspath(folder)), secret, limits, on_stored))


_LOG: Final = logging.getLogger(__name__)
_SANE_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
_REQUEST_ID: Final = "molecule.request_id"


class _DisconnectedError(Exception):
    """The client closed the connection."""


def _header(scope: Scope, name: bytes) -> bytes:
    """Return the first header of that name, as the platform does."""
    return next((value for key, value in scope["headers"] if key == name), b"")


def _request_id(scope: Scope) -> str:
    """Return the client's request id if it is well-formed, else a new one."""
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


async def _answer(send: Send, body: "_Body", answer: Response) -> None:
    """Answer immediately, then read the rest of the request body for a while.

    Closing a connection with unread data resets it, and the client's kernel may then discard the
    answer before the client has read it.
    """
    await send(
        {
            "type": "http.response.start",
            "status": answer.status_code,
            "headers": answer.raw_headers,
        }
    )
    await send({"type": "http.response.body", "body": answer.body, "more_body": True})
    await body.drain()
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _refuse(scope: Scope, send: Send, body: "_Body", refused: UploadRefusedError) -> None:
    """Send an error answer, and close the connection."""
    own = {401: {"WWW-Authenticate": "Bearer"}, 405: {"Allow": "POST"}}.get(refused.status, {})
    headers = {"Connection": "close", **own}
    await _answer(send, body, _json(scope, refused.status, refused.body, headers))


class _NotFound:
    """The answer for every other path."""

    def __init__(self, limits: IngestLimits) -> None:
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 404."""
        message = f"no such path; uploads go to {INGEST_PATH}"
        refused = UploadRefusedError(404, "not_found", message)
        await _refuse(scope, send, _Body(scope, receive, self._limits), refused)


class _Ingest:
    """The endpoint; one instance serves all requests."""

    def __init__(
        self,
        folder: Path,
        secret: Callable[[], str | None],
        limits: IngestLimits,
        on_stored: Callable[[StoredFile], None] | None,
    ) -> None:
        self._folder, self._secret, self._limits = folder, secret, limits
        self._on_stored = on_stored
        self._lock = clear_parts(folder)
        weakref.finalize(self, os.close, self._lock)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        request_id = _request_id(scope)
        body = _Body(scope, receive, self._limits)
        try:
            self._admit(scope, body)
            files = await self._store(scope, body)
        except _DisconnectedError:
            _LOG.info("upload aborted by the client, request %s", request_id)
            return
        except UploadRefusedError as refused:
            _LOG.info("upload refused, request %s: %s", request_id, refused.body["code"])
            await _refuse(scope, send, body, refused)
            return
        except Exception as error:
            staging = isinstance(error, StageError)
            code = "stage_failed" if staging else "internal"
            message = "could not stage file" if staging else "internal error; it has been logged"
            cause = error.__cause__ if staging else error
            _LOG.error("upload failed, request %s: %s", request_id, message, exc_info=cause)
            await _refuse(scope, send, body, UploadRefusedError(500, code, message))
            return
        for file in files:
            _LOG.info("stored %s, %d bytes, request %s", file.path.name, file.size, request_id)
            self._call_on_stored(file)
        views = [
            {
                "uri": f"workspace:{file.path}",
                "name": file.name,
                "mimeType": file.mime_type,
                "size": file.size,
            }
            for file in files
        ]
        await _answer(send, body, _json(scope, 200, {"files": views}))

    def _call_on_stored(self, file: StoredFile) -> None:
        if self._on_stored is not None:
            try:
                self._on_stored(file)
            except Exception:
                # The file is stored; a failing callback must not change the answer.
                _LOG.exception("on_stored failed for %s", file.path.name)

    def _admit(self, scope: Scope, body: "_Body") -> None:
        """Check method, token and Content-Length, before the body is read."""
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
            raise request_too_large(self._limits)

    async def _store(self, scope: Scope, body: "_Body") -> list[StoredFile]:
        """Read the whole body and store its files."""
        reader = FormReader(form_boundary(_header(scope, b"content-type")))
        with Upload(self._folder, self._limits) as upload:
            async with contextlib.aclosing(body.chunks()) as chunks:
                async for chunk in chunks:
                    for event in reader.feed(chunk):
                        await upload.take(event)
            if body.over and not reader.finished:
                raise request_too_large(self._limits)
            if not reader.finished:
                for event in reader.end():
                    await upload.take(event)
            return await upload.keep()


class _Body:
    """A request's body, with a maximum size and a minimum rate."""

    def __init__(self, scope: Scope, receive: Receive, limits: IngestLimits) -> None:
        self.limit = limits.max_request_bytes + BODY_ALLOWANCE
        self.over = False
        """Whether the body exceeded the limit."""
        self._receive = receive
        self._window, self._drain_timeout = limits.body_window, limits.drain_timeout
        self._more = True
        self._unasked = _header(scope, b"expect").lower() == b"100-continue"

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """Yield the body up to its limit. A slow client, or one that disconnects, is an error."""
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
            # A window ends when its share of bytes has arrived, so single bytes do not extend it.
            # Only the time spent waiting for the client counts.
            left -= len(chunk)
            patience -= now() - start
            if left <= 0:
                left, patience = share, self._window
            self.over = len(chunk) > room
            yield chunk[:room]
            room -= len(chunk)

    async def _next(self) -> bytes:
        self._unasked = False
        message: Message = await self._receive()
        if message["type"] != "http.request":
            raise _DisconnectedError
        self._more = message.get("more_body", False)
        body: bytes = message.get("body", b"")
        return body

    async def drain(self) -> None:
        """Read and discard the rest of the body, for at most the drain timeout.

        A client that sent ``Expect: 100-continue`` and got no 100 has not sent its body.
        """
        if self._unasked:
            return
        with contextlib.suppress(TimeoutError, _DisconnectedError):
            async with asyncio.timeout(self._drain_timeout):
                while self._more:
                    await self._next()
