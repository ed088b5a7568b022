"""The settings of an ``Inbox``, and what a run returns."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from molecule_workspace.inbox.uploads import DEFAULT_MAX_FILE_BYTES

HANDLER_PAUSES: Final = (1.0, 5.0, 25.0)
"""Pauses, in seconds, between attempts of a failing handler; then the message is skipped."""

RECONCILE_SECONDS: Final = 300.0
"""Interval at which the platform's list of unacknowledged files is compared with the journal."""

ONCE_ATTEMPTS: Final = 6
"""Consecutive failures after which a run with ``once`` gives up: about 20 seconds."""


@dataclass(frozen=True)
class Options:
    """Settings of an ``Inbox``; durations in seconds, sizes in bytes."""

    once: bool = False
    """Handle what is in the inbox, wait for its files, and return."""
    poll_interval: float = 5.0
    """Between two reads of an empty inbox, if the platform does not hold the request."""
    wait: int = 30
    """How long the platform may hold a request while the inbox is empty; at most 55."""
    heartbeat_interval: float = 30.0
    fetches: int = 4
    """Files downloaded concurrently."""
    max_file_bytes: int = DEFAULT_MAX_FILE_BYTES
    first_pause: float = 1.0
    """Pause after the first failure; it doubles with every further one."""
    handler_pauses: tuple[float, ...] = HANDLER_PAUSES
    reconcile_interval: float = RECONCILE_SECONDS
    once_attempts: int = ONCE_ATTEMPTS
    agent_card: Mapping[str, Any] = field(default_factory=lambda: {"name": "molecule-workspace"})


@dataclass(frozen=True)
class Outcome:
    """Files of a run: stored, lost, and unfinished, which the next run continues."""

    arrived: int
    lost: int
    unfinished: int
