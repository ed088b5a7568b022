"""Receives the files and messages of a Molecule chat on the machine where an agent runs.

``Inbox`` polls a workspace's inbox, downloads its files and passes each message to a handler,
once::

    async def handle(message: Message) -> None:
        print(message.method, message.body)

    async def main() -> None:
        client = PlatformClient("https://platform.example", workspace_id, token)
        try:
            inbox = Inbox(client, Path("chat-files"), handle, print)
            await inbox.run()
        finally:
            await client.close()

The last argument of ``Inbox`` gets the events of ``molecule_workspace.inbox.events``. A push
workspace receives its uploads with ``molecule_workspace.ingest``, which needs the extra ``ingest``.
The command ``molecule-workspace`` does both.

Every error of the platform, or of the connection to it, is a ``PlatformError``. Modules and names
that are not in ``__all__`` here or in ``molecule_workspace.inbox.events`` may change.
"""

from typing import TYPE_CHECKING, Any

from molecule_workspace.names import sanitize_filename

if TYPE_CHECKING:
    from molecule_workspace.inbox.client import (
        CorruptError,
        CursorGoneError,
        MissingError,
        PlatformClient,
        PlatformError,
        RefusedError,
        UnavailableError,
    )
    from molecule_workspace.inbox.journal import DiskFullError
    from molecule_workspace.inbox.messages import Handler, Message
    from molecule_workspace.inbox.options import Options, Outcome
    from molecule_workspace.inbox.poller import Inbox

__all__ = [
    "CorruptError",
    "CursorGoneError",
    "DiskFullError",
    "Handler",
    "Inbox",
    "Message",
    "MissingError",
    "Options",
    "Outcome",
    "PlatformClient",
    "PlatformError",
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
        "PlatformError",
        "MissingError",
        "PlatformClient",
        "RefusedError",
        "UnavailableError",
    ),
    "journal": ("DiskFullError",),
    "messages": ("Handler", "Message"),
    "options": ("Options", "Outcome"),
    "poller": ("Inbox",),
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: sanitize_filename needs no HTTP client."""
    import importlib

    if name == "__version__":
        from importlib.metadata import version

        return version("molecule-workspace")
    for module, names in _MODULES.items():
        if name in names:
            return getattr(importlib.import_module(f"molecule_workspace.inbox.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
