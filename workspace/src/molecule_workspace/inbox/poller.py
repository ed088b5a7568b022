"""The poller: reads the inbox of a workspace that nobody can call, and sees everything through.

    register ─► read the inbox by cursor ─► files to ``Uploads``, at once
                                        └─► messages to the handler, in order, each when the
                                            files it mentions are on disk
    and a heartbeat every 30 s

What it promises: no row is passed over, whatever breaks and wherever it is killed. A file is
stored once; a message is handled once, and a second time only if the poller is killed between
the handler's end and the note of it. The cursor on disk moves past a row when a message is handled,
or a file is in the journal, which is what guarantees that it arrives.
"""

import asyncio
import contextlib
import fcntl
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

from molecule_workspace.inbox.client import (
    Backoff,
    CursorGoneError,
    MissingError,
    PlatformClient,
    RefusedError,
    UnavailableError,
)
from molecule_workspace.inbox.events import (
    Connected,
    Event,
    FileDelayed,
    MessageFailed,
    MessageHandled,
    MessageReceived,
    Notice,
    Recovered,
    Stopped,
    Tell,
    Trouble,
)
from molecule_workspace.inbox.fetch import Fetcher
from molecule_workspace.inbox.history import oldest_first
from molecule_workspace.inbox.journal import Announced, DiskFullError, Journal
from molecule_workspace.inbox.messages import (
    UPLOAD_METHOD,
    Handler,
    Message,
    Row,
    mentions,
    rewrite,
)
from molecule_workspace.inbox.uploads import DEFAULT_MAX_FILE_BYTES, Uploads, parse_file, parse_uuid

T = TypeVar("T")

PAGE: Final = 100
"""Rows asked for at once."""

QUEUE_ROWS: Final = 1000
"""Rows read ahead of the handler; reading goes on when there is room."""

HANDLER_PAUSES: Final = (1.0, 5.0, 25.0)
"""Seconds before a message is handed again to a handler that failed; then it is given up."""

RECONCILE_SECONDS: Final = 300.0
"""How often the platform's list of unacknowledged files is compared with the journal."""

ONCE_ATTEMPTS: Final = 6
"""Failures in a row after which a single round gives up: some 20 seconds."""

TURN_PAUSE: Final = 0.2
"""Seconds between two tries for the lock that pollers of one folder handle messages under."""


@dataclass(frozen=True)
class Options:
    """How an inbox is read; durations in seconds, sizes in bytes."""

    once: bool = False
    """Handle what there is, wait for its files, and return."""
    poll_interval: float = 5.0
    """Between two looks into an empty inbox, where the platform does not hold the request."""
    wait: int = 30
    """How long the platform may hold the request; up to 55."""
    heartbeat_interval: float = 30.0
    fetches: int = 4
    """Files fetched at once."""
    max_file_bytes: int = DEFAULT_MAX_FILE_BYTES
    first_pause: float = 1.0
    """After the first failure; each that follows doubles it."""
    handler_pauses: tuple[float, ...] = HANDLER_PAUSES
    reconcile_interval: float = RECONCILE_SECONDS
    once_attempts: int = ONCE_ATTEMPTS
    agent_card: Mapping[str, Any] = field(default_factory=lambda: {"name": "molecule-workspace"})


@dataclass(frozen=True)
class Outcome:
    """What a run did: files that arrived, that are lost, and that the next run goes on with."""

    arrived: int
    lost: int
    unfinished: int


def state_folder(folder: Path, workspace: str) -> Path:
    """Return where the state of a workspace is, whose files go to ``folder``."""
    return folder / ".molecule" / workspace


class Inbox:
    """One workspace's inbox, read until the task is cancelled."""

    def __init__(
        self,
        client: PlatformClient,
        folder: Path,
        handler: Handler,
        tell: Tell,
        options: Options | None = None,
    ) -> None:
        """Make the folders and open the journal.

        OSError, DiskFullError or sqlite3.Error if that cannot be done.
        """
        self._client, self._handler, self._tell = client, handler, tell
        self._options = options or Options()
        self._folder = folder.absolute()
        self._state = state_folder(self._folder, client.workspace)
        parts = self._state / "parts"
        for made in (self._folder, self._state.parent, self._state, parts):
            made.mkdir(mode=0o700, parents=made is self._folder, exist_ok=True)
        # Made now: a disk that is full later has no room for a new file.
        self._lock = self._state / "messages.lock"
        self._lock.touch(0o600)
        self._journal = Journal(self._state)
        attempts = self._options.once_attempts if self._options.once else None
        self._uploads = Uploads(
            client,
            self._journal,
            Fetcher(client, self._folder, parts, self._options.max_file_bytes),
            self._hear,
            at_once=self._options.fetches,
            max_attempts=attempts,
        )
        self._attempts = attempts
        self._rows: asyncio.Queue[Row] = asyncio.Queue(QUEUE_ROWS)
        self._left: set[str] = set()
        self._unreadable = 0
        self._active = 0
        self._started = time.monotonic()

    async def run(self) -> Outcome:
        """Read the inbox until cancelled, or with ``once`` until it is empty.

        RefusedError: the platform does not want this workspace. UnavailableError: with ``once``,
        it could not be reached; DiskFullError: with ``once``, there was no room to take notes.
        Cancelling leaves everything so that the next run goes on.
        """
        try:
            async with asyncio.TaskGroup() as group:
                await self._read(group)
        except BaseExceptionGroup as errors:
            raise _first(errors) from None
        finally:
            unfinished, incomplete = self._uploads.unfinished, self._uploads.incomplete
            self._journal.close()
            self._tell(Stopped(incomplete))
        return Outcome(self._uploads.arrived, self._uploads.lost, unfinished)

    async def _read(self, group: asyncio.TaskGroup) -> None:
        if self._journal.set_aside:
            self._tell(
                Notice(
                    "the journal could not be read and was put aside as "
                    f"{self._journal.set_aside}; files may arrive a second time"
                )
            )
        await self._again(self._register)
        self._tell(Connected(self._client.platform, self._client.workspace, self._folder))
        self._uploads.start(group)
        background = [
            group.create_task(self._beat()),
            group.create_task(self._work()),
            group.create_task(self._compare()),
        ]
        await self._again(self._uploads.reconcile)
        await self._poll()
        await self._rows.join()
        await self._uploads.idle()
        for task in background:
            task.cancel()

    def _hear(self, event: Event) -> None:
        """Note which files are left to the next run, and pass the news of files on."""
        if isinstance(event, FileDelayed) and event.retry_in is None:
            self._left.add(event.file_id)
        self._tell(event)

    async def _register(self) -> None:
        try:
            await self._client.register(self._options.agent_card, "poll", None)
        except MissingError as error:
            raise RefusedError(
                f"there is no platform at {self._client.platform}: {error}"
            ) from error
        except CursorGoneError as error:
            raise RefusedError(f"the platform refuses this workspace: {error}") from error
        except UnavailableError as error:
            if error.status == 400:  # what is wrong with it will be wrong the next time too
                raise RefusedError(f"the platform refuses this workspace: {error}") from error
            raise

    async def _again(self, call: Callable[[], Awaitable[T]]) -> T:
        """Call until it works, with growing pauses; tell a person while it does not."""
        backoff = Backoff(self._options.first_pause)
        while True:
            try:
                result = await call()
            except (UnavailableError, DiskFullError) as error:
                pause = backoff.next(getattr(error, "retry_after", None))
                if backoff.failures == self._attempts:
                    raise
                self._tell(Trouble(str(error), pause))
                await asyncio.sleep(pause)
                continue
            if backoff.failures:
                self._tell(Recovered())
            return result

    async def _poll(self) -> None:
        """Read page after page, and pass the rows on."""
        position = parse_uuid(self._journal.cursor())
        gone = Backoff(self._options.first_pause)
        while True:
            begun = time.monotonic()
            try:
                rows = await self._again(lambda: self._page(position))  # noqa: B023
            except CursorGoneError as error:
                # Rows that were handled are known by the journal; files that were announced in
                # rows which are gone are in the list.
                position, pause = None, gone.next()
                if gone.failures == self._attempts:
                    raise UnavailableError(f"the inbox cannot be read: {error}") from error
                self._tell(Notice("the platform lost the place in the inbox; reading it anew"))
                await self._again(self._uploads.reconcile)
                await asyncio.sleep(pause)
                continue
            if position is not None:
                gone.reset()
            if rows:
                await self._announce(rows)
                for row in rows:
                    await self._rows.put(row)
                position = rows[-1].id
            elif self._options.once:
                return
            else:
                # A platform that holds the request has used up the time already.
                await asyncio.sleep(self._options.poll_interval - (time.monotonic() - begun))

    async def _page(self, position: str | None) -> list[Row]:
        query = {"type": "a2a_receive", "limit": str(PAGE)}
        wait = 0 if self._options.once else self._options.wait
        try:
            if position is not None:
                page = await self._client.activity(query | {"since_id": position}, wait)
            else:
                page = await oldest_first(self._client, query, wait)
        except CursorGoneError as error:
            if position is not None:
                raise
            raise UnavailableError(f"the inbox cannot be read: {error}") from error
        except MissingError as error:
            if error.code == "workspace_not_found":
                raise RefusedError(
                    f"the platform has no workspace {self._client.workspace}"
                ) from error
            raise UnavailableError(f"the inbox is not there: {error}") from error
        rows = [row for row in map(Row.parse, page) if row is not None]
        # Without an id there is no going on after it: at the end of the inbox such a row comes
        # again with every page, until a readable one follows.
        unreadable = len(page) - len(rows)
        if unreadable and unreadable != self._unreadable:
            self._tell(Notice(f"{unreadable} rows of the inbox have no readable id; passed over"))
        self._unreadable = 0 if rows else unreadable
        return rows

    async def _announce(self, rows: list[Row]) -> None:
        """Put the files of a page into the journal, whatever the handler is busy with."""
        files: list[Announced] = []
        for row in rows:
            if row.method == UPLOAD_METHOD and row.source_id is None:
                try:
                    files.append(parse_file(row.body))
                except ValueError as error:
                    self._tell(Notice(f"row {row.id} announces a file, but {error}; skipped"))
        await self._again(lambda: _done(self._uploads.want, files))

    async def _work(self) -> None:
        """Take the rows in their order, and move the cursor."""
        while True:
            row = await self._rows.get()
            is_message = row.method != UPLOAD_METHOD
            if is_message and row.is_for(self._client.workspace) and not await self._handle(row):
                self._tell(Notice("messages wait for the next run: a file they mention is missing"))
                break
            if self._rows.empty() or is_message:
                await self._again(lambda: _done(self._journal.save_cursor, row.id))  # noqa: B023
            self._rows.task_done()
        # The cursor stays where it is, and the next run begins there.
        while True:
            self._rows.task_done()
            await self._rows.get()

    async def _handle(self, row: Row) -> bool:
        """Hand a message over, if nobody has; False if it must wait for the next run."""
        files = list(mentions(row.body, self._client.workspace))
        await self._uploads.settled(files)
        async with self._turn():
            if self._journal.handled(row.id):
                return True
            if not self._left.isdisjoint(files):
                return False
            rewrite(row.body, self._client.workspace, self._uploads.uri)
            message = Message(row.id, row.method, row.source_id, row.created_at, row.body)
            self._active = 1
            self._tell(MessageReceived(row.id, row.method, row.body))
            await self._hand_over(message)
            self._active = 0
            await self._again(lambda: _done(self._journal.note_handled, row.id))
            return True

    async def _hand_over(self, message: Message) -> None:
        for pause in (*self._options.handler_pauses, None):
            try:
                await self._handler(message)
            except (Exception, asyncio.CancelledError) as error:
                task = asyncio.current_task()
                if isinstance(error, asyncio.CancelledError) and task and task.cancelling():
                    raise  # it is we who are stopped, not something that the handler waited for
                reason = str(error) or type(error).__name__
                self._tell(MessageFailed(message.row_id, reason, pause))
                if pause is not None:
                    await asyncio.sleep(pause)
            else:
                self._tell(MessageHandled(message.row_id))
                return

    @contextlib.asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """Hold the lock under which the pollers that share this folder handle messages."""
        fd = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            while True:
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    await asyncio.sleep(TURN_PAUSE)
            yield
        finally:
            os.close(fd)

    async def _compare(self) -> None:
        while True:
            await asyncio.sleep(self._options.reconcile_interval)
            with contextlib.suppress(UnavailableError, DiskFullError):
                await self._uploads.reconcile()

    async def _beat(self) -> None:
        """Say every now and then that the workspace lives. The inbox tells of what fails."""
        while True:
            pause = self._options.heartbeat_interval
            try:
                await self._client.heartbeat(
                    {
                        "active_tasks": self._active,
                        "error_rate": 0,
                        "uptime_seconds": int(time.monotonic() - self._started),
                    }
                )
            except UnavailableError as error:
                pause = max(pause, error.retry_after or 0.0)
            except (MissingError, CursorGoneError):
                pass
            await asyncio.sleep(pause)


async def _done(call: Callable[[T], None], argument: T) -> None:
    call(argument)


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the error that says most: a refusal, or whatever came first."""
    refused, _ = errors.split(RefusedError)
    found: BaseException = refused or errors
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return found
