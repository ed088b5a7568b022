"""Tests of the faulty network itself: it does what a treatment says, and counts correctly."""

import http.server
import itertools
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import ClassVar

import httpx
import pytest

from bad_network import Answer, BadNetwork, Seen, Treatment, always, in_turn

BODY = bytes(range(256)) * 4096


class _Plain(http.server.BaseHTTPRequestHandler):
    """Answers GET with BODY (without length under /close), POST with the size of its body."""

    protocol_version = "HTTP/1.1"
    posted: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("X-Port", str(self.connection.getsockname()[1]))
        if self.path.startswith("/chunked"):
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for piece in (b"one", b"two"):
                self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            self.wfile.write(b"0\r\n\r\n")
            return
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(BODY)

    do_HEAD = do_GET  # noqa: N815

    def do_POST(self) -> None:
        got = len(self.rfile.read(int(self.headers["Content-Length"])))
        self.posted.append(self.path)
        reported = json.dumps({"got": got, "kind": self.headers["Content-Type"]}).encode()
        self.send_response(201)
        self.send_header("Content-Length", str(len(reported)))
        self.end_headers()
        self.wfile.write(reported)

    def log_message(self, *_: object) -> None:
        """Log nothing."""


class _Server(http.server.ThreadingHTTPServer):
    def handle_error(self, *_: object) -> None:
        """Ignore clients that disconnect."""


def _serve() -> _Server:
    server = _Server(("127.0.0.1", 0), _Plain)
    threading.Thread(target=server.serve_forever, args=(0.01,)).start()
    return server


def _end(server: _Server) -> None:
    server.shutdown()
    server.server_close()


@pytest.fixture
def target() -> Iterator[str]:
    """A plain server."""
    server = _serve()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    _end(server)


@pytest.fixture
def network(target: str) -> Iterator[BadNetwork]:
    """The bad network in front of it."""
    with BadNetwork(target) as running:
        yield running


@pytest.fixture
def client(network: BadNetwork) -> Iterator[httpx.Client]:
    """A client that uses the proxy."""
    with httpx.Client(base_url=network.url, timeout=20) as connected:
        yield connected


def _read_until_cut(client: httpx.Client, path: str) -> tuple[bytes, str]:
    """Return the received body, and how the connection ended."""
    got = bytearray()
    try:
        with client.stream("GET", path) as answer:
            for piece in answer.iter_raw():
                got += piece
    except httpx.RemoteProtocolError:
        return bytes(got), "fin"
    except httpx.ReadError:
        return bytes(got), "reset"
    return bytes(got), "end"


def _in_background(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def test_without_treatment_everything_passes_untouched(
    network: BadNetwork, client: httpx.Client
) -> None:
    """Planted: the relay drops the platform's headers."""
    answer = client.get("/a/content?x=1&y=%20", headers={"X-Mine": "me"})
    assert (answer.status_code, answer.content) == (200, BODY)
    assert answer.headers["X-Port"] == network.target.rpartition(":")[2]
    assert client.get("/chunked").content == b"onetwo"
    head = client.head("/head")
    assert (head.content, head.headers["Content-Length"]) == (b"", str(len(BODY)))
    posted = client.post("/p", content=BODY, headers={"Content-Type": "a/b"})
    assert (posted.status_code, posted.json()) == (201, {"got": len(BODY), "kind": "a/b"})

    assert [(s.method, s.path, s.query) for s in network.requests] == [
        ("GET", "/a/content", "x=1&y=%20"),
        ("GET", "/chunked", ""),
        ("HEAD", "/head", ""),
        ("POST", "/p", ""),
    ]
    assert network.requests[0].headers["x-mine"] == "me"
    assert [s.status for s in network.requests] == [200, 200, 200, 201]


def test_counts_bodies_by_the_end_of_the_path(network: BadNetwork, client: httpx.Client) -> None:
    """Planted: headers are counted too; every path is counted."""
    client.get("/a/content")
    client.get("/b/content")
    client.get("/chunked")
    assert network.sent("/content") == 2 * len(BODY)
    assert network.sent("/a/content") == len(BODY)
    assert network.sent() == 2 * len(BODY) + 6
    assert (network.count("/content"), network.count("", "POST"), network.count()) == (2, 0, 3)


def test_one_connection_carries_several_requests_even_early_ones(network: BadNetwork) -> None:
    """Planted: the proxy closes after each answer; it drops what arrives while it answers."""
    network.on_request = in_turn([Treatment(stall_after=0)], "")

    def released_until_both_are_seen() -> bool:
        network.release()
        return network.count() == 2

    address = ("127.0.0.1", network.port)
    with socket.create_connection(address, timeout=20) as raw, raw.makefile("rb") as lines:
        raw.sendall(b"GET /chunked HTTP/1.1\r\nHost: x\r\n\r\n")
        network.wait_until(lambda: network.count() == 1)
        raw.sendall(b"GET /chunked?2 HTTP/1.1\r\nHost: x\r\n\r\n")
        network.wait_until(released_until_both_are_seen)
        text = b""
        while text.count(b"\r\n0\r\n\r\n") < 2:
            line = lines.readline()
            assert line
            text += line
    assert text.count(b"HTTP/1.1 200") == 2


def test_a_client_that_asks_first_may_send_its_body(network: BadNetwork) -> None:
    """Planted: 100 Continue is left to the platform, which has not seen the request yet."""
    head = b"POST /p HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n"
    address = ("127.0.0.1", network.port)
    with socket.create_connection(address, timeout=5) as raw, raw.makefile("rb") as lines:
        raw.sendall(head)
        assert lines.readline().startswith(b"HTTP/1.1 100")
        raw.sendall(b"abc")
        assert any(line.startswith(b"HTTP/1.1 201") for line in lines)


@pytest.mark.parametrize("how", ["fin", "reset"])
def test_cuts_after_so_many_bytes_of_the_body(
    network: BadNetwork, client: httpx.Client, how: str
) -> None:
    """Planted: the cut is one piece late; RST and FIN are swapped."""
    plan = [Treatment(cut_after=n, reset=how == "reset") for n in (1, 70_000, 100_001)]
    network.on_request = in_turn(plan)
    for size in (1, 70_000, 100_001):
        assert client.head("/other").status_code == 200
        got, ended = _read_until_cut(client, "/x/content")
        assert ended == how
        # A reset may discard bytes that the kernel has not delivered.
        assert got == BODY[: len(got)]
        assert len(got) == size or (how == "reset" and len(got) < size)
        assert network.requests[-1].sent == size
    assert _read_until_cut(client, "/x/content") == (BODY, "end")


def test_cut_after_nothing_loses_the_answer_but_not_the_request(
    network: BadNetwork, client: httpx.Client
) -> None:
    """Planted: the header is sent before the cut; the request is not forwarded."""
    network.on_request = always(Treatment(cut_after=0), "/lost")
    with pytest.raises(httpx.RemoteProtocolError, match="without sending a response"):
        client.post("/lost", content=b"x", headers={"Content-Type": "a/b"})
    assert _Plain.posted[-1] == "/lost"
    assert network.requests[0].status is None
    assert network.requests[0].sent == 0


def test_refuses_a_request(network: BadNetwork, client: httpx.Client) -> None:
    """Planted: it is forwarded; the reset is a FIN."""
    network.target = "http://127.0.0.1:1"
    network.on_request = in_turn([Treatment(refuse=True), Treatment(refuse=True, reset=True)], "")
    with pytest.raises(httpx.RemoteProtocolError):
        client.get("/a")
    with pytest.raises(httpx.ReadError):
        client.get("/a")


def test_delays_a_request(network: BadNetwork, client: httpx.Client) -> None:
    """Planted: no delay."""
    network.on_request = always(Treatment(delay=0.3))
    begin = time.monotonic()
    assert client.get("/a").content == BODY
    assert time.monotonic() - begin >= 0.3


def test_trickles(network: BadNetwork, client: httpx.Client) -> None:
    """Planted: the rate is ignored."""
    network.on_request = always(Treatment(bytes_per_second=20_000, cut_after=8_000))
    begin = time.monotonic()
    got, _ = _read_until_cut(client, "/a")
    assert got == BODY[:8_000]
    assert time.monotonic() - begin >= 0.3


@pytest.mark.parametrize("after", [0, 5_000])
def test_stalls_until_released(network: BadNetwork, client: httpx.Client, after: int) -> None:
    """Planted: release opens the gate for good; the stall is skipped."""
    network.on_request = always(Treatment(stall_after=after))
    got: list[bytes] = []

    def fetch() -> None:
        got.append(client.get("/a").content)

    for n in (1, 2):
        fetching = _in_background(fetch)
        network.wait_until(
            lambda: network.count() == len(got) + 1 and network.sent() % len(BODY) == after
        )
        assert network.requests[-1].status == (200 if after else None)
        # The start of the stall is not observable, so a release may be too early.
        while fetching.is_alive():
            network.release()
            fetching.join(0.05)
        assert got == [BODY] * n
        assert network.sent() == n * len(BODY)


def test_a_stalled_client_times_out(network: BadNetwork) -> None:
    """Planted: the stall is skipped."""
    network.on_request = always(Treatment(stall_after=5_000))
    with pytest.raises(httpx.ReadTimeout):
        httpx.get(network.url, timeout=httpx.Timeout(20, read=2))
    assert network.sent() == 5_000


def test_invents_answers(network: BadNetwork, client: httpx.Client) -> None:
    """Planted: the length is missing; the status is always 200."""
    answers: list[Answer | bytes] = [
        Answer.of_json({"a": 1}, 503, Retry_After="7"),
        Answer(302, {"Location": "http://elsewhere.example/"}),
        b"HTTP/1.1 299 Odd\r\nContent-Length: 2\r\n\r\nhi",
    ]
    network.on_request = in_turn([Treatment(answer=answer) for answer in answers], "")
    network.target = "http://127.0.0.1:1"
    first = client.post("/a", content=BODY)
    assert (first.status_code, first.json(), first.headers["Retry-After"]) == (503, {"a": 1}, "7")
    assert first.headers["Content-Length"] == "8"
    second = client.get("/a")
    assert (second.status_code, second.headers["Location"]) == (302, "http://elsewhere.example/")
    third = client.get("/a")
    assert (third.status_code, third.reason_phrase, third.content) == (299, "Odd", b"hi")
    assert network.requests[0].status == 503


def test_invents_an_endless_body_that_starves_no_other_connection(
    network: BadNetwork, client: httpx.Client
) -> None:
    """Planted: the proxy does not notice that the reader of an endless body has disconnected."""
    endless = Answer(body=lambda: itertools.repeat(b"x" * 65536))
    network.on_request = always(Treatment(answer=endless), "/endless")
    with client.stream("GET", "/endless") as answer:
        pieces = answer.iter_raw()
        got = sum(len(piece) for piece, _ in zip(pieces, range(50), strict=False))
        assert got > 0
        assert client.get("/a").content == BODY
    # Without a reader, it stops sending.
    before = -1
    while before != (before := network.sent("/endless")):
        assert client.get("/a").content == BODY


def test_a_made_up_answer_can_be_cut_and_lie_about_its_length(
    network: BadNetwork, client: httpx.Client
) -> None:
    """Planted: treatments do not apply to made-up answers."""
    lie = Answer(headers={"Content-Length": "1000"}, body=b"y" * 500)
    network.on_request = in_turn([Treatment(answer=lie, cut_after=100), Treatment(answer=lie)], "")
    assert _read_until_cut(client, "/a") == (b"y" * 100, "fin")
    assert _read_until_cut(client, "/a") == (b"y" * 500, "fin")


def test_down_refuses_and_up_listens_at_the_same_address(
    network: BadNetwork, client: httpx.Client
) -> None:
    """Planted: down leaves open connections alone; up takes a new port."""
    network.on_request = always(Treatment(stall_after=1_000), "/stalled")
    ends: list[str] = []
    fetching = _in_background(lambda: ends.append(_read_until_cut(client, "/stalled")[1]))
    network.wait_until(lambda: network.sent() == 1_000)
    network.down()
    fetching.join(20)
    assert ends == ["fin"]
    with pytest.raises(httpx.ConnectError):
        client.get("/a")
    network.down()
    network.up()
    network.up()
    assert client.get("/a").content == BODY


def test_cut_all_can_reset(network: BadNetwork, client: httpx.Client) -> None:
    """Planted: the reset is a FIN."""
    network.on_request = always(Treatment(stall_after=1_000), "/stalled")
    ends: list[str] = []
    fetching = _in_background(lambda: ends.append(_read_until_cut(client, "/stalled")[1]))
    network.wait_until(lambda: network.sent() == 1_000)
    network.cut_all(reset=True)
    fetching.join(20)
    assert ends == ["reset"]
    assert client.get("/a").content == BODY


def test_the_target_can_change_and_disappear(network: BadNetwork, client: httpx.Client) -> None:
    """Planted: the first target is kept."""
    first = client.get("/a").headers["X-Port"]
    other = _serve()
    try:
        network.target = f"http://127.0.0.1:{other.server_address[1]}"
        assert client.get("/a").headers["X-Port"] == str(other.server_address[1]) != first
    finally:
        _end(other)
    with pytest.raises(httpx.RemoteProtocolError):
        client.get("/a")


def test_a_client_that_leaves_ends_its_request_to_the_platform(network: BadNetwork) -> None:
    """Planted: the client is not watched while the proxy waits for the platform."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(20)
        network.target = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(httpx.ReadTimeout):
            httpx.get(network.url, timeout=0.2)
        platform_side, _ = silent.accept()
        with platform_side:
            platform_side.settimeout(20)
            while platform_side.recv(65536):
                pass


def test_an_error_in_a_hook_is_raised(target: str) -> None:
    """Planted: errors of the hook are dropped."""

    def broken(seen: Seen) -> Treatment:
        raise KeyError(seen.path)

    network = BadNetwork(target, broken)
    network.__enter__()
    with pytest.raises(httpx.RemoteProtocolError):
        httpx.get(network.url)
    with pytest.raises(KeyError):
        network.__exit__(None, None, None)


def test_a_wait_that_times_out_reports_what_was_seen(
    network: BadNetwork, client: httpx.Client
) -> None:
    """Planted: the wait ends without an error."""
    client.get("/a")
    with pytest.raises(TimeoutError, match="path='/a'"):
        network.wait_until(lambda: network.count() == 2, 0.2)
