"""``molecule-workspace connect``: runs an inbox until it is done or a signal arrives."""

import asyncio
import contextlib
import os
import signal
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from molecule_workspace.agents.command import FINISH_SECONDS, Command
from molecule_workspace.cli.arguments import ArgumentError
from molecule_workspace.cli.display import Display, Shown, Started, Stopping
from molecule_workspace.cli.lines import clean
from molecule_workspace.inbox import events
from molecule_workspace.inbox.client import PlatformClient, PlatformError
from molecule_workspace.inbox.journal import DiskFullError
from molecule_workspace.inbox.messages import Message
from molecule_workspace.inbox.options import Options, Outcome
from molecule_workspace.inbox.poller import Inbox
from molecule_workspace.inbox.uploads import DEFAULT_FOLDER

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)

OK: Final = 0
FAILED: Final = 1
INTERRUPTED: Final = 130
"""128 + SIGINT, the shells' convention."""

ENDED_EARLY: Final = "the command was terminated; its message is delivered again at the next start"


@dataclass(frozen=True)
class Connection:
    """The arguments of ``connect``."""

    platform: str
    workspace: str
    token: str
    folder: Path
    command: str | None
    command_output: int | None
    options: Options


class FailedError(Exception):
    """The command cannot continue. The text is one sentence for a person."""


@contextlib.contextmanager
def at_signal(first: Callable[[], None], second: Callable[[], None]) -> Iterator[None]:
    """Call ``first`` at the first SIGINT or SIGTERM, and ``second`` at every later one."""
    loop = asyncio.get_running_loop()
    came = False

    def signalled() -> None:
        nonlocal came
        (second if came else first)()
        came = True

    for number in SIGNALS:
        loop.add_signal_handler(number, signalled)
    try:
        yield
    finally:
        for number in SIGNALS:
            loop.remove_signal_handler(number)


async def connect(asked: Connection, display: Display) -> int:
    """Run the inbox; return the exit code.

    ArgumentError: the folder cannot be used. FailedError: any other error that ends the run.
    """
    client = PlatformClient(asked.platform, asked.workspace, asked.token)
    command = (
        Command(asked.command, asked.workspace, os.environ, asked.command_output)
        if asked.command is not None
        else None
    )
    given_up = False

    def report(event: Shown) -> None:
        nonlocal given_up
        given_up |= isinstance(event, events.MessageFailed) and event.retry_in is None
        display.show(event)

    try:
        inbox = Inbox(client, asked.folder, command or _ignore, report, asked.options)
    except (OSError, sqlite3.Error, DiskFullError) as error:
        await client.close()
        raise ArgumentError(unusable(asked.folder, error)) from error
    display.show(Started(client.platform, client.workspace, asked.folder.absolute()))
    try:
        outcome = await _run(inbox, command, display)
    except (PlatformError, DiskFullError, OSError, sqlite3.Error) as error:
        raise FailedError(clean(str(error))) from error
    finally:
        await client.close()
    if outcome is None:
        return INTERRUPTED if asked.options.once else OK
    return FAILED if outcome.lost or outcome.unfinished or given_up else OK


async def _run(inbox: Inbox, command: Command | None, display: Display) -> Outcome | None:
    """Run until the inbox ends; return None if a signal stopped it."""
    run = asyncio.create_task(inbox.run())
    stop = asyncio.Event()

    def interrupted() -> None:
        busy = command is not None and command.running
        display.show(
            Stopping(f"the command to end (at most {FINISH_SECONDS:.0f} s)" if busy else "")
        )
        stop.set()

    def at_once() -> None:
        if command is not None:
            command.kill()
        display.close()
        os._exit(INTERRUPTED)

    display.on_closed = stop.set
    with at_signal(interrupted, at_once):
        stopped = asyncio.create_task(stop.wait())
        await asyncio.wait((run, stopped), return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if not run.done():
            if command is not None:
                await command.stop()
            run.cancel()
        try:
            return await run
        except asyncio.CancelledError:
            return None
        finally:
            if command is not None and command.ended_early:
                display.show(events.Notice(ENDED_EARLY))


async def _ignore(_: Message) -> None:
    """Do nothing: the display has shown the message."""


def unusable(folder: Path, error: Exception) -> str:
    """Return the error for a folder that cannot hold files, and what to do."""
    reason = error.strerror if isinstance(error, OSError) else str(error)
    which = "the default folder " if folder == DEFAULT_FOLDER else ""
    return (
        f"cannot store files in {which}{clean(str(folder))} ({clean(reason or str(error))}); "
        "choose a writable folder with --dir DIR"
    )
