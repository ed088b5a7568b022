"""``--exec``: a command for each message."""

import asyncio
import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from command import DEADLINE, Command, identity, running
from local_platform import LocalPlatform, Sample, Workspace
from molecule_workspace.agents import command as agent_command
from molecule_workspace.agents.command import CommandFailedError
from molecule_workspace.inbox.messages import Message


def message(body: object = None, method: str = "message/send") -> Message:
    """Return a message."""
    return Message("row", method, None, "", body)


def test_the_command_gets_the_message_with_the_local_file_and_no_token(
    platform: LocalPlatform, workspace: Workspace, tmp_path: Path
) -> None:
    """Planted: the environment passed unfiltered; the message not rewritten before."""
    staged = platform.operator.upload(workspace.id, [Sample("x.txt", b"hello")])
    text = {"kind": "text", "text": "zwei\nZeilen \u202e\x1b[31m"}
    platform.operator.send(workspace.id, [text, {"kind": "file", "file": staged[0]}])
    seen = tmp_path / "seen"
    script = f"cat > {seen}; env > {seen}.env; echo to our output; echo to our errors >&2"
    env = {"MOLECULE_TOKEN": workspace.token, "MOLECULE_INBOUND_SECRET": "s3cret"}
    options = identity(platform.base_url, workspace, tmp_path)
    del options[options.index("--token-file") :][:2]
    options = [o for o in options if o != "--token-file" and "token-" not in str(o)]
    with running("connect", *options, "--exec", script, "--json", env=env) as command:
        command.until('"message_handled"')
        command.until("to our output", errors=True)
        command.until("to our errors", errors=True)
        assert command.stop() == 0
    line = seen.read_text(encoding="ascii")
    assert line.endswith("\n")
    assert line.count("\n") == 1
    parts = json.loads(line)["params"]["message"]["parts"]
    assert parts[0] == text
    local = Path(parts[1]["file"]["uri"].removeprefix("workspace:"))
    assert local.read_bytes() == b"hello"
    variables = dict(
        entry.partition("=")[::2] for entry in Path(f"{seen}.env").read_text().splitlines()
    )
    received = command.events("message_received")[0]
    assert variables["MOLECULE_WORKSPACE"] == workspace.id
    assert variables["MOLECULE_ROW_ID"] == received["row_id"]
    assert variables["MOLECULE_METHOD"] == "message/send"
    assert workspace.token not in "".join(variables.values())
    assert "s3cret" not in "".join(variables.values())


def test_a_command_that_fails_is_run_again(
    platform: LocalPlatform, workspace: Workspace, tmp_path: Path
) -> None:
    """Planted: the exit code ignored."""
    platform.operator.send(workspace.id, [{"kind": "text", "text": "hello"}])
    script = f"test -e {tmp_path}/tried || {{ touch {tmp_path}/tried; exit 3; }}"
    options = identity(platform.base_url, workspace, tmp_path)
    with running("connect", *options, "--exec", script) as command:
        failed = command.until("the command exited with code 3; retrying in 1.0 s")
        assert failed.startswith("message ")
        command.until(": handled")
        assert command.stop() == 0


def test_a_command_need_not_read_its_input(
    platform: LocalPlatform, workspace: Workspace, tmp_path: Path
) -> None:
    """And a long message does not block. Planted: the message in the environment (too long)."""
    platform.operator.send(workspace.id, [{"kind": "text", "text": "x" * 900_000}])
    options = identity(platform.base_url, workspace, tmp_path)
    with running("connect", *options, "--exec", "exit 0") as command:
        command.until(": handled")
        assert command.stop() == 0
    assert not [line for line in command.out if "retrying" in line]


def test_ctrl_c_lets_the_command_finish_and_its_message_is_not_repeated(
    platform: LocalPlatform, workspace: Workspace, tmp_path: Path
) -> None:
    """Planted: cancelled at once (delivered a second time); the child in our process group."""
    for text in ("first", "second"):
        platform.operator.send(workspace.id, [{"kind": "text", "text": text}])
    go_on = tmp_path / "go-on"
    script = (
        f"echo $MOLECULE_ROW_ID >> {tmp_path}/begun; "
        f"while ! test -e {go_on}; do sleep 0.05; done; echo done >> {tmp_path}/ended"
    )
    options = [*identity(platform.base_url, workspace, tmp_path), "--exec", script]
    with running("connect", *options) as command:
        # "passed to the command" is too early: the child may not be in its own session yet.
        until_written(tmp_path / "begun", command)
        # To the whole process group, as a terminal does.
        os.killpg(command.process.pid, signal.SIGINT)
        command.until("waiting for the command to end (at most 10 s)")
        go_on.touch()
        assert command.end() == 0
    assert (tmp_path / "ended").read_text() == "done\n"
    assert len((tmp_path / "begun").read_text().split()) == 1, "nothing new was begun"
    with running("connect", *options) as command:
        command.until(": handled")
        assert command.stop() == 0
    begun = (tmp_path / "begun").read_text().split()
    assert len(begun) == len(set(begun)) == 2, "each message once"


def test_a_second_ctrl_c_ends_everything_at_once(
    platform: LocalPlatform, workspace: Workspace, tmp_path: Path
) -> None:
    """Planted: the second ignored (ends after 10 s only); the command left running."""
    platform.operator.send(workspace.id, [{"kind": "text", "text": "hello"}])
    script = f"trap '' TERM INT; echo $$ > {tmp_path}/pid; sleep 300"
    options = [*identity(platform.base_url, workspace, tmp_path), "--exec", script]
    with running("connect", *options) as command:
        pid = tmp_path / "pid"
        until_written(pid, command)
        command.signal()
        command.until("waiting for")
        command.signal()
        assert command.process.wait(5) == 130
    child = int(pid.read_text())
    deadline = time.monotonic() + DEADLINE
    while not is_over(child):
        assert time.monotonic() < deadline, "the command is still running"
        time.sleep(0.01)


def until_written(path: Path, command: Command) -> None:
    """Wait until the command has written a line."""
    deadline = time.monotonic() + DEADLINE
    while not (path.exists() and path.read_text().endswith("\n")):
        assert command.process.poll() is None, f"ended: {command.out} {command.err}"
        assert time.monotonic() < deadline, f"nothing written: {command.out} {command.err}"
        time.sleep(0.01)


def is_over(pid: int) -> bool:
    """Return whether a process has ended; it may be a zombie."""
    if not Path("/proc/self/stat").exists():
        listed = subprocess.run(
            ["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False
        )
        return listed.stdout.strip()[:1] in ("", "Z")
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return True
    return stat.rpartition(")")[2].split()[0] == "Z"


@pytest.mark.anyio
@pytest.mark.parametrize("how", ["stop", "cancel"])
async def test_a_command_that_does_not_end_is_killed(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGTERM first, then SIGKILL. Planted: no SIGKILL (hangs)."""
    monkeypatch.setattr(agent_command, "FINISH_SECONDS", 0.2)
    monkeypatch.setattr(agent_command, "TERMINATE_SECONDS", 3)
    asked, ready = tmp_path / "asked", tmp_path / "ready"
    script = f"trap ': > {asked}' TERM; touch {ready}; while true; do sleep 0.1; done"
    command = agent_command.Command(script, "w", os.environ, None)
    run = asyncio.create_task(command(message()))
    async with asyncio.timeout(20):
        while not ready.exists() or command._process is None:
            await asyncio.sleep(0.01)
        assert command.running
        if how == "stop":
            await command.stop()
        run.cancel()
        await asyncio.wait([run])
    assert run.cancelled()
    assert command.ended_early
    assert asked.exists()
    assert not command.running


@pytest.mark.anyio
async def test_a_signal_that_ended_the_command_is_named() -> None:
    """And an exit code otherwise."""
    command = agent_command.Command("kill -9 $$", "w", os.environ, None)
    with pytest.raises(CommandFailedError, match=r"^the command was killed by SIGKILL$"):
        await command(message())


@pytest.mark.anyio
async def test_no_method_is_too_odd_for_the_environment(tmp_path: Path) -> None:
    """Planted: the method passed unchecked."""
    command = agent_command.Command(
        f'printf %s "$MOLECULE_METHOD" > {tmp_path}/method', "w", os.environ, None
    )
    await command(message({"deep": "\ud800"}, "a\0b\ud800" + "x" * 1_000_000))
    assert (tmp_path / "method").read_bytes().startswith(b"ab?xxx")
