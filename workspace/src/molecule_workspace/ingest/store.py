"""Stores the files of a pushed upload on disk, all or none.

Each file is ``<folder>/<32 hex digits>-<sanitized name>``, mode 0600. Nothing that a client sends
chooses a path, and no symbolic link is followed. Only a killed process leaves partial files; they
are hidden, and ``clear_parts`` deletes them.
"""

import asyncio
import contextlib
import fcntl
import logging
import os
import re
import secrets
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from molecule_workspace.ingest.form import (
    PartEnd,
    PartEvent,
    PartHeader,
    UploadRefusedError,
    part_names,
)
from molecule_workspace.ingest.types import clean_mime_type
from molecule_workspace.names import sanitize_filename

FILES_FIELD: Final = b"files"
"""The form field of the files."""

MAX_OTHER_PARTS: Final = 64
"""Maximum number of parts of an upload that are not files."""

_LOG: Final = logging.getLogger(__name__)
_PART: Final = re.compile(r"\.[0-9a-f]{32}-[A-Za-z0-9._-]{1,100}\.part")


@dataclass(frozen=True)
class IngestLimits:
    """Limits of one upload. The defaults are the platform's."""

    max_file_bytes: int = 100 << 20
    max_request_bytes: int = 100 << 20
    """Maximum size of all files together, in bytes."""
    max_files: int = 64
    body_window: float = 30.0
    """Seconds over which MIN_BODY_RATE is measured."""
    drain_timeout: float = 10.0
    """Seconds for which the rest of a refused upload is read, so that the client reads why."""


DEFAULT_LIMITS: Final = IngestLimits()


@dataclass(frozen=True)
class StoredFile:
    """A stored file: its path, and the fields of the answer."""

    path: Path
    name: str
    mime_type: str
    size: int


class StageError(Exception):
    """The files could not be written; ``__cause__`` is the OSError."""


def request_too_large(limits: IngestLimits) -> UploadRefusedError:
    """Return the error for a request whose files together exceed the limit."""
    return UploadRefusedError(
        413, "request_too_large", "request body exceeds limit", max=limits.max_request_bytes
    )


class Upload:
    """The files of one upload being written: all are kept, or none.

    Any error between ``with`` and the end of ``keep`` deletes them. Blocking calls run in threads,
    and a cancelled request does not wait for its thread; a lock decides which of them cleans up.
    """

    def __init__(self, folder: Path, limits: IngestLimits) -> None:
        """Create the upload; nothing is written before ``with``."""
        self._folder, self._limits = folder, limits
        self._files: list[StoredFile] = []
        self._others = 0
        self._total = 0
        self._current: StoredFile | None = None
        # Shared with threads.
        self._lock = threading.Lock()
        self._fd = -1
        self._names: list[str] = []
        self._renaming = False
        self._gone = False

    def __enter__(self) -> Self:
        """Open the folder, and create it if it is missing. StageError."""
        with _staging():
            self._dir = _open_folder(self._folder)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Delete the files if there was an error."""
        with self._lock:
            self._gone = True
            if not self._renaming:
                self._close(remove=kind is not None)

    async def take(self, event: PartEvent) -> None:
        """Process the next event of the form. UploadRefusedError, StageError."""
        if isinstance(event, PartHeader):
            self._begin(event)
        elif self._current is None:
            pass
        elif isinstance(event, PartEnd):
            with _staging():
                await asyncio.to_thread(self._seal)
            self._files.append(self._current)
            self._current = None
        else:
            self._write(self._current, event)

    async def keep(self) -> list[StoredFile]:
        """Rename the files to their final names and return them in the order of the form.

        Call it when the form is complete. UploadRefusedError: it has no files. StageError.
        """
        if not self._files:
            raise UploadRefusedError(
                400, "no_files", "no part named files; send each file as a part of that name"
            )
        with _staging():
            await asyncio.to_thread(self._rename)
        return self._files

    def _begin(self, header: PartHeader) -> None:
        names = part_names(header)
        if names is None:
            raise UploadRefusedError(
                400, "broken_multipart", "a part has no readable Content-Disposition: form-data"
            )
        field, filename = names
        if field != FILES_FIELD:
            if self._others == MAX_OTHER_PARTS:
                raise UploadRefusedError(
                    400,
                    "too_many_parts",
                    "too many parts that are not files",
                    max=MAX_OTHER_PARTS,
                )
            self._others += 1
            return
        if len(self._files) == self._limits.max_files:
            raise UploadRefusedError(
                400, "too_many_files", "too many files", max=self._limits.max_files
            )
        name = sanitize_filename((filename or b"").decode("utf-8", "surrogateescape"))
        mime_type = clean_mime_type(header.get(b"content-type").decode("latin-1"), name)
        stored = f"{secrets.token_hex(16)}-{name}"
        part = f".{stored}.part"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with _staging():
            self._fd = os.open(part, flags, 0o600, dir_fd=self._dir)
        self._names.append(part)
        self._current = StoredFile(self._folder / stored, name, mime_type, 0)

    def _write(self, file: StoredFile, data: memoryview) -> None:
        self._current = file = replace(file, size=file.size + len(data))
        self._total += len(data)
        if file.size > self._limits.max_file_bytes:
            raise UploadRefusedError(
                413,
                "file_too_large",
                "file exceeds per-file cap",
                filename=file.name,
                max=self._limits.max_file_bytes,
            )
        if self._total > self._limits.max_request_bytes:
            raise request_too_large(self._limits)
        with _staging():
            while data:
                data = data[os.write(self._fd, data) :]

    def _seal(self) -> None:
        """Sync and close the current file. Runs in a thread."""
        with self._lock:
            fd, self._fd = self._fd, -1
        if fd >= 0:
            try:
                os.fsync(fd)
            finally:
                os.close(fd)

    def _rename(self) -> None:
        """Rename all files, unless the request was cancelled meanwhile. Runs in a thread."""
        with self._lock:
            if self._gone:
                return
            self._renaming = True
        try:
            for i, part in enumerate(self._names):
                stored = part[len(".") : -len(".part")]
                os.rename(part, stored, src_dir_fd=self._dir, dst_dir_fd=self._dir)
                self._names[i] = stored
            os.fsync(self._dir)
        finally:
            with self._lock:
                self._renaming = False
                if self._gone:
                    self._close(remove=True)

    def _close(self, remove: bool) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        for name in self._names if remove else ():
            _remove(name, self._dir)
        os.close(self._dir)


@contextlib.contextmanager
def _staging() -> Iterator[None]:
    """Turn an OSError into a StageError."""
    try:
        yield
    except OSError as error:
        raise StageError from error


def _open_folder(folder: Path) -> int:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def _remove(name: str, folder: int) -> None:
    try:
        os.unlink(name, dir_fd=folder)
    except OSError:
        _LOG.warning("cannot delete %s", name, exc_info=True)


def clear_parts(folder: Path) -> int:
    """Delete partial files of a killed process, unless another process serves the folder.

    Return a descriptor with a shared lock on the folder, which shows that this process serves it.
    """
    fd = _open_folder(folder)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        _LOG.debug("another process serves %s; its partial files are kept", folder)
    else:
        for name in os.listdir(fd):
            if _PART.fullmatch(name):
                _remove(name, fd)
    with contextlib.suppress(OSError):
        fcntl.flock(fd, fcntl.LOCK_SH)
    return fd
