"""What a running inbox tells whoever shows it to a person, or to a machine.

Every event is a small frozen record; sizes are bytes, durations seconds. A callback of type
``Tell`` is called in the event loop's thread, between two reads of the network: it must be quick
and must not raise.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Connected:
    """The platform knows this workspace and its inbox is being read."""

    platform: str
    workspace: str
    folder: Path


@dataclass(frozen=True)
class Trouble:
    """Something does not work now and is tried again by itself after ``retry_in`` seconds."""

    reason: str
    retry_in: float


@dataclass(frozen=True)
class Recovered:
    """The platform answers again."""


@dataclass(frozen=True)
class Notice:
    """A sentence that a person should read; nothing needs to be done at once."""

    text: str


@dataclass(frozen=True)
class FileStarted:
    """A file is being fetched, from byte ``received`` on. ``size`` None: it was not told."""

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
    """The file is complete at ``path``: its size and digest are right, and it is synced."""

    file_id: str
    name: str
    size: int
    sha256: str
    path: Path
    seconds: float


@dataclass(frozen=True)
class FileAcked:
    """The platform knows that the file arrived."""

    file_id: str


@dataclass(frozen=True)
class FileDelayed:
    """The file could not be fetched or acknowledged now.

    It is tried again after ``retry_in`` seconds, or with the next start if that is None.
    """

    file_id: str
    name: str
    reason: str
    retry_in: float | None


@dataclass(frozen=True)
class FileLost:
    """The file will not arrive; ``reason`` says why. Nothing of it is left on disk."""

    file_id: str
    name: str
    reason: str


@dataclass(frozen=True)
class MessageReceived:
    """A message is handed to the handler; ``body`` names local files where it named staged ones."""

    row_id: str
    method: str
    body: Any


@dataclass(frozen=True)
class MessageHandled:
    """The handler is done with the message."""

    row_id: str


@dataclass(frozen=True)
class MessageFailed:
    """The handler failed; tried again after ``retry_in`` seconds, or given up if that is None."""

    row_id: str
    reason: str
    retry_in: float | None


@dataclass(frozen=True)
class Stopped:
    """The inbox is no longer read; ``incomplete`` files go on with the next start."""

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

Tell = Callable[[Event], None]
