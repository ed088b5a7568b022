"""A ``molecule-workspace`` process whose events are read as they are printed."""

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from local_platform import PlatformFailedError

STOP_SECONDS: Final = 20.0

Event = dict[str, Any]


@dataclass(frozen=True)
class Seen:
    """An event, and when it was read (``time.monotonic``)."""

    at: float
    event: Event


class Child:
    """The installed command with ``--json``; ``stop`` sends what Ctrl-C sends."""

    def __init__(self, command: str, options: Mapping[str, str], errors: Path) -> None:
        """Start it. What it writes to standard error goes to the file ``errors``."""
        program = Path(sys.executable).with_name("molecule-workspace")
        if not program.exists():
            raise PlatformFailedError(f"{program} is not installed; run it with 'make demo'")
        hidden = ("ADMIN_TOKEN", "BASE_URL")
        env = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("MOLECULE_") and name not in hidden
        }
        self._errors = errors
        with errors.open("wb") as stderr:
            self._process = subprocess.Popen(
                [program, command, *itertools.chain(*options.items()), "--json"],
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
                start_new_session=True,
            )
        self._seen: list[Seen] = []
        self._changed = threading.Condition()
        self._ended = False
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        try:
            for line in self._process.stdout:
                seen = Seen(time.monotonic(), json.loads(line))
                with self._changed:
                    self._seen.append(seen)
                    self._changed.notify_all()
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def seen(self, kind: str) -> list[Seen]:
        """Return the events of one kind that came so far."""
        with self._changed:
            return [seen for seen in self._seen if seen.event["event"] == kind]

    def wait(self, kind: str, seconds: float, count: int = 1) -> bool:
        """Wait until there are ``count`` events of a kind; False after ``seconds``.

        PlatformFailedError: the process ended instead.
        """
        deadline = time.monotonic() + seconds
        with self._changed:
            while len(self.seen(kind)) < count:
                if self._ended:
                    raise PlatformFailedError(f"molecule-workspace ended: {self.complaint()}")
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                self._changed.wait(left)
        return True

    def complaint(self) -> str:
        """Return the last line that it wrote to standard error."""
        said = self._errors.read_text("utf-8", "replace").strip().splitlines()
        return said[-1] if said else "no output on standard error"

    def stop(self) -> None:
        """Stop it, and wait for it."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join()
        if self._process.stdout is not None:
            self._process.stdout.close()
