"""Downloads one staged file to disk, and resumes an interrupted download.

The announced size and SHA-256 are enforced: no byte beyond the size is written, and a file gets
its final name only if both match.
"""

import asyncio
import contextlib
import hashlib
import re
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from typing import Final, ParamSpec, TypeVar

import httpx

from molecule_workspace.inbox.client import CorruptError, PlatformClient, UnavailableError
from molecule_workspace.inbox.journal import DiskFullError, Entry, sync_folder
from molecule_workspace.inbox.part import PartFile, clear, is_kept, part_path

FLUSH_BYTES: Final = 1 << 20
"""Bytes collected in memory before they are written to disk."""

_ETAG: Final = re.compile(r'"[!#-~]{1,256}"')
"""A strong entity tag (RFC 9110, 8.8.3) that can be sent in If-Range."""

_CONTENT_RANGE: Final = re.compile(r"bytes (\d{1,18})-\d{1,18}/(?:\d{1,18}|\*)")

P = ParamSpec("P")
T = TypeVar("T")

Progress = Callable[[int], None]


class TooLargeError(Exception):
    """The file exceeds this workspace's maximum size."""


class Fetcher:
    """Downloads files into ``folder``; incomplete ones are in ``parts``."""

    def __init__(
        self, client: PlatformClient, folder: Path, parts: Path, max_file_bytes: int
    ) -> None:
        """Both folders must exist, on one file system."""
        self.folder, self.parts, self.max_file_bytes = folder, parts, max_file_bytes
        self._client = client
        self._etags: dict[str, str] = {}
        self._coming: dict[str, tuple[PartFile, int]] = {}

    async def fetch(self, entry: Entry, progress: Progress) -> str:
        """Download a file and give it its final name; return its SHA-256 in hex.

        ``progress`` is called with the number of bytes on disk, first with what an earlier attempt
        left. UnavailableError: interrupted; the next call resumes. CorruptError: wrong bytes, which
        were deleted. MissingError: the platform no longer has the file. DiskFullError, OSError: the
        file could not be written. BusyError: another poller is downloading it. TooLargeError.
        """
        if entry.size is not None and entry.size > self.max_file_bytes:
            raise TooLargeError(
                f"the file has {entry.size} bytes; the maximum is {self.max_file_bytes}"
            )
        with PartFile(self.parts, entry.stored, self.folder / entry.stored) as part:
            await _in_thread(part.load)
            if self._etag(entry) is None or (entry.size is not None and part.received > entry.size):
                # Without an ETag nothing proves that the part is the beginning of this file.
                await _in_thread(part.restart)
            if part.received and part.received == entry.size:
                progress(part.received)
            else:
                await self._receive(entry, part, progress)
            sha256 = await _in_thread(part.keep, entry.size, entry.sha256)
        self._etags.pop(entry.file_id, None)
        return sha256

    async def found(self, entry: Entry) -> tuple[int, str] | None:
        """Return size and SHA-256 of a file that already has its final name, and sync the name."""
        return await _in_thread(_found, self.folder / entry.stored)

    def left(self) -> list[Path]:
        """Return all parts on disk."""
        return list(self.parts.glob("*"))

    def tidy(self, left: Iterable[Path], unfinished: Iterable[Entry]) -> None:
        """Delete those of ``left`` that belong to no unfinished file."""
        wanted = {part_path(self.parts, entry.stored) for entry in unfinished}
        for path in left:
            if path not in wanted:
                clear(path)

    def forget(self, entry: Entry) -> None:
        """Delete the part of a file that will not arrive."""
        self._etags.pop(entry.file_id, None)
        clear(part_path(self.parts, entry.stored))

    async def _receive(self, entry: Entry, part: PartFile, progress: Progress) -> None:
        async with (
            self._room(entry, part),
            self._client.content(entry.file_id, self._resume(entry, part)) as response,
        ):
            await self._position(entry, part, response)
            progress(part.received)
            await self._copy(entry, part, response, progress)
        if entry.size is not None and part.received < entry.size:
            raise UnavailableError(f"the answer ended after {part.received} of {entry.size} bytes")

    @contextlib.asynccontextmanager
    async def _room(self, entry: Entry, part: PartFile) -> AsyncIterator[None]:
        """Reserve disk space for the rest of a file."""
        promised = sum(max(0, size - other.received) for other, size in self._coming.values())
        self._coming[entry.file_id] = part, entry.size or 0
        try:
            if entry.size is not None:
                await _in_thread(part.make_room, entry.size, promised)
            yield
        except DiskFullError:
            # Requesting one byte shows whether the platform still has the file: if not,
            # MissingError, and there is nothing to wait for.
            with contextlib.suppress(UnavailableError):
                async with self._client.content(entry.file_id, {"Range": "bytes=0-0"}):
                    pass
            raise
        finally:
            del self._coming[entry.file_id]

    def _etag(self, entry: Entry) -> str | None:
        """Return the file's ETag. It is the SHA-256, and therefore known after a restart too."""
        return self._etags.get(entry.file_id) or (f'"{entry.sha256}"' if entry.sha256 else None)

    def _resume(self, entry: Entry, part: PartFile) -> dict[str, str]:
        """Return the headers that request the missing range; none request the whole file."""
        etag = self._etag(entry)
        if part.received == 0 or etag is None:
            return {}
        return {"Range": f"bytes={part.received}-", "If-Range": etag}

    async def _position(self, entry: Entry, part: PartFile, response: httpx.Response) -> None:
        """Check that the answer continues where the part ends, or start the part again."""
        etag = response.headers.get("ETag", "")
        if _ETAG.fullmatch(etag):
            self._etags[entry.file_id] = etag
        length = response.headers.get("Content-Length", "")
        if response.status_code == 206:
            found = _CONTENT_RANGE.match(response.headers.get("Content-Range", ""))
            if not found or int(found[1]) != part.received or not part.received:
                await _in_thread(part.discard)
                raise CorruptError("the platform sent a different range than was requested")
        elif response.status_code == 416:
            await _in_thread(part.discard)
            raise CorruptError("the platform has fewer bytes than were already received")
        else:
            # Checked before restart: a login page must not discard what was received.
            if entry.size is not None and length.isdecimal() and int(length) != entry.size:
                raise CorruptError(f"the answer has {length} bytes; {entry.size} were announced")
            await _in_thread(part.restart)

    async def _copy(
        self, entry: Entry, part: PartFile, response: httpx.Response, progress: Progress
    ) -> None:
        limit = self.max_file_bytes if entry.size is None else entry.size
        buffer = bytearray()

        async def flush() -> None:
            data = bytes(buffer)
            buffer.clear()
            await _in_thread(part.write, data)
            progress(part.received)

        try:
            async for chunk in response.aiter_raw():
                buffer += chunk
                if part.received + len(buffer) > limit:
                    buffer.clear()
                    await _in_thread(part.discard)
                    if entry.size is None:
                        raise TooLargeError(f"the file is larger than the maximum of {limit} bytes")
                    raise CorruptError(f"the answer is longer than the {limit} bytes announced")
                if len(buffer) >= FLUSH_BYTES:
                    await flush()
        finally:
            # What was received before an interruption need not be sent again.
            if buffer:
                await flush()


def _found(path: Path) -> tuple[int, str] | None:
    if not is_kept(path):
        return None
    sync_folder(path.parent)
    with path.open("rb") as file:
        return path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()


async def _in_thread(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call in a thread; when cancelled, still wait until the thread is done.

    Otherwise the part's descriptor would be closed, and reused for another file, while the thread
    writes to it.
    """
    work = asyncio.ensure_future(asyncio.to_thread(call, *args, **kwargs))
    cancelled: asyncio.CancelledError | None = None
    while not work.done():
        try:
            await asyncio.wait([work])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        work.exception()  # retrieved, or asyncio logs that it never was
        raise cancelled
    return work.result()
