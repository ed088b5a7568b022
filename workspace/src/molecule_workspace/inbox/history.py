"""Reads an inbox from its oldest row, on platforms with and without ``order=asc``.

An older platform ignores the parameter and returns the newest page first. Then the pages before it
are read backwards to the oldest row, and reversed.
"""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from molecule_workspace.inbox.client import PlatformClient

MAX_ROWS: Final = 100_000
"""Maximum number of rows that are read backwards. Older rows were pruned long ago."""

LONG_PAGE: Final = 500
"""Rows per request when reading backwards: the maximum of every platform."""

_TICK: Final = timedelta(microseconds=1)
_LATEST: Final = datetime.max.replace(tzinfo=UTC) - _TICK


async def oldest_first(client: PlatformClient, query: Mapping[str, str], wait: int) -> list[Any]:
    """Return the oldest page of the inbox, or all rows if the platform ignores ``order``."""
    page = await client.activity(dict(query) | {"order": "asc"}, wait)
    if not _newest_first(page):
        return page
    history = list(page)
    known = {None, *map(_id, page)}
    oldest = min(_times(page))
    # One tick after the oldest row: the page may have ended among rows of the same timestamp.
    before = oldest + _TICK
    while len(history) < MAX_ROWS:
        stamp = before.isoformat().replace("+00:00", "Z")
        older = await client.activity(dict(query) | {"before_ts": stamp, "limit": str(LONG_PAGE)})
        new = [row for row in older if _id(row) not in known]
        if new:
            history += new
            known.update(map(_id, new))
            oldest = min([oldest, *_times(new)])
            before = oldest + _TICK
        elif before > oldest:
            before = oldest
        else:
            break
    return history[::-1]


def _newest_first(page: list[Any]) -> bool:
    """Return whether the page begins with the newest row, although ``order=asc`` was requested.

    Sequence numbers decide if there are any, else timestamps. A single row, or rows of one
    timestamp, decide nothing: then the platform is assumed to be an older one, and earlier rows
    are requested.
    """
    numbers = [row.get("seq") for row in page if isinstance(row, dict)]
    seqs = [number for number in numbers if type(number) is int]
    if seqs:
        return seqs[0] > seqs[-1]
    times = _times(page)
    return bool(times) and times[0] >= times[-1]


def _id(row: Any) -> str | None:
    """Return the row's id; None, which counts as known, for an invalid row."""
    found = row.get("id") if isinstance(row, dict) else None
    return found if isinstance(found, str) else None


def _times(rows: list[Any]) -> list[datetime]:
    found: list[datetime] = []
    for row in rows:
        try:
            when = datetime.fromisoformat(row["created_at"])
            when = when.astimezone(UTC) if when.tzinfo else when.replace(tzinfo=UTC)
            found.append(min(when, _LATEST))
        except (TypeError, KeyError, ValueError, OverflowError):
            continue
    return found
