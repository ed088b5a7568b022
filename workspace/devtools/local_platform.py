"""A platform process on loopback, for the demo and the tests.

It runs the real binary (``bin/platform``, or the path in ``PLATFORM_BINARY``) with a private
PostgreSQL in a folder. It is not part of the installed package.
"""

import os
import re
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import httpx

START_TIMEOUT: Final = 60.0
STOP_TIMEOUT: Final = 45.0

_SERVING: Final = re.compile(r'"msg":"serving","addr":"([^"]+)"')

# Kills the platform when this process dies, in whatever way: then the read reaches end of file.
_LEASH: Final = 'read -r _ || kill -KILL "$1"'


def default_binary() -> Path:
    """Return the expected path of the platform's binary."""
    named = os.environ.get("PLATFORM_BINARY")
    return Path(named) if named else Path(__file__).resolve().parents[2] / "bin" / "platform"


@dataclass(frozen=True)
class Workspace:
    """A workspace as the platform created it."""

    id: str
    token: str
    inbound_secret: str


@dataclass(frozen=True)
class Sample:
    """A file to upload: the sender's name for it, its bytes, and its type ("" for none)."""

    name: str
    content: bytes
    content_type: str = ""


class PlatformFailedError(RuntimeError):
    """The platform did not start, or gave an unexpected answer."""


class Operator:
    """A client with the admin token: acts as the platform's operator and as the canvas."""

    def __init__(self, base_url: str, admin_token: str) -> None:
        """Create a client of the platform at ``base_url``."""
        self.base_url = base_url.rstrip("/")
        self.admin_token = admin_token
        self.http = httpx.Client(
            base_url=self.base_url, headers={"Authorization": f"Bearer {admin_token}"}, timeout=120
        )

    def call(self, method: str, path: str, want: int = 200, **request: Any) -> Any:
        """Return the JSON of an answer with status ``want``; raise for any other."""
        answer = self.http.request(method, path, **request)
        if answer.status_code != want:
            raise PlatformFailedError(
                f"{method} {path}: {answer.status_code} {answer.text[:300]}, expected {want}"
            )
        return answer.json()

    def create(self, name: str, mode: str = "poll", url: str | None = None) -> Workspace:
        """Create a workspace."""
        body = {"name": name, "delivery_mode": mode} | ({"url": url} if url else {})
        made = self.call("POST", "/workspaces", 201, json=body)
        return Workspace(made["id"], made["auth_token"], made["platform_inbound_secret"])

    def remove(self, workspace: str) -> None:
        """Remove a workspace."""
        self.call("DELETE", f"/workspaces/{workspace}")

    def upload(self, workspace: str, samples: Sequence[Sample]) -> list[dict[str, Any]]:
        """Attach files to the chat in one request; return the answer's entry for each."""
        files = [
            (
                "files",
                (s.name, s.content, s.content_type) if s.content_type else (s.name, s.content),
            )
            for s in samples
        ]
        answer = self.call("POST", f"/workspaces/{workspace}/chat/uploads", files=files)
        staged: list[dict[str, Any]] = answer["files"]
        return staged

    def send(self, workspace: str, parts: Sequence[Mapping[str, Any]]) -> None:
        """Send a chat message that consists of A2A parts."""
        message = {"role": "user", "messageId": os.urandom(8).hex(), "parts": list(parts)}
        envelope = {"jsonrpc": "2.0", "id": "1", "method": "message/send"}
        self.call(
            "POST", f"/workspaces/{workspace}/a2a", json=envelope | {"params": {"message": message}}
        )

    def pending(self, workspace: str, state: str = "all") -> list[dict[str, Any]]:
        """List the files of a workspace, oldest first, all pages."""
        listed: list[dict[str, Any]] = []
        while True:
            params = {"state": state, "limit": "500"} | (
                {"after": listed[-1]["file_id"]} if listed else {}
            )
            page = self.call("GET", f"/workspaces/{workspace}/pending-uploads", params=params)
            listed += page
            if len(page) < 500:
                return listed

    def close(self) -> None:
        """Close the connections."""
        self.http.close()


class LocalPlatform:
    """A platform process; a context manager that starts and stops it.

    It keeps its address and its data across ``stop``, ``kill`` and ``start``.
    """

    def __init__(
        self, folder: Path, settings: Mapping[str, str] | None = None, binary: Path | None = None
    ) -> None:
        """Prepare a platform with its data in ``folder``, and environment ``settings``."""
        self.folder = folder
        self.settings = dict(settings or {})
        self.binary = binary or default_binary()
        self.log = folder / "platform.log"
        self.addr = "127.0.0.1:0"
        self.process: subprocess.Popen[bytes] | None = None
        self._operator: Operator | None = None

    @property
    def base_url(self) -> str:
        """The platform's address; known after the first start."""
        return f"http://{self.addr}"

    @property
    def admin_token(self) -> str:
        """The admin token that the first start created."""
        return (self.folder / "data" / "admin_token").read_text(encoding="ascii").strip()

    @property
    def operator(self) -> Operator:
        """A client with the admin token."""
        if self._operator is None:
            self._operator = Operator(self.base_url, self.admin_token)
        return self._operator

    def start(self) -> None:
        """Start the process and wait until it serves."""
        if not self.binary.exists():
            raise PlatformFailedError(f"{self.binary} does not exist; run 'make build' first")
        self.folder.mkdir(parents=True, exist_ok=True)
        kept = ("PATH", "TMPDIR", "HOME")
        env = {name: os.environ[name] for name in kept if name in os.environ}
        env |= {"LOG_FORMAT": "json"} | self.settings
        env |= {"ADDR": self.addr, "DATA_DIR": str(self.folder / "data")}
        with self.log.open("ab") as log:
            begin = log.tell()
            self.process = subprocess.Popen(
                [str(self.binary), "serve"],
                cwd=self.folder,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                start_new_session=True,
            )
        self._leash = subprocess.Popen(
            ["/bin/sh", "-c", _LEASH, "sh", str(self.process.pid)],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        deadline = time.monotonic() + START_TIMEOUT
        while time.monotonic() < deadline:
            found = _SERVING.search(self.log.read_bytes()[begin:].decode("utf-8", "replace"))
            if found:
                self.addr = found.group(1)
                return
            if self.process.poll() is not None:
                break
            time.sleep(0.05)
        tail = self.log.read_bytes()[begin:][-2000:].decode("utf-8", "replace")
        self.kill()
        raise PlatformFailedError(f"the platform did not start:\n{tail}")

    def stop(self) -> None:
        """Stop the process gracefully, and wait for it."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Kill the process, as in a crash. Its PostgreSQL ends some seconds later."""
        self._end(signal.SIGKILL)

    def _end(self, how: signal.Signals) -> None:
        if self.process is None:
            return
        self.process.send_signal(how)
        try:
            self.process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise
        finally:
            self.process = None
            # A line makes the leash exit without killing anything.
            self._leash.communicate(b"ended\n")

    def __enter__(self) -> Self:
        """Start it."""
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop it."""
        if self._operator is not None:
            self._operator.close()
            self._operator = None
        self.stop()
