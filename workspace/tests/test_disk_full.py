"""A full disk: a small tmpfs that is really mounted."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from bad_network import BadNetwork, Treatment, in_turn
from local_platform import LocalPlatform, Sample
from molecule_workspace.inbox.events import (
    FileAcked,
    FileDelayed,
    FileLost,
    MessageHandled,
    Trouble,
)
from molecule_workspace.inbox.journal import DiskFullError, Journal
from poller import acked, noise, part_bytes, states
from polling import Poller, attach, digests

pytestmark = pytest.mark.anyio

KIB = 1 << 10
MIB = 1 << 20
DISK = 8 * MIB


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 8 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    size = f"size={DISK},mode=700"
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(disk)], capture_output=True, text=True
    )
    if mounted.returncode != 0:
        pytest.fail(
            "these tests mount a tmpfs, which needs root; run them as root, or under "
            f"'unshare --map-root-user --mount': {mounted.stderr.strip()}"
        )
    try:
        yield disk
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.fixture
def poller(
    platform: LocalPlatform, network: BadNetwork, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> Poller:
    """A poller with its folder on the small disk, and a short retry interval."""
    monkeypatch.setattr("molecule_workspace.inbox.uploads.DISK_PAUSE", 0.1)
    return Poller(network.url, platform.operator.create("disk"), disk / "files")


def fill(disk: Path, leave: int = 0) -> Path:
    """Fill a disk except for ``leave`` bytes; return the file that fills it."""
    filler = disk / "filler"
    with filler.open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(64 * KIB)):
            pass
    os.truncate(filler, filler.stat().st_size - leave)
    return filler


def full(poller: Poller) -> list[FileDelayed]:
    """Return the events that report a full disk."""
    return [event for event in poller.of(FileDelayed) if "no space left in" in event.reason]


async def test_small_files_pass_a_big_one_that_has_no_room(
    platform: LocalPlatform, disk: Path, poller: Poller
) -> None:
    """The large file stays unacknowledged and is reported; it arrives once there is room.

    Planted: a file without room is lost; a waiting file keeps its slot.
    """
    workspace = poller.workspace
    big = [Sample(f"big{i}.bin", noise(3 * MIB, i)) for i in range(5)]
    small = [Sample(f"small{i}.bin", noise(10 * KIB, i)) for i in range(5)]
    await poller.once()
    filler = fill(disk, leave=3 * MIB)
    platform.operator.upload(workspace.id, [*big, *small])
    async with poller.running():
        await poller.until(lambda: acked(poller, 5) and len(full(poller)) >= 10)
        assert states(platform.operator, workspace) == ["staged"] * 5 + ["acked"] * 5
        assert {path.name[33:39] for path in poller.folder.iterdir() if path.is_file()} == {
            f"small{i}" for i in range(5)
        }
        assert part_bytes(poller) == 0
        filler.unlink()
        # 8 MiB hold two of the five; each is deleted after it was checked.
        for count in range(6, 11):
            await poller.until(lambda count=count: acked(poller, count))  # type: ignore[misc]
            for path in poller.folder.glob("*-big*"):
                path.unlink()
    assert states(platform.operator, workspace) == ["acked"] * 10
    assert poller.of(FileLost) == []


async def test_a_file_that_expires_while_there_is_no_room_is_lost(
    network: BadNetwork, disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message that refers to it does not wait forever.

    Planted: no request to the platform until there is room.
    """
    monkeypatch.setattr("molecule_workspace.inbox.uploads.DISK_PAUSE", 0.1)
    with LocalPlatform(tmp_path / "platform", {"PENDING_TTL": "10s"}) as own:
        network.target = own.base_url
        poller = Poller(network.url, own.operator.create("expiry"), disk / "files")
        attach(own.operator, poller.workspace, "look", Sample("a.bin", noise(DISK)))
        async with poller.running():
            await poller.until(lambda: bool(full(poller)))
            assert poller.of(FileLost) == []
            await poller.until(lambda: bool(poller.of(FileLost) and poller.of(MessageHandled)), 40)


async def test_a_disk_that_fills_up_in_mid_download_ends_only_that_download(
    platform: LocalPlatform, network: BadNetwork, disk: Path, poller: Poller
) -> None:
    """Another process uses the last byte: the part is deleted, and the file arrives later.

    Planted: the part kept, which keeps the disk full; an OSError not handled.
    """
    workspace = poller.workspace
    content = noise(5 * MIB)
    network.on_request = in_turn([Treatment(stall_after=2 * MIB)])
    platform.operator.upload(workspace.id, [Sample("a.bin", content)])
    async with poller.running():
        await poller.until(lambda: network.sent("/content") == 2 * MIB)
        filler = fill(disk)
        network.release()
        await poller.until(lambda: bool(full(poller)))
        assert part_bytes(poller) == 0
        platform.operator.upload(workspace.id, [Sample("b.txt", b"b")])
        await poller.until(lambda: acked(poller, 1))
        assert digests(poller.folder).keys() == {
            path.name for path in poller.folder.glob("*-b.txt")
        }
        filler.unlink()
        await poller.until(lambda: acked(poller, 2))
    (path,) = poller.folder.glob("*-a.bin")
    assert path.read_bytes() == content
    assert states(platform.operator, workspace) == ["acked", "acked"]


async def test_a_journal_that_cannot_be_written_holds_everything_up_and_loses_nothing(
    platform: LocalPlatform, network: BadNetwork, disk: Path, poller: Poller
) -> None:
    """No byte is free: the poller reports it, and continues when there is room.

    Planted: what cannot be recorded is skipped; DiskFullError ends the poller; a cursor or a
    record that cannot be written ends it.
    """
    workspace = poller.workspace
    network.on_request = in_turn([Treatment(stall_after=MIB)])
    platform.operator.upload(workspace.id, [Sample("first.bin", noise(2 * MIB))])
    async with poller.running():
        await poller.until(lambda: network.sent("/content") == MIB)
        filler = fill(disk)
        samples = [Sample(f"{i}-{'n' * 90}.bin", noise(KIB, i)) for i in range(60)]
        attach(platform.operator, workspace, "look", *samples)
        reported = f"no space left for {poller.state}"
        await poller.until(lambda: reported in {event.reason for event in poller.of(Trouble)})
        assert poller.of(FileAcked) == []
        fill(disk)
        network.release()
        await poller.until(lambda: bool(full(poller)))
        assert poller.of(MessageHandled) == []
        filler.unlink()
        await poller.until(lambda: acked(poller, 61) and bool(poller.of(MessageHandled)))
    assert len(set(digests(poller.folder).values())) == 61
    assert states(platform.operator, workspace) == ["acked"] * 61
    assert poller.of(FileLost) == []


async def test_a_poller_that_is_stopped_on_a_full_disk_starts_on_it_again(
    platform: LocalPlatform, disk: Path, poller: Poller
) -> None:
    """Its state is on disk already; recording an acknowledgement needs no free space.

    Planted: the rollback journal created for each transaction.
    """
    workspace = poller.workspace
    platform.operator.upload(workspace.id, [Sample("a.txt", b"a")])
    await poller.once()
    filler = fill(disk)
    assert (await poller.once()).unfinished == 0
    platform.operator.upload(workspace.id, [Sample("b.bin", noise(KIB))])
    async with poller.running():
        await poller.until(lambda: bool(full(poller)))
    filler.unlink()
    async with poller.running():
        await poller.until(lambda: acked(poller, 2))
    assert states(platform.operator, workspace) == ["acked", "acked"]


async def test_a_first_start_on_a_full_disk_reports_the_cause(disk: Path) -> None:
    """There is no state to continue with, so it ends with an error.

    Planted: SQLite's error raised as it is.
    """
    state = disk / "state"
    state.mkdir()
    filler = fill(disk)
    with pytest.raises(DiskFullError, match="no space left for"):
        Journal(state)
    filler.unlink()
    Journal(state).close()
