"""Runs a command for each message (``--exec``), one at a time, and stops it gracefully.

The command runs in its own session, so that Ctrl-C in the terminal reaches only this program. When
the poller stops, a running command gets FINISH_SECONDS to finish, then SIGTERM, then SIGKILL.
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
"""Time for a running command to finish when the poller stops; then it gets SIGTERM."""

TERMINATE_SECONDS: Final = 5.0
"""Time between SIGTERM and SIGKILL."""

SECRETS: Final = ("MOLECULE_TOKEN", "MOLECULE_INBOUND_SECRET")
"""Environment variables that the command does not inherit."""

MAX_VARIABLE: Final = 1000
"""Maximum length of MOLECULE_METHOD; Linux limits one variable to 128 KiB."""


class CommandFailedError(Exception):
    """The command exited with a code other than 0, or was killed by a signal."""


class Command:
    """A message handler that runs ``/bin/sh -c command`` for each message."""

    def __init__(
        self, command: str, workspace: str, env: Mapping[str, str], output: int | None
    ) -> None:
        """Write the command's output to the file descriptor ``output``; None: standard output."""
        self._command, self._workspace, self._output = command, workspace, output
        self._env = {name: value for name, value in env.items() if name not in SECRETS}
        self._process: asyncio.subprocess.Process | None = None
        self._idle = asyncio.Event()
        self._idle.set()
        self._stopping = False
        self.ended_early = False
        """Whether a command was terminated; its message is delivered again at the next start."""

    async def __call__(self, message: Message) -> None:
        """Run the command. CommandFailedError: it failed. OSError: it could not be started."""
        if self._stopping:
            await asyncio.Event().wait()
        self._idle.clear()
        try:
            await self._run(message)
        finally:
            self._idle.set()

    async def _run(self, message: Message) -> None:
        # ASCII only: U+2028 and the like would split the line for some readers.
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
            # communicate ignores a broken pipe: the command need not read its input.
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
        """Whether a command is running."""
        return not self._idle.is_set()

    async def stop(self) -> None:
        """Start no further command; wait for the running one, and terminate it if it is slow."""
        self._stopping = True
        if not await _within(FINISH_SECONDS, self._idle.wait()) and self._process is not None:
            await self._end(self._process, 0)

    def kill(self) -> None:
        """Kill the running command."""
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
    # The command is the leader of its process group, which contains what the shell started.
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)


def _variable(text: str) -> str:
    return text[:MAX_VARIABLE].encode("utf-8", "replace").decode().replace("\0", "")


def _how(code: int) -> str:
    if code > 0:
        return f"the command exited with code {code}"
    with contextlib.suppress(ValueError):
        return f"the command was killed by {signal.Signals(-code).name}"
    return f"the command was killed by signal {-code}"
