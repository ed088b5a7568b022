"""Output of the commands: for a person at a terminal, for a log, or as JSON for a program.

``open_display`` chooses one. Each takes the events of ``inbox.events`` and those below. Showing an
event never raises: a full disk or a closed pipe must not stop the delivery of files. When the
reader of the output is gone, ``on_closed`` is called.
"""

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from molecule_workspace.cli import lines
from molecule_workspace.inbox import events

REPEAT_SECONDS: Final = 60.0
"""A failure with the same reason is reported at most once in this time."""

PROGRESS_SECONDS: Final = 0.2
"""Minimum time between two ``file_progress`` events of one file, with ``--json``."""


@dataclass(frozen=True)
class Started:
    """The command has started: the platform it connects to, and the folder for files."""

    platform: str
    workspace: str
    folder: Path


@dataclass(frozen=True)
class Serving:
    """The ingest listens at ``address`` (a URL)."""

    address: str
    folder: Path


@dataclass(frozen=True)
class Registered:
    """The workspace is registered in push mode; the platform sends uploads to ``url``."""

    platform: str
    workspace: str
    url: str


@dataclass(frozen=True)
class FileStored:
    """A pushed file is complete at ``path``."""

    name: str
    mime_type: str
    size: int
    path: Path


@dataclass(frozen=True)
class Stopping:
    """A signal arrived; ``waiting_for`` says what still has to end, "" for nothing."""

    waiting_for: str


@dataclass(frozen=True)
class Ended:
    """The ingest stopped."""


Shown = events.Event | Started | Serving | Registered | FileStored | Stopping | Ended


class Display:
    """Writes one line of text per event, for output that is not a terminal."""

    def __init__(self, out: TextIO, *, handled_by: str = "", once: bool = False) -> None:
        """``handled_by`` names what handles messages; "" means that they are shown here."""
        self.on_closed: Callable[[], None] = lambda: None
        self.closed = False
        self._out = out
        self._handled_by, self._once = handled_by, once
        self._reported: dict[str, float] = {}
        self._in_trouble = False

    def show(self, event: Shown) -> None:
        """Show an event."""
        try:
            self._write_event(event)
        except BrokenPipeError:
            if not self.closed:
                self.closed = True
                self.on_closed()
        except OSError:
            pass  # a log on a full disk must not stop the delivery of files

    def close(self) -> None:
        """Restore the terminal."""

    def _write_event(self, event: Shown) -> None:
        for line in self._lines(event):
            self._write(line)

    def _write(self, line: str) -> None:
        print(line, file=self._out, flush=True)

    def _lines(self, event: Shown) -> Iterator[str]:
        match event:
            case Started():
                yield (
                    f"workspace {event.workspace} at {lines.clean(event.platform)}; "
                    f"files go to {lines.path(event.folder)}"
                )
            case events.Connected():
                yield "connected" if self._once else "connected; press Ctrl-C to stop"
            case events.Trouble(reason, retry_in):
                self._in_trouble = True
                yield from self._unless_reported(
                    reason, f"{lines.clean(reason)}; retrying in {lines.duration(retry_in)}"
                )
            case events.Recovered():
                if self._in_trouble:
                    yield "the platform is reachable again"
                self._in_trouble = False
                self._reported.clear()
            case events.Notice(text):
                yield lines.clean(text)
            case events.FileStarted():
                yield from self._started(event)
            case events.FileArrived():
                yield (
                    f"arrived: {lines.clean_name(event.name)}, {lines.size(event.size)} in "
                    f"{lines.duration(event.seconds)}: {lines.path(event.path)}"
                )
            case events.FileDelayed(_, name, reason, retry_in):
                yield from self._delayed(name, reason, retry_in)
            case events.FileLost(_, name, reason):
                yield f"lost: {lines.clean_name(name)}: {lines.clean(reason)}"
            case events.MessageReceived():
                yield from self._message(event)
            case events.MessageHandled(row_id):
                if self._handled_by:
                    yield f"message {row_id}: handled"
            case events.MessageFailed(row_id, reason, retry_in):
                then = (
                    "giving up; the message is skipped"
                    if retry_in is None
                    else f"retrying in {lines.duration(retry_in)}"
                )
                yield f"message {row_id}: {lines.clean(reason)}; {then}"
            case events.Stopped(incomplete):
                yield lines.stopped(incomplete)
            case Serving():
                yield (
                    f"listening on {event.address}; files go to {lines.path(event.folder)}; "
                    "press Ctrl-C to stop"
                )
            case Registered():
                yield (
                    f"registered workspace {event.workspace} at {lines.clean(event.platform)}; "
                    f"uploads are sent to {lines.clean(event.url)}"
                )
            case FileStored():
                yield (
                    f"stored: {lines.clean_name(event.name)}, {lines.size(event.size)}: "
                    f"{lines.path(event.path)}"
                )
            case Stopping(waiting_for):
                if waiting_for:
                    yield f"waiting for {waiting_for}; press Ctrl-C again to stop immediately"
            case Ended():
                yield "stopped"

    def _started(self, event: events.FileStarted) -> Iterator[str]:
        name = lines.clean_name(event.name)
        if event.received:
            of = "" if event.size is None else f" of {lines.size(event.size)}"
            yield f"resuming {name} at {lines.size(event.received)}{of}"
        elif event.size is not None and event.size > lines.LARGE_FILE_BYTES:
            yield f"fetching {name} ({lines.size(event.size)})"

    def _delayed(self, name: str, reason: str, retry_in: float | None) -> Iterator[str]:
        text = f"{lines.clean_name(name)}: {lines.clean(reason)}; "
        if retry_in is None:
            yield text + "resumes at the next start"
        else:
            # When the platform is down every file fails for the same reason: one line is enough.
            yield from self._unless_reported(
                reason, text + f"retrying in {lines.duration(retry_in)}"
            )

    def _message(self, event: events.MessageReceived) -> Iterator[str]:
        what = f"message {event.row_id} ({lines.clean_name(event.method)})"
        if self._handled_by:
            yield f"{what}: passed to {self._handled_by}"
        else:
            yield f"{what}:"
            yield from (f"  {line}" for line in lines.message(event.body))

    def _unless_reported(self, reason: str, line: str) -> Iterator[str]:
        # Some reasons contain a byte count, which differs each time.
        key = "".join(c for c in reason if not c.isdigit())
        now = time.monotonic()
        if now - self._reported.get(key, -REPEAT_SECONDS) >= REPEAT_SECONDS:
            self._reported[key] = now
            yield line


class _Rate(ProgressColumn):
    """Bytes per second, in the same units as all other sizes."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{lines.size(int(speed))}/s")


class TerminalDisplay(Display):
    """Lines of text, and below them a progress bar for each large file being fetched."""

    def __init__(self, out: TextIO, *, handled_by: str = "", once: bool = False) -> None:
        """As ``Display``; ``out`` is a terminal."""
        super().__init__(out, handled_by=handled_by, once=once)
        self._console = Console(file=out, markup=False, highlight=False, emoji=False)
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            DownloadColumn(binary_units=True),
            _Rate(),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            refresh_per_second=5,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._bars: dict[str, TaskID] = {}
        self._names: dict[str, str] = {}
        self._command_runs = False
        self._bars_shown = False

    def close(self) -> None:
        """Remove the progress bars from the screen."""
        with contextlib.suppress(OSError):
            self._show_bars(False)

    def _write_event(self, event: Shown) -> None:
        match event:
            case events.FileStarted():
                self._names[event.file_id] = lines.clean_name(event.name)
                self._bar(event.file_id, event.size, event.received)
            case events.FileProgress():
                self._bar(event.file_id, event.size, event.received)
            case events.FileArrived() | events.FileDelayed() | events.FileLost():
                self._names.pop(event.file_id, None)
                bar = self._bars.pop(event.file_id, None)
                if bar is not None:
                    self._progress.remove_task(bar)
            case events.MessageReceived():
                # The command's output would be mixed with the bars.
                self._command_runs = bool(self._handled_by)
            case events.MessageHandled() | events.MessageFailed():
                self._command_runs = False
            case Stopping():
                self._write("")  # the terminal shows ^C in this line
        self._show_bars(
            bool(self._bars) and not self._command_runs and not isinstance(event, events.Stopped)
        )
        super()._write_event(event)

    def _show_bars(self, wanted: bool) -> None:
        if wanted and not self._bars_shown:
            self._progress.start()
        elif self._bars_shown and not wanted:
            self._progress.stop()
        self._bars_shown = wanted

    def _bar(self, file_id: str, size: int | None, received: int) -> None:
        bar = self._bars.get(file_id)
        if bar is not None:
            self._progress.update(bar, completed=received)
        elif max(size or 0, received) > lines.LARGE_FILE_BYTES:
            name = self._names.get(file_id, "")
            self._bars[file_id] = self._progress.add_task(
                name if len(name) <= 30 else f"{name[:29]}…", total=size, completed=received
            )

    def _started(self, event: events.FileStarted) -> Iterator[str]:
        # A large file has a bar instead.
        if event.received or self._command_runs:
            yield from super()._started(event)

    def _write(self, line: str) -> None:
        style = "bold red" if line.startswith("lost: ") else ""
        self._console.print(Text(line, style=style), soft_wrap=True)


class JsonDisplay(Display):
    """Writes each event as one JSON object per line."""

    def __init__(self, out: TextIO) -> None:
        """Write to ``out``."""
        super().__init__(out)
        self._last: dict[str, float] = {}

    def _write_event(self, event: Shown) -> None:
        if isinstance(event, events.FileProgress):
            now = time.monotonic()
            if now - self._last.get(event.file_id, -PROGRESS_SECONDS) < PROGRESS_SECONDS:
                return
            self._last[event.file_id] = now
        elif isinstance(event, events.FileArrived | events.FileLost):
            self._last.pop(event.file_id, None)
        record = {"event": _snake(type(event).__name__)}
        record |= {f.name: _value(getattr(event, f.name)) for f in fields(event)}
        record["time"] = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        try:
            line = json.dumps(record)
        except (ValueError, RecursionError):
            line = json.dumps(record | {"body": None})  # nested too deeply for the encoder
        self._write(line)


def open_display(*, as_json: bool, handled_by: str = "", once: bool = False) -> Display:
    """Return the display for standard output: JSON, a terminal's, or plain lines."""
    out = sys.stdout
    if hasattr(out, "reconfigure"):
        # Characters that the terminal's encoding lacks are escaped instead of raising.
        out.reconfigure(errors="backslashreplace")
    if as_json:
        return JsonDisplay(out)
    kind = TerminalDisplay if out.isatty() else Display
    return kind(out, handled_by=handled_by, once=once)


def discard_output() -> None:
    """Redirect standard output to /dev/null, so that Python's exit does not report EPIPE."""
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 1)
    os.close(devnull)


def _snake(name: str) -> str:
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in name).lstrip("_")


def _value(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value
