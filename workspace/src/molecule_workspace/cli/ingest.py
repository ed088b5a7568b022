"""``molecule-workspace ingest``: receives the uploads that the platform pushes to a workspace.

``ingest.app`` is the HTTP application. This module adds the listening socket, the
registration and heartbeats, whose answers contain the inbound secret, and a graceful stop.
"""

import asyncio
import contextlib
import logging
import os
import socket
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import uvicorn

from molecule_workspace.cli.arguments import ArgumentError
from molecule_workspace.cli.connect import INTERRUPTED, FailedError, at_signal, unusable
from molecule_workspace.cli.display import Display, Ended, FileStored, Registered, Serving, Stopping
from molecule_workspace.cli.lines import clean
from molecule_workspace.inbox import events
from molecule_workspace.inbox.client import (
    Backoff,
    MissingError,
    PlatformClient,
    PlatformError,
    UnavailableError,
)
from molecule_workspace.ingest.app import IngestLimits, StoredFile, ingest_app

STOP_SECONDS: Final = 10
"""Time for uploads in flight to finish when the server stops."""


@dataclass(frozen=True)
class Registration:
    """What is needed to register the workspace in push mode; the answer has the secret."""

    platform: str
    workspace: str
    token: str
    url: str
    agent_card: Mapping[str, Any]
    heartbeat_interval: float = 30.0


@dataclass(frozen=True)
class Ingest:
    """The arguments of ``ingest``. Either ``secret`` or ``registration`` is None."""

    listen: tuple[str, int]
    folder: Path
    limits: IngestLimits
    secret: str | None
    registration: Registration | None


class _Server(uvicorn.Server):
    """A uvicorn server that reports when it serves, and installs no signal handlers."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.serving = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.serving.set()

    def capture_signals(self) -> contextlib.AbstractContextManager[None]:  # type: ignore[override]
        return contextlib.nullcontext()


class _Secret:
    """The current inbound secret. While it is None, every upload is refused."""

    def __init__(self, value: str | None) -> None:
        self.value = value

    def __call__(self) -> str | None:
        return self.value


async def ingest(asked: Ingest, display: Display) -> int:
    """Serve until a signal arrives; return the exit code.

    ArgumentError: the folder cannot be used. FailedError: any other error that ends the run.
    """
    secret = _Secret(asked.secret)
    folder = asked.folder.absolute()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(0, "not writable")
        app = ingest_app(
            folder,
            secret,
            limits=asked.limits,
            on_stored=lambda file: display.show(_stored(file)),
        )
    except OSError as error:
        raise ArgumentError(unusable(asked.folder, error)) from error
    listener = _bind(*asked.listen)
    server = _Server(
        uvicorn.Config(
            app,
            http="h11",
            ws="none",
            interface="asgi3",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=STOP_SECONDS,
        )
    )
    _log_to(display)
    stop = asyncio.Event()

    def interrupted() -> None:
        busy = bool(server.server_state.connections)
        display.show(Stopping(f"uploads in flight (at most {STOP_SECONDS} s)" if busy else ""))
        stop.set()

    def at_once() -> None:
        display.close()
        os._exit(INTERRUPTED)

    display.on_closed = stop.set
    with at_signal(interrupted, at_once):
        serve = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            await _first(serve, asyncio.create_task(server.serving.wait()))
            display.show(Serving(_address(listener), folder))
            kept = asyncio.create_task(_keep_registered(asked.registration, secret, display))
            try:
                await _first(serve, kept, asyncio.create_task(stop.wait()))
            finally:
                await _cancel(kept)
        finally:
            server.should_exit = True
            await serve
    display.show(Ended())
    return 0


async def _first(*tasks: asyncio.Task[Any]) -> None:
    """Wait until one of the tasks is done, cancel the last one, and raise what they raised."""
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    await _cancel(tasks[-1])
    for task in done:
        task.result()


async def _cancel(task: asyncio.Task[Any]) -> None:
    if task.cancel():
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def _keep_registered(
    registration: Registration | None, secret: _Secret, display: Display
) -> None:
    """Register, then send heartbeats, and take the secret from each answer.

    FailedError: the platform refuses the workspace.
    """
    if registration is None:
        await asyncio.Event().wait()
        return
    client = PlatformClient(registration.platform, registration.workspace, registration.token)
    try:
        await _register(client, registration, secret, display)
        display.show(Registered(client.platform, client.workspace, registration.url))
        await _beat(client, registration.heartbeat_interval, secret, display)
    except PlatformError as error:
        raise FailedError(clean(str(error))) from error
    finally:
        await client.close()


async def _register(
    client: PlatformClient, registration: Registration, secret: _Secret, display: Display
) -> None:
    backoff = Backoff()
    while True:
        try:
            secret.value = await client.register(registration.agent_card, "push", registration.url)
        except UnavailableError as error:
            if error.status == 400:
                raise FailedError(f"{clean(str(error))}; --url is {registration.url}") from error
            pause = backoff.next(error.retry_after)
            display.show(events.Trouble(str(error), pause))
            await asyncio.sleep(pause)
        except MissingError as error:
            raise FailedError(f"there is no platform at {client.platform}: {error}") from error
        else:
            if backoff.failures:
                display.show(events.Recovered())
            return


async def _beat(client: PlatformClient, interval: float, secret: _Secret, display: Display) -> None:
    started = time.monotonic()
    well = True
    while True:
        await asyncio.sleep(interval)
        uptime = int(time.monotonic() - started)
        try:
            # An answer without a secret must not lock the platform out.
            new = await client.heartbeat(
                {"active_tasks": 0, "error_rate": 0, "uptime_seconds": uptime}
            )
            secret.value = new or secret.value
        except UnavailableError as error:
            well = False
            display.show(events.Trouble(str(error), interval))
        else:
            if not well:
                display.show(events.Recovered())
            well = True


def _bind(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise FailedError(f"cannot listen on {host}:{port} ({error.strerror})") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise FailedError(
            f"cannot listen on {host}:{port} ({error.strerror}); "
            "choose another address with --listen"
        ) from error
    return listener


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _stored(file: StoredFile) -> FileStored:
    return FileStored(file.name, file.mime_type, file.size, file.path)


class _ToDisplay(logging.Handler):
    """Shows the server's log on the display: the message, and the exception's text."""

    def __init__(self, display: Display) -> None:
        super().__init__(logging.WARNING)
        self._display = display

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        error = record.exc_info[1] if record.exc_info else None
        if error is not None:
            text = f"{text}: {error or type(error).__name__}"
        self._display.show(events.Notice(text))
        if error is not None and not isinstance(error, OSError):
            traceback.print_exception(error)  # a bug in this program


def _log_to(display: Display) -> None:
    logging.getLogger().addHandler(_ToDisplay(display))
