"""``make demo`` and ``make e2e``: they report correctly, and clean up."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

import demo
from demo_check import Check, Result
from demo_samples import sample_requests, within
from demo_table import show
from local_platform import LocalPlatform, Operator, Sample

DEMO = Path(demo.__file__)
DEADLINE = 60.0

Run = Callable[[Mapping[str, str]], tuple[int, str, str]]


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for temporary files, which must be empty at the end."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    yield folder
    assert list(folder.iterdir()) == []


@pytest.fixture
def e2e(temporary: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """The e2e check, in this process."""

    def run(env: Mapping[str, str]) -> tuple[int, str, str]:
        code = demo.main(["e2e"], env)
        reported = capsys.readouterr()
        return code, reported.out, reported.err

    return run


def environment(platform: LocalPlatform, **more: str) -> dict[str, str]:
    """Return the environment that make passes."""
    return {"BASE_URL": platform.base_url, "ADMIN_TOKEN": platform.admin_token} | more


def leftovers(operator: Operator) -> list[str]:
    """Return the workspaces that a check did not remove."""
    return [w["name"] for w in operator.call("GET", "/workspaces") if "e2e check" in w["name"]]


def rows(out: str, mode: str) -> list[str]:
    """Return the lines of the table for one mode."""
    return [line for line in out.splitlines() if line.startswith(f" {mode} ")]


def test_the_demo_ends_well_and_lists_every_file(temporary: Path) -> None:
    """As ``make demo`` runs it. Planted: the table without push; a folder not removed."""
    done = subprocess.run(
        [sys.executable, DEMO], capture_output=True, text=True, timeout=DEADLINE, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    samples = [sample for request in sample_requests() for sample in request]
    for mode, state in (("poll", "acked"), ("push", "stored")):
        reported = rows(done.stdout, mode)
        assert len(reported) == len(samples) == 15
        for line, sample in zip(reported, samples, strict=True):
            assert sample.name[:29] in line
            sent, arrived, seconds, ended = line.split()[-4:]
            assert sent == arrived
            assert len(sent) == 12
            assert 0 <= float(seconds) < DEADLINE
            assert ended == state
    assert "the message arrived, and names the local files" in done.stdout
    assert "30 of 30 deliveries are correct" in done.stdout


def test_it_does_not_end_well_if_anything_is_wrong(
    platform: LocalPlatform, temporary: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An altered file, a deleted one, an extra one, and a message that names a different one.

    Planted: the digests of the sent files shown twice; the state ignored for the exit code.
    """
    samples = [Sample(f"{name}.txt", name.encode()) for name in ("good", "altered", "gone")]
    said: list[str] = []
    with Check(platform.operator, tmp_path / "check", "e2e check", said.append) as run:
        (tmp_path / "check").mkdir()
        run.connect()
        assert run.serve("127.0.0.1:0") == ""
        run.post([samples])
        run.send()
        run.arrive()
        assert demo.conclude(run.results(), run.problems, 1.0) == 0
        for delivery in run.deliveries:
            assert delivery.path is not None
            if delivery.sample.name == "altered.txt":
                delivery.path.write_bytes(b"ALTERED")
            if delivery.sample.name == "gone.txt":
                delivery.path.unlink()
        results = run.results()
        assert [(result.mode, result.state) for result in results] == [
            ("poll", "acked"),
            ("poll", "differs"),
            ("poll", "missing"),
            ("push", "stored"),
            ("push", "differs"),
            ("push", "missing"),
        ]
        assert demo.conclude(results, run.problems, 1.0) == 1
        good = [result for result in results if result.right]
        (run.files("push") / "one-too-many").touch()
        (run.files("push") / "two-too-many").touch()
        run.results()
        assert run.problems == ["push: 3 files were sent, 4 are there"]
        assert demo.conclude(good, run.problems, 1.0) == 1
        run.problems.clear()
        run.deliveries[0].path = tmp_path / "elsewhere"
        run.check_message()
        assert run.problems[0].endswith(f"the file is {tmp_path / 'elsewhere'}")
        assert any("which does not exist" in problem for problem in run.problems), "of gone.txt"
    assert demo.conclude([], [], 1.0) == 1, "nothing sent is nothing shown"
    assert leftovers(platform.operator) == []
    show(results, run.problems, "", [])
    reported = capsys.readouterr().out
    assert "differs" in reported
    assert "WRONG: the message names" in reported


def test_an_unacknowledged_file_is_not_correct() -> None:
    """The state "stored" is correct for push only. Planted: both states accepted for both modes."""
    poll = Result("poll", "x", 1, "a", "a", 1.0, "stored")
    assert not poll.right
    assert Result("push", "x", 1, "a", "a", 1.0, "stored").right


def test_e2e_leaves_nothing_at_the_platform(platform: LocalPlatform, e2e: Run) -> None:
    """Workspaces and files are removed. Planted: workspaces not removed."""
    code, out, err = e2e(environment(platform))
    assert (code, err) == (0, "")
    assert len(rows(out, "poll")) == len(rows(out, "push")) == 15
    assert leftovers(platform.operator) == []


def test_e2e_reports_that_push_was_not_checked(tmp_path: Path, e2e: Run) -> None:
    """And files over the platform's limits are listed. Planted: the refusal not reported."""
    with LocalPlatform(tmp_path / "platform", {"MAX_FILE_BYTES": "1MiB"}) as platform:
        code, out, err = e2e(environment(platform))
        assert leftovers(platform.operator) == []
    assert (code, err) == (0, "")
    assert len(rows(out, "poll")) == 13
    assert [line.split()[1:3] for line in rows(out, "push")] == [["NOT", "CHECKED"]]
    assert "push was NOT checked: the platform refuses http://127.0.0.1:" in out
    assert "PUSH_LISTEN=host:port" in out
    assert "not sent: 40-mib.mp4; 40.0 MiB exceed the platform's limit" in out


@pytest.mark.parametrize(
    ("env", "code", "said"),
    [
        ({}, 2, "BASE_URL and ADMIN_TOKEN not set"),
        ({"BASE_URL": "http://127.0.0.1:1"}, 2, "ADMIN_TOKEN not set"),
        ({"BASE_URL": "here", "ADMIN_TOKEN": "x"}, 2, "invalid BASE_URL 'here'"),
        ({"BASE_URL": "http://127.0.0.1:1", "ADMIN_TOKEN": "x"}, 1, "cannot be reached"),
        ({"ADMIN_TOKEN": "x", "PUSH_LISTEN": "here"}, 2, "invalid PUSH_LISTEN 'here'"),
        ({"ADMIN_TOKEN": "x"}, 1, "401"),
    ],
)
def test_e2e_that_cannot_begin_is_one_sentence(
    env: dict[str, str], code: int, said: str, platform: LocalPlatform, e2e: Run
) -> None:
    """Planted: httpx errors not caught (a traceback)."""
    if len(env) and "BASE_URL" not in env:
        env = env | {"BASE_URL": platform.base_url}
    ended, _, err = e2e(env)
    assert ended == code
    assert said in err
    assert len(err.splitlines()) == 1


def test_ctrl_c_cleans_up(platform: LocalPlatform, temporary: Path) -> None:
    """Workspaces, folder and processes are gone. Planted: SIGTERM left to Python's default."""
    for number in (signal.SIGINT, signal.SIGTERM):
        process = subprocess.Popen(
            [sys.executable, DEMO, "e2e"],
            env=os.environ | environment(platform),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        watchdog = threading.Timer(DEADLINE, process.kill)
        watchdog.start()
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if "ingest serves" in line:  # everything is started, nothing is sent yet
                    break
            assert len(leftovers(platform.operator)) == 2, "it is at work"
            process.send_signal(number)
            _, err = process.communicate()
        finally:
            watchdog.cancel()
        assert (process.returncode, err) == (130, "interrupted; everything is cleaned up\n")
        assert leftovers(platform.operator) == []
        assert list(temporary.iterdir()) == []
        assert commands_that_name(temporary) == []


def commands_that_name(folder: Path) -> list[str]:
    """Return the command lines of processes that contain a folder's path."""
    if Path("/proc/self/cmdline").exists():
        found: list[str] = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):  # it has just exited
                found.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    else:
        listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True)
        found = listed.stdout.splitlines()
    return [line for line in found if str(folder) in line]


def test_samples_go_in_requests_that_the_platform_takes() -> None:
    """In order. Planted: the limit of a request ignored."""
    a, b, c = (Sample(name, b"x" * size) for name, size in (("a", 5), ("b", 6), ("c", 20)))
    assert within([[a, b, c]], 100, 100, 64) == ([[a, b, c]], [])
    assert within([[a, b, c]], 10, 100, 64) == ([[a, b]], [c])
    assert within([[a, b], [c]], 100, 10, 64) == ([[a], [b]], [c])
    assert within([[a, b, a]], 100, 100, 2) == ([[a, b], [a]], [])
