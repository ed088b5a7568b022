"""Fake platforms: an older one, and a hostile one.

They do what the real binary cannot do. Both serve in their own thread, on loopback,
as context managers with a ``url``; their attributes may change while they serve.
"""

import contextlib
import hashlib
import itertools
import json
import socket
import threading
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

GIB: Final = 1 << 30

METHODS: Final = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"]


@dataclass(frozen=True)
class Asked:
    """A request that an impostor received."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    """By lower-case name."""
    body: bytes


class Impostor:
    """Serves ``answer`` for every request; ``requests`` are those received."""

    def __init__(self) -> None:
        """Bind a free port; ``with`` starts serving."""
        self.requests: list[Asked] = []
        self._socket = socket.create_server(("127.0.0.1", 0))
        app = Starlette(
            routes=[Route("/{path:path}", self._note, methods=METHODS)], lifespan=self._lifespan
        )
        # Errors are expected here: clients that disconnect, bodies shorter than their length.
        config = uvicorn.Config(
            app, log_config=None, log_level="critical", ws="none", timeout_graceful_shutdown=1
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run, args=([self._socket],), name="impostor"
        )

    @property
    def url(self) -> str:
        """Its URL."""
        return f"http://127.0.0.1:{self._socket_port}"

    async def answer(self, request: Request) -> Response:
        """Answer a request."""
        raise NotImplementedError

    async def opened(self) -> None:
        """Set up in the server's event loop, before it serves."""

    async def closed(self) -> None:
        """Tear down."""

    async def _note(self, request: Request) -> Response:
        self.requests.append(
            Asked(
                request.method,
                request.url.path,
                dict(request.query_params),
                dict(request.headers),
                await request.body(),
            )
        )
        return await self.answer(request)

    @contextlib.asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        await self.opened()
        yield
        await self.closed()

    def __enter__(self) -> Self:
        """Start to serve."""
        self._socket_port: int = self._socket.getsockname()[1]
        self._thread.start()
        deadline = time.monotonic() + 30
        while not self._server.started:
            if time.monotonic() > deadline or not self._thread.is_alive():
                raise RuntimeError("the impostor did not start")
            time.sleep(0.01)
        return self

    def __exit__(self, *_: object) -> None:
        """Stop; endless answers are aborted."""
        self._server.should_exit = True
        self._thread.join(30)
        self._socket.close()


class OlderPlatform(Impostor):
    """A real platform, reduced to the first version of the wire protocol.

    It has no ``wait`` and no ``order``, no ``seq``, ``sha256`` or ``expires_at``, no list of
    pending uploads and no limits, and its file contents have no digest and no ranges.
    """

    def __init__(self, platform: str) -> None:
        """Stand in front of the real platform at the URL ``platform``."""
        super().__init__()
        self._platform = platform

    async def opened(self) -> None:
        """Create the client of the real platform."""
        self._http = httpx.AsyncClient(base_url=self._platform, timeout=120)

    async def closed(self) -> None:
        """Close it."""
        await self._http.aclose()

    async def answer(self, request: Request) -> Response:
        """Forward a request without newer parameters, and its answer without newer fields."""
        steps = request.url.path.strip("/").split("/")
        is_list = steps[2:3] == ["pending-uploads"] and len(steps) in (3, 4)
        if is_list or request.url.path == "/uploads/limits":
            return PlainTextResponse("404 page not found", 404)
        new = {"host", "connection", "range", "if-range", "if-none-match", "idempotency-key"}
        forwarded = self._http.build_request(
            request.method,
            request.url.path,
            params=[p for p in request.query_params.multi_items() if p[0] not in ("wait", "order")],
            headers=[(k, v) for k, v in request.headers.items() if k not in new],
            content=await request.body(),
        )
        answer = await self._http.send(forwarded, stream=True)
        new = {"etag", "repr-digest", "accept-ranges", "connection", "date"}
        headers = {k: v for k, v in answer.headers.items() if k not in new}
        if steps[-1] in ("activity", "uploads") and answer.status_code == 200:
            older = json.dumps(_without_news(json.loads(await answer.aread())))
            headers.pop("content-length", None)
            return Response(older, headers=headers)
        return StreamingResponse(_all_of(answer), answer.status_code, headers)


async def _all_of(answer: httpx.Response) -> AsyncIterator[bytes]:
    try:
        async for piece in answer.aiter_raw():
            yield piece
    finally:
        await answer.aclose()


def _without_news(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_news(item) for item in value]
    if isinstance(value, dict):
        new = ("seq", "sha256", "expires_at")
        return {key: _without_news(item) for key, item in value.items() if key not in new}
    return value


Reply = Callable[[], Response]


class HostilePlatform(Impostor):
    """Answers like a platform with one workspace, except where a test overrides it.

    ``rows`` is its inbox, oldest first, and ``listed`` its pending uploads; both may be invalid.
    ``replies`` take precedence, by the end of the path; "" matches every path.
    """

    def __init__(self) -> None:
        """Start with correct answers."""
        super().__init__()
        self.rows: list[Any] = []
        self.listed: list[Any] = []
        self.replies: dict[str, Reply] = {}
        self.acked: list[str] = []
        self._contents: dict[str, Reply] = {}

    def announce(self, content: bytes | Reply, **announced: Any) -> dict[str, Any]:
        """Put a file's row into the inbox, and return the file's description in it.

        ``announced`` overrides fields: file_id, name, size, sha256, mimeType, uri.
        None leaves a field out.
        """
        plain = content if isinstance(content, bytes) else b""
        file = {
            "file_id": str(uuid.uuid4()),
            "name": "a.bin",
            "mimeType": "application/octet-stream",
            "size": len(plain),
            "sha256": hashlib.sha256(plain).hexdigest(),
        } | announced
        file.setdefault("uri", f"platform-pending:{uuid.UUID(int=0)}/{file['file_id']}")
        reported = {key: value for key, value in file.items() if value is not None}
        reply = (lambda: body(content)) if isinstance(content, bytes) else content
        self._contents[str(file["file_id"])] = reply
        self.rows.append(
            {
                "id": str(uuid.uuid4()),
                "activity_type": "a2a_receive",
                "method": "chat_upload_receive",
                "source_id": None,
                "summary": f"chat_upload_receive: {file['name']}",
                "request_body": reported,
                "status": "ok",
            }
        )
        return reported

    async def answer(self, request: Request) -> Response:
        """Answer as configured."""
        path = request.url.path
        for ending, reply in self.replies.items():
            if path.endswith(ending):
                return reply()
        if path.startswith("/registry/"):
            return as_json({"status": "registered", "platform_inbound_secret": "secret"})
        if path.endswith("/activity"):
            return as_json(self._after(request.query_params.get("since_id")))
        if path.endswith("/pending-uploads"):
            return as_json([] if "after" in request.query_params else self.listed)
        inside = path.partition("/pending-uploads/")[2]
        file_id, _, verb = inside.rpartition("/")
        if verb == "ack":
            self.acked.append(file_id)
            return as_json({"acked": True})
        if verb == "content" and file_id in self._contents:
            return self._contents[file_id]()
        return as_json({"error": "there is no such thing", "code": "not_found"}, 404)

    def _after(self, since_id: str | None) -> list[Any]:
        ids = [row.get("id") if isinstance(row, dict) else None for row in self.rows]
        if since_id in ids and since_id is not None:
            return self.rows[ids.index(since_id) + 1 :]
        return self.rows


def as_json(value: Any, status: int = 200, **headers: str) -> Response:
    """Answer with JSON; ``_`` in the name of a header stands for ``-``."""
    named = {name.replace("_", "-"): text for name, text in headers.items()}
    return Response(json.dumps(value), status, named, "application/json")


def body(content: bytes | Iterable[bytes], claimed_size: int | None = None) -> Response:
    """Answer with bytes, possibly endless, and possibly with a wrong Content-Length."""
    headers = {} if claimed_size is None else {"Content-Length": str(claimed_size)}
    pieces = [content] if isinstance(content, bytes) else content
    if isinstance(content, bytes) and claimed_size is None:
        return Response(content, media_type="application/octet-stream")
    return StreamingResponse(pieces, 200, headers, "application/octet-stream")


def endless(claimed_size: int | None = None) -> Response:
    """Answer with an endless body, or one of ``10 * GIB``."""
    piece = b"x" * 65536
    if claimed_size is None:
        return body(itertools.repeat(piece))
    return body(itertools.repeat(piece, claimed_size // len(piece)), claimed_size)


def endless_json() -> Response:
    """Answer with JSON that never ends."""
    pieces = itertools.chain([b"["], itertools.repeat(b"0," * 32768))
    return StreamingResponse(pieces, media_type="application/json")


def deep_json(depth: int = 200_000) -> Response:
    """Answer with JSON that is nested more deeply than the parser allows."""
    return Response(b"[" * depth + b"]" * depth, media_type="application/json")


def captive_portal() -> Response:
    """Answer with a login page, as a captive portal does."""
    return Response("<!doctype html><title>Welcome</title>Please log in.", media_type="text/html")


def redirect(to: str, status: int = 307) -> Response:
    """Answer with a redirect."""
    return Response(status_code=status, headers={"Location": to})


def much_later(retry_after: str = str(365 * 86400), status: int = 503) -> Response:
    """Answer 503 with a Retry-After of a year."""
    return as_json({"error": "saturated", "code": "saturated"}, status, Retry_After=retry_after)


HOSTILE_NAMES: Final = (
    "../../etc/passwd",
    "/etc/passwd",
    "..",
    "",
    "a\0b",
    "a\nb\x1b[31m",
    "C:\\windows\\system32",
    "x" * 5000,
    "\ud800",
    "café/\u202egnp.exe",
)
"""Names that a row may announce; they must neither choose a path nor reach a terminal raw."""

HOSTILE_FILE_IDS: Final[tuple[Any, ...]] = (
    "../../../admin",
    "/etc/passwd",
    "",
    "not-a-uuid",
    "00000000-0000-0000-0000-00000000000",
    "{00000000-0000-0000-0000-000000000000}",
    "00000000-0000-0000-0000-000000000000/../x",
    0,
    None,
    ["a"],
    {"a": 1},
)
"""Invalid values in place of a UUID."""

HOSTILE_ROWS: Final[tuple[Any, ...]] = (
    None,
    0,
    "row",
    [],
    {},
    {"id": None},
    {"id": 7, "activity_type": "a2a_receive"},
    {"id": "x", "activity_type": "a2a_receive", "method": "chat_upload_receive"},
    {"id": "y", "method": "chat_upload_receive", "request_body": "text"},
    {"id": "z", "method": ["message/send"], "request_body": {"params": {"message": {"parts": 3}}}},
)
"""Invalid values in place of a row."""
