"""Inbox rows, messages, and the file URIs in them."""

import uuid
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from molecule_workspace.inbox.tolerant import Unreadable
from molecule_workspace.inbox.uploads import parse_uuid

UPLOAD_METHOD: Final = "chat_upload_receive"
"""Method of rows that announce a file."""

NOTICE_METHOD: Final = "notify"
"""Method of rows with what the agent itself sent to the canvas."""

PENDING_SCHEME: Final = "platform-pending:"


@dataclass(frozen=True)
class Message:
    """A message for the agent. ``body`` is the JSON that was sent, usually a JSON-RPC envelope.

    In its parts, the ``platform-pending:`` URI of a file that arrived is replaced with the
    ``workspace:`` URI of the local file. ``source_id`` is the sending workspace, None for a user.
    ``created_at`` is the platform's timestamp.
    """

    row_id: str
    method: str
    source_id: str | None
    created_at: str
    body: Any


Handler = Callable[[Message], Awaitable[None]]
"""Handles a message. Returning marks the message handled; an exception leads to a retry."""


@dataclass(frozen=True)
class Row:
    """A row of the inbox, with the fields that the poller needs."""

    id: str
    method: str
    source_id: str | None
    created_at: str
    body: Any
    unreadable: str = ""
    """Why the body could not be read, "" if it could."""

    @classmethod
    def parse(cls, row: Any) -> "Row | None":
        """Return the row; None if it has no valid id, which the cursor needs."""
        row_id = parse_uuid(row.get("id")) if isinstance(row, dict) else None
        if row_id is None:
            return None

        def text(key: str) -> str:
            value = row.get(key)
            return value if isinstance(value, str) else ""

        body = row.get("request_body")
        return cls(
            row_id,
            text("method"),
            text("source_id") or None,
            text("created_at"),
            None if isinstance(body, Unreadable) else body,
            body.reason if isinstance(body, Unreadable) else "",
        )

    def is_for(self, workspace: str) -> bool:
        """Return whether the message is for the agent: not sent by the workspace or its agent."""
        if self.source_id is None:
            return self.method != NOTICE_METHOD
        return self.source_id.lower() != workspace.lower()


def mentions(body: Any, workspace: str) -> Iterator[str]:
    """Yield the ids of this workspace's staged files that the parts of a message refer to."""
    for holder, key in _uris(body):
        if file_id := _staged(holder[key], workspace):
            yield file_id


def rewrite(body: Any, workspace: str, uri: Callable[[str], str | None]) -> None:
    """Replace the URI of each staged file with the URI of the local one.

    ``uri`` returns None for a file that did not arrive; its URI is left unchanged.
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
    """Yield each URI in the parts of a message: the object that contains it, and its key.

    Parts are at the top level, in ``params`` or in ``params.message``. A2A has the ``uri`` in the
    part's ``file``; older and newer forms have ``uri`` or ``url`` in the part itself. The walk is
    iterative: a deeply nested message would exceed the recursion limit.
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
