"""The poller: reads a workspace's inbox, downloads files and passes messages to a handler.

    register ─► read the inbox by cursor ─► files to ``Uploads``, concurrently
                                        └─► messages to the handler, in order, each when the
                                            files it refers to are on disk
    and a heartbeat every 30 s

Guarantees: no row is skipped, whatever fails and wherever the process is killed. A file is stored
once. A message is handled once; only if the process is killed after the handler returned and
before that is recorded, the message is handled a second time. The cursor on disk moves past a row
once its message is handled or its file is in the journal, from where the download resumes.
"""

import asyncio
import contextlib
import fcntl
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Final, TypeVar

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
    EventCallback,
    FileDelayed,
    MessageFailed,
    MessageHandled,
    MessageReceived,
    Notice,
    Recovered,
    Stopped,
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
from molecule_workspace.inbox.options import Options, Outcome
from molecule_workspace.inbox.uploads import Uploads, parse_file, parse_uuid

T = TypeVar("T")

PAGE: Final = 100
"""Rows per request."""

QUEUE_ROWS: Final = 1000
"""Maximum rows read ahead of the handler; reading pauses while the queue is full."""

TURN_PAUSE: Final = 0.2
"""Seconds between two attempts to take the lock under which messages are handled."""


def state_folder(folder: Path, workspace: str) -> Path:
    """Return the folder with the state of a workspace whose files go to ``folder``."""
    return folder / ".molecule" / workspace


class Inbox:
    """One workspace's inbox: ``run`` reads it until the task is cancelled."""

    def __init__(
        self,
        client: PlatformClient,
        folder: Path,
        handler: Handler,
        on_event: EventCallback,
        options: Options | None = None,
    ) -> None:
        """Create the folders and open the journal.

        ``handler`` gets each message. ``on_event`` gets every event; it must be quick, and must not
        raise. OSError, DiskFullError, sqlite3.Error: the folder or the journal cannot be used.
        """
        self._client, self._handler, self._on_event = client, handler, on_event
        self._options = options or Options()
        self._folder = folder.absolute()
        self._state = state_folder(self._folder, client.workspace)
        parts = self._state / "parts"
        for made in (self._folder, self._state.parent, self._state, parts):
            made.mkdir(mode=0o700, parents=made is self._folder, exist_ok=True)
        # Created now: later the disk may be full, and then no file can be created.
        self._lock = self._state / "messages.lock"
        self._lock.touch(0o600)
        self._journal = Journal(self._state)
        attempts = self._options.once_attempts if self._options.once else None
        self._uploads = Uploads(
            client,
            self._journal,
            Fetcher(client, self._folder, parts, self._options.max_file_bytes),
            self._forward,
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

        RefusedError: the platform refuses the workspace or its token. With ``once`` also
        UnavailableError: the platform could not be reached; DiskFullError: the journal could not
        be written. Cancelling is safe at any time: the next run continues.
        """
        try:
            async with asyncio.TaskGroup() as group:
                await self._read(group)
        except BaseExceptionGroup as errors:
            raise _first(errors) from None
        finally:
            unfinished, incomplete = self._uploads.unfinished, self._uploads.incomplete
            self._journal.close()
            self._on_event(Stopped(incomplete))
        return Outcome(self._uploads.arrived, self._uploads.lost, unfinished)

    async def _read(self, group: asyncio.TaskGroup) -> None:
        if self._journal.set_aside:
            self._on_event(
                Notice(
                    "the journal was unreadable and was moved to "
                    f"{self._journal.set_aside}; files may be delivered a second time"
                )
            )
        await self._again(self._register)
        self._on_event(Connected(self._client.platform, self._client.workspace, self._folder))
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

    def _forward(self, event: Event) -> None:
        """Record which files wait for the next run, and forward the event."""
        if isinstance(event, FileDelayed) and event.retry_in is None:
            self._left.add(event.file_id)
        self._on_event(event)

    async def _register(self) -> None:
        try:
            await self._client.register(self._options.agent_card, "poll", None)
        except MissingError as error:
            raise RefusedError(
                f"there is no platform at {self._client.platform}: {error}"
            ) from error
        except CursorGoneError as error:
            raise RefusedError(f"the platform refused this workspace: {error}") from error
        except UnavailableError as error:
            if error.status == 400:  # a retry sends the same request
                raise RefusedError(f"the platform refused this workspace: {error}") from error
            raise

    async def _again(self, call: Callable[[], Awaitable[T]]) -> T:
        """Call until it succeeds, with growing pauses; report each failure."""
        backoff = Backoff(self._options.first_pause)
        while True:
            try:
                result = await call()
            except (UnavailableError, DiskFullError) as error:
                pause = backoff.next(getattr(error, "retry_after", None))
                if backoff.failures == self._attempts:
                    raise
                self._on_event(Trouble(str(error), pause))
                await asyncio.sleep(pause)
                continue
            if backoff.failures:
                self._on_event(Recovered())
            return result

    async def _poll(self) -> None:
        """Read page after page, and queue the rows."""
        position = parse_uuid(self._journal.cursor())
        gone = Backoff(self._options.first_pause)
        while True:
            begun = time.monotonic()
            try:
                rows = await self._again(lambda: self._page(position))  # noqa: B023
            except CursorGoneError as error:
                # The journal knows which rows were handled. Files whose rows were pruned are in
                # the platform's list of unacknowledged files.
                position, pause = None, gone.next()
                if gone.failures == self._attempts:
                    raise UnavailableError(f"cannot read the inbox: {error}") from error
                self._on_event(
                    Notice(
                        "the platform no longer has the row where reading stopped; "
                        "reading the inbox from its oldest row"
                    )
                )
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
                # If the platform held the request, the interval has already passed.
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
            raise UnavailableError(f"cannot read the inbox: {error}") from error
        except MissingError as error:
            if error.code == "workspace_not_found":
                raise RefusedError(
                    f"the platform has no workspace {self._client.workspace}"
                ) from error
            raise UnavailableError(f"the inbox was not found: {error}") from error
        rows = [row for row in map(Row.parse, page) if row is not None]
        # The cursor is a row's id. A row without one, at the end of the inbox, is therefore in
        # every page until a valid row follows; it is reported once.
        unreadable = len(page) - len(rows)
        if unreadable and unreadable != self._unreadable:
            self._on_event(Notice(f"skipped {unreadable} inbox rows without a valid id"))
        self._unreadable = 0 if rows else unreadable
        return rows

    async def _announce(self, rows: list[Row]) -> None:
        """Put the files of a page into the journal, without waiting for the handler."""
        files: list[Announced] = []
        for row in rows:
            if row.unreadable:
                self._on_event(
                    Notice(f"skipped inbox row {row.id}: its body is unreadable, {row.unreadable}")
                )
            elif row.method == UPLOAD_METHOD and row.source_id is None:
                try:
                    files.append(parse_file(row.body))
                except ValueError as error:
                    self._on_event(
                        Notice(f"skipped the file announced by inbox row {row.id}: {error}")
                    )
        await self._again(lambda: _done(self._uploads.want, files))

    async def _work(self) -> None:
        """Handle the rows in order, and move the cursor."""
        while True:
            row = await self._rows.get()
            is_message = row.method != UPLOAD_METHOD and not row.unreadable
            if is_message and row.is_for(self._client.workspace) and not await self._handle(row):
                self._on_event(
                    Notice(
                        "a file that a message refers to is missing; "
                        "that message and later ones wait for the next run"
                    )
                )
                break
            if self._rows.empty() or is_message:
                await self._again(lambda: _done(self._journal.save_cursor, row.id))  # noqa: B023
            self._rows.task_done()
        # The cursor does not move any further; the next run continues there.
        while True:
            self._rows.task_done()
            await self._rows.get()

    async def _handle(self, row: Row) -> bool:
        """Pass a message to the handler unless it was handled; False: it waits for the next run."""
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
            self._on_event(MessageReceived(row.id, row.method, row.body))
            await self._hand_over(message)
            self._active = 0
            await self._again(lambda: _done(self._journal.record_handled, row.id))
            return True

    async def _hand_over(self, message: Message) -> None:
        for pause in (*self._options.handler_pauses, None):
            try:
                await self._handler(message)
            except (Exception, asyncio.CancelledError) as error:
                task = asyncio.current_task()
                if isinstance(error, asyncio.CancelledError) and task and task.cancelling():
                    raise  # this task was cancelled, not something that the handler awaited
                reason = str(error) or type(error).__name__
                self._on_event(MessageFailed(message.row_id, reason, pause))
                if pause is not None:
                    await asyncio.sleep(pause)
            else:
                self._on_event(MessageHandled(message.row_id))
                return

    @contextlib.asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """Hold the lock that lets only one of the pollers of this folder handle a message."""
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
        """Send heartbeats. Failures are not reported here: reading the inbox fails as well."""
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
    """Return a RefusedError if there is one, else the first error."""
    refused, _ = errors.split(RefusedError)
    found: BaseException = refused or errors
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return found
