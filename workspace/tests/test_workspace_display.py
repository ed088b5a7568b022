"""The displays: for a terminal, for a log, and for a program."""

import io
import itertools
import json
import os
import pty
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bad_network import BadNetwork, Treatment, always
from command import DEADLINE, PROGRAM, clean_environment, identity
from local_platform import LocalPlatform, Sample
from molecule_workspace.cli import display as cli_display
from molecule_workspace.cli import lines as cli_lines
from molecule_workspace.cli.display import Display, JsonDisplay, Shown, TerminalDisplay
from molecule_workspace.inbox import events

MIB = 1 << 20
EVIL = "a\x1b]0;owned\x07\x1b[31mred\x9b2J\r\n\u202egpj.exe\ud800\0[bold]b[/bold]:smiley:"


Make = Callable[[io.StringIO], Display]


def plain_lines(shown: str) -> list[str]:
    """Return the lines that a terminal showed, without escape sequences."""
    return re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown))


class Screen:
    """A terminal that runs a command, and its output."""

    def __init__(self, *arguments: str | Path) -> None:
        """Start the command in a terminal of 100 columns."""
        controller, terminal = pty.openpty()
        env = clean_environment({"TERM": "xterm-256color", "COLUMNS": "100", "LANG": "C.UTF-8"})
        self.process = subprocess.Popen(
            [PROGRAM, *arguments],
            env=env,
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            start_new_session=True,
        )
        os.close(terminal)
        self._controller = controller
        self._shown = bytearray()
        self._news = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self._controller, 1 << 16)
            except OSError:  # no process has the terminal open any more
                return
            with self._news:
                self._shown += data
                self._news.notify_all()

    @property
    def shown(self) -> str:
        """The output so far."""
        with self._news:
            return self._shown.decode()

    def until(self, text: str) -> str:
        """Wait until a text appears; return the output so far."""
        with self._news:
            found = self._news.wait_for(lambda: text.encode() in self._shown, DEADLINE)
        assert found, f"no {text} in {self.shown[-500:]!r}"
        return self.shown

    def until_line(self, pattern: str) -> None:
        """Wait until a line matches a pattern."""
        wanted = re.compile(pattern)
        with self._news:
            found = self._news.wait_for(
                lambda: any(
                    wanted.search(line)
                    for line in plain_lines(self._shown[-4000:].decode(errors="replace"))
                ),
                DEADLINE,
            )
        assert found, f"no {pattern} in {self.shown[-500:]!r}"

    def stop(self) -> int:
        """Stop the command with Ctrl-C; return its exit code."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(DEADLINE)

    def close(self) -> None:
        """Kill the process and close the terminal."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._reader.join(DEADLINE)
        os.close(self._controller)


def test_a_terminal_shows_bars_for_long_files(platform: LocalPlatform, tmp_path: Path) -> None:
    """Name, size, rate and time left; removed at the end; other lines appear above.

    Planted: bars for small files too; a bar that is not removed.
    """
    workspace = platform.operator.create("screen")
    names = ["first film.mp4", "second film.mp4"]
    platform.operator.upload(workspace.id, [Sample(name, os.urandom(20 * MIB)) for name in names])
    platform.operator.upload(workspace.id, [Sample("small.txt", b"x" * MIB)])
    stalls = always(Treatment(stall_after=8 * MIB), "/content")
    bar = r".*━.* [78]\.\d/20\.0 MiB \d+\.\d MiB/s +0:00:\d\d"
    with BadNetwork(platform.base_url, stalls) as network:
        screen = Screen("connect", *identity(network.url, workspace, tmp_path))
        try:
            screen.until("arrived: small.txt, 1.0 MiB in ")
            for name in names:
                screen.until_line(f"{name.replace(' ', '_')} {bar}")
            network.wait_until(lambda: network.sent("/content") == 17 * MIB)
            network.on_request = lambda seen: None
            network.release()
            for name in names:
                screen.until(f"arrived: {name.replace(' ', '_')}, 20.0 MiB in ")
            assert screen.stop() == 0
        finally:
            screen.close()
    shown = screen.shown
    bars = [line for line in plain_lines(shown) if "━" in line]
    assert any(
        "first_film" in line and "second_film" in next_line
        for line, next_line in itertools.pairwise(bars)
    ), "both at once"
    assert not any("small" in line for line in bars)
    after = shown[shown.rindex("arrived: ") :]
    assert "━" not in after, "no bar is left when all is there"
    assert shown.rstrip().endswith("stopped") or "stopped; " in after
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l"), "the cursor is back"


def test_no_escape_sequence_from_the_network_reaches_the_terminal(
    platform: LocalPlatform, tmp_path: Path
) -> None:
    """Planted: texts written unescaped; rich markup on, without ``Text``."""
    workspace = platform.operator.create("screen")
    evil = EVIL.replace("\ud800", "").replace("\0", "")
    platform.operator.send(workspace.id, [{"kind": "text", "text": f"before {evil} after"}])
    screen = Screen("connect", *identity(platform.base_url, workspace, tmp_path))
    try:
        shown = screen.until(" after")
        assert screen.stop() == 0
    finally:
        screen.close()
    assert r"before a\x1b]0;owned\x07\x1b[31mred\x9b2J" in shown
    assert r"\u202egpj.exe[bold]b[/bold]:smiley: after" in shown
    assert not re.search("\x1b\\]|\x1b\\[31m|\x07|\x9b|\u202e", shown)


def every_event(evil: str) -> list[Shown]:
    """Return events of all kinds, with the same text in every field from the network."""
    body = {"params": {"message": {"parts": [{"text": evil, "file": {"uri": evil}}]}}}
    path = Path("/files/x")
    return [
        cli_display.Started(evil, "w", path),
        events.Connected(evil, "w", path),
        events.Trouble(evil, 1.0),
        events.Recovered(),
        events.Notice(evil),
        events.FileStarted("1", evil, 5 * MIB, 0),
        events.FileProgress("1", 5 * MIB, 3 * MIB),
        events.FileStarted("2", evil, None, 77),
        events.FileProgress("2", None, 5 * MIB),
        events.FileDelayed("2", evil, evil + "!", 1.0),
        events.FileDelayed("2", evil, evil, None),
        events.FileArrived("1", evil, 5 * MIB, "0" * 64, path, 0.1),
        events.FileAcked("1"),
        events.FileLost("2", evil, evil),
        events.MessageReceived("r", evil, body),
        events.MessageFailed("r", evil, 1.0),
        events.MessageFailed("r", evil, None),
        events.MessageHandled("r"),
        cli_display.Serving("http://127.0.0.1:1", path),
        cli_display.Registered(evil, "w", evil),
        cli_display.FileStored(evil, "text/plain", 1, path),
        cli_display.Stopping("the end"),
        events.Stopped(2),
        cli_display.Ended(),
    ]


@pytest.mark.parametrize("make", [Display, TerminalDisplay])
def test_every_event_is_safe_to_show(make: Make) -> None:
    """One line each (a message has more), without raw text. Planted: a name not escaped."""
    out = io.StringIO()
    display = make(out)
    for event in every_event(EVIL):
        display.show(event)
    display.close()
    shown = out.getvalue()
    assert set(re.findall(r"[\x00-\x1f\x7f-\x9f\u202e\ud800]", shown)) == {"\n"}
    assert shown.count("owned") == shown.count(r"\x1b]0;owned\x07")
    assert shown.count("[bold]b[/bold]:smiley:") == shown.count("owned")
    assert shown.splitlines()[0].endswith("files go to /files/x")
    assert "stopped; 2 files are incomplete and resume at the next start" in shown


def test_every_event_is_one_json_object() -> None:
    """With every field, and the time."""
    out = io.StringIO()
    for event in every_event(EVIL):
        JsonDisplay(out).show(event)
    lines = out.getvalue().splitlines()
    reported = [json.loads(line) for line in lines]
    assert len(reported) == len(every_event(EVIL))
    assert all(line.isascii() and line.isprintable() for line in lines)
    assert {key: reported[5][key] for key in ("event", "file_id", "name", "size")} == {
        "event": "file_started",
        "file_id": "1",
        "name": EVIL,
        "size": 5 * MIB,
    }
    assert reported[11]["path"] == "/files/x"


def test_progress_events_are_printed_at_most_five_times_a_second(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Per file. Planted: one limit for all files; none."""
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    out = io.StringIO()
    display = JsonDisplay(out)
    for step in range(100):
        now = 100.0 + step / 50
        for file_id in ("1", "2"):
            display.show(events.FileProgress(file_id, None, step))
    reported = [json.loads(line)["file_id"] for line in out.getvalue().splitlines()]
    assert 8 <= reported.count("1") <= 11
    assert reported.count("1") == reported.count("2")


def test_the_same_failure_is_reported_once_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    """A different byte count is not a new failure; a failure after a recovery is.

    Planted: every retry reported; never reported again.
    """
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    out = io.StringIO()
    display = Display(out)
    for second in range(100):
        now = 100.0 + second
        display.show(events.Trouble("cannot reach x", 1.0))
        display.show(events.FileDelayed("1", "x", f"the answer ended at {second} of 200", 1.0))
    lines = out.getvalue().splitlines()
    assert [line.partition(";")[0] for line in lines] == [
        "cannot reach x",
        "x: the answer ended at 0 of 200",
        "cannot reach x",
        "x: the answer ended at 60 of 200",
    ]
    display.show(events.Recovered())
    display.show(events.Trouble("cannot reach x", 1.0))
    assert out.getvalue().splitlines()[4:] == [
        "the platform is reachable again",
        "cannot reach x; retrying in 1.0 s",
    ]


def test_a_display_that_cannot_write_does_not_stop_the_poller() -> None:
    """A full disk is ignored; a closed pipe calls on_closed, once.

    Planted: OSError not caught; on_closed called for every event.
    """
    calls: list[str] = []
    with open("/dev/full", "w") as full:
        display = Display(full)
        display.on_closed = lambda: calls.append("full")
        display.show(events.Notice("x"))
        with pytest.raises(OSError, match="No space"):
            full.flush()
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), full.fileno())
    read, write = os.pipe()
    os.close(read)
    broken = os.fdopen(write, "w")
    display = Display(broken)
    display.on_closed = lambda: calls.append("broken")
    for _ in range(3):
        display.show(events.Notice("x"))
    assert calls == ["broken"]
    assert display.closed
    with pytest.raises(BrokenPipeError):
        broken.close()


def test_a_message_nested_too_deeply_for_json_is_printed_without_its_body() -> None:
    """Planted: RecursionError not caught."""
    body: Any = None
    for _ in range(100_000):
        body = [body]
    for make in (Display, JsonDisplay):
        out = io.StringIO()
        make(out).show(events.MessageReceived("row", "m", body))
        assert "row" in out.getvalue()


def test_bars_are_hidden_while_a_command_writes_to_the_terminal() -> None:
    """Bars are hidden while it runs. Planted: bars stay."""
    out = io.StringIO()
    display = TerminalDisplay(out, handled_by="the command")
    display.show(events.FileStarted("1", "x", 20 * MIB, 0))
    assert display._bars_shown
    display.show(events.MessageReceived("r", "m", {}))
    assert not display._bars_shown
    display.show(events.FileProgress("1", 20 * MIB, MIB))
    assert not display._bars_shown
    display.show(events.MessageHandled("r"))
    assert display._bars_shown
    display.close()
    assert "message r (m): passed to the command" in out.getvalue()


@pytest.mark.parametrize(
    ("n", "shown"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (MIB - 1, "1.0 MiB"),
        (40 * MIB, "40.0 MiB"),
        (1 << 60, "1048576.0 TiB"),
    ],
)
def test_sizes_are_shown_in_the_unit_that_fits(n: int, shown: str) -> None:
    """Binary units, one decimal."""
    assert cli_lines.size(n) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.01, "0.1 s"), (2.34, "2.3 s"), (42.4, "42 s"), (300, "5 min")]
)
def test_durations_are_short(seconds: float, shown: str) -> None:
    """Seconds, or minutes."""
    assert cli_lines.duration(seconds) == shown


def test_names_stay_readable() -> None:
    """Umlauts and joined emoji are kept; a long name is shortened."""
    assert cli_lines.clean_name("Übersicht 👩‍💻.txt") == "Übersicht 👩‍💻.txt"
    assert len(cli_lines.clean_name("x" * 10_000)) == 121
    assert cli_lines.clean_name("") == "(no name)"
