"""The beginning of an inbox, oldest row first, whatever the age of the platform.

A platform that knows ``order=asc`` simply answers. An older one ignores it and shows the newest
page first; then the pages before it are read too, back to the beginning, and turned around.
"""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from molecule_workspace.inbox.client import PlatformClient

MAX_ROWS: Final = 100_000
"""Rows of an inbox that are read backwards at most. Older ones have been pruned long ago."""

LONG_PAGE: Final = 500
"""Rows asked for at once when reading backwards: the most that any platform gives."""

_TICK: Final = timedelta(microseconds=1)
_LATEST: Final = datetime.max.replace(tzinfo=UTC) - _TICK


async def oldest_first(client: PlatformClient, query: Mapping[str, str], wait: int) -> list[Any]:
    """Return the first page of the inbox, or all of it if the platform begins at the end."""
    page = await client.activity(dict(query) | {"order": "asc"}, wait)
    if not _newest_first(page):
        return page
    history = list(page)
    known = {None, *map(_id, page)}
    oldest = min(_times(page))
    # A moment later than the oldest: of the rows of one moment some may have been cut off.
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
    """Tell whether the platform began at the end, though it was asked for the beginning.

    A platform that numbers its rows shows it by the numbers, an older one by the times. A single
    row, or rows of one moment, show nothing: then it is taken for an older platform, and asked
    what was before.
    """
    numbers = [row.get("seq") for row in page if isinstance(row, dict)]
    seqs = [number for number in numbers if type(number) is int]
    if seqs:
        return seqs[0] > seqs[-1]
    times = _times(page)
    return bool(times) and times[0] >= times[-1]


def _id(row: Any) -> str | None:
    """Return the row's id; None, as if it were known, for what is no row."""
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
