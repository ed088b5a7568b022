"""A poller in a process of its own, and what the tests of files share.

As a program it handles what there is and ends: ``python poller.py URL WORKSPACE FOLDER``, with the
token in the environment variable TOKEN. Each event is a line: its kind, and its record.
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
from molecule_workspace.inbox.poller import Inbox, Options
from polling import Poller


def noise(size: int, seed: int = 0) -> bytes:
    """Return bytes that no two places of a file have in common."""
    return random.Random(seed).randbytes(size)


def own_address() -> str:
    """Return an address for a server that is stopped and started again.

    Nobody is given its port in between: the system takes others for connections.
    """
    while True:
        port = random.randrange(15_000, 32_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return f"127.0.0.1:{port}"


def parts(poller: Poller) -> list[Path]:
    """Return the files that are not complete yet."""
    return sorted((poller.state / "parts").iterdir())


def part_bytes(poller: Poller) -> int:
    """Return how many bytes of incomplete files there are; the poller may run."""
    total = 0
    for part in parts(poller):
        with contextlib.suppress(FileNotFoundError):
            total += part.stat().st_size
    return total


def journal(poller: Poller, statement: str, *values: Any) -> list[Any]:
    """Look into the journal of a poller, or change it while the poller does not run."""
    with contextlib.closing(sqlite3.connect(poller.state / "journal.db")) as db, db:
        return db.execute(statement, values).fetchall()


def states(operator: Operator, workspace: Workspace) -> list[str]:
    """Return how far the platform thinks that each file came."""
    return [listed["state"] for listed in operator.pending(workspace.id)]


def acked(poller: Poller, files: int) -> bool:
    """Tell whether a poller has acknowledged so many files."""
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

    def tell(event: object) -> None:
        print(type(event).__name__, event, flush=True)

    try:
        await Inbox(client, Path(folder), handle, tell, Options(once=True)).run()
    finally:
        await client.close()


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1:]))
