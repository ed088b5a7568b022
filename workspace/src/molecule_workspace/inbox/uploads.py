"""Brings announced files to disk: each once, complete, and acknowledged.

``Uploads`` is told of files by the rows of the inbox and by the platform's list of unacknowledged
ones. It writes each into its journal first, so that neither a crash nor a lost row loses it; then
it fetches the file (a few at once), checks size and SHA-256, syncs, gives it its name and
acknowledges it. What fails is tried again until it arrives or the platform has it no more.

No name from the network chooses a path: files are called ``<32 random hex digits>-<sanitized>``.
"""

import asyncio
import contextlib
import re
import time
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from molecule_workspace.inbox.client import (
    Backoff,
    CorruptError,
    CursorGoneError,
    MissingError,
    PlatformClient,
    UnavailableError,
)
from molecule_workspace.inbox.events import (
    FileAcked,
    FileArrived,
    FileDelayed,
    FileLost,
    FileProgress,
    FileStarted,
    Tell,
)
from molecule_workspace.inbox.fetch import Fetcher, TooLargeError
from molecule_workspace.inbox.journal import Announced, DiskFullError, Entry, Journal, State
from molecule_workspace.inbox.part import BusyError
from molecule_workspace.names import sanitize_filename

DEFAULT_FOLDER: Final = Path("/workspace/.molecule/chat-uploads")

DEFAULT_MAX_FILE_BYTES: Final = 1 << 30
"""Longest file that is fetched: 1 GiB, ten times what a platform takes by default."""

LIST_PAGE: Final = 500

LIST_PAGES: Final = 200
"""Pages that are read at most: more files than that are not staged for anybody."""

LIST_ATTEMPTS: Final = 5
"""How often the list is begun anew because the file to continue after is gone."""

DISK_PAUSE: Final = 10.0
"""Seconds between two looks at a disk that was full."""

BUSY_PAUSE: Final = 0.5
"""Seconds between two looks at a file that another poller is fetching."""

ACKS_AT_ONCE: Final = 2
"""Files acknowledged at once. Hundreds would leave the inbox and the heartbeat no connection."""

MAX_CORRUPT: Final = 3
"""After so many fetches that brought wrong bytes, messages no longer wait for the file."""

EXPIRED: Final = (
    "the platform has it no more; it expired, or another poller took it, before it was fetched"
)

GONE_CODE: Final = "pending_upload_not_found"
GONE_SENTENCE: Final = "pending upload not found, expired, or already acked"

_SHA256: Final = re.compile(r"[0-9a-f]{64}")


def parse_file(announced: Any) -> Announced:
    """Check what a row or the list says of a file; ValueError says what is wrong with it."""
    if not isinstance(announced, Mapping):
        raise ValueError("it describes no file")
    file_id = parse_uuid(announced.get("file_id"))
    if file_id is None:
        raise ValueError("its file_id is no UUID")
    name, size, sha256 = (announced.get(key) for key in ("name", "size", "sha256"))
    if size is not None and (type(size) is not int or not 0 <= size < 1 << 60):
        raise ValueError("its size is no number of bytes")
    if sha256 is not None and not (isinstance(sha256, str) and _SHA256.fullmatch(sha256.lower())):
        raise ValueError("its sha256 is none")
    # The platform has sanitized the name; but it is shown, and a stranger may play the platform.
    return Announced(
        file_id,
        sanitize_filename(name if isinstance(name, str) else ""),
        size,
        sha256.lower() if sha256 else None,
    )


def parse_uuid(value: Any) -> str | None:
    """Return a UUID in its usual form; None for anything else."""
    if not isinstance(value, str) or len(value) != 36:
        return None
    try:
        return str(uuid.UUID(value))
    except ValueError:
        return None


@dataclass
class _Delivery:
    """A file on its way. ``settled``: messages need not wait for it any longer."""

    file_id: str
    received: int = 0
    settled: asyncio.Event = field(default_factory=asyncio.Event)
    done: asyncio.Event = field(default_factory=asyncio.Event)


class Uploads:
    """The files of one workspace, from announcement to acknowledgement."""

    def __init__(
        self,
        client: PlatformClient,
        journal: Journal,
        fetcher: Fetcher,
        tell: Tell,
        *,
        at_once: int = 4,
        max_attempts: int | None = None,
    ) -> None:
        """After ``max_attempts`` failures in a row a file waits for the next run; None: never."""
        self.arrived = 0
        self.lost = 0
        self._client, self._journal, self._fetcher, self._tell = client, journal, fetcher, tell
        self._slots = asyncio.Semaphore(at_once)
        self._ack_slots = asyncio.Semaphore(ACKS_AT_ONCE)
        self._max_attempts = max_attempts
        self._deliveries: dict[str, _Delivery] = {}
        self._given_up: set[str] = set()
        self._group: asyncio.TaskGroup | None = None

    def start(self, group: asyncio.TaskGroup) -> None:
        """Go on with what an earlier run left; what comes runs in ``group``."""
        self._group = group
        left = self._fetcher.left()
        unfinished = self._journal.unfinished()
        for entry in unfinished:
            self._deliver(entry.file_id)
        self._fetcher.tidy(left, unfinished)

    def want(self, files: Iterable[Announced]) -> None:
        """See that these files arrive. DiskFullError: nothing of it is noted; try again."""
        announced = list(files)
        self._journal.want(announced)
        for file in announced:
            entry = self._journal.get(file.file_id)
            if entry is not None and entry.state in (State.WANTED, State.STORED):
                self._deliver(file.file_id)

    async def reconcile(self) -> None:
        """Take over what the platform's list of unacknowledged files has and the journal has not.

        An older platform has no list; the journal alone must do then.
        """
        after: str | None = None
        begun = 1
        for _ in range(LIST_PAGES):
            asked = time.time()
            try:
                page = await self._client.unacked(after, LIST_PAGE)
            except MissingError:
                if after is None or begun == LIST_ATTEMPTS:
                    return
                after, begun = None, begun + 1  # the file at the end of the page is gone
                continue
            except CursorGoneError as error:
                raise UnavailableError(f"the list of files cannot be read: {error}") from error
            files: list[Announced] = []
            for listed in page:
                with contextlib.suppress(ValueError):
                    files.append(parse_file(listed))
            for file in files:
                self._reopen(file, asked)
                await asyncio.sleep(0)
            self.want(files)
            if not files or len(page) < LIST_PAGE or files[-1].file_id == after:
                return
            after = files[-1].file_id

    def _reopen(self, file: Announced, asked: float) -> None:
        """Do again what was done before ``asked``, since the platform says that it was not."""
        entry = self._journal.get(file.file_id)
        if entry is None or entry.changed >= asked or entry.file_id in self._deliveries:
            return
        if entry.state is State.ACKED:
            self._journal.move(file.file_id, State.ACKED, State.STORED)
        elif entry.state is State.LOST and (file.size or 0) <= self._fetcher.max_file_bytes:
            self._journal.move(file.file_id, State.LOST, State.WANTED)

    async def settled(self, file_ids: Iterable[str]) -> None:
        """Wait until each of these files is on disk, lost, or known to be broken."""
        for file_id in file_ids:
            if delivery := self._deliveries.get(file_id):
                await delivery.settled.wait()

    async def idle(self) -> None:
        """Wait until no file is on its way."""
        while self._deliveries:
            await next(iter(self._deliveries.values())).done.wait()

    @property
    def unfinished(self) -> int:
        """How many files are not yet stored and acknowledged."""
        return len(self._journal.unfinished())

    @property
    def incomplete(self) -> int:
        """How many files are not yet on disk."""
        return sum(entry.state is State.WANTED for entry in self._journal.unfinished())

    def uri(self, file_id: str) -> str | None:
        """Return the ``workspace:`` URI of a file that arrived."""
        entry = self._journal.get(file_id)
        if entry is None or entry.state not in (State.STORED, State.ACKED):
            return None
        return f"workspace:{self._fetcher.folder / entry.stored}"

    def _deliver(self, file_id: str) -> None:
        if self._group is None or file_id in self._deliveries or file_id in self._given_up:
            return
        delivery = self._deliveries[file_id] = _Delivery(file_id)
        self._group.create_task(self._run(delivery))

    async def _run(self, delivery: _Delivery) -> None:
        try:
            await self._see_through(delivery)
        finally:
            del self._deliveries[delivery.file_id]
            delivery.settled.set()
            delivery.done.set()

    async def _see_through(self, delivery: _Delivery) -> None:
        """Try until the file is stored and acknowledged, or lost."""
        backoff = Backoff(first=0.5)
        failures = corrupt = 0
        while True:
            received = delivery.received
            entry = self._journal.get(delivery.file_id)
            if entry is None or entry.state in (State.ACKED, State.LOST):
                return
            try:
                if entry.state is State.STORED:
                    delivery.settled.set()
                    async with self._ack_slots:
                        await self._acknowledge(entry)
                    return
                async with self._slots:
                    await self._store(entry, delivery)
                backoff.reset()
                continue
            except BusyError:
                await asyncio.sleep(BUSY_PAUSE)
                continue
            except (MissingError, TooLargeError) as error:
                reason, pause = str(error), backoff.next()
                if isinstance(error, TooLargeError) or _is_gone(error):
                    reason = EXPIRED if isinstance(error, MissingError) else reason
                    if self._lose(entry, reason):
                        return
                    pause = DISK_PAUSE
            except CorruptError as error:
                corrupt += 1
                reason, pause = str(error), backoff.next()
                if corrupt >= MAX_CORRUPT:
                    delivery.settled.set()
            except DiskFullError as error:
                reason, pause = str(error), DISK_PAUSE
            except OSError as error:
                reason, pause = f"it cannot be written: {error}", DISK_PAUSE
            except (UnavailableError, CursorGoneError) as error:
                if delivery.received > received:
                    failures = 0
                    backoff.reset()
                reason, pause = str(error), backoff.next(getattr(error, "retry_after", None))
            failures += 1
            if failures == self._max_attempts:
                self._given_up.add(entry.file_id)
                self._tell(FileDelayed(entry.file_id, entry.name, reason, None))
                return
            self._tell(FileDelayed(entry.file_id, entry.name, reason, pause))
            await asyncio.sleep(pause)

    async def _store(self, entry: Entry, delivery: _Delivery) -> None:
        """Bring the file to disk, unless it is there already."""
        current = self._journal.get(entry.file_id)
        if current is None or current.state is not State.WANTED:
            return  # another poller was faster
        start = time.monotonic()
        started = False

        def progress(received: int) -> None:
            nonlocal started
            delivery.received = received
            if started:
                self._tell(FileProgress(entry.file_id, entry.size, received))
            else:
                self._tell(FileStarted(entry.file_id, entry.name, entry.size, received))
            started = True

        # It may have got its name just before a crash.
        found = await self._fetcher.found(entry)
        if found is None:
            sha256 = await self._fetcher.fetch(entry, progress)
            found = delivery.received, sha256
        if not self._journal.move(entry.file_id, State.WANTED, State.STORED):
            return
        self.arrived += 1
        self._tell(
            FileArrived(
                entry.file_id,
                entry.name,
                *found,
                self._fetcher.folder / entry.stored,
                time.monotonic() - start,
            )
        )

    async def _acknowledge(self, entry: Entry) -> None:
        try:
            await self._client.ack(entry.file_id)
        except MissingError as error:
            # A platform that has forgotten the file needs no acknowledgement any more.
            if not _is_gone(error):
                raise UnavailableError(f"it cannot be acknowledged: {error}") from error
        if self._journal.move(entry.file_id, State.STORED, State.ACKED):
            self._tell(FileAcked(entry.file_id))

    def _lose(self, entry: Entry, reason: str) -> bool:
        """Give a file up; False if the disk is too full even to note that."""
        self._fetcher.forget(entry)
        try:
            moved = self._journal.move(entry.file_id, State.WANTED, State.LOST)
        except DiskFullError:
            return False
        if moved:
            self.lost += 1
            self._tell(FileLost(entry.file_id, entry.name, reason))
        return True


def _is_gone(error: MissingError) -> bool:
    """Tell whether it is the platform that says so, and not a proxy before one that restarts.

    The sentence is the contract's; older platforms send it without a code.
    """
    return error.code == GONE_CODE or GONE_SENTENCE in str(error)
