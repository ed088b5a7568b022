"""The partial file of a download: locked, and renamed only when it is complete.

A ``PartFile`` is in the state folder until every byte is received, checked and synced; then it is
renamed into the folder for received files. It survives a crash, so that the download resumes. Its
lock keeps two pollers from writing the same file.
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
"""Bytes that downloads leave free on the disk, for the journal."""

READ_BYTES: Final = 1 << 20


class BusyError(Exception):
    """Another poller is downloading the same file."""


def part_path(folder: Path, stored: str) -> Path:
    """Return the path of a file's part."""
    return folder / f"{stored}.part"


def is_kept(final: Path) -> bool:
    """Return whether a file already has its final name."""
    return final.is_file() and not final.is_symlink()


def clear(path: Path) -> None:
    """Delete a part that is no longer needed, unless another poller has locked it."""
    with contextlib.suppress(OSError):
        fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
        finally:
            os.close(fd)


class PartFile:
    """The first ``received`` bytes of a file, and their running SHA-256.

    Its methods block on the disk: call them in a thread, and leave the context only when no call
    is running. They raise DiskFullError for a full disk, and any other OSError as it is.
    """

    def __init__(self, folder: Path, stored: str, final: Path) -> None:
        """Open or create the part, and lock it. BusyError: another poller has it or finished it.

        ``received`` is 0 until ``load`` reads what an earlier attempt left.
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
                # No poller creates a symbolic link here. Delete it; the caller tries again.
                self.path.unlink(missing_ok=True)
                raise BusyError(str(self.path)) from error
            raise disk_error(error, folder) from error
        try:
            self._lock()
        except BaseException:
            os.close(self._fd)
            raise

    def load(self) -> None:
        """Read what an earlier attempt left."""
        while chunk := os.read(self._fd, READ_BYTES):
            self._digest.update(chunk)
            self.received += len(chunk)

    def _lock(self) -> None:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BusyError(str(self.path)) from error
        # The previous owner of the lock may have renamed or deleted the file that is open here.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(self._fd), os.lstat(self.path)):
                if not is_kept(self.final):
                    return
                self.path.unlink()
        raise BusyError(str(self.path))

    def __enter__(self) -> Self:
        """Return the part."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close and unlock the part; its bytes stay for the next attempt."""
        os.close(self._fd)

    def make_room(self, size: int, promised: int) -> None:
        """Raise DiskFullError if the disk has no room for the rest of a file of ``size`` bytes.

        ``promised`` bytes of the free space are reserved for other downloads. A part that would
        not fit even without them is deleted, because it uses space that smaller files need.
        """
        free = shutil.disk_usage(self.path.parent).free
        missing = size - self.received
        if free >= missing + promised + RESERVE:
            return
        if free < missing + RESERVE:
            self.discard()
        raise DiskFullError(
            f"no space left in {self.final.parent}: {missing} more bytes needed, {free} free"
        )

    def write(self, data: bytes) -> None:
        """Append ``data``. If the disk is full, the part is deleted: it occupies the space."""
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
        """Truncate the part, and start again at the first byte."""
        os.ftruncate(self._fd, 0)
        os.lseek(self._fd, 0, os.SEEK_SET)
        self.received = 0
        self._digest = hashlib.sha256()

    def discard(self) -> None:
        """Truncate the part and delete it from disk."""
        self.restart()
        self.path.unlink(missing_ok=True)

    def keep(self, size: int | None, sha256: str | None) -> str:
        """Check, sync and rename the complete file; return its SHA-256 in hex.

        CorruptError: size or digest differ from the announced ones; the part is deleted.
        """
        digest = self._digest.hexdigest()
        if size is not None and self.received != size:
            self.discard()
            raise CorruptError(f"received {self.received} bytes; {size} were announced")
        if sha256 is not None and digest != sha256:
            self.discard()
            raise CorruptError("the SHA-256 of the content is not the announced one")
        try:
            os.fsync(self._fd)
        except OSError as error:
            # After a failed fsync the kernel may drop the pages and report success next time.
            self.discard()
            raise disk_error(error, self.final.parent) from error
        try:
            self.path.rename(self.final)
            sync_folder(self.final.parent)
        except OSError as error:
            raise disk_error(error, self.final.parent) from error
        return digest
