"""Tests of the push-mode ingest, served by a real uvicorn on loopback.

``test_ingest_parity`` compares its answers with the platform's.
"""

import asyncio
import contextlib
import functools
import gc
import http.client
import json
import logging
import os
import random
import secrets
import select
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import httpx
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.types import Message

from local_platform import LocalPlatform, Sample, Workspace
from molecule_workspace.ingest.app import (
    INGEST_PATH,
    IngestLimits,
    StoredFile,
    ingest_app,
    ingest_route,
)
from molecule_workspace.ingest.form import PartEnd, PartHeader
from molecule_workspace.ingest.store import Upload

SECRET: Final = "inbound-secret"
MIB: Final = 1 << 20
PATIENCE: Final = 20.0
TYPE: Final = {"Content-Type": "multipart/form-data; boundary=b"}


def file(name: str, content: bytes) -> bytes:
    """Return a part that is a file."""
    header = f'Content-Disposition: form-data; name="files"; filename="{name}"'
    return b"--b\r\n" + header.encode() + b"\r\n\r\n" + content + b"\r\n"


def form(*parts: bytes) -> bytes:
    """Return the body that consists of these parts."""
    return b"".join(parts) + b"--b--\r\n"


def eventually(what: str, is_so: Callable[[], bool]) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + PATIENCE
    while not is_so():
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.005)


class Served:
    """An application in a uvicorn server, in a thread."""

    def __init__(self, app: Starlette, secret: str = SECRET) -> None:
        """Prepare to serve ``app``."""
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.address: tuple[str, int] = self._socket.getsockname()
        self.url = f"http://127.0.0.1:{self.address[1]}"
        self.server = uvicorn.Server(
            uvicorn.Config(app, http="h11", log_config=None, timeout_graceful_shutdown=5)
        )
        self._thread = threading.Thread(target=self.server.run, args=([self._socket],))
        self.http = httpx.Client(
            base_url=self.url, headers={"Authorization": f"Bearer {secret}"}, timeout=PATIENCE
        )

    def __enter__(self) -> Self:
        """Serve."""
        self._thread.start()
        eventually("the server has started", lambda: self.server.started)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop."""
        self.http.close()
        self.server.should_exit = True
        self._thread.join()
        self._socket.close()

    def post(self, body: Any, headers: dict[str, str] | None = None) -> httpx.Response:
        """Post a body to the ingest."""
        return self.http.post(INGEST_PATH, content=body, headers=TYPE | (headers or {}))

    def connect(self, *headers: str) -> socket.socket:
        """Open a connection and send the header of an upload with these additional lines."""
        connection = socket.create_connection(self.address, PATIENCE)
        lines = [f"POST {INGEST_PATH} HTTP/1.1", "Host: a", f"Content-Type: {TYPE['Content-Type']}"]
        connection.sendall("\r\n".join([*lines, *headers, "", ""]).encode())
        return connection


AUTHORIZED: Final = f"Authorization: Bearer {SECRET}"


def answer(connection: socket.socket) -> tuple[int, dict[str, Any]]:
    """Read the answer on a connection."""
    response = http.client.HTTPResponse(connection)
    response.begin()
    return response.status, json.loads(response.read())


def left(folder: Path) -> list[str]:
    """Return the names in the folder, including hidden files."""
    return sorted(os.listdir(folder))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The path of a folder that does not exist yet."""
    return tmp_path / "state" / "chat-uploads"


@pytest.fixture
def served(folder: Path) -> Iterator[Served]:
    """An ingest with default limits."""
    with Served(ingest_app(folder, lambda: SECRET)) as running:
        yield running


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> Callable[[str], bool]:
    """Return whether the ingest has logged a text."""
    caplog.set_level(logging.INFO, logger="molecule_workspace.ingest")
    return lambda text: any(text in record.getMessage() for record in caplog.records)


def test_files_arrive_byte_for_byte(folder: Path) -> None:
    """Each has its content, name, mode 0600, and its position in the answer.

    Planted: mode 0644; folder 0755; parts sorted by name; the name not sanitized; an empty
    file left out; on_stored not called.
    """
    reported: list[StoredFile] = []
    contents = [b"z" * 300_000, b"", b"\r\n--b-\x00\xff"]
    names = ["z last.bin", "dir/empty.txt", "../../\xe9.md"]
    with Served(ingest_app(folder, lambda: SECRET, on_stored=reported.append)) as served:
        parts = [file(name, content) for name, content in zip(names, contents, strict=True)]
        response = served.post(form(*parts))
    assert response.status_code == 200, response.text
    files = response.json()["files"]
    assert [f["name"] for f in files] == ["z_last.bin", "empty.txt", "_.md"]
    assert [f["size"] for f in files] == [len(content) for content in contents]
    assert [f["mimeType"] for f in files] == [
        "application/octet-stream",
        "text/plain",
        "text/markdown",
    ]
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    for described, content, stored in zip(files, contents, reported, strict=True):
        path = Path(described["uri"].removeprefix("workspace:"))
        assert stored == StoredFile(path, described["name"], described["mimeType"], len(content))
        assert path.parent == folder
        prefix, _, name = path.name.partition("-")
        assert name == described["name"]
        assert len(bytes.fromhex(prefix)) == 16
        assert path.read_bytes() == content
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(left(folder)) == 3


@pytest.mark.parametrize(
    ("secret", "authorization"),
    [
        (SECRET, None),
        (SECRET, ""),
        (SECRET, SECRET),
        (SECRET, "Bearer"),
        (SECRET, "Bearer "),
        (SECRET, f"Basic {SECRET}"),
        (SECRET, f"Bearer {SECRET}x"),
        (SECRET, f"Bearer {SECRET[:-1]}"),
        (SECRET, f"Bearer x, Bearer {SECRET}"),
        (None, "Bearer "),
        (None, "Bearer None"),
        ("", "Bearer "),
        ("", "Bearer"),
    ],
)
def test_without_the_secret_every_upload_is_refused(
    folder: Path, secret: str | None, authorization: str | None
) -> None:
    """The same 401 as the platform's, before the body is read.

    Planted: an empty secret compared; the scheme ignored; the body read first.
    """
    with (
        Served(ingest_app(folder, lambda: secret)) as served,
        served.connect(
            *([f"Authorization: {authorization}"] if authorization is not None else []),
            "Content-Length: 1000",
            "Expect: 100-continue",
        ) as connection,
    ):
        response = http.client.HTTPResponse(connection)
        response.begin()
        assert response.status == 401
        assert response.headers["WWW-Authenticate"] == "Bearer"
        assert response.read() == (
            b'{"code":"unauthorized","error":"missing or invalid token for this workspace"}\n'
        )
    assert left(folder) == []


def test_secret_is_read_for_every_request(folder: Path) -> None:
    """A new secret applies immediately, and so does a removed one."""
    current: list[str | None] = [None]
    with Served(ingest_app(folder, lambda: current[0])) as served:
        for secret, status in [(None, 401), (SECRET, 200), ("another", 401), (SECRET, 200)]:
            current[0] = secret
            assert served.post(form(file("a", b"a"))).status_code == status


def test_bearer_is_any_case_as_on_the_platform(served: Served) -> None:
    """The scheme is not case-sensitive (RFC 9110, 11.1)."""
    response = served.post(form(file("a", b"a")), {"Authorization": f"bEARER  {SECRET}"})
    assert response.status_code == 200


def test_content_length_over_the_cap_is_refused_before_a_byte_is_read(folder: Path) -> None:
    """And a byte less is not. Planted: Content-Length ignored."""
    limits = IngestLimits(MIB, 2 * MIB, drain_timeout=0.1)
    with Served(ingest_app(folder, lambda: SECRET, limits=limits)) as served:
        with served.connect(AUTHORIZED, f"Content-Length: {3 * MIB + 1}") as connection:
            assert answer(connection) == (
                413,
                {
                    "error": "request body exceeds limit",
                    "code": "request_too_large",
                    "max": 2 * MIB,
                },
            )
        padding = 3 * MIB - len(form(file("a", b"a")))
        assert served.post(form(file("a", b"a")) + b" " * padding).status_code == 200


def test_request_id_is_echoed_if_it_is_sane(served: Served) -> None:
    """Otherwise a new one is created. Planted: any id echoed; none on a 404."""
    for path, headers in [(INGEST_PATH, {}), ("/", {}), (INGEST_PATH, {"Authorization": "x"})]:
        for given in ["abc-1.2:3/4+5=6@7", "x" * 129, "two words", ""]:
            response = served.http.post(path, headers={"X-Request-ID": given, **headers})
            got = response.headers["X-Request-ID"]
            assert (got == given) == (given == "abc-1.2:3/4+5=6@7")
            assert 0 < len(got) <= 128


def test_other_paths_and_methods_are_json_errors(served: Served, folder: Path) -> None:
    """As on the platform. Planted: the redirect of a trailing slash."""
    for path in ["/", INGEST_PATH + "/", "/internal"]:
        response = served.http.post(path)
        assert (response.status_code, response.json()["code"]) == (404, "not_found")
    for method in ["GET", "PUT", "DELETE", "OPTIONS"]:
        response = served.http.request(method, INGEST_PATH)
        assert response.status_code == 405
        assert response.headers["Allow"] == "POST"
        assert response.json() == {
            "error": "this path has other methods; see the Allow header",
            "code": "method_not_allowed",
        }
    assert served.http.head(INGEST_PATH).status_code == 405


def test_route_goes_into_another_application(folder: Path) -> None:
    """With the same answers, including errors."""
    with Served(Starlette(routes=[ingest_route(folder, lambda: SECRET)])) as served:
        assert served.post(form(file("a", b"a"))).status_code == 200
        assert served.post(b"").json()["code"] == "broken_body"
        assert served.http.get(INGEST_PATH).json()["code"] == "method_not_allowed"
    assert len(left(folder)) == 1


def test_on_stored_that_fails_undoes_nothing(folder: Path, logged: Callable[[str], bool]) -> None:
    """The file is stored, and the answer says so."""

    def fail(_: StoredFile) -> None:
        raise RuntimeError("planted")

    with Served(ingest_app(folder, lambda: SECRET, on_stored=fail)) as served:
        assert served.post(form(file("a", b"a"))).status_code == 200
    assert len(left(folder)) == 1
    assert logged("on_stored failed")


def test_body_that_stops_is_refused(folder: Path) -> None:
    """Also one that trickles. Planted: no limit; a limit per chunk instead of a rate."""
    limits = IngestLimits(body_window=0.3)
    body = form(file("a", b"a" * 500), file("b", b"b" * 200_000))
    with Served(ingest_app(folder, lambda: SECRET, limits=limits)) as served:
        for drips in (False, True):
            with served.connect(AUTHORIZED, f"Content-Length: {len(body)}") as connection:
                connection.sendall(body[:100_000])
                for i in range(100_000, len(body)):
                    if select.select([connection], [], [], 0.05)[0]:
                        break
                    if drips:
                        connection.send(body[i : i + 1])
                assert answer(connection) == (
                    408,
                    {
                        "error": "request body arrived too slowly; "
                        "try again on a better connection",
                        "code": "body_too_slow",
                    },
                )
            assert left(folder) == []


def test_client_that_vanishes_leaves_nothing(
    served: Served, folder: Path, logged: Callable[[str], bool]
) -> None:
    """Cut at random places, with FIN and RST. Planted: files kept at a disconnect."""
    rng = random.Random(20260505)
    body = form(file("a", b"a" * MIB), file("b", b"b" * 100), file("c", b"c" * MIB))
    for i in range(20):
        cut = rng.randrange(len(body)) if i else len(body) - 1
        reported = f"Content-Length: {len(body)}" if i % 2 else "Transfer-Encoding: chunked"
        with served.connect(AUTHORIZED, reported, f"X-Request-ID: cut-{i}-") as connection:
            if i % 2 == 0:
                connection.sendall(f"{len(body):x}\r\n".encode())
            connection.sendall(body[:cut])
            if i % 3 == 0:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        eventually(
            f"cut {i} is noticed",
            functools.partial(logged, f"aborted by the client, request cut-{i}-"),
        )
        assert left(folder) == []
    assert served.post(body).status_code == 200
    assert len(left(folder)) == 3


def test_refusals_leave_no_files_and_no_descriptors(folder: Path) -> None:
    """Files written before it are deleted. Planted: files kept; a descriptor not closed."""
    limits = IngestLimits(MIB, 2 * MIB)
    good = file("good", b"g" * 1000)
    bodies = [
        form(good, file("big", b"b" * (MIB + 1))),
        form(*[good] * 65),
        form(good, b"--b\r\n\r\n\r\n"),
        form(good)[:-8],
        good + b"--b\r\nContent-Disposition: form-data; name=files\r\n\r\nopen",
        form(good, file("n" * 40_000, b"")),
        form(*[file("m", b"m" * MIB)] * 2, file("one", b"1")),
    ]
    with Served(ingest_app(folder, lambda: SECRET, limits=limits)) as served:
        for body in bodies:
            assert served.post(body).status_code in (400, 413)
        gc.collect()
        before = len(os.listdir("/dev/fd"))
        for body in bodies * 3:
            assert served.post(body).status_code in (400, 413)
            assert left(folder) == []
        gc.collect()
        after = len(os.listdir("/dev/fd"))
    assert after <= before + 2  # connections that are still closing


@pytest.mark.parametrize("ending", ["close", "keep-alive"])
@pytest.mark.parametrize(
    ("method", "authorization", "code"),
    [
        ("POST", AUTHORIZED, "broken_body"),
        ("POST", "Authorization: Bearer x", "unauthorized"),
        ("PUT", AUTHORIZED, "method_not_allowed"),
        ("POST /no/such", AUTHORIZED, "not_found"),
    ],
)
def test_refused_client_may_finish_sending(
    served: Served, method: str, authorization: str, code: str, ending: str
) -> None:
    """A client that writes all of its body before it reads gets the answer.

    Planted: no drain; none for a 401, for another method, or for another path.
    """
    for _ in range(3):
        with socket.create_connection(served.address, PATIENCE) as connection:
            at = method if " " in method else f"{method} {INGEST_PATH}"
            lines = [f"{at} HTTP/1.1", "Host: a", authorization]
            lines += [f"Content-Type: {TYPE['Content-Type']}", f"Content-Length: {20 * MIB}"]
            connection.sendall("\r\n".join([*lines, f"Connection: {ending}", "", ""]).encode())
            connection.sendall(b"x" * (20 * MIB))
            assert answer(connection)[1]["code"] == code
            assert connection.recv(1) == b""


def test_client_that_got_100_continue_may_finish_sending(served: Served) -> None:
    """With Expect, and refused because of its body. Planted: no drain after Expect."""
    with served.connect(
        AUTHORIZED, f"Content-Length: {20 * MIB}", "Expect: 100-continue", "Connection: close"
    ) as connection:
        assert b"100 Continue" in connection.recv(100)
        connection.sendall(b"x" * (20 * MIB))
        assert answer(connection)[1]["code"] == "broken_body"


def test_an_epilogue_is_discarded(folder: Path) -> None:
    """Of any length: the files are stored, and the client gets the answer. Planted: no drain."""
    limits = IngestLimits(MIB, MIB)
    body = form(file("a", b"a")) + b"x" * (20 * MIB)
    with (
        Served(ingest_app(folder, lambda: SECRET, limits=limits)) as served,
        served.connect(AUTHORIZED, "Transfer-Encoding: chunked", "Connection: close") as connection,
    ):
        connection.sendall(b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))
        status, reported = answer(connection)
        assert (status, [f["size"] for f in reported["files"]]) == (200, [1])
    assert len(left(folder)) == 1


def test_refused_client_is_disconnected_after_the_drain_timeout(folder: Path) -> None:
    """A client that continues sending is disconnected. Planted: an endless drain."""
    limits = IngestLimits(drain_timeout=0.2)
    with (
        Served(ingest_app(folder, lambda: SECRET, limits=limits)) as served,
        served.connect(AUTHORIZED, "Content-Length: 50000") as connection,
    ):
        connection.sendall(b"x" * 10_000)
        assert answer(connection)[1]["code"] == "broken_body"
        assert connection.recv(1) == b""


def test_client_that_expects_100_continue_is_refused_at_once(folder: Path) -> None:
    """With Expect it is refused at once, without 100. Planted: a drain for it too."""
    limits = IngestLimits(drain_timeout=1000)
    with (
        Served(ingest_app(folder, lambda: SECRET, limits=limits)) as served,
        socket.create_connection(served.address, PATIENCE) as connection,
    ):
        lines = [f"POST {INGEST_PATH} HTTP/1.1", "Host: a", AUTHORIZED, "Content-Type: text/plain"]
        lines += ["Content-Length: 50000", "Expect: 100-continue", "", ""]
        connection.sendall("\r\n".join(lines).encode())
        received = b""
        while more := connection.recv(4096):
            received += more
        assert received.startswith(b"HTTP/1.1 400")
        assert b"not_multipart" in received


def test_link_at_the_name_of_a_part_is_not_followed(
    served: Served, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And no existing file is touched. Planted: O_CREAT without O_EXCL and O_NOFOLLOW."""
    chosen = "0123456789abcdef" * 2
    monkeypatch.setattr(secrets, "token_hex", lambda _: chosen)
    exposed_poller = tmp_path / "exposed_poller"
    exposed_poller.write_bytes(b"precious")
    part = folder / f".{chosen}-a.txt.part"
    for target in (exposed_poller, tmp_path / "nowhere"):
        part.symlink_to(target)
        response = served.post(form(file("a.txt", b"evil")))
        assert response.status_code == 500
        assert response.json() == {"error": "could not stage file", "code": "stage_failed"}
        assert left(folder) == [part.name]
        part.unlink()
    # At the name of the file itself a link is replaced, not followed.
    final = folder / f"{chosen}-a.txt"
    final.symlink_to(exposed_poller)
    assert served.post(form(file("a.txt", b"good"))).status_code == 200
    assert not final.is_symlink()
    assert final.read_bytes() == b"good"
    assert exposed_poller.read_bytes() == b"precious"
    assert not (tmp_path / "nowhere").exists()


def test_folder_that_cannot_be_used_is_the_disks_fault(
    served: Served, folder: Path, logged: Callable[[str], bool]
) -> None:
    """A 500 without details; a deleted folder is created again."""
    folder.rmdir()
    folder.write_bytes(b"in the way")
    response = served.post(form(file("a.txt", b"a")))
    assert response.status_code == 500
    assert response.json() == {"error": "could not stage file", "code": "stage_failed"}
    assert logged("upload failed")
    folder.unlink()
    assert served.post(form(file("a.txt", b"a"))).status_code == 200
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


class Held:
    """Blocks the nth call of a function of ``os`` until it is released."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str, nth: int) -> None:
        """Replace ``os.<name>``."""
        self.entered, self.go, self.done = (threading.Event() for _ in range(3))
        real, calls = getattr(os, name), iter(range(nth))

        def held(*args: Any, **more: Any) -> Any:
            if next(calls, None) != nth - 1:
                return real(*args, **more)
            self.entered.set()
            assert self.go.wait(PATIENCE)
            try:
                return real(*args, **more)
            finally:
                self.done.set()

        monkeypatch.setattr(os, name, held)


async def upload(app: Starlette, body: bytes, piece: int = 1 << 16) -> list[Message]:
    """Call the application as a server does; return the messages it sent."""
    sent: list[Message] = []
    pieces = [body[i : i + piece] for i in range(0, len(body), piece)]

    async def receive() -> Message:
        await asyncio.sleep(0)
        return {"type": "http.request", "body": pieces.pop(0), "more_body": bool(pieces)}

    async def send(message: Message) -> None:
        sent.append(message)

    headers = {"authorization": f"Bearer {SECRET}", "content-type": TYPE["Content-Type"]}
    scope = {
        "type": "http",
        "method": "POST",
        "path": INGEST_PATH,
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
    }
    await app(scope, receive, send)
    return sent


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("call", "nth"),
    [("fsync", 1), ("fsync", 2), ("rename", 1), ("rename", 2), ("fsync", 3)],
    ids=["first file", "second file", "first rename", "second rename", "folder"],
)
@pytest.mark.parametrize("let_go", ["after", "before"])
async def test_cancelled_upload_leaves_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, call: str, nth: int, let_go: str
) -> None:
    """Whatever a thread is doing at that moment, or has just done.

    Planted: renamed files not deleted; the folder closed while the thread uses it; nothing
    deleted by the thread.
    """
    app = ingest_app(folder, lambda: SECRET)
    body = form(file("a", b"a" * 1000), file("b", b"b" * 1000))
    held = Held(monkeypatch, call, nth)
    task = asyncio.create_task(upload(app, body))
    assert await asyncio.to_thread(held.entered.wait, PATIENCE)
    if let_go == "before":
        held.go.set()
        assert held.done.wait(PATIENCE)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    held.go.set()
    assert await asyncio.to_thread(held.done.wait, PATIENCE)
    await asyncio.to_thread(eventually, "nothing left", lambda: left(folder) == [])
    monkeypatch.undo()
    assert (await upload(app, body))[0]["status"] == 200
    assert len(left(folder)) == 2


@pytest.mark.anyio
async def test_thread_that_runs_after_the_request_ended_does_nothing(folder: Path) -> None:
    """Its descriptors may belong to other files by then. Planted: no check."""
    header = PartHeader({b"content-disposition": b"form-data; name=files"})
    with contextlib.suppress(asyncio.CancelledError), Upload(folder, IngestLimits()) as upload:
        await upload.take(header)
        await upload.take(PartEnd())
        raise asyncio.CancelledError
    upload._rename()
    upload._seal()
    assert left(folder) == []


@pytest.mark.anyio
async def test_upload_cancelled_at_any_moment_leaves_all_or_nothing(folder: Path) -> None:
    """At the first step, the second, and so on to the end. Planted: no cleanup."""
    app = ingest_app(folder, lambda: SECRET)
    body = form(file("a", b"a" * 5000), file("b", b"b" * 5000))
    for steps in range(200):
        task = asyncio.create_task(upload(app, body, 500))
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
            break
        await asyncio.to_thread(eventually, "nothing left", lambda: left(folder) == [])
    # With slow threads it may never finish; then nothing is left.
    assert len(left(folder)) in (0, 2)


@pytest.mark.anyio
async def test_failure_of_the_disk_leaves_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, logged: Callable[[str], bool]
) -> None:
    """At any sync or rename. Planted: errors of sync ignored; renamed files kept."""
    app = ingest_app(folder, lambda: SECRET)
    body = form(file("a", b"a"), file("b", b"b"))
    for name, nth in [("fsync", 1), ("fsync", 2), ("rename", 1), ("rename", 2), ("fsync", 3)]:
        calls = iter(range(nth))
        real = getattr(os, name)

        def failing(
            *args: Any, calls: Iterator[int] = calls, nth: int = nth, real: Any = real, **more: Any
        ) -> Any:
            if next(calls, None) == nth - 1:
                raise OSError(5, "planted")
            return real(*args, **more)

        with monkeypatch.context() as patch:
            patch.setattr(os, name, failing)
            sent = await upload(app, body)
        assert sent[0]["status"] == 500
        assert json.loads(sent[1]["body"]) == {
            "error": "could not stage file",
            "code": "stage_failed",
        }
        assert left(folder) == []
    assert logged("upload failed")


# Serves the ingest in its own process, and prints its address.
_SERVER: Final = """
import resource, socket, sys
from pathlib import Path
import uvicorn
from molecule_workspace.ingest.app import ingest_app
limit = int(sys.argv[2])
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
listener = socket.create_server(("127.0.0.1", 0))
app = ingest_app(Path(sys.argv[1]), lambda: "inbound-secret")
print(listener.getsockname()[1], flush=True)
uvicorn.Server(uvicorn.Config(app, http="h11")).run([listener])
"""


@contextlib.contextmanager
def process(folder: Path, file_limit: int = 0) -> Iterator[tuple[int, httpx.Client]]:
    """Run an ingest with RLIMIT_FSIZE ``file_limit``; yield its pid."""
    with subprocess.Popen(
        [sys.executable, "-c", _SERVER, str(folder), str(file_limit)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as running:
        try:
            assert running.stdout is not None
            port = int(running.stdout.readline())
            with httpx.Client(
                base_url=f"http://127.0.0.1:{port}",
                headers=TYPE | {"Authorization": f"Bearer {SECRET}"},
                timeout=60,
            ) as client:
                yield running.pid, client
        finally:
            running.kill()


def endless(size: int) -> Iterator[bytes]:
    """Yield a form with a file of ``size`` bytes, without its end."""
    yield file("a", b"")[:-2]
    for _ in range(size // MIB):
        yield b"x" * MIB


def test_full_disk_is_a_500_and_leaves_nothing(folder: Path) -> None:
    """The disk accepts 1 MiB of a file. Smaller files arrive before and after.

    Planted: the part kept; the error in the answer.
    """
    with process(folder, file_limit=MIB) as (_, client):
        for _ in range(2):
            response = client.post(INGEST_PATH, content=form(file("a", b"a" * MIB)))
            assert response.status_code == 200
        kept = left(folder)
        body = form(file("a", b"a"), file("b", b"b" * (3 * MIB)), file("c", b"c"))
        response = client.post(INGEST_PATH, content=body)
        assert response.status_code == 500
        assert response.json() == {"error": "could not stage file", "code": "stage_failed"}
        assert left(folder) == kept
        response = client.post(INGEST_PATH, content=form(file("a", b"a")))
        assert response.status_code == 200


def peak(pid: int) -> int:
    """Return the peak memory of a process in bytes; without /proc the current."""
    if not Path("/proc").exists():
        return int(subprocess.check_output(["ps", "-o", "rss=", "-p", str(pid)])) << 10
    status = Path(f"/proc/{pid}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) << 10


def test_memory_does_not_grow_with_the_upload(folder: Path) -> None:
    """90 MiB need the memory of a few chunks. Planted: the body buffered before parsing."""
    with process(folder) as (pid, client):
        assert client.post(INGEST_PATH, content=form(file("a", b"a"))).status_code == 200
        before = peak(pid)
        chunks = [*endless(90 * MIB), b"\r\n--b--\r\n"]
        response = client.post(INGEST_PATH, content=iter(chunks))
        assert response.json()["files"][0]["size"] == 90 * MIB
        assert peak(pid) - before < 8 * MIB


def test_parts_of_a_killed_process_are_removed_at_the_next_start(folder: Path) -> None:
    """Only these, and only if no other process serves the folder.

    Planted: nothing deleted; every hidden file deleted; deleted while another process writes.
    """
    mine = ["notes.part", ".hidden", f".{'0' * 32}-a.part.txt", f"{'0' * 32}-a.part", ".0-a.part"]
    folder.mkdir(parents=True)
    for name in mine:
        (folder / name).write_bytes(b"mine")
    begun = (
        f"POST {INGEST_PATH} HTTP/1.1\r\nHost: a\r\n{AUTHORIZED}\r\nContent-Length: 1000000\r\n"
        f"Content-Type: {TYPE['Content-Type']}\r\n\r\n"
    ).encode() + file("a", b"a" * 1000)
    with (
        process(folder) as (pid, client),
        socket.create_connection(("127.0.0.1", client.base_url.port or 0)) as connection,
    ):
        connection.sendall(begun)
        eventually("a part", lambda: len(left(folder)) == len(mine) + 1)
        during = left(folder)
        with process(folder):
            assert left(folder) == during
        os.kill(pid, signal.SIGKILL)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert left(folder) == during
    ingest_app(folder, lambda: SECRET)
    assert left(folder) == sorted(mine)


@contextlib.contextmanager
def pushed(
    platform: LocalPlatform, folder: Path, limits: IngestLimits
) -> Iterator[tuple[Served, Workspace]]:
    """Serve an ingest that is registered at the platform for a workspace."""
    secret: list[str] = []
    with Served(ingest_app(folder, lambda: secret[0], limits=limits)) as served:
        workspace = platform.operator.create("pushed", "push", served.url)
        secret.append(workspace.inbound_secret)
        yield served, workspace


def test_upload_goes_through_the_platform(platform: LocalPlatform, folder: Path) -> None:
    """The bytes arrive unchanged, and the sender gets the ingest's answer."""
    rng = random.Random(20260505)
    samples = [
        Sample("notes of today.md", rng.randbytes(100_000)),
        Sample("empty", b""),
        Sample("big.bin", rng.randbytes(5 * MIB), "image/png"),
    ]
    with pushed(platform, folder, IngestLimits()) as (_, workspace):
        files = platform.operator.upload(workspace.id, samples)
    assert [(f["name"], f["mimeType"]) for f in files] == [
        ("notes_of_today.md", "text/markdown"),
        ("empty", "application/octet-stream"),
        ("big.bin", "image/png"),
    ]
    for described, sample in zip(files, samples, strict=True):
        path = Path(described["uri"].removeprefix("workspace:"))
        assert path.read_bytes() == sample.content


@pytest.mark.parametrize("size", [2 * MIB, 20 * MIB])
@pytest.mark.parametrize("reported", ["with length", "chunked"])
def test_refusal_goes_through_the_platform(
    platform: LocalPlatform, folder: Path, size: int, reported: str
) -> None:
    """A smaller limit than the platform's: its 413 is relayed unchanged, and is never a 502.

    Planted: the connection closed in the middle of the answer.
    """
    file_cap = {"error": "file exceeds per-file cap", "filename": "a", "max": MIB}
    request_cap = {"error": "request body exceeds limit", "max": MIB // 2}
    body = form(file("a", b"a" * size))
    for limits, code, fields in [
        (IngestLimits(max_file_bytes=MIB), "file_too_large", file_cap),
        (IngestLimits(max_request_bytes=MIB // 2), "request_too_large", request_cap),
    ]:
        with pushed(platform, folder, limits) as (_, workspace):
            for _ in range(5):
                pieces = (body[i : i + MIB] for i in range(0, len(body), MIB))
                answer = platform.operator.http.post(
                    f"/workspaces/{workspace.id}/chat/uploads",
                    content=body if reported == "with length" else pieces,
                    headers=TYPE,
                )
                assert answer.status_code == 413, answer.text
                assert answer.json() == {"code": code, **fields}
        assert left(folder) == []


def test_wrong_secret_goes_through_the_platform(platform: LocalPlatform, folder: Path) -> None:
    """The ingest's own 401 is relayed, and is never a 502."""
    with pushed(platform, folder, IngestLimits()) as (served, _):
        other = platform.operator.create("other", "push", served.url)
        for size in [1, MIB, 5 * MIB] * 3:
            answer = platform.operator.http.post(
                f"/workspaces/{other.id}/chat/uploads",
                content=form(file("a", b"a" * size)),
                headers=TYPE,
            )
            assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")
