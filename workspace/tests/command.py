"""The installed command ``molecule-workspace`` as a process that a test watches."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from local_platform import Operator, Workspace

PROGRAM: Final = Path(sys.executable).with_name("molecule-workspace")

DEADLINE: Final = 30.0
"""Maximum time, in seconds, that a test waits for an event."""


def clean_environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment without variables that configure the command."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("MOLECULE_")}
    return kept | dict(more or {})


class Command:
    """A running command; its output is read line by line as it is printed."""

    def __init__(
        self,
        *arguments: str | Path,
        env: Mapping[str, str] | None = None,
        stdout: int = subprocess.PIPE,
    ) -> None:
        """Start it; ``stdout`` is a file descriptor if the test reads the output itself."""
        self.process = subprocess.Popen(
            [PROGRAM, *arguments],
            env=clean_environment(env),
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self.out: list[str] = []
        self.err: list[str] = []
        self._news = threading.Condition()
        self._readers = [
            threading.Thread(target=self._read, args=(stream, lines), daemon=True)
            for stream, lines in (
                (self.process.stdout, self.out),
                (self.process.stderr, self.err),
            )
            if stream is not None
        ]
        self._open = len(self._readers)
        for reader in self._readers:
            reader.start()

    def _read(self, stream: Any, lines: list[str]) -> None:
        for line in stream:
            with self._news:
                lines.append(line.rstrip("\n"))
                self._news.notify_all()
        with self._news:
            self._open -= 1
            self._news.notify_all()

    def until(self, text: str, *, count: int = 1, errors: bool = False) -> str:
        """Wait for a line on standard output (or error) that contains ``text``; return it."""
        lines = self.err if errors else self.out
        deadline = time.monotonic() + DEADLINE
        with self._news:
            while len(found := [line for line in lines if text in line]) < count:
                left = deadline - time.monotonic()
                assert left > 0, f"no {text!r} in {self.out} {self.err}"
                assert self._open, f"ended without {text!r}: {self.out} {self.err}"
                self._news.wait(left)
        return found[count - 1]

    def signal(self, number: signal.Signals = signal.SIGINT) -> None:
        """Send it a signal, as Ctrl-C does."""
        self.process.send_signal(number)

    def end(self) -> int:
        """Wait until it exits; return the exit code."""
        code = self.process.wait(DEADLINE)
        for reader in self._readers:
            reader.join(DEADLINE)
        return code

    def stop(self) -> int:
        """Interrupt it as Ctrl-C does; return the exit code."""
        self.signal()
        return self.end()

    def events(self, kind: str = "") -> list[dict[str, Any]]:
        """Return its ``--json`` events, all of them or those of one kind."""
        with self._news:
            reported = [json.loads(line) for line in self.out]
        return [event for event in reported if kind in ("", event["event"])]

    def close(self) -> None:
        """Kill the process and its children."""
        if self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.kill()
            self.process.wait()
        for reader in self._readers:
            reader.join(DEADLINE)
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()


@contextlib.contextmanager
def running(*arguments: str | Path, env: Mapping[str, str] | None = None) -> Iterator[Command]:
    """Run the command beside a test."""
    command = Command(*arguments, env=env)
    try:
        yield command
    finally:
        command.close()


def run(*arguments: str | Path, env: Mapping[str, str] | None = None) -> Command:
    """Run the command until it exits."""
    with running(*arguments, env=env) as command:
        command.end()
    return command


def until_acked(operator: Operator, workspace: Workspace) -> None:
    """Wait until all files of a workspace are acknowledged."""
    deadline = time.monotonic() + DEADLINE
    while any(file["state"] != "acked" for file in operator.pending(workspace.id)):
        assert time.monotonic() < deadline, operator.pending(workspace.id)
        time.sleep(0.02)


def identity(url: str, workspace: Workspace, folder: Path) -> list[str | Path]:
    """Return the options that name platform, workspace, token and folder."""
    token = folder / f"token-{workspace.id}"
    token.touch(mode=0o600)
    token.write_text(f"{workspace.token}\n", encoding="ascii")
    options: list[str | Path] = ["--platform", url, "--workspace", workspace.id]
    return [*options, "--token-file", token, "--dir", folder / "files"]
