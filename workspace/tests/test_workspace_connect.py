"""``molecule-workspace connect`` as a user runs it, with the real platform."""

import asyncio
import hashlib
import os
import re
import signal
from pathlib import Path

import pytest

from bad_network import BadNetwork, Treatment, always
from command import Command, identity, run, running, until_acked
from local_platform import LocalPlatform, Sample, Workspace
from molecule_workspace.cli.connect import FAILED, Connection, FailedError, at_signal, connect
from molecule_workspace.cli.display import Display
from molecule_workspace.inbox.options import Options

MIB = 1 << 20


def test_a_file_arrives_and_the_lines_report_it(
    platform: LocalPlatform, workspace: Workspace, tmp_path: Path
) -> None:
    """Planted: the "arrived" line without the path; colours without a terminal."""
    content = os.urandom(5 * MIB)
    with running("connect", *identity(platform.base_url, workspace, tmp_path)) as command:
        command.until("connected")
        staged = platform.operator.upload(
            workspace.id, [Sample("a report.txt", b"hello"), Sample("film.mp4", content)]
        )
        text = {"kind": "text", "text": "Two files.\nSee them."}
        platform.operator.send(workspace.id, [text, {"kind": "file", "file": staged[1]}])
        arrived = command.until("arrived: a_report.txt, 5 B in ")
        film = Path(command.until("arrived: film.mp4, 5.0 MiB in ").rpartition(": ")[2])
        command.until(f"  file: {film}")
        until_acked(platform.operator, workspace)
        assert command.stop() == 0
    assert Path(arrived.rpartition(": ")[2]).read_bytes() == b"hello"
    assert film.read_bytes() == content
    assert command.out[0] == (
        f"workspace {workspace.id} at {platform.base_url}; files go to {tmp_path / 'files'}"
    )
    assert command.out[1] == "connected; press Ctrl-C to stop"
    assert "fetching film.mp4 (5.0 MiB)" in command.out
    assert "  Two files." in command.out
    assert "  See them." in command.out
    assert command.out[-1] == "stopped"
    assert command.err == []
    assert "\x1b" not in "".join(command.out)


def test_json_lines_are_the_events_in_order(
    platform: LocalPlatform, workspace: Workspace, tmp_path: Path
) -> None:
    """Planted: a time without a time zone."""
    staged = platform.operator.upload(workspace.id, [Sample("x.bin", b"x" * 3 * MIB)])
    platform.operator.send(workspace.id, [{"kind": "file", "file": staged[0]}])
    command = run("connect", *identity(platform.base_url, workspace, tmp_path), "--once", "--json")
    assert (command.process.returncode, command.err) == (0, [])
    reported = command.events()
    kinds = [event["event"] for event in reported]
    assert kinds[:2] == ["started", "connected"]
    assert kinds[-1] == "stopped"
    files = [event for event in reported if "file_id" in event]
    assert {event["file_id"] for event in files} == {staged[0]["uri"].rpartition("/")[2]}
    order = [event["event"] for event in files]
    assert order[0] == "file_started"
    assert order[-2:] == ["file_arrived", "file_acked"]
    assert set(order[1:-2]) == {"file_progress"}
    assert kinds.index("file_arrived") < kinds.index("message_received")
    assert kinds.index("message_received") < kinds.index("message_handled")
    arrived = files[-2]
    assert arrived["sha256"] == hashlib.sha256(b"x" * 3 * MIB).hexdigest()
    assert Path(arrived["path"]).stat().st_size == arrived["size"] == 3 * MIB
    message = command.events("message_received")[0]["body"]["params"]["message"]
    assert message["parts"][0]["file"]["uri"] == f"workspace:{arrived['path']}"
    rfc3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
    assert all(rfc3339.fullmatch(event["time"]) for event in reported)


def test_ctrl_c_during_a_download_lets_the_next_start_resume(
    platform: LocalPlatform, workspace: Workspace, tmp_path: Path
) -> None:
    """Planted: a signal that kills instead of cancelling (no line, no exit code 0)."""
    content = os.urandom(12 * MIB)
    options = ["--platform", "", *identity("", workspace, tmp_path)[2:]]
    with BadNetwork(
        platform.base_url, always(Treatment(stall_after=6 * MIB), "/content")
    ) as network:
        options[1] = network.url
        with running("connect", *options) as command:
            platform.operator.upload(workspace.id, [Sample("film.mp4", content)])
            command.until("fetching film.mp4 (12.0 MiB)")
            network.wait_until(lambda: network.sent("/content") == 6 * MIB)
            parts = tmp_path / "files" / ".molecule" / workspace.id / "parts"
            network.wait_until(lambda: sum(p.stat().st_size for p in parts.iterdir()) > 4 * MIB)
            assert command.stop() == 0
        assert command.out[-1] == "stopped; 1 file is incomplete and resumes at the next start"
        assert command.err == []
        network.on_request = lambda seen: None
        with running("connect", *options) as command:
            resuming = command.until("resuming film.mp4 at ")
            assert re.search(r"at [456]\.\d MiB of 12\.0 MiB$", resuming)
            path = command.until("arrived: film.mp4").rpartition(": ")[2]
            until_acked(platform.operator, workspace)
            assert command.stop() == 0
    assert command.out[-1] == "stopped"
    assert Path(path).read_bytes() == content


def test_sigterm_stops_like_ctrl_c(
    platform: LocalPlatform, workspace: Workspace, tmp_path: Path
) -> None:
    """Service managers send it. Planted: SIGTERM not handled (exit code -15)."""
    with running("connect", *identity(platform.base_url, workspace, tmp_path)) as command:
        command.until("connected")
        command.signal(signal.SIGTERM)
        assert command.end() == 0
    assert command.out[-1] == "stopped"


def test_once_that_is_interrupted_has_its_own_exit_code(
    platform: LocalPlatform, workspace: Workspace, tmp_path: Path
) -> None:
    """Planted: exit code 0."""
    platform.operator.upload(workspace.id, [Sample("x.bin", b"x" * MIB)])
    stalls = always(Treatment(stall_after=1000), "/content")
    with (
        BadNetwork(platform.base_url, stalls) as network,
        running("connect", *identity(network.url, workspace, tmp_path), "--once") as command,
    ):
        network.wait_until(lambda: network.sent("/content") == 1000)
        assert command.stop() == 130
    assert "is incomplete" in command.out[-1]


def test_once_ends_with_1_if_a_file_is_lost(
    platform: LocalPlatform, workspace: Workspace, tmp_path: Path
) -> None:
    """Planted: the outcome ignored."""
    platform.operator.upload(workspace.id, [Sample("big.bin", b"x" * 2000), Sample("ok", b"1")])
    options = identity(platform.base_url, workspace, tmp_path)
    command = run("connect", *options, "--once", "--max-file", "1k")
    assert command.process.returncode == 1
    assert any(line.startswith("lost: big.bin: the file has 2000 bytes") for line in command.out)
    assert any(line.startswith("arrived: ok, 1 B") for line in command.out)


@pytest.mark.anyio
async def test_once_fails_if_a_message_is_skipped_or_the_platform_is_down(
    platform: LocalPlatform, workspace: Workspace, tmp_path: Path
) -> None:
    """In this process, with shorter pauses. Planted: skipped messages not counted."""
    platform.operator.send(workspace.id, [{"kind": "text", "text": "hello"}])
    options = Options(once=True, first_pause=0.01, handler_pauses=(0.01,))

    async def code(url: str, command: str) -> int:
        asked = Connection(
            url, workspace.id, workspace.token, tmp_path / url[-5:], command, 2, options
        )
        with open(os.devnull, "w") as nowhere:
            return await connect(asked, Display(nowhere))

    assert await code(platform.base_url, "exit 1") == FAILED
    with pytest.raises(FailedError, match=r"^cannot reach http://127\.0\.0\.1:1 "):
        await code("http://127.0.0.1:1", "true")


def test_a_wrong_token_is_one_sentence(
    platform: LocalPlatform, workspace: Workspace, tmp_path: Path
) -> None:
    """Planted: RefusedError not caught (a traceback)."""
    wrong = Workspace(workspace.id, "not-the-token", "")
    command = run("connect", *identity(platform.base_url, wrong, tmp_path))
    assert command.process.returncode == 1
    assert command.err == [
        "molecule-workspace connect: the platform rejected the token for workspace "
        f"{workspace.id}; check the token and the workspace id, or ask the platform's operator for "
        "a new token"
    ]


def test_a_platform_that_is_down_is_retried(
    platform: LocalPlatform, workspace: Workspace, tmp_path: Path
) -> None:
    """Reported once for any number of retries. Planted: every retry reported; no recovery."""
    with BadNetwork(platform.base_url) as network:
        network.down()
        with running("connect", *identity(network.url, workspace, tmp_path)) as command:
            trouble = command.until("cannot reach")
            assert network.url in trouble
            assert re.search(r"; retrying in \d\.\d s$", trouble)
            network.on_request = always(Treatment(refuse=True))
            network.up()
            network.wait_until(lambda: network.count("/register") >= 3)
            network.on_request = lambda seen: None
            command.until("the platform is reachable again")
            command.until("connected")
            assert command.stop() == 0
    # A connection fails in more than one way; each is reported once.
    reported = [line.partition(";")[0] for line in command.out if "retrying" in line]
    assert len(reported) == len(set(reported)), reported


def test_it_stops_when_its_output_is_closed(
    platform: LocalPlatform, workspace: Workspace, tmp_path: Path
) -> None:
    """As in ``connect --json | head``. Planted: BrokenPipeError not caught."""
    read, write = os.pipe()
    arguments = ["connect", *identity(platform.base_url, workspace, tmp_path), "--json"]
    process = Command(*arguments, stdout=write)
    os.close(write)
    try:
        with os.fdopen(read, "rb") as output:
            assert b'"connected"' in output.readline() + output.readline()
        platform.operator.upload(workspace.id, [Sample("x", b"x")])
        assert process.end() == 1
        assert process.err == ["molecule-workspace connect: stopped: standard output was closed"]
    finally:
        process.close()


def test_a_full_disk_under_its_log_does_not_stop_files(
    platform: LocalPlatform, workspace: Workspace, tmp_path: Path
) -> None:
    """Files still arrive, and the exit code is right. Planted: OSError not caught."""
    platform.operator.upload(workspace.id, [Sample("x", b"x")])
    with open("/dev/full", "w") as full:
        arguments = ["connect", *identity(platform.base_url, workspace, tmp_path), "--once"]
        command = Command(*arguments, stdout=full.fileno())
    try:
        assert (command.end(), command.err) == (0, [])
    finally:
        command.close()
    assert platform.operator.pending(workspace.id)[0]["state"] == "acked"


@pytest.mark.anyio
async def test_a_second_signal_calls_the_second_callback() -> None:
    """The first stops gracefully, every later one at once. Planted: the first called twice."""
    came: list[int] = []
    done = asyncio.Event()

    def second() -> None:
        came.append(2)
        done.set()

    with at_signal(lambda: came.append(1), second):
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.sleep(0)
        await asyncio.wait_for(done.wait(), 5)
    assert came == [1, 2]
