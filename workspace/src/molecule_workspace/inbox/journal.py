"""The poller's state on disk. It survives kill -9: nothing is lost, and nothing is repeated.

The state folder contains:

- ``cursor.json``: the last inbox row that was handled, replaced atomically.
- ``journal.db`` (SQLite): the announced files, their names on disk and their states; and the
  messages that were handled. Every change is synced before the call returns.

Several pollers of one workspace may share the folder.
"""

import contextlib
import errno
import fcntl
import json
import os
import secrets
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from molecule_workspace.names import sanitize_filename

LOCK_TIMEOUT: Final = 30.0
"""Maximum wait, in seconds, for another process that writes to the journal."""

KEEP_SECONDS: Final = 90 * 24 * 3600
"""How long finished files and handled messages are kept: three times as long as the platform
keeps an inbox row."""

_UNREADABLE: Final = ("SQLITE_CORRUPT", "SQLITE_NOTADB", "SQLITE_ERROR")
"""Prefixes of SQLite's error names for a damaged database, or one with another schema."""

_COLUMNS: Final = "file_id, name, stored, size, sha256, state, changed"

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS files (
    file_id TEXT PRIMARY KEY,
    name    TEXT NOT NULL,
    stored  TEXT NOT NULL,
    size    INTEGER,
    sha256  TEXT,
    state   TEXT NOT NULL,
    changed REAL NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS handled (
    row_id  TEXT PRIMARY KEY,
    changed REAL NOT NULL
) STRICT;
"""


class State(StrEnum):
    """State of a file.

    It moves down this list, and back only if the platform still lists the file as unacknowledged.
    """

    WANTED = "wanted"
    STORED = "stored"
    ACKED = "acked"
    LOST = "lost"


@dataclass(frozen=True)
class Announced:
    """A file as the platform announced it, validated. ``file_id`` is a UUID in canonical form.

    ``size`` and ``sha256`` (lower-case hex) are None if the platform did not announce them.
    """

    file_id: str
    name: str
    size: int | None
    sha256: str | None


@dataclass(frozen=True)
class Entry:
    """A file in the journal. ``stored`` is its name on disk, which the journal chose.

    ``changed`` is the Unix time of its last change of state.
    """

    file_id: str
    name: str
    stored: str
    size: int | None
    sha256: str | None
    state: State
    changed: float


class DiskFullError(Exception):
    """The disk is full or cannot be written. The text names the path."""


class _UnreadableError(Exception):
    """The database is damaged, or is not a journal."""


class Journal:
    """The state of one workspace, in its state folder."""

    def __init__(self, folder: Path) -> None:
        """Open or create the journal in ``folder``, which must exist."""
        self.folder = folder
        self.set_aside: Path | None = None
        """Where an unreadable journal was moved; None if there was none."""
        path = folder / "journal.db"
        # Without the lock, a second process would move the new journal of the first.
        with (folder / "journal.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            try:
                self._db = self._open(path)
            except _UnreadableError:
                self.set_aside = folder / f"journal.unreadable-{secrets.token_hex(4)}.db"
                path.rename(self.set_aside)
                self._db = self._open(path)

    @staticmethod
    def _open(path: Path) -> sqlite3.Connection:
        db = sqlite3.connect(path, timeout=LOCK_TIMEOUT, isolation_level=None)
        try:
            db.execute("PRAGMA synchronous = FULL")
            # PERSIST keeps the rollback journal's file: an update then needs no free disk space.
            db.execute("PRAGMA journal_mode = PERSIST")
            with _disk(path):
                if db.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
                    raise _UnreadableError
                db.executescript(_SCHEMA)
                db.execute(f"SELECT {_COLUMNS} FROM files LIMIT 1")
                over = time.time() - KEEP_SECONDS
                db.execute(
                    "DELETE FROM files WHERE state IN ('acked', 'lost') AND changed < ?", (over,)
                )
                db.execute("DELETE FROM handled WHERE changed < ?", (over,))
        except sqlite3.DatabaseError as error:
            db.close()
            if error.sqlite_errorname.startswith(_UNREADABLE):
                raise _UnreadableError from error
            raise
        except BaseException:
            db.close()
            raise
        return db

    def close(self) -> None:
        """Close the journal."""
        self._db.close()

    def want(self, files: list[Announced]) -> None:
        """Add files to be downloaded, in one transaction. Known files are left unchanged."""
        rows = [
            (
                f.file_id,
                f.name,
                new_stored_name(f.name),
                f.size,
                f.sha256,
                State.WANTED,
                time.time(),
            )
            for f in files
        ]
        with self._transaction():
            self._db.executemany(
                f"INSERT INTO files ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?) "
                "ON CONFLICT DO NOTHING",
                rows,
            )

    def get(self, file_id: str) -> Entry | None:
        """Return a file's entry; None if it was never announced."""
        found = self._db.execute(
            f"SELECT {_COLUMNS} FROM files WHERE file_id = ?", (file_id,)
        ).fetchone()
        return _entry(found) if found else None

    def unfinished(self) -> list[Entry]:
        """Return the files that are not stored or not acknowledged, oldest first."""
        found = self._db.execute(
            f"SELECT {_COLUMNS} FROM files WHERE state IN ('wanted', 'stored') ORDER BY rowid"
        )
        return [_entry(row) for row in found]

    def move(self, file_id: str, was: State, state: State) -> bool:
        """Change a file's state from ``was``; False if another poller has changed it already."""
        with self._transaction():
            moved = self._db.execute(
                "UPDATE files SET state = ?, changed = ? WHERE file_id = ? AND state = ?",
                (state, time.time(), file_id, was),
            )
            return moved.rowcount == 1

    def handled(self, row_id: str) -> bool:
        """Return whether a message was handled."""
        found = self._db.execute("SELECT 1 FROM handled WHERE row_id = ?", (row_id,))
        return found.fetchone() is not None

    def record_handled(self, row_id: str) -> None:
        """Record that a message was handled."""
        with self._transaction():
            self._db.execute(
                "INSERT INTO handled VALUES (?, ?) ON CONFLICT DO NOTHING", (row_id, time.time())
            )

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        with _disk(self.folder):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    def cursor(self) -> str | None:
        """Return the id of the last row that was handled; None starts at the oldest row."""
        try:
            kept = json.loads((self.folder / "cursor.json").read_bytes())
        except (FileNotFoundError, ValueError, RecursionError):
            return None
        row = kept.get("since_id") if isinstance(kept, dict) else None
        return row if isinstance(row, str) and row else None

    def save_cursor(self, row_id: str | None) -> None:
        """Save the id of the last row that was handled, atomically."""
        path = self.folder / "cursor.json"
        new = self.folder / f".cursor-{secrets.token_hex(4)}.json"
        try:
            with new.open("x", encoding="ascii") as file:
                json.dump({"since_id": row_id}, file)
                file.flush()
                os.fsync(file.fileno())
            new.replace(path)
        except OSError as error:
            new.unlink(missing_ok=True)
            raise disk_error(error, path) from error
        sync_folder(self.folder)


def new_stored_name(name: str) -> str:
    """Return a unique name: 32 random hex digits, and the sanitized name."""
    return f"{secrets.token_hex(16)}-{sanitize_filename(name)}"


def sync_folder(folder: Path) -> None:
    """Sync a folder, so that created and renamed names in it are durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def disk_error(error: OSError, path: Path) -> Exception:
    """Return a DiskFullError for ENOSPC and EDQUOT, else the error itself."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFullError(f"no space left for {path}")
    return error


@contextlib.contextmanager
def _disk(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as error:
        if error.sqlite_errorname == "SQLITE_FULL":
            raise DiskFullError(f"no space left for {path}") from error
        if error.sqlite_errorname.startswith("SQLITE_IOERR"):  # an exhausted quota, for example
            raise DiskFullError(f"cannot write {path}: {error}") from error
        raise


def _entry(row: tuple[str, str, str, int | None, str | None, str, float]) -> Entry:
    file_id, name, stored, size, sha256, state, changed = row
    return Entry(file_id, name, stored, size, sha256, State(state), changed)
