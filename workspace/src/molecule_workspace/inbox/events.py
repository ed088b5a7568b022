"""Events of a running inbox, for a display, a log or a program.

Every event is a frozen dataclass; sizes are in bytes, durations in seconds. With ``--json`` the
commands print each one under its name in snake case. An ``EventCallback`` is called in the event
loop's thread: it must be quick, and must not raise.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Connected:
    """The workspace is registered, and its inbox is being read."""

    platform: str
    workspace: str
    folder: Path


@dataclass(frozen=True)
class Trouble:
    """A request or a write to disk failed; it is retried after ``retry_in`` seconds."""

    reason: str
    retry_in: float


@dataclass(frozen=True)
class Recovered:
    """The retry after ``Trouble`` succeeded."""


@dataclass(frozen=True)
class Notice:
    """A sentence for a person; nothing has to be done at once."""

    text: str


@dataclass(frozen=True)
class FileStarted:
    """A download starts at byte ``received``. ``size`` is None if it was not announced."""

    file_id: str
    name: str
    size: int | None
    received: int


@dataclass(frozen=True)
class FileProgress:
    """``received`` of the file's ``size`` bytes are on disk."""

    file_id: str
    size: int | None
    received: int


@dataclass(frozen=True)
class FileArrived:
    """The file is complete at ``path``: size and SHA-256 are checked, and it is synced."""

    file_id: str
    name: str
    size: int
    sha256: str
    path: Path
    seconds: float


@dataclass(frozen=True)
class FileAcked:
    """The file is acknowledged; the platform may delete it."""

    file_id: str


@dataclass(frozen=True)
class FileDelayed:
    """The file could not be fetched or acknowledged.

    It is retried after ``retry_in`` seconds, or at the next start if that is None.
    """

    file_id: str
    name: str
    reason: str
    retry_in: float | None


@dataclass(frozen=True)
class FileLost:
    """The file will not arrive, for ``reason``. Nothing of it is left on disk."""

    file_id: str
    name: str
    reason: str


@dataclass(frozen=True)
class MessageReceived:
    """A message is passed to the handler; ``body`` names local files instead of staged ones."""

    row_id: str
    method: str
    body: Any


@dataclass(frozen=True)
class MessageHandled:
    """The handler returned; the message will not be delivered again."""

    row_id: str


@dataclass(frozen=True)
class MessageFailed:
    """The handler failed. Retried after ``retry_in`` seconds; None: the message is skipped."""

    row_id: str
    reason: str
    retry_in: float | None


@dataclass(frozen=True)
class Stopped:
    """The run has ended; ``incomplete`` downloads resume at the next start."""

    incomplete: int


Event = (
    Connected
    | Trouble
    | Recovered
    | Notice
    | FileStarted
    | FileProgress
    | FileArrived
    | FileAcked
    | FileDelayed
    | FileLost
    | MessageReceived
    | MessageHandled
    | MessageFailed
    | Stopped
)

EventCallback = Callable[[Event], None]
"""Called with every event, in the event loop's thread; it must be quick, and must not raise."""
