"""Tests of the partial file of a download."""

import asyncio
import errno
import hashlib
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from molecule_workspace.inbox.client import CorruptError
from molecule_workspace.inbox.fetch import _in_thread
from molecule_workspace.inbox.journal import DiskFullError
from molecule_workspace.inbox.part import RESERVE, BusyError, PartFile, clear


@pytest.fixture
def part(tmp_path: Path) -> Iterator[PartFile]:
    """A part with five bytes."""
    with PartFile(tmp_path, "x", tmp_path / "x") as part:
        part.write(b"01234")
        yield part


def test_a_part_is_taken_over_where_it_ends(tmp_path: Path, part: PartFile) -> None:
    """With the digest of the existing bytes.

    Planted: the digest of the new bytes only.
    """
    with pytest.raises(BusyError):
        PartFile(tmp_path, "x", tmp_path / "x")
    clear(part.path)
    assert part.path.exists()
    part.__exit__()
    with PartFile(tmp_path, "x", tmp_path / "x") as again:
        again.load()
        assert again.received == 5
        again.write(b"56789")
        sha256 = hashlib.sha256(b"0123456789").hexdigest()
        assert again.keep(10, sha256) == sha256
        assert (tmp_path / "x").read_bytes() == b"0123456789"
        part._fd = os.open(os.devnull, os.O_RDONLY)  # for the fixture to close


def test_a_part_that_was_renamed_is_not_started_again(tmp_path: Path, part: PartFile) -> None:
    """Between the rename and the journal's update, another poller may want to fetch the file.

    Planted: the final name not checked after locking.
    """
    part.keep(5, None)
    with pytest.raises(BusyError):
        PartFile(tmp_path, "x", tmp_path / "x")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_what_is_open_is_still_the_part(tmp_path: Path, part: PartFile) -> None:
    """A lock on a part that was renamed meanwhile is worthless.

    Planted: the open file not compared with the file of that name.
    """
    opened = os.open

    def late(path: Path, flags: int, mode: int = 0o777) -> int:
        patch.undo()
        fd = opened(path, flags, mode)
        part.keep(5, None)
        part.__exit__()
        part._fd = opened(os.devnull, os.O_RDONLY)
        (tmp_path / "x").unlink()  # another process deleted it already
        return fd

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "open", late)
        with pytest.raises(BusyError):
            PartFile(tmp_path, "x", tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("size", "sha256"), [(4, None), (6, None), (5, "0" * 64)])
def test_what_is_wrong_leaves_nothing(
    tmp_path: Path, part: PartFile, size: int, sha256: str | None
) -> None:
    """Neither under its name nor as a part.

    Planted: the part kept.
    """
    with pytest.raises(CorruptError):
        part.keep(size, sha256)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_synced_is_fetched_again(
    tmp_path: Path, part: PartFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an error the kernel may mark the pages clean; the next fsync would succeed.

    Planted: the part kept after the error.
    """

    def broken(fd: int) -> None:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match="broken"):
        part.keep(5, None)
    assert list(tmp_path.iterdir()) == []


def test_room_is_made_for_this_file_and_those_on_their_way(
    tmp_path: Path, part: PartFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A part is deleted only if it would not fit even without other downloads.

    Planted: reserved space counted as free; a part deleted in favour of others.
    """
    usage = shutil.disk_usage(tmp_path)._replace(free=RESERVE + 100)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    part.make_room(105, 0)
    part.make_room(55, 50)
    with pytest.raises(DiskFullError, match="50 more bytes needed"):
        part.make_room(55, 51)
    assert part.received == 5
    with pytest.raises(DiskFullError, match="no space left"):
        part.make_room(106, 0)
    assert part.received == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.anyio
async def test_a_cancelled_fetch_waits_for_the_disk() -> None:
    """If it were closed earlier, the descriptor could belong to another file by then.

    Planted: asyncio.to_thread, which returns at once when cancelled.
    """
    begun, go_on = threading.Event(), threading.Event()
    done = False

    def write() -> None:
        nonlocal done
        begun.set()
        go_on.wait(10)
        done = True

    task = asyncio.create_task(_in_thread(write))
    await asyncio.to_thread(begun.wait, 10)
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0)
        assert not task.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert done
