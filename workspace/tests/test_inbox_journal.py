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
    """Return a file that nobody has announced before."""
    return Announced(str(uuid.uuid4()), name, 1, None)


def test_a_known_file_stays_as_it_is(tmp_path: Path) -> None:
    """Its name on disk is chosen once, and how far it came is not forgotten.

    Planted: what is announced again replaces what was noted.
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


def test_all_files_of_a_page_are_noted_or_none(tmp_path: Path) -> None:
    """Else the cursor could not tell what is missing.

    Planted: a transaction for each.
    """
    journal = Journal(tmp_path)
    wrong = Announced(str(uuid.uuid4()), "a", "no number", None)  # type: ignore[arg-type]
    with pytest.raises(sqlite3.Error):
        journal.want([announced(), wrong])
    assert journal.unfinished() == []
    journal.want([announced()])
    assert len(journal.unfinished()) == 1
    journal.close()


def test_what_is_over_is_forgotten_after_ninety_days(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is not over is kept for ever.

    Planted: files in every state are forgotten; nothing is.
    """
    journal = Journal(tmp_path)
    files = {state: announced() for state in State}
    journal.want(list(files.values()))
    long_ago = time.time() - KEEP_SECONDS - 1
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: long_ago)
        for state, file in files.items():
            journal.move(file.file_id, State.WANTED, state)
        journal.note_handled("old")
    journal.note_handled("new")
    journal.close()
    journal = Journal(tmp_path)
    kept = [state for state, file in files.items() if journal.get(file.file_id)]
    assert kept == [State.WANTED, State.STORED]
    assert (journal.handled("old"), journal.handled("new")) == (False, True)
    journal.close()


def garbage(path: Path) -> None:
    """Leave what is no database."""
    path.write_bytes(b"garbage " * 1000)


def torn(path: Path) -> None:
    """Leave a database with a page that was never written: that of the index of the files."""
    with contextlib.closing(sqlite3.connect(path)) as db:
        index = "SELECT rootpage FROM sqlite_master WHERE name = 'sqlite_autoindex_files_1'"
        (page,) = db.execute(index).fetchone()
    with path.open("r+b") as file:
        file.seek((page - 1) * 4096)
        file.write(bytes(4096))


def cut(path: Path) -> None:
    """Leave a database without its end."""
    with path.open("r+b") as file:
        file.truncate(4096)


def foreign(path: Path) -> None:
    """Leave a database of something else."""
    path.unlink()
    db = sqlite3.connect(path)
    db.execute("CREATE TABLE files (something TEXT)")
    db.close()


@pytest.mark.anyio
@pytest.mark.parametrize("spoil", [garbage, torn, cut, foreign])
async def test_an_unreadable_journal_is_put_aside_and_nothing_is_lost(
    platform: LocalPlatform, tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    """A person is told where it is; the file of which only the journal knew comes from the list.

    Planted: only what is no database at all is put aside; what cannot be read is found out only
    when it is needed; no look into the list.
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


def test_two_that_find_it_unreadable_at_once_both_go_on(tmp_path: Path) -> None:
    """Whoever comes second finds a new journal, or makes one.

    Planted: no lock, so that the second one puts aside what the first has just made.
    """
    with ThreadPoolExecutor(4) as pool:
        for _ in range(25):
            garbage(tmp_path / "journal.db")
            list(pool.map(lambda _: Journal(tmp_path).close(), range(4)))
    assert len(list(tmp_path.glob("journal.unreadable-*.db"))) == 25


def test_several_processes_note_in_one_journal(tmp_path: Path) -> None:
    """Nobody fails because another is writing, and every note is there.

    Planted: no timeout for the lock; BEGIN in place of BEGIN IMMEDIATE, after a read.
    """
    program = (
        "import sys, uuid; from pathlib import Path\n"
        "from molecule_workspace.inbox.journal import *\n"
        "journal = Journal(Path(sys.argv[1]))\n"
        "for _ in range(50):\n"
        "    file = Announced(str(uuid.uuid4()), 'a', 1, None)\n"
        "    journal.want([file]); journal.move(file.file_id, State.WANTED, State.STORED)\n"
        "    journal.save_cursor(file.file_id); journal.note_handled(file.file_id)\n"
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
def test_a_garbled_cursor_begins_at_the_oldest(tmp_path: Path, kept: bytes) -> None:
    """It costs another look at old rows, which the journal knows.

    Planted: only a missing file is expected.
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
async def test_a_cursor_of_nonsense_is_read_anew(platform: LocalPlatform, tmp_path: Path) -> None:
    """Sound JSON, but no row that ever was: neither a 400 nor a 410 stops the poller."""
    workspace = platform.operator.create("cursor")
    poller = Poller(platform.base_url, workspace, tmp_path / "files")
    await poller.once()
    platform.operator.upload(workspace.id, [Sample("a.txt", b"a")])
    for nonsense in ("nonsense", str(uuid.uuid4())):
        (poller.state / "cursor.json").write_text(json.dumps({"since_id": nonsense}))
        assert (await poller.once()).unfinished == 0
    assert len(digests(poller.folder)) == 1
