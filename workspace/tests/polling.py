"""Helpers of the poller tests: an inbox that runs beside the test, and its events."""

import asyncio
import contextlib
import hashlib
import json
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from local_platform import Operator, Sample, Workspace
from molecule_workspace.inbox.client import PlatformClient
from molecule_workspace.inbox.events import Event
from molecule_workspace.inbox.messages import Message
from molecule_workspace.inbox.options import Options, Outcome
from molecule_workspace.inbox.poller import Inbox, state_folder

E = TypeVar("E")

# wait=0: with held requests, a proxy's next treatment would apply to a later request.
QUICK = Options(wait=0, poll_interval=0.1, first_pause=0.1, handler_pauses=(0.05, 0.05, 0.05))
"""Options for tests that do not measure time."""

DEADLINE = 20.0
"""Maximum time, in seconds, that a test waits for an event."""


class Poller:
    """A poller of one workspace, with all its events and messages."""

    def __init__(
        self, url: str, workspace: Workspace, folder: Path, options: Options = QUICK
    ) -> None:
        """Prepare a poller; ``url`` is usually that of a bad network."""
        self.url, self.workspace, self.folder, self.options = url, workspace, folder, options
        self.events: list[Event] = []
        self.messages: list[Message] = []
        self.on_message: Callable[[Message], Awaitable[None]] | None = None
        self.task: asyncio.Task[Outcome] | None = None
        self._news = asyncio.Event()

    @property
    def state(self) -> Path:
        """The poller's state folder."""
        return state_folder(self.folder, self.workspace.id)

    @property
    def texts(self) -> list[str]:
        """The first text of each handled message, in order."""
        return [text_of(message.body) for message in self.messages]

    def of(self, kind: type[E]) -> list[E]:
        """Return the events of a kind."""
        return [event for event in self.events if isinstance(event, kind)]

    async def run(self, **changes: Any) -> Outcome:
        """Run until the inbox returns; ``changes`` override options."""
        client = PlatformClient(self.url, self.workspace.id, self.workspace.token)
        try:
            options = replace(self.options, **changes)
            inbox = Inbox(client, self.folder, self._handle, self._tell, options)
            return await inbox.run()
        finally:
            await client.close()

    async def once(self) -> Outcome:
        """Handle what is in the inbox."""
        return await asyncio.wait_for(self.run(once=True), DEADLINE * 2)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["Poller"]:
        """Run beside the test, and stop at the end of the block."""
        self.task = asyncio.create_task(self.run())
        self.task.add_done_callback(lambda _: self._news.set())
        try:
            yield self
        finally:
            self.task.cancel()
            await asyncio.wait([self.task], timeout=DEADLINE)
            assert self.task.done(), "the poller does not stop"
        if not self.task.cancelled():
            self.task.result()

    async def until(self, condition: Callable[[], bool], seconds: float = DEADLINE) -> None:
        """Wait until a condition holds; fail at the deadline, or if the poller ends."""
        deadline = time.monotonic() + seconds
        while not condition():
            if self.task is not None and self.task.done():
                self.task.result()
                raise AssertionError(f"the poller ended; last events: {self.events[-20:]}")
            if time.monotonic() > deadline:
                raise AssertionError(f"not within {seconds} s; last events: {self.events[-20:]}")
            self._news.clear()
            # It may also depend on something that has no event.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._news.wait(), 0.05)

    async def ended(self, seconds: float = DEADLINE) -> Outcome:
        """Wait until the poller ends; raise its error."""
        assert self.task is not None
        await asyncio.wait([self.task], timeout=seconds)
        assert self.task.done(), f"the poller is still running; last events: {self.events[-20:]}"
        return self.task.result()

    async def _handle(self, message: Message) -> None:
        self.messages.append(message)
        self._news.set()
        if self.on_message is not None:
            await self.on_message(message)

    def _tell(self, event: Event) -> None:
        self.events.append(event)
        self._news.set()


def text_of(body: Any) -> str:
    """Return the first text of a message."""
    parts = body["params"]["message"]["parts"]
    return next((part["text"] for part in parts if "text" in part), "")


def say(operator: Operator, workspace: Workspace, *texts: str) -> None:
    """Send text messages as the canvas does."""
    for text in texts:
        operator.send(workspace.id, [{"kind": "text", "text": text}])


def attach(operator: Operator, workspace: Workspace, text: str, *samples: Sample) -> list[str]:
    """Attach files and send a message that refers to them; return their ids."""
    staged = operator.upload(workspace.id, samples)
    parts: list[dict[str, Any]] = [{"kind": "text", "text": text}]
    parts += [{"kind": "file", "file": {"uri": one["uri"], "name": one["name"]}} for one in staged]
    operator.send(workspace.id, parts)
    return [file_id_of(one) for one in staged]


def file_id_of(staged: dict[str, Any]) -> str:
    """Return the id in a staged file's URI."""
    return str(uuid.UUID(staged["uri"].rpartition("/")[2]))


def digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each visible file in the folder, by name."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.iterdir()
        if path.is_file()
    }


def cursor_of(poller: Poller) -> str | None:
    """Return the cursor on disk."""
    try:
        kept: dict[str, str] = json.loads((poller.state / "cursor.json").read_text())
    except FileNotFoundError:
        return None
    return kept["since_id"]


def rows_of(operator: Operator, workspace: Workspace) -> list[dict[str, Any]]:
    """Return the rows of an inbox, oldest first, all pages."""
    rows: list[dict[str, Any]] = []
    while True:
        after = {"since_id": rows[-1]["id"]} if rows else {"order": "asc"}
        page = operator.call(
            "GET", f"/workspaces/{workspace.id}/activity", params={"limit": "500"} | after
        )
        if not page:
            return rows
        rows += page
