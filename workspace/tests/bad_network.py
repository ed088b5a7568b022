"""A network that misbehaves on request: a proxy on loopback in front of a platform.

It understands just enough HTTP/1.1 to know which request an answer belongs to. A hook looks at
each request and returns the Treatment for its answer; without one it is forwarded unchanged::

    with BadNetwork(platform.base_url) as network:
        network.on_request = in_turn([Treatment(cut_after=n) for n in (100_000, 2_000_000)])
        poll(network.url)
        assert network.sent("/content") < 1.3 * size

The proxy runs in its own thread, so that synchronous and coroutine tests can both use it;
every public method may be called from any thread. Each request goes to the platform over a
separate connection, so that a restarted platform does not affect the next request.
"""

import asyncio
import concurrent.futures
import contextlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Self

import h11

from http_link import CHUNK, Cut, Link, connected

# A reset discards what the kernel has not delivered yet. With a small buffer that is little,
# so "sent" stays close to what the client received.
_SEND_BUFFER: Final = 1 << 16
_STEPS_PER_SECOND: Final = 20


@dataclass
class Seen:
    """A request that passed the proxy. ``status`` and ``sent`` change while it is answered."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    """By lower-case name."""
    status: int | None = None
    """Status of the answer; None until it is known."""
    sent: int = 0
    """Bytes of the answer's body that were sent to the client."""


@dataclass(frozen=True)
class Answer:
    """An answer of the proxy itself; the connection closes after it.

    A body given as a function may be endless; then it has no length unless ``headers`` name one.
    """

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | Callable[[], Iterable[bytes]] = b""

    @classmethod
    def of_json(cls, value: Any, status: int = 200, **headers: str) -> Self:
        """Return an answer with a JSON body; ``_`` in a header's name stands for ``-``."""
        named = {name.replace("_", "-"): text for name, text in headers.items()}
        kind = {"Content-Type": "application/json"}
        return cls(status, kind | named, json.dumps(value).encode())

    def head(self) -> bytes:
        """Return the encoded status line and headers."""
        headers = dict(self.headers) | {"Connection": "close"}
        framed = {name.lower() for name in headers} & {"content-length", "transfer-encoding"}
        if isinstance(self.body, bytes) and not framed:
            headers["Content-Length"] = str(len(self.body))
        lines = [f"HTTP/1.1 {self.status} {http.client.responses.get(self.status, 'Odd')}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        return "\r\n".join([*lines, "", ""]).encode("latin-1")

    def pieces(self) -> Iterable[bytes]:
        """Return the body in pieces."""
        if isinstance(self.body, bytes):
            return (self.body[at : at + CHUNK] for at in range(0, len(self.body), CHUNK))
        return self.body()


@dataclass(frozen=True)
class Treatment:
    """What is done to one request and its answer. Sizes are bytes of the answer's body."""

    refuse: bool = False
    """Close the connection at once; the platform never sees the request."""
    delay: float = 0.0
    """Seconds before the request is forwarded."""
    answer: Answer | bytes | None = None
    """Answer instead of the platform; bytes are sent as they are."""
    cut_after: int | None = None
    """Close the connection after so many bytes of the body; 0: before the header, so that the
    platform has processed the request and the answer is lost."""
    reset: bool = False
    """Close with RST instead of FIN."""
    stall_after: int | None = None
    """Stall after so many bytes of the body, until ``release``; 0: before the header."""
    bytes_per_second: int | None = None
    """Maximum rate of the body, in bytes per second."""


UNTOUCHED: Final = Treatment()

Hook = Callable[[Seen], Treatment | None]


def in_turn(treatments: Iterable[Treatment], suffix: str = "/content") -> Hook:
    """Return a hook that gives requests whose path ends in ``suffix`` one treatment each."""
    left = iter(treatments)
    return lambda seen: next(left, None) if seen.path.endswith(suffix) else None


def always(treatment: Treatment, suffix: str = "") -> Hook:
    """Return a hook that gives every request whose path ends in ``suffix`` the same treatment."""
    return lambda seen: treatment if seen.path.endswith(suffix) else None


class BadNetwork:
    """The proxy; a context manager that starts and stops it."""

    def __init__(self, target: str, on_request: Hook = lambda seen: None) -> None:
        """Prepare a proxy in front of the platform at the URL ``target``."""
        self.target = target
        """URL that requests are forwarded to; a change applies to the next request."""
        self.on_request = on_request
        """The hook, called in the proxy's thread; it must not block. Its exceptions are raised
        when the proxy stops."""
        self._changed = threading.Condition()
        self._requests: list[Seen] = []
        self._errors: list[Exception] = []
        self._links: set[asyncio.Task[None]] = set()
        # Reserves the port while nothing listens on it.
        self._place = socket.socket()
        self._place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self._place.bind(("127.0.0.1", 0))
        self.port: int = self._place.getsockname()[1]
        self._listener: socket.socket | None = None
        self._loop = asyncio.new_event_loop()
        self._released = asyncio.Event()
        self._thread = threading.Thread(target=self._loop.run_forever, name="bad-network")

    @property
    def url(self) -> str:
        """The URL at which clients reach the platform through this network."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def requests(self) -> list[Seen]:
        """The requests seen so far, in order."""
        with self._changed:
            return list(self._requests)

    def sent(self, suffix: str = "") -> int:
        """Return how many bytes of bodies went to clients for paths that end in ``suffix``."""
        return sum(seen.sent for seen in self.requests if seen.path.endswith(suffix))

    def count(self, suffix: str = "", method: str = "") -> int:
        """Return how many requests for paths that end in ``suffix`` were seen."""
        return sum(s.path.endswith(suffix) and s.method.startswith(method) for s in self.requests)

    def wait_until(self, condition: Callable[[], bool], seconds: float = 30.0) -> None:
        """Wait until ``condition`` holds; it is checked whenever something was forwarded.

        It blocks: a coroutine test awaits it in ``asyncio.to_thread``.

        Raises:
            TimeoutError: the condition did not hold in time.
        """
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(f"not within {seconds} s; seen: {self.requests[-20:]}")
            # It may depend on something that the proxy does not see, so it is also polled.
            with self._changed:
                self._changed.wait(0.1)

    def release(self) -> None:
        """Continue all stalled answers; one that stalls later waits for the next release."""
        self._run(self._release())

    def cut_all(self, *, reset: bool = False) -> None:
        """Close every connection that is open now."""
        self._run(self._cut_all(reset))

    def down(self, *, reset: bool = False) -> None:
        """Close every connection and refuse new ones."""
        self._run(self._unlisten())
        self._run(self._cut_all(reset))

    def up(self) -> None:
        """Accept connections again, at the same address."""
        self._run(self._listen())

    def __enter__(self) -> Self:
        """Start the proxy."""
        self._thread.start()
        self._run(self._listen())
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        """Stop the proxy and close its connections; raise its first error."""
        self.down()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._place.close()
        if error is None and self._errors:
            raise self._errors[0]

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        done: concurrent.futures.Future[None] = asyncio.run_coroutine_threadsafe(work, self._loop)
        done.result(30)

    async def _release(self) -> None:
        self._released.set()
        self._released = asyncio.Event()

    async def _listen(self) -> None:
        if self._listener is not None:
            return
        self._listener = socket.socket()
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        # Set before listening, so that every connection inherits it.
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
        self._listener.bind(("127.0.0.1", self.port))
        self._listener.listen(256)
        self._listener.setblocking(False)
        self._loop.add_reader(self._listener, self._accept, self._listener)

    async def _unlisten(self) -> None:
        if self._listener is not None:
            self._loop.remove_reader(self._listener)
            self._listener.close()
            self._listener = None

    async def _cut_all(self, reset: bool) -> None:
        links = list(self._links)
        for link in links:
            link.cancel("reset" if reset else "")
        await asyncio.gather(*links, return_exceptions=True)

    def _accept(self, listener: socket.socket) -> None:
        try:
            accepted, _ = listener.accept()
        except OSError:
            return  # The client has disconnected already.
        task = self._loop.create_task(self._serve(accepted))
        self._links.add(task)
        task.add_done_callback(self._links.discard)
        task.add_done_callback(lambda _: accepted.close())

    async def _serve(self, accepted: socket.socket) -> None:
        reset = False
        link = Link(*await asyncio.open_connection(sock=accepted))
        try:
            while await self._exchange(link):
                link.wire.start_next_cycle()
        except asyncio.CancelledError as cancelled:
            reset = "reset" in cancelled.args
        except Cut as cut:
            reset = cut.reset
        except (OSError, h11.RemoteProtocolError):
            pass  # If either end disconnects, the other is closed.
        except Exception as error:
            self._errors.append(error)
        finally:
            link.close(reset)

    async def _exchange(self, link: Link) -> bool:
        """Read one request and answer it; False when the connection is finished."""
        request = await link.next_event()
        if not isinstance(request, h11.Request):
            return False
        path, _, query = request.target.decode("latin-1").partition("?")
        headers = {name.decode(): value.decode("latin-1") for name, value in request.headers}
        seen = Seen(request.method.decode(), path, query, headers)
        with self._noting():
            self._requests.append(seen)
        treatment = self.on_request(seen) or UNTOUCHED
        if treatment.refuse:
            raise Cut(treatment.reset)
        if treatment.answer is not None:
            async for _ in link.body():
                pass
            await link.unless_gone(self._make_up(link, seen, treatment, treatment.answer))
            return False
        await asyncio.sleep(treatment.delay)
        async with connected(self.target) as platform:
            # A platform that refuses a body stops reading; its answer is forwarded all the same.
            with contextlib.suppress(ConnectionError):
                await platform.send(request)
                async for data in link.body():
                    await platform.send(data)
                await platform.send(h11.EndOfMessage())
            await link.unless_gone(self._relay(link, platform, seen, treatment))
        return link.wire.our_state is h11.DONE and link.wire.their_state is h11.DONE

    async def _relay(self, link: Link, platform: Link, seen: Seen, how: Treatment) -> None:
        while True:
            match event := await platform.next_event():
                case h11.Response():
                    await self._reach(seen, how)
                    with self._noting():
                        seen.status = event.status_code
                    await link.send(event)
                case h11.Data():
                    await self._pass(
                        bytes(event.data), seen, how, lambda piece: link.send(h11.Data(data=piece))
                    )
                case h11.ConnectionClosed():
                    raise Cut(False)
                case _:
                    await link.send(event)
                    if isinstance(event, h11.EndOfMessage):
                        return

    async def _make_up(
        self, link: Link, seen: Seen, how: Treatment, answer: Answer | bytes
    ) -> None:
        await asyncio.sleep(how.delay)
        await self._reach(seen, how)
        if isinstance(answer, bytes):
            return await link.write(answer)
        with self._noting():
            seen.status = answer.status
        await link.write(answer.head())
        for piece in answer.pieces() if seen.method != "HEAD" else ():
            await self._pass(piece, seen, how, link.write)

    async def _pass(
        self,
        data: bytes,
        seen: Seen,
        how: Treatment,
        send: Callable[[bytes], Coroutine[Any, Any, None]],
    ) -> None:
        """Send a piece of a body, as slowly and as far as the treatment allows."""
        while data:
            edges = [edge - seen.sent for edge in (how.cut_after, how.stall_after) if edge]
            if how.bytes_per_second:
                edges.append(max(1, how.bytes_per_second // _STEPS_PER_SECOND))
            size = min((edge for edge in edges if edge > 0), default=len(data))
            piece, data = data[:size], data[size:]
            # Counted first: a test that has received the bytes can rely on the count.
            released = self._released
            with self._noting():
                seen.sent += len(piece)
            await send(piece)
            await self._reach(seen, how, released)
            # Yield even without a pause, so that other connections make progress.
            await asyncio.sleep(len(piece) / how.bytes_per_second if how.bytes_per_second else 0)

    async def _reach(
        self, seen: Seen, how: Treatment, released: asyncio.Event | None = None
    ) -> None:
        """Apply the treatment at this point of the answer."""
        if seen.sent == how.stall_after:
            await (released or self._released).wait()
        if seen.sent == how.cut_after:
            raise Cut(how.reset)

    @contextlib.contextmanager
    def _noting(self) -> Iterator[None]:
        with self._changed:
            yield
            self._changed.notify_all()
