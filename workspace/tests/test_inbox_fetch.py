"""Downloads over a network that interrupts, delays and throttles."""

import asyncio
import hashlib
import os
import random
import re
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bad_network import Answer, BadNetwork, Seen, Treatment, always, in_turn
from local_platform import LocalPlatform, Sample, Workspace
from molecule_workspace.inbox.events import (
    FileAcked,
    FileArrived,
    FileDelayed,
    FileLost,
    FileProgress,
)
from molecule_workspace.inbox.fetch import FLUSH_BYTES
from poller import acked, journal, noise, own_address, parts, states
from polling import Poller, digests, file_id_of

pytestmark = pytest.mark.anyio

MIB = 1 << 20
BIG = 60 * MIB


def contents(network: BadNetwork) -> list[Seen]:
    """Return the requests for file contents."""
    return [seen for seen in network.requests if seen.path.endswith("/content")]


def begin(seen: Seen) -> int:
    """Return the first byte of a request's range."""
    return int(seen.headers.get("range", "bytes=0-").removeprefix("bytes=").removesuffix("-"))


class Cuts:
    """Interrupts the download of a file at given offsets."""

    def __init__(self, places: list[int], resets: Iterator[bool]) -> None:
        """Interrupt at each of ``places`` once, with RST where ``resets`` says so."""
        self.left = sorted(places)
        self.resets = resets
        self.made: list[tuple[int, bool]] = []

    def __call__(self, seen: Seen) -> Treatment | None:
        """Interrupt this request at the next offset in its range."""
        if not seen.path.endswith("/content") or not self.left:
            return None
        place, reset = self.left.pop(0), next(self.resets)
        self.made.append((place, reset))
        return Treatment(cut_after=place - begin(seen), reset=reset)


async def test_a_file_interrupted_ten_times_arrives_and_little_is_sent_twice(
    platform: LocalPlatform, network: BadNetwork, workspace: Workspace, poller: Poller
) -> None:
    """60 MiB, interrupted at ten random offsets with FIN and RST: less than 1.3 times is sent.

    Planted: no Range header; If-Range left out; the buffer discarded at a cut; restart at a 206.
    """
    seed = random.randrange(1 << 32)
    chance = random.Random(seed)
    network.on_request = cuts = Cuts(
        chance.sample(range(1, BIG), 10), iter([True, False, False, True, False] * 2)
    )
    sample = Sample("film.bin", noise(BIG))
    sha256 = hashlib.sha256(sample.content).hexdigest()
    platform.operator.upload(workspace.id, [sample])
    async with poller.running():
        await poller.until(lambda: acked(poller, 1), 60)
    assert list(digests(poller.folder).values()) == [sha256]
    assert parts(poller) == []
    requests = contents(network)
    assert len(requests) == 11
    for (place, reset), again in zip(cuts.made, requests[1:], strict=True):
        assert again.headers["if-range"] == f'"{sha256}"', seed
        assert again.status == 206
        # A reset may discard unread bytes; after a FIN nothing is requested twice.
        assert begin(again) <= place if reset else begin(again) == place, seed
    fetched = network.sent("/content")
    print(f"cut: 60 MiB, 10 cuts, fetched {fetched} bytes ({fetched / BIG:.2f}x), seed {seed}")
    assert fetched < 1.3 * BIG, seed


async def test_a_restarted_poller_resumes_the_download(
    platform: LocalPlatform, network: BadNetwork, workspace: Workspace, poller: Poller
) -> None:
    """Three pollers in turn fetch one file of 60 MiB, each a part of it.

    Planted: the part removed at the end of a run; the ETag remembered in memory only.
    """
    sample = Sample("film.bin", noise(BIG, 1))
    platform.operator.upload(workspace.id, [sample])
    for stop in (20 * MIB + 1, 45 * MIB + 77):
        network.on_request = lambda seen, stop=stop: (  # type: ignore[misc]
            Treatment(stall_after=stop - begin(seen)) if seen.path.endswith("/content") else None
        )
        async with poller.running():
            await poller.until(
                lambda stop=stop: any(  # type: ignore[misc]
                    event.received > stop - 2 * FLUSH_BYTES for event in poller.of(FileProgress)
                )
            )
        assert digests(poller.folder) == {}
    network.on_request = always(Treatment())
    async with poller.running():
        await poller.until(lambda: acked(poller, 1), 60)
    assert list(digests(poller.folder).values()) == [hashlib.sha256(sample.content).hexdigest()]
    assert [seen.status for seen in contents(network)] == [200, 206, 206]
    fetched = network.sent("/content")
    print(f"restart: 60 MiB, 3 runs, fetched {fetched} bytes ({fetched / BIG:.2f}x)")
    assert fetched < 1.3 * BIG


async def test_four_files_are_fetched_at_once_over_few_connections(
    platform: LocalPlatform, network: BadNetwork, workspace: Workspace, poller: Poller
) -> None:
    """200 files, the first ones delayed and slow: at most four at once, 8 connections.

    Planted: five slots; no slots; a separate client for each download.
    """
    size = 20_000
    most = 0
    links: set[object] = set()
    slow = in_turn([Treatment(delay=0.1, bytes_per_second=100_000)] * 12)

    def watch(seen: Seen) -> Treatment | None:
        nonlocal most
        links.add(asyncio.current_task())  # the proxy serves each connection in a task
        most = max(most, sum(other.sent < size for other in contents(network)))
        return slow(seen)

    network.on_request = watch
    for page in range(4):
        batch = [Sample(f"{page}-{i}.bin", noise(size, 50 * page + i)) for i in range(50)]
        platform.operator.upload(workspace.id, batch)
    async with poller.running():
        await poller.until(lambda: acked(poller, 200), 60)
    assert len(digests(poller.folder)) == 200
    assert network.count("/content") == 200
    assert most == 4
    assert len(links) <= 8
    assert poller.of(FileDelayed) == []


async def test_a_file_is_seen_only_when_it_is_complete_and_synced(
    platform: LocalPlatform,
    network: BadNetwork,
    workspace: Workspace,
    poller: Poller,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In this order: synced, renamed, folder synced, recorded, acknowledged; mode 0600.

    Planted: rename before fsync; the folder not synced; mode 0644; the part in the folder itself;
    the journal updated before the rename.
    """
    steps: list[str] = []
    fsync, rename = os.fsync, os.rename

    def note(step: str) -> None:
        noted = journal(poller, "SELECT state FROM files")[0][0]
        steps.append(f"{step} {noted} {network.count('/ack')}")

    def traced_fsync(fd: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{fd}"))
        if path.suffix == ".part" or path == poller.folder:
            note(f"fsync {path.suffix or 'folder'}")
        fsync(fd)

    def traced_rename(old: Path, new: Path) -> None:
        note(f"rename to {Path(new).parent.name}")
        rename(old, new)

    monkeypatch.setattr(os, "fsync", traced_fsync)
    monkeypatch.setattr(os, "rename", traced_rename)
    network.on_request = in_turn([Treatment(stall_after=2 * MIB)])
    platform.operator.upload(workspace.id, [Sample("../my file?.bin", noise(3 * MIB))])
    async with poller.running():
        await poller.until(lambda: any(e.received >= MIB for e in poller.of(FileProgress)))
        assert [path.name for path in poller.folder.iterdir()] == [".molecule"]
        (part,) = parts(poller)
        assert stat.S_IMODE(part.stat().st_mode) == 0o600
        for folder in (poller.folder, poller.state.parent, poller.state, part.parent):
            assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        await poller.until(lambda: network.sent("/content") == 2 * MIB)
        network.release()
        await poller.until(lambda: acked(poller, 1))
    assert steps == [
        "fsync .part wanted 0",
        "rename to files wanted 0",
        "fsync folder wanted 0",
    ]
    (arrived,) = poller.of(FileArrived)
    assert arrived.path.parent == poller.folder
    assert re.fullmatch(r"[0-9a-f]{32}-my_file_\.bin", arrived.path.name)
    assert stat.S_IMODE(arrived.path.stat().st_mode) == 0o600
    assert (arrived.size, arrived.sha256) == (3 * MIB, digests(poller.folder)[arrived.path.name])


async def test_a_restarted_platform_resumes_the_same_file(
    network: BadNetwork, tmp_path: Path
) -> None:
    """The ETag survives the platform.

    Planted: If-Range with an invented ETag.
    """
    content = noise(8 * MIB)
    own = LocalPlatform(tmp_path / "platform")
    own.addr = own_address()
    with own:
        workspace = own.operator.create("restart")
        network.target = own.base_url
        network.on_request = in_turn([Treatment(stall_after=5 * MIB)])
        own.operator.upload(workspace.id, [Sample("a.bin", content)])
        poller = Poller(network.url, workspace, tmp_path / "files")
        async with poller.running():
            await poller.until(lambda: any(e.received >= 4 * MIB for e in poller.of(FileProgress)))
            network.down()
            own.stop()
            own.start()
            network.up()
            await poller.until(lambda: acked(poller, 1))
        assert list(digests(poller.folder).values()) == [hashlib.sha256(content).hexdigest()]
        assert [seen.status for seen in contents(network)] == [200, 206]
        assert network.sent("/content") < 1.3 * len(content)


async def test_another_file_under_the_same_id_starts_again(
    platform: LocalPlatform, network: BadNetwork, workspace: Workspace, poller: Poller
) -> None:
    """A 200 to a range request is the whole file: no byte of the old part stays.

    Planted: the body of a 200 appended.
    """
    content = noise(2 * MIB)
    whole = Answer(200, {"ETag": '"other"', "Content-Type": "text/plain"}, content)
    network.on_request = in_turn([Treatment(cut_after=MIB), Treatment(answer=whole)])
    platform.operator.upload(workspace.id, [Sample("a.bin", content)])
    async with poller.running():
        await poller.until(lambda: acked(poller, 1))
    assert list(digests(poller.folder).values()) == [hashlib.sha256(content).hexdigest()]
    assert network.count("/content") == 2
    assert begin(contents(network)[1]) == MIB


async def test_a_file_that_expires_is_lost_once_and_leaves_nothing(
    network: BadNetwork, tmp_path: Path
) -> None:
    """It is retried until the platform no longer has it; then the next file is fetched.

    Planted: the part left; no FileLost; retried forever; lost at the first 404 of a proxy.
    """
    with LocalPlatform(tmp_path / "platform", {"PENDING_TTL": "10s"}) as own:
        workspace = own.operator.create("expiry")
        network.target = own.base_url
        network.on_request = always(Treatment(cut_after=MIB // 16), "/content")
        poller = Poller(network.url, workspace, tmp_path / "files")
        start = time.monotonic()
        staged = own.operator.upload(workspace.id, [Sample("a.bin", noise(8 * MIB))])
        async with poller.running():
            await poller.until(lambda: bool(poller.of(FileDelayed)))
            assert len(parts(poller)) == 1
            await poller.until(lambda: bool(poller.of(FileLost)), 40)
            assert time.monotonic() - start > 9.9
            network.on_request = always(Treatment())
            own.operator.upload(workspace.id, [Sample("b.bin", b"next")])
            await poller.until(lambda: acked(poller, 1))
        assert [event.file_id for event in poller.of(FileLost)] == [file_id_of(staged[0])]
        assert "expired" in poller.of(FileLost)[0].reason
        assert parts(poller) == []
        assert len(digests(poller.folder)) == 1
        assert journal(poller, "SELECT state FROM files ORDER BY name") == [("lost",), ("acked",)]


async def test_a_file_that_was_acknowledged_elsewhere_still_arrives(
    platform: LocalPlatform, workspace: Workspace, poller: Poller
) -> None:
    """An acknowledged file stays available until it is swept."""
    (staged,) = platform.operator.upload(workspace.id, [Sample("a.txt", b"a")])
    path = f"/workspaces/{workspace.id}/pending-uploads/{file_id_of(staged)}/ack"
    platform.operator.call("POST", path)
    outcome = await poller.once()
    assert (outcome.arrived, outcome.lost, outcome.unfinished) == (1, 0, 0)
    assert len(poller.of(FileAcked)) == 1
    assert states(platform.operator, workspace) == ["acked"]
    assert len(digests(poller.folder)) == 1
