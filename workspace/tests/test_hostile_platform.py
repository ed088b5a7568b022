"""Files from a hostile platform: nothing outside the folder, no wrong file, no endless work."""

import gzip
import re
import tracemalloc
import uuid
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from starlette.responses import Response, StreamingResponse

from bad_network import Answer, BadNetwork, Treatment, in_turn
from impostor import (
    GIB,
    HOSTILE_FILE_IDS,
    HOSTILE_NAMES,
    HostilePlatform,
    Reply,
    body,
    captive_portal,
    endless,
    redirect,
)
from local_platform import LocalPlatform, Sample, Workspace
from molecule_workspace import Inbox, Message, Options, PlatformClient
from molecule_workspace.inbox.events import FileArrived, FileDelayed, FileLost, FileStarted, Notice
from molecule_workspace.ingest.app import sanitize_filename
from poller import acked, noise, part_bytes, parts, states
from polling import Poller, digests

pytestmark = pytest.mark.anyio

MIB = 1 << 20
KIB = 1 << 10
CAPTIVE = Answer(200, {"Content-Type": "text/html"}, b"<!doctype html>Please log in.")


@pytest.fixture
def exposed_poller(hostile: HostilePlatform, tmp_path: Path) -> Poller:
    """A poller of the hostile platform."""
    return Poller(hostile.url, Workspace(str(uuid.uuid4()), "t", "s"), tmp_path / "files")


def everything(folder: Path) -> set[str]:
    """Return the paths of all files below a folder."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}


def delays(poller: Poller) -> Counter[str]:
    """Count the failures per file."""
    return Counter(event.file_id for event in poller.of(FileDelayed))


def ranged(content: bytes, content_range: str) -> Reply:
    """Answer 206, whether or not a range was requested."""
    return lambda: Response(content, 206, {"Content-Range": content_range})


BAD_CONTENTS: dict[str, tuple[Reply, dict[str, Any]]] = {
    "endless": (lambda: endless(), {"size": KIB}),
    "ten GiB": (lambda: endless(10 * GIB), {"size": KIB}),
    "one byte too many": (lambda: body([bytes(KIB + 1)]), {"size": KIB}),
    "one byte too few": (lambda: body([bytes(KIB - 1)]), {"size": KIB}),
    "other bytes": (lambda: body(b"x" * KIB), {"size": KIB}),
    "other digest": (lambda: body(bytes(KIB)), {"size": KIB, "sha256": "0" * 64}),
    "a login page": (captive_portal, {"size": KIB}),
    "a login page of that length": (captive_portal, {"size": len(captive_portal().body)}),
    "packed": (
        lambda: Response(gzip.compress(bytes(KIB)), headers={"Content-Encoding": "gzip"}),
        {"size": KIB},
    ),
    "an unrequested range": (ranged(bytes(10), "bytes 0-9/10"), {"size": 10, "sha256": None}),
    "a range of another place": (ranged(bytes(KIB), f"bytes 5-{KIB + 4}/9999"), {"size": KIB}),
    "a range of nonsense": (ranged(bytes(KIB), "bytes \u00b2-\u00b3/\u00b9"), {}),
    "no range": (lambda: Response(status_code=416), {"size": KIB}),
    "elsewhere": (lambda: redirect("http://169.254.169.254/"), {"size": KIB}),
    "no content": (lambda: Response(status_code=204), {"size": KIB}),
    "a broken tag": (
        lambda: StreamingResponse([bytes(10)], headers={"ETag": '"\xff\xfe"'}),
        {"size": KIB},
    ),
}


async def test_bad_bytes_never_become_a_file_and_the_next_good_one_arrives(
    hostile: HostilePlatform, exposed_poller: Poller, tmp_path: Path
) -> None:
    """All kinds of wrong answers at once; each is retried, and none stays on disk.

    Planted: no byte limit; the digest not compared; an unrequested 206 accepted; an ETag sent back
    that is invalid in a header.
    """
    bad = [
        hostile.announce(reply, **({"sha256": "1" * 64} | reported))["file_id"]
        for reply, reported in BAD_CONTENTS.values()
    ]
    hostile.announce(b"good", name="good.txt")
    async with exposed_poller.running():
        await exposed_poller.until(lambda: acked(exposed_poller, 1))
        # Each is retried repeatedly, and the poller keeps running.
        await exposed_poller.until(
            lambda: all(delays(exposed_poller)[file_id] >= 2 for file_id in bad)
        )
    assert [event.name for event in exposed_poller.of(FileArrived)] == ["good.txt"]
    assert len(digests(exposed_poller.folder)) == 1
    assert exposed_poller.of(FileLost) == []
    assert part_bytes(exposed_poller) <= 2 * KIB
    assert all(path.startswith("files/") for path in everything(tmp_path))


async def test_a_file_over_the_limit_is_not_requested(
    hostile: HostilePlatform, exposed_poller: Poller
) -> None:
    """10 GiB announced: not requested. No size announced and endless: aborted at the limit.

    Planted: the announced size not compared; no limit without a size.
    """
    long = hostile.announce(lambda: endless(), size=10 * GIB)
    hostile.announce(lambda: endless(), size=None, sha256=None)
    hostile.announce(b"good")
    outcome = await exposed_poller.run(once=True, max_file_bytes=MIB)
    assert (outcome.arrived, outcome.lost, outcome.unfinished) == (1, 2, 0)
    assert all(event.reason for event in exposed_poller.of(FileLost))
    assert not any(long["file_id"] in asked.path for asked in hostile.requests)
    assert parts(exposed_poller) == []


async def test_memory_does_not_grow_with_what_is_sent(
    hostile: HostilePlatform, exposed_poller: Poller
) -> None:
    """Four concurrent files of 24 MiB need a few MiB of memory, both ends included.

    Planted: the whole answer is read before it is written.
    """
    for _ in range(4):
        hostile.announce(lambda: endless(24 * MIB), size=24 * MIB, sha256=None)
    tracemalloc.start()
    try:
        outcome = await exposed_poller.once()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert outcome.arrived == 4
    assert peak < 24 * MIB


async def test_no_name_chooses_the_path(
    hostile: HostilePlatform, exposed_poller: Poller, tmp_path: Path
) -> None:
    """Whatever a file's name, it is stored in the folder under a printable name.

    Planted: the name shown unsanitized; the name used unsanitized, which two places prevent.
    """
    for name in HOSTILE_NAMES:
        hostile.announce(name.encode("utf-8", "replace"), name=name)
    outcome = await exposed_poller.once()
    assert outcome.arrived == len(HOSTILE_NAMES)
    stored = list(digests(exposed_poller.folder))
    assert len(stored) == len(HOSTILE_NAMES)
    assert all(re.fullmatch(r"[0-9a-f]{32}-[A-Za-z0-9._-]{1,100}", name) for name in stored)
    assert {name[33:] for name in stored} == {sanitize_filename(name) for name in HOSTILE_NAMES}
    assert all(path.startswith("files/") for path in everything(tmp_path))
    assert {event.name for event in exposed_poller.of(FileArrived)} == {
        name[33:] for name in stored
    }


async def test_an_invalid_id_does_not_get_into_a_url(
    hostile: HostilePlatform, exposed_poller: Poller
) -> None:
    """A file_id that is not a UUID is reported and skipped, in rows and in the list.

    Planted: the id put into the URL unchecked.
    """
    for file_id in HOSTILE_FILE_IDS:
        hostile.listed.append(hostile.announce(b"bad", file_id=file_id))
    hostile.announce(b"good")
    outcome = await exposed_poller.once()
    assert (outcome.arrived, outcome.unfinished) == (1, 0)
    assert len(exposed_poller.of(Notice)) == len(HOSTILE_FILE_IDS)
    base = f"/workspaces/{exposed_poller.workspace.id}"
    allowed = rf"/registry/\w+|{base}/(activity|pending-uploads(/[0-9a-f-]{{36}}/(content|ack))?)"
    assert all(re.fullmatch(allowed, asked.path) for asked in hostile.requests)


async def test_a_list_without_an_end_does_not_keep_the_inbox_waiting(
    hostile: HostilePlatform, exposed_poller: Poller, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading pages that repeat endlessly is given up.

    Planted: no limit on pages.
    """
    monkeypatch.setattr("molecule_workspace.inbox.uploads.LIST_PAGES", 3)
    monkeypatch.setattr("molecule_workspace.inbox.uploads.LIST_PAGE", 2)
    reached = 0

    def page() -> Response:
        nonlocal reached
        reached += 1
        files = [{"file_id": str(uuid.uuid4()), "name": "a", "size": 1 << 59} for _ in range(2)]
        return Response(repr(files).replace("'", '"'))

    hostile.replies["/pending-uploads"] = page
    hostile.announce(b"good")
    async with exposed_poller.running():
        await exposed_poller.until(lambda: acked(exposed_poller, 1))
    assert reached == 3


async def test_a_resumed_file_survives_a_wrong_range_and_wrong_bytes(
    platform: LocalPlatform, network: BadNetwork, poller: Poller
) -> None:
    """An interruption, a login page, a wrong range, wrong bytes of the right length, the file.

    Planted: Content-Range not compared; the digest not compared; restarted for the login page.
    """
    content = noise(100 * KIB)
    wrong = {"Content-Range": f"bytes 0-{len(content) - 1}/{len(content)}"}
    network.on_request = in_turn(
        [
            Treatment(cut_after=50 * KIB),
            Treatment(answer=CAPTIVE),
            Treatment(cut_after=10 * KIB),
            Treatment(answer=Answer(206, wrong, content)),
            Treatment(answer=Answer(200, {}, bytes(len(content)))),
        ]
    )
    platform.operator.upload(poller.workspace.id, [Sample("a.bin", content)])
    async with poller.running():
        await poller.until(lambda: acked(poller, 1))
    (arrived,) = poller.of(FileArrived)
    assert arrived.path.read_bytes() == content
    assert len(poller.of(FileDelayed)) == 5
    assert [event.received for event in poller.of(FileStarted)] == [0, 50 * KIB, 0, 0]


async def test_a_login_page_is_not_an_acknowledgement(
    platform: LocalPlatform, network: BadNetwork, poller: Poller
) -> None:
    """HTML with 200 instead of an ack is reported, and the ack is retried.

    Planted: any 200 is accepted.
    """
    network.on_request = in_turn([Treatment(answer=CAPTIVE)], "/ack")
    platform.operator.upload(poller.workspace.id, [Sample("a.txt", b"a")])
    async with poller.running():
        await poller.until(lambda: acked(poller, 1))
    assert "login page" in poller.of(FileDelayed)[0].reason
    assert states(platform.operator, poller.workspace) == ["acked"]


@pytest.mark.parametrize("place", ["part", "name"])
async def test_a_planted_symbolic_link_is_not_followed(
    platform: LocalPlatform, network: BadNetwork, poller: Poller, tmp_path: Path, place: str
) -> None:
    """A symbolic link in place of the part or the file is replaced; its target is not touched.

    Planted: opened without O_NOFOLLOW; the link kept in place of the file.
    """
    target = tmp_path / "precious"
    target.write_bytes(b"precious")
    content = noise(100 * KIB)
    network.on_request = in_turn([Treatment(cut_after=50 * KIB)])
    platform.operator.upload(poller.workspace.id, [Sample("a.bin", content)])
    await poller.run(once=True, once_attempts=1)
    assert poller.of(FileArrived) == []
    (part,) = parts(poller)
    planted = part if place == "part" else poller.folder / part.stem
    planted.unlink(missing_ok=True)
    planted.symlink_to(target)
    await poller.once()
    assert target.read_bytes() == b"precious"
    (arrived,) = poller.of(FileArrived)
    assert not arrived.path.is_symlink()
    assert arrived.path.read_bytes() == content
    assert states(platform.operator, poller.workspace) == ["acked"]


async def test_a_row_with_an_unreadable_body_is_skipped_with_a_notice(
    hostile: HostilePlatform, tmp_path: Path
) -> None:
    """The rows before and after it arrive, and the cursor moves past it.

    Planted: the page read at once; the row passed to the handler with an empty body.
    """
    ids = [str(uuid.UUID(int=n)) for n in (1, 2, 3)]
    deep = b'{"a":' * 3000 + b"1" + b"}" * 3000
    bodies = [b'{"text":"before"}', deep, b'{"text":"after"}']
    row = (
        b'{"id":"%s","method":"message/send","created_at":"2026-01-0%dT00:00:00Z",'
        b'"request_body":%s}'
    )
    page = b",".join(row % (ids[n].encode(), n + 1, body) for n, body in enumerate(bodies))
    asked: list[str] = []

    def inbox() -> Response:
        asked.append("")
        return Response(b"[" + page + b"]" if len(asked) == 1 else b"[]")

    hostile.replies["/activity"] = inbox
    handled: list[object] = []
    events: list[object] = []

    async def handle(message: Message) -> None:
        handled.append(message.body)

    client = PlatformClient(hostile.url, str(uuid.UUID(int=9)), "token")
    options = Options(once=True, poll_interval=0.05)
    await Inbox(client, tmp_path, handle, events.append, options).run()
    await client.close()
    assert handled == [{"text": "before"}, {"text": "after"}]
    (notice,) = [e.text for e in events if isinstance(e, Notice)]
    assert ids[1] in notice
    assert "nested too deeply" in notice
