"""The platform, or its database, restarted during the download of a large file."""

import asyncio
import hashlib
import os
import random
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from bad_network import BadNetwork, Treatment, always
from local_platform import LocalPlatform, Operator, Sample, Workspace, default_binary
from molecule_workspace.inbox.events import FileAcked, FileArrived, FileDelayed, Recovered, Trouble
from own_postgres import OwnPostgres
from poller import own_address
from polling import Poller, attach, digests, say

pytestmark = pytest.mark.anyio

BIG: Final = 60 << 20
SOME: Final = 10 << 20
"""Bytes that have arrived when the restart begins."""

TRICKLE: Final = 20 << 20
"""Bytes per second: the whole file takes 3 s, so that SOME is certainly in the middle."""


@pytest.fixture
def restartable(tmp_path: Path) -> Iterator[LocalPlatform]:
    """A platform that the test can stop."""
    platform = LocalPlatform(tmp_path / "platform")
    platform.addr = own_address()
    with platform:
        yield platform


class Restart:
    """A workspace with a large file being downloaded, and the measurements."""

    def __init__(self, operator: Operator, network: BadNetwork, folder: Path) -> None:
        """Create the workspace, and send the file and a message that refers to it."""
        self.operator, self.network = operator, network
        self.workspace: Workspace = operator.create("restart test")
        sample = Sample("big.bin", random.Random(1).randbytes(BIG))
        self.sha256 = hashlib.sha256(sample.content).hexdigest()
        (self.file_id,) = attach(operator, self.workspace, "big", sample)
        network.on_request = always(Treatment(bytes_per_second=TRICKLE), "/content")
        self.poller = Poller(network.url, self.workspace, folder)

    async def middle(self) -> None:
        """Wait until the download has begun."""
        await self.poller.until(lambda: self.network.sent("/content") >= SOME)
        assert not self.poller.of(FileArrived)
        self.begun = time.monotonic()

    async def complete(self) -> None:
        """Wait until the file and its message have arrived, and then a later message."""
        poller = self.poller
        await poller.until(lambda: poller.texts == ["big"] and bool(poller.of(FileAcked)), 60)
        self.seconds = time.monotonic() - self.begun
        say(self.operator, self.workspace, "after")
        await poller.until(lambda: poller.texts == ["big", "after"], 60)
        assert list(digests(poller.folder).values()) == [self.sha256]
        assert len(poller.of(FileArrived)) == 1
        assert self.operator.pending(self.workspace.id, "unacked") == []

    def figures(self, what: str) -> str:
        """Check that little was fetched twice, and return the figures."""
        contents = [seen for seen in self.network.requests if seen.path.endswith("/content")]
        statuses = [seen.status for seen in contents if seen.status]
        fetched = self.network.sent("/content")
        assert fetched < 1.1 * BIG
        return (
            f"\n{what}: 60 MiB, fetched {fetched / BIG:.2f} times its size, answers {statuses}, "
            f"{self.seconds:.1f} s from the stop to the acknowledgement"
        )


async def test_the_platform_is_stopped_in_mid_fetch(
    restartable: LocalPlatform, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """SIGTERM: a download may finish; the acknowledgement follows after the restart.

    Planted: a failed ack loses the file; no retry of it.
    """
    with BadNetwork(restartable.base_url) as network:
        restart = Restart(restartable.operator, network, tmp_path / "files")
        async with restart.poller.running():
            await restart.middle()
            await asyncio.to_thread(restartable.stop)
            await restart.poller.until(lambda: bool(restart.poller.of(Trouble)))
            await asyncio.to_thread(restartable.start)
            await restart.complete()
            assert len(restart.poller.of(Recovered)) >= 1
        with capsys.disabled():
            print(restart.figures("platform stopped"))


async def test_the_platform_is_killed_in_mid_fetch(
    restartable: LocalPlatform, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """SIGKILL: the download resumes.

    Planted: no Range; a part discarded at an interruption.
    """
    with BadNetwork(restartable.base_url) as network:
        restart = Restart(restartable.operator, network, tmp_path / "files")
        async with restart.poller.running():
            await restart.middle()
            await asyncio.to_thread(restartable.kill)
            await restart.poller.until(lambda: bool(restart.poller.of(FileDelayed)))
            assert not restart.poller.of(FileArrived)
            await asyncio.to_thread(restartable.start)
            await restart.complete()
        with capsys.disabled():
            print(restart.figures("platform killed"))


async def test_postgresql_is_restarted_in_mid_fetch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In immediate mode, while the platform keeps running.

    Planted: a 5xx for the file's content loses the file; no Range.
    """
    token = "operator-token-of-this-test-0123456789"
    with OwnPostgres() as postgres:
        settings = {"DATABASE_URL": postgres.url, "ADMIN_TOKEN": token}
        subprocess.run(
            [default_binary(), "migrate", "up"],
            env={"PATH": os.environ["PATH"]} | settings,
            check=True,
            capture_output=True,
            timeout=60,
        )
        with (
            LocalPlatform(tmp_path / "platform", settings) as platform,
            BadNetwork(platform.base_url) as network,
        ):
            operator = Operator(platform.base_url, token)
            restart = Restart(operator, network, tmp_path / "files")
            async with restart.poller.running():
                await restart.middle()
                await asyncio.to_thread(postgres.stop)
                await restart.poller.until(
                    lambda: bool(restart.poller.of(FileDelayed) and restart.poller.of(Trouble))
                )
                assert not restart.poller.of(FileArrived)
                await asyncio.to_thread(postgres.start)
                await restart.complete()
                assert len(restart.poller.of(Recovered)) >= 1
            operator.close()
            with capsys.disabled():
                print(restart.figures("PostgreSQL restarted"))
