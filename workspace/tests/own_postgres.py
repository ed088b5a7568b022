"""A private PostgreSQL server, which a test can stop and start under a platform."""

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, Final, Self

START_TIMEOUT: Final = 30.0

# Stops the server when this process dies, in whatever way: then the read reaches end of file.
_LEASH: Final = 'read -r _ || kill -QUIT "$1"'


def _binaries() -> Path:
    found = shutil.which("postgres")
    if found:
        return Path(found).resolve().parent
    installed = Path("/usr/lib/postgresql").glob("*/bin/postgres")
    others = [Path("/usr/local/pgsql/bin/postgres"), *Path("/usr").glob("pgsql-*/bin/postgres")]
    others += Path("/opt/homebrew/opt").glob("postgresql*/bin/postgres")
    for path in [*sorted(installed, reverse=True), *others]:
        if path.exists():
            return path.parent
    raise FileNotFoundError("there is no PostgreSQL server here; run 'make setup' first")


def _account() -> dict[str, Any]:
    """Return the user to run it as: PostgreSQL refuses root."""
    if os.geteuid() != 0:
        return {}
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(name)
            return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
    raise KeyError("PostgreSQL refuses to run as root, and there is no user postgres or nobody")


class OwnPostgres:
    """The server, on a Unix socket; a context manager that creates and removes its data."""

    def __enter__(self) -> Self:
        """Create the data folder and start."""
        self._bin, self._as = _binaries(), _account()
        # Not below pytest's folder, which other users may not enter.
        self.folder = Path(tempfile.mkdtemp(prefix="pg-"))
        try:
            if self._as:
                os.chown(self.folder, self._as["user"], self._as["group"])
            options = ["--username=platform", "--encoding=UTF8", "--no-locale", "--no-sync"]
            self._call("initdb", "-D", str(self.folder / "data"), "--auth=trust", *options)
            self.start()
        except BaseException:
            shutil.rmtree(self.folder)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Stop, and remove the data."""
        self.stop()
        shutil.rmtree(self.folder)

    @property
    def url(self) -> str:
        """The DATABASE_URL for a platform."""
        return f"postgres://platform@/postgres?host={self.folder}&sslmode=disable"

    def start(self) -> None:
        """Start, and wait until it accepts connections."""
        command = [self._bin / "postgres", "-D", self.folder / "data", "-k", self.folder]
        with (self.folder / "log").open("ab") as log:
            self._server = subprocess.Popen(
                [*map(str, command), "-c", "listen_addresses="],
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                **self._as,
            )
        self._leash = subprocess.Popen(
            ["/bin/sh", "-c", _LEASH, "sh", str(self._server.pid)],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        deadline = time.monotonic() + START_TIMEOUT
        while not self._ready():
            if self._server.poll() is not None or time.monotonic() > deadline:
                said = (self.folder / "log").read_text()[-2000:]
                self.stop()
                raise RuntimeError(f"PostgreSQL did not start:\n{said}")
            time.sleep(0.05)

    def stop(self) -> None:
        """Stop in immediate mode: clients are disconnected, and the next start recovers."""
        self._server.send_signal(signal.SIGQUIT)
        self._server.wait(START_TIMEOUT)
        # A line makes the leash exit without doing anything.
        self._leash.communicate(b"ended\n")

    def _ready(self) -> bool:
        ready = [str(self._bin / "pg_isready"), "-q", "-h", str(self.folder), "-U", "platform"]
        return subprocess.run([*ready, "-d", "postgres"], timeout=10).returncode == 0

    def _call(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [str(self._bin / program), *arguments],
            cwd="/",
            capture_output=True,
            text=True,
            timeout=60,
            **self._as,
        )
        if done.returncode != 0:
            raise RuntimeError(f"{program} failed: {done.stderr[-2000:]}")
