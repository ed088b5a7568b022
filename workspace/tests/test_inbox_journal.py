"""The journal and the cursor: what they survive."""

import contextlib
import json
import sqlite3
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from local_platform import LocalPlatform, Sample
from molecule_workspace.inbox.events import FileArrived, Notice
from molecule_workspace.inbox.journal import KEEP_SECONDS, Announced, Journal, State
from poller import acked, states
from polling import Poller, digests


def announced(name: str = "a.txt") -> Announced:
    """Return a new file."""
    return Announced(str(uuid.uuid4()), name, 1, None)


def test_a_known_file_is_unchanged(tmp_path: Path) -> None:
    """Its name on disk is chosen once, and its state is kept.

    Planted: a second announcement replaces the entry.
    """
    journal = Journal(tmp_path)
    file = announced()
    journal.want([file, file])
    before = journal.get(file.file_id)
    assert before is not None
    journal.move(file.file_id, State.WANTED, State.STORED)
    journal.want([Announced(file.file_id, "other", 2, "0" * 64)])
    after = journal.get(file.file_id)
    assert after is not None
    assert (after.stored, after.name, after.size) == (before.stored, "a.txt", 1)
    assert (before.state, after.state) == (State.WANTED, State.STORED)
    assert [entry.file_id for entry in journal.unfinished()] == [file.file_id]
    journal.move(file.file_id, State.STORED, State.ACKED)
    assert journal.unfinished() == []
    journal.close()


def test_all_files_of_a_page_are_recorded_or_none(tmp_path: Path) -> None:
    """Otherwise the cursor could pass a file that is not in the journal.

    Planted: a transaction per file.
    """
    journal = Journal(tmp_path)
    wrong = Announced(str(uuid.uuid4()), "a", "no number", None)  # type: ignore[arg-type]
    with pytest.raises(sqlite3.Error):
        journal.want([announced(), wrong])
    assert journal.unfinished() == []
    journal.want([announced()])
    assert len(journal.unfinished()) == 1
    journal.close()


def test_finished_entries_are_deleted_after_ninety_days(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unfinished files are kept forever.

    Planted: files in every state are deleted; none is.
    """
    journal = Journal(tmp_path)
    files = {state: announced() for state in State}
    journal.want(list(files.values()))
    long_ago = time.time() - KEEP_SECONDS - 1
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: long_ago)
        for state, file in files.items():
            journal.move(file.file_id, State.WANTED, state)
        journal.record_handled("old")
    journal.record_handled("new")
    journal.close()
    journal = Journal(tmp_path)
    kept = [state for state, file in files.items() if journal.get(file.file_id)]
    assert kept == [State.WANTED, State.STORED]
    assert (journal.handled("old"), journal.handled("new")) == (False, True)
    journal.close()


def garbage(path: Path) -> None:
    """Write a file that is not a database."""
    path.write_bytes(b"garbage " * 1000)


def torn(path: Path) -> None:
    """Write a database in which the page of the index of the files is missing."""
    with contextlib.closing(sqlite3.connect(path)) as db:
        index = "SELECT rootpage FROM sqlite_master WHERE name = 'sqlite_autoindex_files_1'"
        (page,) = db.execute(index).fetchone()
    with path.open("r+b") as file:
        file.seek((page - 1) * 4096)
        file.write(bytes(4096))


def cut(path: Path) -> None:
    """Write a truncated database."""
    with path.open("r+b") as file:
        file.truncate(4096)


def foreign(path: Path) -> None:
    """Write a database with another schema."""
    path.unlink()
    db = sqlite3.connect(path)
    db.execute("CREATE TABLE files (something TEXT)")
    db.close()


@pytest.mark.anyio
@pytest.mark.parametrize("spoil", [garbage, torn, cut, foreign])
async def test_an_unreadable_journal_is_moved_and_nothing_is_lost(
    platform: LocalPlatform, tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    """A notice names the new path; a file that only the journal knew is found in the list.

    Planted: only a file that is not a database is moved; damage is found only
    when the page is needed; the list not read.
    """
    workspace = platform.operator.create("journal")
    poller = Poller(platform.base_url, workspace, tmp_path / "files")
    platform.operator.upload(workspace.id, [Sample("a.txt", b"a")])
    await poller.once()
    platform.operator.upload(workspace.id, [Sample("b.txt", b"b")])
    # The cursor is past a file that never arrived.
    rows = platform.operator.call("GET", f"/workspaces/{workspace.id}/activity?limit=1")
    (poller.state / "cursor.json").write_text(json.dumps({"since_id": rows[0]["id"]}))
    spoil(poller.state / "journal.db")
    async with poller.running():
        await poller.until(lambda: acked(poller, 2))
    (notice,) = poller.of(Notice)
    (aside,) = poller.state.glob("journal.unreadable-*.db")
    assert str(aside) in notice.text
    assert [event.name for event in poller.of(FileArrived)] == ["a.txt", "b.txt"]
    assert states(platform.operator, workspace) == ["acked", "acked"]
    poller.events.clear()
    await poller.once()
    assert poller.of(Notice) == []
    assert len(digests(poller.folder)) == 2


def test_two_processes_that_find_it_unreadable_both_continue(tmp_path: Path) -> None:
    """The second process finds a new journal, or creates one.

    Planted: no lock, so that the second process moves the journal that the first has just created.
    """
    with ThreadPoolExecutor(4) as pool:
        for _ in range(25):
            garbage(tmp_path / "journal.db")
            list(pool.map(lambda _: Journal(tmp_path).close(), range(4)))
    assert len(list(tmp_path.glob("journal.unreadable-*.db"))) == 25


def test_several_processes_write_to_one_journal(tmp_path: Path) -> None:
    """No process fails because another one is writing, and every entry is there.

    Planted: no timeout for the lock; BEGIN instead of BEGIN IMMEDIATE, after a read.
    """
    program = (
        "import sys, uuid; from pathlib import Path\n"
        "from molecule_workspace.inbox.journal import *\n"
        "journal = Journal(Path(sys.argv[1]))\n"
        "for _ in range(50):\n"
        "    file = Announced(str(uuid.uuid4()), 'a', 1, None)\n"
        "    journal.want([file]); journal.move(file.file_id, State.WANTED, State.STORED)\n"
        "    journal.save_cursor(file.file_id); journal.record_handled(file.file_id)\n"
    )
    running = [subprocess.Popen([sys.executable, "-c", program, str(tmp_path)]) for _ in range(3)]
    assert [process.wait(60) for process in running] == [0, 0, 0]
    journal = Journal(tmp_path)
    stored = [entry for entry in journal.unfinished() if entry.state is State.STORED]
    assert len(stored) == 150
    assert journal.cursor() in {entry.file_id for entry in stored}
    assert all(journal.handled(entry.file_id) for entry in stored)
    journal.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "cursor.json",
        "journal.db",
        "journal.db-journal",
        "journal.lock",
    ]


@pytest.mark.parametrize(
    "kept", [b"", b"{", b"[]", b"null", b'{"since_id": 7}', b"\xff\xfe", b"[" * 100_000]
)
def test_a_garbled_cursor_starts_at_the_oldest_row(tmp_path: Path, kept: bytes) -> None:
    """Old rows are read again, which the journal knows.

    Planted: only a missing file is handled.
    """
    journal = Journal(tmp_path)
    (tmp_path / "cursor.json").write_bytes(kept)
    assert journal.cursor() is None
    journal.save_cursor("row")
    assert journal.cursor() == "row"
    journal.save_cursor(None)
    assert journal.cursor() is None
    journal.close()


@pytest.mark.anyio
async def test_a_nonexistent_cursor_starts_at_the_oldest_row(
    platform: LocalPlatform, tmp_path: Path
) -> None:
    """Valid JSON, but no existing row: neither a 400 nor a 410 stops the poller."""
    workspace = platform.operator.create("cursor")
    poller = Poller(platform.base_url, workspace, tmp_path / "files")
    await poller.once()
    platform.operator.upload(workspace.id, [Sample("a.txt", b"a")])
    for nonsense in ("nonsense", str(uuid.uuid4())):
        (poller.state / "cursor.json").write_text(json.dumps({"since_id": nonsense}))
        assert (await poller.once()).unfinished == 0
    assert len(digests(poller.folder)) == 1
