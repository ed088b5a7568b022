"""A poller in its own process, and helpers of the file tests.

As a program it handles what is in the inbox and exits: ``python poller.py URL WORKSPACE FOLDER``,
with the token in the environment variable TOKEN. Each event is a line: its kind, and its record.
"""

import asyncio
import contextlib
import os
import random
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from local_platform import Operator, Workspace
from molecule_workspace.inbox.client import PlatformClient
from molecule_workspace.inbox.events import FileAcked
from molecule_workspace.inbox.messages import Message
from molecule_workspace.inbox.options import Options
from molecule_workspace.inbox.poller import Inbox
from polling import Poller


def noise(size: int, seed: int = 0) -> bytes:
    """Return random bytes, so that no two ranges of a file are equal."""
    return random.Random(seed).randbytes(size)


def own_address() -> str:
    """Return an address for a server that is stopped and started again.

    Its port is outside the range that the system assigns to other sockets.
    """
    while True:
        port = random.randrange(15_000, 32_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return f"127.0.0.1:{port}"


def parts(poller: Poller) -> list[Path]:
    """Return the incomplete files."""
    return sorted((poller.state / "parts").iterdir())


def part_bytes(poller: Poller) -> int:
    """Return the number of bytes of incomplete files; the poller may be running."""
    total = 0
    for part in parts(poller):
        with contextlib.suppress(FileNotFoundError):
            total += part.stat().st_size
    return total


def journal(poller: Poller, statement: str, *values: Any) -> list[Any]:
    """Query a poller's journal, or change it while the poller is stopped."""
    with contextlib.closing(sqlite3.connect(poller.state / "journal.db")) as db, db:
        return db.execute(statement, values).fetchall()


def states(operator: Operator, workspace: Workspace) -> list[str]:
    """Return the state of each file on the platform."""
    return [listed["state"] for listed in operator.pending(workspace.id)]


def acked(poller: Poller, files: int) -> bool:
    """Return whether a poller has acknowledged so many files."""
    return len({event.file_id for event in poller.of(FileAcked)}) >= files


def start_process(url: str, workspace: Workspace, folder: Path) -> subprocess.Popen[str]:
    """Start this module as a program."""
    here = Path(__file__).resolve()
    return subprocess.Popen(
        [sys.executable, str(here), url, workspace.id, str(folder)],
        env={"TOKEN": workspace.token, "PYTHONPATH": str(here.parent.parent / "devtools")},
        stdout=subprocess.PIPE,
        text=True,
    )


async def _main(arguments: Sequence[str]) -> None:
    url, workspace, folder = arguments
    client = PlatformClient(url, workspace, os.environ["TOKEN"])

    async def handle(message: Message) -> None:
        pass

    def print_event(event: object) -> None:
        print(type(event).__name__, event, flush=True)

    try:
        await Inbox(client, Path(folder), handle, print_event, Options(once=True)).run()
    finally:
        await client.close()


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1:]))
