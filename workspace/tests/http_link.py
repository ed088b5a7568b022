"""One end of a connection that the bad network speaks HTTP/1.1 on."""

import asyncio
import contextlib
import socket
import struct
import urllib.parse
from collections.abc import AsyncIterator, Coroutine
from typing import Any, Final

import h11

CHUNK: Final = 1 << 16


class Cut(Exception):  # noqa: N818 - an order, not an error
    """The connection is to be closed."""

    def __init__(self, reset: bool) -> None:
        """Close with RST, or with FIN."""
        super().__init__()
        self.reset = reset


class Link:
    """One end of a connection: a stream, and the HTTP spoken on it."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        role: type[h11.CLIENT] | type[h11.SERVER] = h11.SERVER,
    ) -> None:
        """Speak HTTP on a stream, as a server or as a client."""
        self.reader, self.writer = reader, writer
        self.wire = h11.Connection(role)
        # drain() then waits until the kernel has taken everything.
        writer.transport.set_write_buffer_limits(0)

    async def next_event(self) -> Any:
        """Return the next h11 event, or h11.PAUSED."""
        while (event := self.wire.next_event()) is h11.NEED_DATA:
            self.wire.receive_data(await self.reader.read(CHUNK))
        return event

    async def body(self) -> AsyncIterator[h11.Data]:
        """Receive the body of the request whose head was received."""
        if self.wire.they_are_waiting_for_100_continue:
            await self.send(h11.InformationalResponse(status_code=100, headers=[]))
        while isinstance(event := await self.next_event(), h11.Data):
            yield event

    async def send(self, event: Any) -> None:
        """Send an h11 event."""
        await self.write(self.wire.send(event) or b"")

    async def write(self, data: bytes) -> None:
        """Send bytes as they are, and wait until the kernel has them."""
        self.writer.write(data)
        await self.writer.drain()

    async def unless_gone(self, work: Coroutine[Any, Any, None]) -> None:
        """Do the work, but cancel it when the other end disconnects."""
        task = asyncio.ensure_future(work)
        incoming = asyncio.ensure_future(self.reader.read(CHUNK))
        try:
            await asyncio.wait({task, incoming}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done() and not incoming.result():
                raise Cut(False)
            await task
        finally:
            task.cancel()
            incoming.cancel()
            await asyncio.gather(task, incoming, return_exceptions=True)
            # A client may send its next request before this one counts as answered.
            if not incoming.cancelled() and incoming.exception() is None:
                self.wire.receive_data(incoming.result())

    def close(self, reset: bool) -> None:
        """Close with RST, or with FIN; does not wait."""
        if reset:
            raw = self.writer.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        # The kernel has everything that was written, or the peer does not read.
        self.writer.transport.abort()


@contextlib.asynccontextmanager
async def connected(target: str) -> AsyncIterator[Link]:
    """Connect to the platform at the URL ``target``, for one request."""
    address = urllib.parse.urlsplit(target)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    link = Link(reader, writer, h11.CLIENT)
    try:
        yield link
    finally:
        # What the platform still sends is discarded.
        writer.transport.abort()
