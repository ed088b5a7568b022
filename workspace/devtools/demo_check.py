"""The check of ``make demo`` and ``make e2e``: sends files and a message, and compares.

It takes all roles. As the operator it creates two workspaces; as their owner it runs the installed
``molecule-workspace`` for each; as the canvas it attaches files to both and sends a message. Then
it compares the files on disk with what was sent.
"""

import contextlib
import hashlib
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, Self

from demo_child import Child
from local_platform import Operator, PlatformFailedError, Sample, Workspace

START_SECONDS: Final = 30.0
ARRIVE_SECONDS: Final = 60.0

Mode = Literal["poll", "push"]
State = Literal["acked", "stored", "missing", "differs"]

RIGHT: Final[dict[Mode, State]] = {"poll": "acked", "push": "stored"}
"""The state in which a correct delivery ends."""


@dataclass
class Delivery:
    """A file that was sent to a workspace: the platform's answer, and the path on disk."""

    mode: Mode
    sample: Sample
    answer: dict[str, Any]
    posted: float
    seconds: float | None = None
    path: Path | None = None

    @property
    def file_id(self) -> str:
        """The platform's id of a staged file."""
        return str(self.answer["uri"]).rpartition("/")[2]


@dataclass(frozen=True)
class Result:
    """The result of a delivery."""

    mode: Mode
    name: str
    size: int
    sent: str
    arrived: str
    seconds: float | None
    state: State

    @property
    def right(self) -> bool:
        """Whether the file is on disk unchanged and, if polled, acknowledged."""
        return self.state == RIGHT[self.mode]


class Check:
    """One run; a context manager that removes everything it created."""

    def __init__(
        self, operator: Operator, folder: Path, name: str, say: Callable[[str], None]
    ) -> None:
        """Prepare a run: files go below ``folder``; workspace names begin with ``name``."""
        self.deliveries: list[Delivery] = []
        self.problems: list[str] = []
        self._operator, self._folder, self._say = operator, folder, say
        self._name = f"{name} {secrets.token_hex(4)}"
        self._stack = contextlib.ExitStack()
        self._poll: Workspace | None = None
        self._push: Workspace | None = None
        self._poller: Child | None = None

    def __enter__(self) -> Self:
        """Return the run; nothing is created yet."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop the processes and remove the workspaces, whatever happened."""
        self._stack.close()

    def _create(self, mode: Mode) -> Workspace:
        # Removed by name: an interrupt may come before the answer that contains the id.
        name = f"{self._name} {mode}"
        self._stack.callback(self._remove, name)
        return self._operator.create(name)

    def _remove(self, name: str) -> None:
        for workspace in self._operator.call("GET", "/workspaces"):
            if workspace["name"] == name:
                self._operator.remove(workspace["id"])

    def _secret(self, name: str, secret: str) -> Path:
        path = self._folder / name
        path.touch(mode=0o600)
        path.write_text(secret, encoding="ascii")
        return path

    def files(self, mode: Mode) -> Path:
        """Return the folder that a workspace's files go to."""
        return self._folder / mode

    def connect(self) -> None:
        """Connect the poll workspace."""
        workspace = self._poll = self._create("poll")
        token = self._secret("token", workspace.token)
        self._poller = Child(
            "connect",
            {
                "--platform": self._operator.base_url,
                "--workspace": workspace.id,
                "--token-file": str(token),
                "--dir": str(self.files("poll")),
            },
            self._folder / "connect.log",
        )
        self._stack.callback(self._poller.stop)
        if not self._poller.wait("connected", START_SECONDS):
            raise PlatformFailedError("molecule-workspace connect did not connect in time")
        self._say("poll: molecule-workspace connect reads the inbox")

    def serve(self, listen: str) -> str:
        """Start the push workspace at ``listen``; return "", or why its URL is refused."""
        workspace = self._create("push")
        secret = self._secret("secret", workspace.inbound_secret)
        server = Child(
            "ingest",
            {"--listen": listen, "--secret-file": str(secret), "--dir": str(self.files("push"))},
            self._folder / "ingest.log",
        )
        self._stack.callback(server.stop)
        if not server.wait("serving", START_SECONDS):
            raise PlatformFailedError("molecule-workspace ingest did not start in time")
        url = server.seen("serving")[0].event["address"]
        answer = self._operator.http.post(
            "/registry/register",
            json={"id": workspace.id, "agent_card": {}, "delivery_mode": "push", "url": url},
        )
        if answer.status_code == 400 and answer.json().get("code") == "url_not_allowed":
            self._say(f"push: the platform refuses to call {url}")
            return f"{url}: {answer.json().get('error')}"
        if answer.status_code != 200:
            raise PlatformFailedError(
                f"POST /registry/register: {answer.status_code} {answer.text}"
            )
        self._push = workspace
        self._say(f"push: molecule-workspace ingest serves {url}")
        return ""

    def post(self, requests: Sequence[Sequence[Sample]]) -> None:
        """Attach the files to both chats."""
        for mode, workspace in (("poll", self._poll), ("push", self._push)):
            if workspace is not None:
                for request in requests:
                    self._post("poll" if mode == "poll" else "push", workspace, request)
                self._say(
                    f"{mode}: {sum(map(len, requests))} files posted in {len(requests)} requests"
                )

    def _post(self, mode: Mode, workspace: Workspace, request: Sequence[Sample]) -> None:
        posted = time.monotonic()
        answers = self._operator.upload(workspace.id, request)
        seconds = time.monotonic() - posted
        if len(answers) != len(request):
            raise PlatformFailedError(f"{len(request)} files posted, {len(answers)} in the answer")
        for sample, answer in zip(request, answers, strict=True):
            delivery = Delivery(mode, sample, answer, posted)
            if mode == "push":
                # The answer comes when the file is on disk, and names it.
                delivery.path = Path(str(answer["uri"]).removeprefix("workspace:"))
                delivery.seconds = seconds
            self.deliveries.append(delivery)

    def send(self) -> None:
        """Send the poll workspace a message that refers to all its files."""
        assert self._poll is not None
        parts: list[dict[str, Any]] = [{"kind": "text", "text": "Please look at these."}]
        for delivery in self._polled():
            file = {"uri": delivery.answer["uri"], "name": delivery.answer["name"]}
            parts.append({"kind": "file", "file": file})
        self._operator.send(self._poll.id, parts)
        self._say("poll: a message posted that refers to them")

    def arrive(self, seconds: float = ARRIVE_SECONDS) -> None:
        """Wait until everything arrived, for at most ``seconds``."""
        assert self._poller is not None
        expected = len(self._polled())
        deadline = time.monotonic() + seconds
        self._poller.wait("file_acked", seconds, expected)
        self._poller.wait("message_handled", deadline - time.monotonic())
        arrived = {seen.event["file_id"]: seen for seen in self._poller.seen("file_arrived")}
        for delivery in self._polled():
            seen = arrived.get(delivery.file_id)
            if seen is not None:
                delivery.path = Path(seen.event["path"])
                delivery.seconds = seen.at - delivery.posted
        self._say(f"poll: {len(arrived)} of {expected} files arrived")
        self.check_message()

    def _polled(self) -> list[Delivery]:
        return [delivery for delivery in self.deliveries if delivery.mode == "poll"]

    def check_message(self) -> None:
        """Check that the message names the local files instead of the staged ones."""
        assert self._poller is not None
        received = self._poller.seen("message_received")
        if len(received) != 1:
            self.problems.append(f"1 message was sent, {len(received)} arrived")
            return
        parts = received[0].event["body"]["params"]["message"]["parts"]
        for delivery, part in zip(self._polled(), parts[1:], strict=True):
            uri = part["file"]["uri"]
            if not uri.startswith("workspace:"):
                self.problems.append(f"the message names {uri}, which is not a local file")
            elif Path(uri.removeprefix("workspace:")) != delivery.path:
                self.problems.append(f"the message names {uri}, the file is {delivery.path}")
            elif not Path(uri.removeprefix("workspace:")).is_file():
                self.problems.append(f"the message names {uri}, which does not exist")
        if not self.problems:
            self._say("poll: the message arrived, and names the local files")

    def results(self) -> list[Result]:
        """Compare what is on disk with what was sent, byte for byte."""
        results = [self._result(delivery) for delivery in self.deliveries]
        for mode in ("poll", "push"):
            folder = self.files("poll" if mode == "poll" else "push")
            kept = [p for p in folder.iterdir() if p.is_file()] if folder.exists() else []
            expected = sum(delivery.mode == mode for delivery in self.deliveries)
            if len(kept) > expected:
                self.problems.append(f"{mode}: {expected} files were sent, {len(kept)} are there")
        return results

    def _result(self, delivery: Delivery) -> Result:
        sample, path = delivery.sample, delivery.path
        sent = hashlib.sha256(sample.content).hexdigest()
        arrived = ""
        state: State = "missing"
        if path is not None and path.is_file():
            content = path.read_bytes()
            arrived = hashlib.sha256(content).hexdigest()
            rightly_named = (
                path.parent == self.files(delivery.mode)
                and path.name[32:] == f"-{delivery.answer['name']}"
            )
            if arrived != sent or len(content) != delivery.answer["size"] or not rightly_named:
                state = "differs"
            else:
                acked = delivery.mode == "poll" and self._acked(delivery)
                state = "acked" if acked else "stored"
        return Result(
            delivery.mode, sample.name, len(sample.content), sent, arrived, delivery.seconds, state
        )

    def _acked(self, delivery: Delivery) -> bool:
        assert self._poll is not None
        path = f"/workspaces/{self._poll.id}/pending-uploads/{delivery.file_id}"
        return bool(self._operator.call("GET", path)["state"] == "acked")
