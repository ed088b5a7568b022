"""``molecule-workspace ingest`` as a user runs it."""

import asyncio
import io
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from bad_network import Answer, BadNetwork, Seen, Treatment
from command import DEADLINE, Command, identity, run, running
from local_platform import LocalPlatform, Sample, Workspace
from molecule_workspace.cli.display import Display
from molecule_workspace.cli.ingest import Ingest, Registration, ingest
from molecule_workspace.ingest.app import INGEST_PATH, IngestLimits

SECRET = "s3cret"


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Command]:
    """An ingest with a secret from a file."""
    secret = tmp_path / "secret"
    secret.touch(mode=0o600)
    secret.write_text(f"{SECRET}\n", encoding="ascii")
    arguments: list[str | Path] = [
        "--listen",
        "127.0.0.1:0",
        "--secret-file",
        secret,
        "--dir",
        tmp_path / "files",
    ]
    with running("ingest", *arguments) as command:
        yield command


def address(command: Command) -> str:
    """Return the URL of an ingest."""
    return command.until("listening on ").split()[2].rstrip(";")


def post(url: str, bearer: str, content: bytes = b"hello") -> httpx.Response:
    """Post a file as the platform does."""
    files = {"files": ("a report.txt", content, "text/plain")}
    headers = {"Authorization": f"Bearer {bearer}"}
    return httpx.post(url + INGEST_PATH, files=files, headers=headers)


def test_it_serves_with_a_secret_from_a_file(served: Command, tmp_path: Path) -> None:
    """And prints a line for each file. Planted: the bound port not shown (":0")."""
    url = address(served)
    assert served.out[0] == (
        f"listening on {url}; files go to {tmp_path / 'files'}; press Ctrl-C to stop"
    )
    refused = post(url, "wrong")
    assert refused.status_code == 401
    answer = post(url, SECRET)
    assert answer.status_code == 200
    assert "server" not in answer.headers
    path = Path(answer.json()["files"][0]["uri"].removeprefix("workspace:"))
    assert path.read_bytes() == b"hello"
    served.until(f"stored: a_report.txt, 5 B: {path}")
    assert served.stop() == 0
    assert served.out[-1] == "stopped"
    assert served.err == []


def test_limits_and_json(tmp_path: Path) -> None:
    """Planted: --max-file ignored."""
    arguments: list[str | Path] = ["--listen", "127.0.0.1:0", "--dir", tmp_path / "files", "--json"]
    env = {"MOLECULE_INBOUND_SECRET": SECRET}
    limits = ["--max-file", "1k", "--max-request", "1500"]
    with running("ingest", *arguments, *limits, env=env) as command:
        command.until('"serving"')
        url = command.events("serving")[0]["address"]
        assert post(url, SECRET, b"x" * 1025).json()["max"] == 1024
        assert post(url, SECRET, b"x" * 1024).status_code == 200
        command.until('"file_stored"')
        assert command.stop() == 0
    stored = command.events("file_stored")[0]
    assert (stored["name"], stored["size"], stored["mime_type"]) == (
        "a_report.txt",
        1024,
        "text/plain",
    )
    assert [event["event"] for event in command.events()] == [
        "serving",
        "file_stored",
        "stopping",
        "ended",
    ]


def test_a_failing_disk_is_reported_without_a_traceback(served: Command, tmp_path: Path) -> None:
    """Planted: the server's log left to Python's default (a traceback)."""
    url = address(served)
    for path in (tmp_path / "files").iterdir():
        path.unlink()
    (tmp_path / "files").rmdir()
    (tmp_path / "files").touch()
    assert post(url, SECRET).json()["error"] == "could not stage file"
    served.until("could not stage file: ")
    assert served.stop() == 0
    assert served.err == []


def test_ctrl_c_lets_uploads_in_flight_finish(served: Command) -> None:
    """Planted: the server cancelled at once (no answer)."""
    host, port = address(served).removeprefix("http://").split(":")
    body = (
        b'--x\r\nContent-Disposition: form-data; name="files"; filename="x"\r\n\r\n'
        b"first half, second half\r\n--x--\r\n"
    )
    head = (
        f"POST {INGEST_PATH} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {SECRET}\r\n"
        f"Content-Type: multipart/form-data; boundary=x\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection((host, int(port)), timeout=DEADLINE) as connection:
        connection.sendall(head.encode() + body[:80])
        # The partial file exists once the server has read its header.
        files = Path(served.out[0].partition("files go to ")[2].rpartition(";")[0])
        while not list(files.glob(".*.part")):
            assert served.process.poll() is None
        served.signal()
        served.until("waiting for uploads in flight (at most 10 s)")
        connection.sendall(body[80:])
        assert connection.recv(100).startswith(b"HTTP/1.1 200")
    assert served.end() == 0
    assert served.out[-1] == "stopped"


def test_it_registers_and_the_platform_pushes_uploads(
    platform: LocalPlatform, workspace: Workspace, tmp_path: Path
) -> None:
    """It serves before it registers. Planted: registered as poll; the answer's secret ignored."""
    with BadNetwork("http://127.0.0.1:1") as front:
        options = [*identity(platform.base_url, workspace, tmp_path), "--url", front.url]
        with running("ingest", *options, "--listen", "127.0.0.1:0") as command:
            front.target = address(command)
            command.until(
                f"registered workspace {workspace.id} at {platform.base_url}; "
                f"uploads are sent to {front.url}"
            )
            answer = platform.operator.upload(workspace.id, [Sample("x.txt", b"hello")])
            path = answer[0]["uri"].removeprefix("workspace:")
            command.until(f"stored: x.txt, 5 B: {path}")
            assert Path(path).read_bytes() == b"hello"
            assert command.stop() == 0
    assert command.out[0].startswith("listening on ")
    assert command.err == []


def test_a_platform_that_is_down_is_retried(
    platform: LocalPlatform, workspace: Workspace, tmp_path: Path
) -> None:
    """Until then every upload is refused. Planted: an unknown secret compared as text."""
    with BadNetwork(platform.base_url) as network:
        network.down()
        options = identity(network.url, workspace, tmp_path)
        arguments = [*options, "--url", "http://127.0.0.1:9", "--listen", "127.0.0.1:0"]
        with running("ingest", *arguments) as command:
            command.until("cannot reach")
            assert post(address(command), "None").status_code == 401
            network.up()
            command.until("the platform is reachable again")
            command.until("registered workspace")
            assert command.stop() == 0


@pytest.mark.anyio
async def test_a_secret_that_changes_is_taken_from_the_heartbeat(
    platform: LocalPlatform, workspace: Workspace, tmp_path: Path
) -> None:
    """An answer without one changes nothing. Planted: the heartbeat's answer ignored."""
    beats: list[str] = []

    def answer(seen: Seen) -> Treatment | None:
        if not seen.path.endswith("/heartbeat"):
            return None
        beats.append(seen.path)
        secret = "new-secret" if len(beats) == 1 else ""
        reported = {"status": "ok", "platform_inbound_secret": secret}
        return Treatment(answer=Answer.of_json(reported))

    out = io.StringIO()
    with BadNetwork(platform.base_url, answer) as network:
        registration = Registration(
            network.url,
            workspace.id,
            workspace.token,
            "http://127.0.0.1:9",
            {"name": "test"},
            heartbeat_interval=0.2,
        )
        asked = Ingest(("127.0.0.1", 0), tmp_path, IngestLimits(), None, registration)
        serving = asyncio.create_task(ingest(asked, Display(out)))
        async with asyncio.timeout(DEADLINE):
            while "registered" not in out.getvalue():
                assert not serving.done()
                await asyncio.sleep(0.01)
            url = out.getvalue().split()[2].rstrip(";")
            before = await asyncio.to_thread(post, url, workspace.inbound_secret)
            assert before.status_code == (200 if not beats else before.status_code)
            while len(beats) < 3:
                await asyncio.sleep(0.01)
            after = await asyncio.to_thread(post, url, workspace.inbound_secret)
            assert after.status_code == 401
            assert (await asyncio.to_thread(post, url, "new-secret")).status_code == 200
            os.kill(os.getpid(), signal.SIGINT)
            assert await serving == 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"url": "http://10.0.0.1:8090"}, "private or reserved address"),
        ({"token": "wrong"}, "rejected the token"),
    ],
)
def test_a_registration_that_is_refused_is_one_sentence(
    change: dict[str, str], said: str, platform: LocalPlatform, workspace: Workspace, tmp_path: Path
) -> None:
    """And nothing is retried. Planted: 400 treated as temporary (never ends)."""
    changed = Workspace(workspace.id, change.get("token", workspace.token), "")
    options = identity(platform.base_url, changed, tmp_path)
    url = change.get("url", "http://127.0.0.1:9")
    command = run("ingest", *options, "--url", url, "--listen", "127.0.0.1:0")
    assert (command.process.returncode, len(command.err)) == (1, 1)
    assert said in command.err[0]


def test_an_address_that_is_taken_is_one_sentence(tmp_path: Path) -> None:
    """Planted: OSError not caught."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        env = {"MOLECULE_INBOUND_SECRET": SECRET}
        command = run("ingest", "--listen", listen, "--dir", tmp_path / "files", env=env)
    assert command.process.returncode == 1
    assert command.err == [
        f"molecule-workspace ingest: cannot listen on {listen} (Address already in use); "
        "choose another address with --listen"
    ]
