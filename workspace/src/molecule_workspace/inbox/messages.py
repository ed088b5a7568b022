"""Messages: which rows of the inbox are some, and which files they mention."""

import uuid
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from molecule_workspace.inbox.uploads import parse_uuid

UPLOAD_METHOD: Final = "chat_upload_receive"
"""Method of the rows that announce a file."""

NOTICE_METHOD: Final = "notify"
"""Method of the rows that show what the agent itself told the canvas."""

PENDING_SCHEME: Final = "platform-pending:"


@dataclass(frozen=True)
class Message:
    """A message for the agent. ``body`` is what its sender sent: a JSON-RPC envelope, usually.

    In its parts, files that arrived are named by their ``workspace:`` URI.
    """

    row_id: str
    method: str
    source_id: str | None
    created_at: str
    body: Any


Handler = Callable[[Message], Awaitable[None]]
"""Takes a message; done when it returns, and tried again if it raises an Exception."""


@dataclass(frozen=True)
class Row:
    """A row of the inbox, as far as a poller needs it."""

    id: str
    method: str
    source_id: str | None
    created_at: str
    body: Any

    @classmethod
    def parse(cls, row: Any) -> "Row | None":
        """Return the row; None for something without the id that a cursor needs."""
        row_id = parse_uuid(row.get("id")) if isinstance(row, dict) else None
        if row_id is None:
            return None

        def text(key: str) -> str:
            value = row.get(key)
            return value if isinstance(value, str) else ""

        return cls(
            row_id,
            text("method"),
            text("source_id") or None,
            text("created_at"),
            row.get("request_body"),
        )

    def is_for(self, workspace: str) -> bool:
        """Tell whether it is news: neither from the workspace itself nor its agent's own notice."""
        if self.source_id is None:
            return self.method != NOTICE_METHOD
        return self.source_id.lower() != workspace.lower()


def mentions(body: Any, workspace: str) -> Iterator[str]:
    """Yield the ids of the staged files of this workspace that a message's parts name."""
    for holder, key in _uris(body):
        if file_id := _staged(holder[key], workspace):
            yield file_id


def rewrite(body: Any, workspace: str, uri: Callable[[str], str | None]) -> None:
    """Put the URI of the local file in the place of each that names a staged one.

    ``uri`` returns None for a file that is not here; its URI stays as it is, as do all others.
    """
    for holder, key in _uris(body):
        file_id = _staged(holder[key], workspace)
        local = uri(file_id) if file_id else None
        if local is not None:
            holder[key] = local


def _staged(value: str, workspace: str) -> str | None:
    if not value.startswith(PENDING_SCHEME):
        return None
    owner, _, file_id = value.removeprefix(PENDING_SCHEME).partition("/")
    return parse_uuid(file_id) if parse_uuid(owner) == str(uuid.UUID(workspace)) else None


def _uris(body: Any) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield each URI in the parts of a message: the object that holds it, and its key.

    Parts are at the top, in ``params`` or in ``params.message``. A2A names a file by ``uri`` in the
    part's ``file``; older and newer forms have it, or ``url``, in the part itself. The walk keeps
    a list of its own instead of calling itself: nobody bounds how deep a stranger nests.
    """
    params = body.get("params") if isinstance(body, dict) else None
    message = params.get("message") if isinstance(params, dict) else None
    todo = [holder.get("parts") for holder in (body, params, message) if isinstance(holder, dict)]
    while todo:
        item = todo.pop()
        if isinstance(item, list):
            todo.extend(item)
        elif isinstance(item, dict):
            for key in ("uri", "url"):
                if isinstance(item.get(key), str):
                    yield item, key
            todo.extend(value for value in item.values() if isinstance(value, (dict, list)))
