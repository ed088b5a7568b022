"""The platform, or its database, restarted while a large file is on its way."""

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
"""So much has come when the restart begins."""

TRICKLE: Final = 20 << 20
"""Bytes per second: the whole takes 3 s, so that SOME is certain to be in the middle."""


@pytest.fixture
def restartable(tmp_path: Path) -> Iterator[LocalPlatform]:
    """A platform that the test may stop."""
    platform = LocalPlatform(tmp_path / "platform")
    platform.addr = own_address()
    with platform:
        yield platform


class Restart:
    """A workspace with a large file on its way, and what is measured meanwhile."""

    def __init__(self, operator: Operator, network: BadNetwork, folder: Path) -> None:
        """Make the workspace, and send the file and a message that mentions it."""
        self.operator, self.network = operator, network
        self.workspace: Workspace = operator.create("restart test")
        sample = Sample("big.bin", random.Random(1).randbytes(BIG))
        self.sha256 = hashlib.sha256(sample.content).hexdigest()
        (self.file_id,) = attach(operator, self.workspace, "big", sample)
        network.on_request = always(Treatment(bytes_per_second=TRICKLE), "/content")
        self.poller = Poller(network.url, self.workspace, folder)

    async def middle(self) -> None:
        """Wait until the file is on its way."""
        await self.poller.until(lambda: self.network.sent("/content") >= SOME)
        assert not self.poller.of(FileArrived)
        self.begun = time.monotonic()

    async def complete(self) -> None:
        """Wait until the file and its message are there; then that the inbox goes on."""
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
    """SIGTERM: what is on its way may finish; the acknowledgement comes after the restart.

    Planted: an ack that fails as the end of the file; no retry of it.
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
    """SIGKILL: the fetch goes on where it was cut.

    Planted: no Range; a part thrown away at a cut.
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
    """In immediate mode, under a platform that goes on.

    Planted: a 5xx for the file's content as a reason to give it up; no Range.
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
