"""kill -9 at random moments: nothing is lost, and nothing is delivered twice."""

import contextlib
import hashlib
import json
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest

from bad_network import BadNetwork, Seen, Treatment
from local_platform import LocalPlatform, Operator, Sample, Workspace
from molecule_workspace.inbox.poller import state_folder
from polling import attach, digests, rows_of

SEED: Final = 20260505
KILLS: Final = 30
FILES: Final = 200
MESSAGES: Final = 40
LARGE: Final = 4


def make_samples(chance: random.Random) -> list[Sample]:
    """Return files of 1 byte to 2 MiB, mostly small, and some of 10 MiB; all differ."""
    sizes = [int(2 ** chance.uniform(0, 21)) for _ in range(FILES)]
    for at in chance.sample(range(FILES), LARGE):
        sizes[at] = 10 << 20
    made: dict[bytes, Sample] = {}
    for at, size in enumerate(sizes):
        content = chance.randbytes(size)
        while content in made:
            content = chance.randbytes(len(content) + 1)
        # Equal names, so that names do not identify files.
        made[content] = Sample(f"file {at % 7}.bin", content)
    return list(made.values())


@dataclass
class Runs:
    """The poller as a process that is restarted repeatedly; the output of each run is kept."""

    url: str
    workspace: Workspace
    folder: Path
    token_file: Path
    outputs: list[Path] = field(default_factory=list)

    @contextlib.contextmanager
    def start(self) -> Iterator["subprocess.Popen[bytes]"]:
        """Start a run; it is killed at the end, if it is still running."""
        output = self.token_file.with_name(f"run-{len(self.outputs):02}.jsonl")
        self.outputs.append(output)
        command = [
            sys.executable,
            "-m",
            "molecule_workspace",
            "connect",
            "--json",
            "--platform",
            self.url,
        ]
        command += ["--workspace", self.workspace.id, "--token-file", str(self.token_file)]
        with output.open("wb") as out, output.with_suffix(".err").open("wb") as errors:
            process = subprocess.Popen(
                [*command, "--dir", str(self.folder)],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=errors,
            )
            try:
                yield process
            finally:
                process.kill()
                process.wait()

    def events(self, run: int) -> list[dict[str, Any]]:
        """Return the events of a run; a line that the kill truncated is left out."""
        lines = self.outputs[run].read_bytes().split(b"\n")
        return [json.loads(line) for line in lines[:-1]]

    def reported(self, kind: str) -> list[tuple[int, str]]:
        """Return the run and the row of each event of a kind about a message."""
        return [
            (run, event["row_id"])
            for run in range(len(self.outputs))
            for event in self.events(run)
            if event["event"] == kind
        ]

    def left_in_the_middle(self, run: int) -> int:
        """Return the number of downloads that a run started and did not finish."""
        reported = self.events(run)
        begun = {event["file_id"] for event in reported if event["event"] == "file_started"}
        return len(begun - {e["file_id"] for e in reported if e["event"] == "file_arrived"})

    def started_work(self) -> bool:
        """Return whether the last run has printed an event."""
        return self.outputs[-1].stat().st_size > 0


class Sender(threading.Thread):
    """Posts the files and the messages that refer to them, between the kills."""

    def __init__(self, operator: Operator, workspace: Workspace, samples: list[Sample]) -> None:
        """Group the files, with one message per group."""
        super().__init__(daemon=True)
        self.operator, self.workspace, self.samples = operator, workspace, samples
        self.kills = 0
        self.changed = threading.Condition()
        self.error: BaseException | None = None

    def killed(self) -> None:
        """Count a kill."""
        with self.changed:
            self.kills += 1
            self.changed.notify_all()

    def run(self) -> None:
        """Send the first group at once, and the last one a few kills before the last kill."""
        each = FILES // MESSAGES
        try:
            for number in range(MESSAGES):
                with self.changed:
                    due = number * (KILLS - 4) // MESSAGES
                    while self.kills < due:
                        assert self.changed.wait(60)
                files = self.samples[number * each : (number + 1) * each]
                attach(self.operator, self.workspace, f"message {number}", *files)
        except BaseException as error:
            self.error = error


def look(folder: Path, state: Path, rows: list[dict[str, Any]], acked: list[str]) -> None:
    """Check the state after a kill.

    Every row up to the cursor is handled, or its file is in the journal; every acknowledged
    file is on disk under its final name.
    """
    if not acked and not (state / "cursor.json").exists():
        return  # killed before it had written anything
    with contextlib.closing(sqlite3.connect(state / "journal.db")) as db:
        handled = {row for (row,) in db.execute("SELECT row_id FROM handled")}
        stored: dict[str, str] = dict(db.execute("SELECT file_id, stored FROM files").fetchall())
    for file_id in acked:
        assert (folder / stored[file_id]).exists(), "acknowledged, but not on disk"
    if not (state / "cursor.json").exists():
        return
    cursor = json.loads((state / "cursor.json").read_bytes())["since_id"]
    at = next(n for n, row in enumerate(rows) if row["id"] == cursor)
    for row in rows[: at + 1]:
        if row["method"] == "chat_upload_receive":
            assert row["request_body"]["file_id"] in stored, "the cursor is ahead of a file"
        else:
            assert row["id"] in handled, "the cursor is ahead of a message"


def slow(seen: Seen) -> Treatment | None:
    """Slow down transfers and acknowledgements, so that kills hit them."""
    if seen.path.endswith("/content"):
        return Treatment(bytes_per_second=6 << 20)
    return Treatment(delay=0.02) if seen.path.endswith("/ack") else None


@pytest.mark.timeout(300)
def test_thirty_kills_lose_nothing_and_double_nothing(
    platform: LocalPlatform, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """200 files and 40 messages, 30 runs that end with kill -9, and one that does not.

    A message may be handled twice only if the kill came between the handler's return and its
    record: then the run that handled it first did not start a later message.

    Planted: the cursor saved when a row is read; a file journaled as stored before it is renamed;
    a new stored name for each download; files not journaled before the cursor moves;
    acknowledged before it is stored.
    """
    chance = random.Random(SEED)
    samples = make_samples(chance)
    operator = platform.operator
    workspace = operator.create("kill test")
    token_file = tmp_path / "token"
    token_file.touch(0o600)
    token_file.write_text(workspace.token)
    folder = tmp_path / "files"
    state = state_folder(folder, workspace.id)
    begun = time.monotonic()
    with BadNetwork(platform.base_url, slow) as network:
        runs = Runs(network.url, workspace, folder, token_file)
        sender = Sender(operator, workspace, samples)
        sender.start()
        for kill in range(KILLS):
            with runs.start() as process:
                # One kill in five may hit the start itself; the others hit the work.
                deadline = time.monotonic() + 30
                while kill % 5 and not runs.started_work():
                    assert process.poll() is None, runs.outputs[-1].with_suffix(".err").read_text()
                    assert time.monotonic() < deadline
                    time.sleep(0.005)
                time.sleep(chance.uniform(0, 0.4))
                assert process.poll() is None
                process.kill()
                process.wait()
            sender.killed()
            acked = [file["file_id"] for file in operator.pending(workspace.id, "acked")]
            look(folder, state, rows_of(operator, workspace), acked)
        sender.join(60)
        assert sender.error is None
        with runs.start() as process:
            deadline = time.monotonic() + 60
            rows = rows_of(operator, workspace)
            messages = [row["id"] for row in rows if row["method"] == "message/send"]
            while operator.pending(workspace.id, "unacked") or not {
                row for _, row in runs.reported("message_handled")
            }.issuperset(messages):
                assert process.poll() is None
                assert time.monotonic() < deadline, "files or messages are still missing"
                time.sleep(0.05)
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
    seconds = time.monotonic() - begun

    sent = Counter(hashlib.sha256(sample.content).hexdigest() for sample in samples)
    arrived = Counter(digests(folder).values())
    twice, wrong, missing = arrived - Counter(set(arrived)), arrived - sent, sent - arrived
    unacked = operator.pending(workspace.id, "unacked")
    handled = Counter(row for _, row in runs.reported("message_handled"))
    again = [row for row in handled if handled[row] > 1]
    in_the_middle = sum(runs.left_in_the_middle(run) for run in range(KILLS))
    with capsys.disabled():
        print(
            f"\nkill: {KILLS} kills, {FILES} files, on disk {sum(arrived.values())}, "
            f"twice {twice.total()}, wrong {wrong.total()}, unacked {len(unacked)}, "
            f"{MESSAGES} messages, handled {len(handled)}, handled twice {len(again)}, "
            f"{in_the_middle} fetches killed in the middle, {seconds:.0f} seconds (seed {SEED})"
        )
    assert not twice
    assert not wrong
    assert not missing
    assert not unacked
    assert sorted(handled) == sorted(messages)
    for row in again:
        order = runs.reported("message_received")
        for run in sorted(
            run for run, handled_row in runs.reported("message_handled") if handled_row == row
        )[:-1]:
            last = [received for at, received in order if at == run][-1]
            assert last == row, "it was recorded as handled, and handled again"
    named = [
        Path(part["file"]["uri"].removeprefix("workspace:"))
        for run in range(len(runs.outputs))
        for event in runs.events(run)
        if event["event"] == "message_received"
        for part in event["body"]["params"]["message"]["parts"]
        if "file" in part
    ]
    assert {path.name for path in named} == set(digests(folder))
    assert list((state / "parts").iterdir()) == []
    assert not [out for out in runs.outputs if "Traceback" in out.with_suffix(".err").read_text()]
    assert in_the_middle > 0, "no kill hit a fetch"
