"""Downloads the announced files: each once, complete, and then acknowledged.

``Uploads`` learns of files from inbox rows and from the platform's list of unacknowledged files.
It writes each to the journal first, so that neither a crash nor a pruned row loses it; then it
downloads the file (a few concurrently), checks size and SHA-256, syncs, renames and acknowledges
it. A failure is retried until the file arrives or the platform no longer has it.

No name from the network chooses a path: files are named ``<32 random hex digits>-<sanitized>``.
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
    EventCallback,
    FileAcked,
    FileArrived,
    FileDelayed,
    FileLost,
    FileProgress,
    FileStarted,
)
from molecule_workspace.inbox.fetch import Fetcher, TooLargeError
from molecule_workspace.inbox.journal import Announced, DiskFullError, Entry, Journal, State
from molecule_workspace.inbox.part import BusyError
from molecule_workspace.names import sanitize_filename

DEFAULT_FOLDER: Final = Path("/workspace/.molecule/chat-uploads")

DEFAULT_MAX_FILE_BYTES: Final = 1 << 30
"""Maximum size of one file: 1 GiB, ten times the platform's default."""

LIST_PAGE: Final = 500

LIST_PAGES: Final = 200
"""Maximum pages of the list: 100,000 files, far above any quota."""

LIST_ATTEMPTS: Final = 5
"""Maximum attempts to read the list; it starts again if the file to continue after is gone."""

DISK_PAUSE: Final = 10.0
"""Seconds between two attempts while the disk is full."""

BUSY_PAUSE: Final = 0.5
"""Seconds between two attempts while another poller is downloading the file."""

ACKS_AT_ONCE: Final = 2
"""Concurrent acknowledgements. Hundreds would leave the inbox and the heartbeat no connection."""

MAX_CORRUPT: Final = 3
"""Downloads with wrong bytes after which messages no longer wait for the file."""

EXPIRED: Final = (
    "the platform no longer has the file: it expired, or another poller acknowledged it, "
    "before it was fetched"
)

GONE_CODE: Final = "pending_upload_not_found"
GONE_SENTENCE: Final = "pending upload not found, expired, or already acked"

_SHA256: Final = re.compile(r"[0-9a-f]{64}")


def parse_file(announced: Any) -> Announced:
    """Validate a file's description from a row or the list; ValueError names what is invalid."""
    if not isinstance(announced, Mapping):
        raise ValueError("its body is not a JSON object")
    file_id = parse_uuid(announced.get("file_id"))
    if file_id is None:
        raise ValueError("its file_id is not a UUID")
    name, size, sha256 = (announced.get(key) for key in ("name", "size", "sha256"))
    if size is not None and (type(size) is not int or not 0 <= size < 1 << 60):
        raise ValueError("its size is not a number of bytes")
    if sha256 is not None and not (isinstance(sha256, str) and _SHA256.fullmatch(sha256.lower())):
        raise ValueError("its sha256 is not 64 hex digits")
    # The platform sanitizes the name; sanitized again, because the answer may be forged.
    return Announced(
        file_id,
        sanitize_filename(name if isinstance(name, str) else ""),
        size,
        sha256.lower() if sha256 else None,
    )


def parse_uuid(value: Any) -> str | None:
    """Return a UUID in canonical form; None for anything else."""
    if not isinstance(value, str) or len(value) != 36:
        return None
    try:
        return str(uuid.UUID(value))
    except ValueError:
        return None


@dataclass
class _Delivery:
    """A file being delivered. ``settled`` is set when messages need not wait for it any longer."""

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
        on_event: EventCallback,
        *,
        at_once: int = 4,
        max_attempts: int | None = None,
    ) -> None:
        """Create it; ``start`` begins the work.

        After ``max_attempts`` consecutive failures a file waits for the next run; None: never.
        """
        self.arrived = 0
        self.lost = 0
        self._client, self._journal, self._fetcher, self._on_event = (
            client,
            journal,
            fetcher,
            on_event,
        )
        self._slots = asyncio.Semaphore(at_once)
        self._ack_slots = asyncio.Semaphore(ACKS_AT_ONCE)
        self._max_attempts = max_attempts
        self._deliveries: dict[str, _Delivery] = {}
        self._given_up: set[str] = set()
        self._group: asyncio.TaskGroup | None = None

    def start(self, group: asyncio.TaskGroup) -> None:
        """Continue what an earlier run left unfinished. All downloads are tasks of ``group``."""
        self._group = group
        left = self._fetcher.left()
        unfinished = self._journal.unfinished()
        for entry in unfinished:
            self._deliver(entry.file_id)
        self._fetcher.tidy(left, unfinished)

    def want(self, files: Iterable[Announced]) -> None:
        """Deliver these files. DiskFullError: nothing was recorded; call again."""
        announced = list(files)
        self._journal.want(announced)
        for file in announced:
            entry = self._journal.get(file.file_id)
            if entry is not None and entry.state in (State.WANTED, State.STORED):
                self._deliver(file.file_id)

    async def reconcile(self) -> None:
        """Deliver files of the platform's list of unacknowledged files that the journal lacks.

        An older platform has no such list; then this does nothing.
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
                after, begun = None, begun + 1  # the file ``after`` is gone
                continue
            except CursorGoneError as error:
                raise UnavailableError(f"cannot read the list of files: {error}") from error
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
        """Deliver again a file that was finished before ``asked`` but is still listed."""
        entry = self._journal.get(file.file_id)
        if entry is None or entry.changed >= asked or entry.file_id in self._deliveries:
            return
        if entry.state is State.ACKED:
            self._journal.move(file.file_id, State.ACKED, State.STORED)
        elif entry.state is State.LOST and (file.size or 0) <= self._fetcher.max_file_bytes:
            self._journal.move(file.file_id, State.LOST, State.WANTED)

    async def settled(self, file_ids: Iterable[str]) -> None:
        """Wait until each of these files is on disk, lost, or repeatedly corrupt."""
        for file_id in file_ids:
            if delivery := self._deliveries.get(file_id):
                await delivery.settled.wait()

    async def idle(self) -> None:
        """Wait until no file is being delivered."""
        while self._deliveries:
            await next(iter(self._deliveries.values())).done.wait()

    @property
    def unfinished(self) -> int:
        """Number of files that are not stored and acknowledged."""
        return len(self._journal.unfinished())

    @property
    def incomplete(self) -> int:
        """Number of files that are not completely on disk."""
        return sum(entry.state is State.WANTED for entry in self._journal.unfinished())

    def uri(self, file_id: str) -> str | None:
        """Return the ``workspace:`` URI of a file that arrived, else None."""
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
            await self._deliver_file(delivery)
        finally:
            del self._deliveries[delivery.file_id]
            delivery.settled.set()
            delivery.done.set()

    async def _deliver_file(self, delivery: _Delivery) -> None:
        """Retry until the file is stored and acknowledged, or lost."""
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
                reason, pause = f"cannot write the file: {error}", DISK_PAUSE
            except (UnavailableError, CursorGoneError) as error:
                if delivery.received > received:
                    failures = 0
                    backoff.reset()
                reason, pause = str(error), backoff.next(getattr(error, "retry_after", None))
            failures += 1
            if failures == self._max_attempts:
                self._given_up.add(entry.file_id)
                self._on_event(FileDelayed(entry.file_id, entry.name, reason, None))
                return
            self._on_event(FileDelayed(entry.file_id, entry.name, reason, pause))
            await asyncio.sleep(pause)

    async def _store(self, entry: Entry, delivery: _Delivery) -> None:
        """Download the file, unless it is on disk already."""
        current = self._journal.get(entry.file_id)
        if current is None or current.state is not State.WANTED:
            return  # another poller has stored it
        start = time.monotonic()
        started = False

        def progress(received: int) -> None:
            nonlocal started
            delivery.received = received
            if started:
                self._on_event(FileProgress(entry.file_id, entry.size, received))
            else:
                self._on_event(FileStarted(entry.file_id, entry.name, entry.size, received))
            started = True

        # It may have been renamed just before a crash.
        found = await self._fetcher.found(entry)
        if found is None:
            sha256 = await self._fetcher.fetch(entry, progress)
            found = delivery.received, sha256
        if not self._journal.move(entry.file_id, State.WANTED, State.STORED):
            return
        self.arrived += 1
        self._on_event(
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
            # A file that the platform no longer has needs no acknowledgement.
            if not _is_gone(error):
                raise UnavailableError(f"cannot acknowledge the file: {error}") from error
        if self._journal.move(entry.file_id, State.STORED, State.ACKED):
            self._on_event(FileAcked(entry.file_id))

    def _lose(self, entry: Entry, reason: str) -> bool:
        """Record that a file will not arrive; False if the disk is too full to record it."""
        self._fetcher.forget(entry)
        try:
            moved = self._journal.move(entry.file_id, State.WANTED, State.LOST)
        except DiskFullError:
            return False
        if moved:
            self.lost += 1
            self._on_event(FileLost(entry.file_id, entry.name, reason))
        return True


def _is_gone(error: MissingError) -> bool:
    """Return whether the 404 is the platform's, and not that of a proxy while it restarts.

    Older platforms send the sentence without a code.
    """
    return error.code == GONE_CODE or GONE_SENTENCE in str(error)
