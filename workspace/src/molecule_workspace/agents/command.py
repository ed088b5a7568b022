"""Hands messages to a command (``--exec``), one at a time, and lets it end in peace.

The command is in a session of its own, so that a Ctrl-C in the terminal is ours alone. When the
poller stops, a running command may finish; only then is it asked to end, and then killed.
"""

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import Coroutine, Mapping
from typing import Any, Final

from molecule_workspace.inbox.messages import Message

FINISH_SECONDS: Final = 10.0
"""How long a running command may go on when the poller stops."""

TERMINATE_SECONDS: Final = 5.0
"""How long it may take to end once it was asked to (SIGTERM); then it is killed."""

SECRETS: Final = ("MOLECULE_TOKEN", "MOLECULE_INBOUND_SECRET")
"""Variables that no command inherits."""

MAX_VARIABLE: Final = 1000
"""Characters of a method that are passed on in the environment, which has room for 128 KiB."""


class CommandFailedError(Exception):
    """The command ended with another exit code than 0."""


class Command:
    """A handler of messages that runs ``/bin/sh -c command`` for each."""

    def __init__(
        self, command: str, workspace: str, env: Mapping[str, str], output: int | None
    ) -> None:
        """Pass the command's output to the file descriptor ``output``; None: to our own."""
        self._command, self._workspace, self._output = command, workspace, output
        self._env = {name: value for name, value in env.items() if name not in SECRETS}
        self._process: asyncio.subprocess.Process | None = None
        self._idle = asyncio.Event()
        self._idle.set()
        self._stopping = False
        self.ended_early = False
        """Whether a command had to be ended; its message is handed over again."""

    async def __call__(self, message: Message) -> None:
        """Run the command; CommandFailedError if it does not end well, OSError if not at all."""
        if self._stopping:
            await asyncio.Event().wait()
        self._idle.clear()
        try:
            await self._run(message)
        finally:
            self._idle.set()

    async def _run(self, message: Message) -> None:
        # In ASCII, so that it is one line whatever a stranger wrote.
        line = json.dumps(message.body).encode("ascii") + b"\n"
        process = await asyncio.create_subprocess_exec(
            "/bin/sh",
            "-c",
            self._command,
            stdin=asyncio.subprocess.PIPE,
            stdout=self._output,
            env=self._env
            | {
                "MOLECULE_WORKSPACE": self._workspace,
                "MOLECULE_ROW_ID": message.row_id,
                "MOLECULE_METHOD": _variable(message.method),
            },
            start_new_session=True,
        )
        self._process = process
        try:
            # A command that does not read its input is fine: communicate knows broken pipes.
            await process.communicate(line)
        except asyncio.CancelledError:
            await self._end(process, FINISH_SECONDS)
            raise
        finally:
            self._process = None
        if self.ended_early:
            await asyncio.Event().wait()
        if process.returncode:
            raise CommandFailedError(_how(process.returncode))

    @property
    def running(self) -> bool:
        """Whether the command is at work."""
        return not self._idle.is_set()

    async def stop(self) -> None:
        """Begin nothing new; wait until the command has ended, or make it end."""
        self._stopping = True
        if not await _within(FINISH_SECONDS, self._idle.wait()) and self._process is not None:
            await self._end(self._process, 0)

    def kill(self) -> None:
        """End the command at once."""
        if self._process is not None:
            _signal(self._process, signal.SIGKILL)

    async def _end(self, process: asyncio.subprocess.Process, finish: float) -> None:
        if finish and await _within(finish, process.wait()):
            return
        self.ended_early = True
        _signal(process, signal.SIGTERM)
        if not await _within(TERMINATE_SECONDS, process.wait()):
            _signal(process, signal.SIGKILL)
            await process.wait()


async def _within(seconds: float, wait: Coroutine[Any, Any, object]) -> bool:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(wait, seconds)
        return True
    return False


def _signal(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    # Its group has its id; all of what a shell command started is in there.
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)


def _variable(text: str) -> str:
    return text[:MAX_VARIABLE].encode("utf-8", "replace").decode().replace("\0", "")


def _how(code: int) -> str:
    if code > 0:
        return f"the command ended with exit code {code}"
    with contextlib.suppress(ValueError):
        return f"the command was ended by {signal.Signals(-code).name}"
    return f"the command was ended by signal {-code}"
