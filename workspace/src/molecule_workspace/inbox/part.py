"""The file that a download grows in: hidden, locked, and complete before it has its name.

A ``PartFile`` lives in the state folder until every byte is there, checked and synced; only then
is it renamed into the folder that people look at. It outlives a crash, so that a download goes
on where it was; the lock keeps two pollers from growing the same one.
"""

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
from pathlib import Path
from typing import Final, Self

from molecule_workspace.inbox.client import CorruptError
from molecule_workspace.inbox.journal import DiskFullError, disk_error, sync_folder

RESERVE: Final = 1 << 20
"""Bytes that a download leaves free on the disk, so that the journal can still be written."""

READ_BYTES: Final = 1 << 20


class BusyError(Exception):
    """Another poller is fetching this very file."""


def part_path(folder: Path, stored: str) -> Path:
    """Return where the part of a file grows."""
    return folder / f"{stored}.part"


def is_kept(final: Path) -> bool:
    """Tell whether a file has its name already."""
    return final.is_file() and not final.is_symlink()


def clear(path: Path) -> None:
    """Remove a part that nobody wants any more, unless another poller is at it."""
    with contextlib.suppress(OSError):
        fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
        finally:
            os.close(fd)


class PartFile:
    """What there is of one file so far: ``received`` bytes and their running SHA-256.

    Its methods block on the disk: call them in a thread, and let go only when none is at work.
    OSError other than a full disk is the caller's to report.
    """

    def __init__(self, folder: Path, stored: str, final: Path) -> None:
        """Open or make the part; BusyError if another poller has it, or just had it.

        What is there already counts only after ``load``.
        """
        self.path = part_path(folder, stored)
        self.final = final
        self.received = 0
        self._digest = hashlib.sha256()
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            self._fd = os.open(self.path, flags, 0o600)
        except OSError as error:
            if error.errno == errno.ELOOP:
                # Nobody who may have this file makes a link of it: away with it, and once more.
                self.path.unlink(missing_ok=True)
                raise BusyError(str(self.path)) from error
            raise disk_error(error, folder) from error
        try:
            self._lock()
        except BaseException:
            os.close(self._fd)
            raise

    def load(self) -> None:
        """Take over what an earlier attempt left."""
        while chunk := os.read(self._fd, READ_BYTES):
            self._digest.update(chunk)
            self.received += len(chunk)

    def _lock(self) -> None:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BusyError(str(self.path)) from error
        # Whoever had the lock may have finished, and renamed or removed what is open here.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(self._fd), os.lstat(self.path)):
                if not is_kept(self.final):
                    return
                self.path.unlink()
        raise BusyError(str(self.path))

    def __enter__(self) -> Self:
        """Hold the part."""
        return self

    def __exit__(self, *_: object) -> None:
        """Let go of it; what is there stays for the next time."""
        os.close(self._fd)

    def make_room(self, size: int, promised: int) -> None:
        """Raise DiskFullError if the disk has no room for the rest of a file of ``size`` bytes.

        ``promised`` bytes of what is free belong to other downloads. A part that would not fit even
        without them is given up, for it takes the room of smaller files.
        """
        free = shutil.disk_usage(self.path.parent).free
        missing = size - self.received
        if free >= missing + promised + RESERVE:
            return
        if free < missing + RESERVE:
            self.discard()
        raise DiskFullError(
            f"no space left in {self.final.parent}: {missing} bytes to come, {free} free"
        )

    def write(self, data: bytes) -> None:
        """Append ``data``. On a full disk the part is given up, for it fills the disk."""
        view = memoryview(data)
        try:
            while view:
                n = os.write(self._fd, view)
                self._digest.update(view[:n])
                self.received += n
                view = view[n:]
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                self.discard()
            raise disk_error(error, self.final.parent) from error

    def restart(self) -> None:
        """Begin again at the first byte."""
        os.ftruncate(self._fd, 0)
        os.lseek(self._fd, 0, os.SEEK_SET)
        self.received = 0
        self._digest = hashlib.sha256()

    def discard(self) -> None:
        """Begin again, and leave nothing on disk."""
        self.restart()
        self.path.unlink(missing_ok=True)

    def keep(self, size: int | None, sha256: str | None) -> str:
        """Check, sync and rename the complete file; return its SHA-256 in hex.

        CorruptError, and nothing is left, if size or digest are not the announced ones.
        """
        digest = self._digest.hexdigest()
        if size is not None and self.received != size:
            self.discard()
            raise CorruptError(f"it has {self.received} bytes, {size} were announced")
        if sha256 is not None and digest != sha256:
            self.discard()
            raise CorruptError("its bytes are not those announced (SHA-256 differs)")
        try:
            os.fsync(self._fd)
        except OSError as error:
            # What was not written now would look as if it were at the next attempt.
            self.discard()
            raise disk_error(error, self.final.parent) from error
        try:
            self.path.rename(self.final)
            sync_folder(self.final.parent)
        except OSError as error:
            raise disk_error(error, self.final.parent) from error
        return digest
