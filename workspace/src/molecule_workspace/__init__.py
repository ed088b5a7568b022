"""Receives what people send to an agent that the platform cannot call.

``Inbox`` reads a poll workspace's inbox, puts its files on the disk and hands its messages to a
handler, each once::

    async def handle(message: Message) -> None:
        print(message.method, message.body)

    async def main() -> None:
        client = PlatformClient("https://platform.example", workspace_id, token)
        try:
            inbox = Inbox(client, Path("chat-files"), handle, print)
            await inbox.run()
        finally:
            await client.close()

What happens meanwhile is reported as the events of ``molecule_workspace.inbox.events``. A push
workspace receives its uploads with ``molecule_workspace.ingest``, which needs the extra ``ingest``.
The command ``molecule-workspace`` does both without any code.

Every error that the platform or the connection to it causes is an ``InboxError``.
"""

from typing import TYPE_CHECKING, Any

from molecule_workspace.names import sanitize_filename

if TYPE_CHECKING:
    from molecule_workspace.inbox.client import (
        CorruptError,
        CursorGoneError,
        InboxError,
        MissingError,
        PlatformClient,
        RefusedError,
        UnavailableError,
    )
    from molecule_workspace.inbox.journal import DiskFullError
    from molecule_workspace.inbox.messages import Handler, Message
    from molecule_workspace.inbox.poller import Inbox, Options, Outcome

__all__ = [
    "CorruptError",
    "CursorGoneError",
    "DiskFullError",
    "Handler",
    "Inbox",
    "InboxError",
    "Message",
    "MissingError",
    "Options",
    "Outcome",
    "PlatformClient",
    "RefusedError",
    "UnavailableError",
    "__version__",
    "sanitize_filename",
]

__version__: str

_MODULES = {
    "client": (
        "CorruptError",
        "CursorGoneError",
        "InboxError",
        "MissingError",
        "PlatformClient",
        "RefusedError",
        "UnavailableError",
    ),
    "journal": ("DiskFullError",),
    "messages": ("Handler", "Message"),
    "poller": ("Inbox", "Options", "Outcome"),
}


def __getattr__(name: str) -> Any:
    """Load a public name when it is first used: the rule for names needs no HTTP client."""
    import importlib

    if name == "__version__":
        from importlib.metadata import version

        return version("molecule-workspace")
    for module, names in _MODULES.items():
        if name in names:
            return getattr(importlib.import_module(f"molecule_workspace.inbox.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
