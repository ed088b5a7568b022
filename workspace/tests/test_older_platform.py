"""An older platform: no wait, no order, no sha256, no list, no ranges. Everything still works."""

import hashlib
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from bad_network import BadNetwork, Treatment, in_turn
from impostor import Impostor, OlderPlatform, as_json
from local_platform import LocalPlatform, Sample, Workspace
from molecule_workspace.inbox.client import PlatformClient
from molecule_workspace.inbox.events import FileAcked, FileDelayed, MessageHandled, Trouble
from molecule_workspace.inbox.history import LONG_PAGE, oldest_first
from polling import Poller, attach, cursor_of, digests, rows_of, say

pytestmark = pytest.mark.anyio


@pytest.fixture
def network(platform: LocalPlatform) -> Iterator[BadNetwork]:
    """A network in front of an older platform."""
    with OlderPlatform(platform.base_url) as older, BadNetwork(older.url) as network:
        yield network


async def test_a_history_of_more_than_a_page_is_read_from_its_beginning(
    platform: LocalPlatform, workspace: Workspace, poller: Poller
) -> None:
    """Files, the messages that mention them, and what comes later, in order.

    Planted: the newest page taken for the oldest; only one page read backwards; the pages not
    turned around.
    """
    operator = platform.operator
    texts = [f"text {n}" for n in range(130)]
    sent: list[str] = []
    for n, text in enumerate(texts):
        if n % 50:
            say(operator, workspace, text)
        else:
            content = text.encode() * 1000
            attach(operator, workspace, text, Sample("a.txt", content))
            sent.append(hashlib.sha256(content).hexdigest())
    async with poller.running():
        await poller.until(lambda: len(poller.of(MessageHandled)) == len(texts))
        sent.append(hashlib.sha256(b"").hexdigest())
        attach(operator, workspace, "later", Sample("empty.txt", b""))
        await poller.until(lambda: poller.texts == [*texts, "later"])
        await poller.until(lambda: len(poller.of(FileAcked)) == len(sent))
        last = rows_of(operator, workspace)[-1]["id"]
        await poller.until(lambda: cursor_of(poller) == last)
    assert sorted(digests(poller.folder).values()) == sorted(sent)
    assert operator.pending(workspace.id, "unacked") == []
    assert not poller.of(Trouble)
    assert (await poller.once()).arrived == 0
    assert len(poller.texts) == len(texts) + 1


async def test_a_download_that_is_cut_begins_anew(
    platform: LocalPlatform, network: BadNetwork, workspace: Workspace, poller: Poller
) -> None:
    """Nothing tells whether it is still the same file, so the part is no use.

    Planted: an ETag guessed for a file without one; the part kept, and the whole appended to it.
    """
    content = bytes(range(256)) * 12_000
    network.on_request = in_turn([Treatment(cut_after=2_500_000)])
    attach(platform.operator, workspace, "see", Sample("a.bin", content))
    async with poller.running():
        await poller.until(lambda: poller.texts == ["see"])
    fetches = [seen for seen in network.requests if seen.path.endswith("/content")]
    assert [seen.sent for seen in fetches] == [2_500_000, len(content)]
    assert all("range" not in seen.headers for seen in fetches)
    assert list(digests(poller.folder).values()) == [hashlib.sha256(content).hexdigest()]
    assert len(poller.of(FileDelayed)) == 1


async def test_the_journal_alone_knows_what_is_missing(
    platform: LocalPlatform, network: BadNetwork, workspace: Workspace, poller: Poller
) -> None:
    """Files whose rows the cursor has passed; then the cursor is lost as well.

    Planted: a missing list as trouble; unfinished files not taken up at the start.
    """
    network.on_request = in_turn([Treatment(stall_after=100)] * 2)
    samples = [Sample("a.bin", b"a" * 9999), Sample("b.bin", b"b" * 9999)]
    staged = platform.operator.upload(workspace.id, samples)
    last = rows_of(platform.operator, workspace)[-1]["id"]
    async with poller.running():
        await poller.until(lambda: network.sent("/content") >= 200 and cursor_of(poller) == last)
    network.release()
    outcome = await poller.once()
    assert (outcome.arrived, outcome.unfinished) == (2, 0)
    on_disk = digests(poller.folder)
    assert len(on_disk) == 2
    (poller.state / "cursor.json").write_text(f'{{"since_id": "{uuid.uuid4()}"}}')
    parts = [{"kind": "file", "file": {"uri": one["uri"]}} for one in staged]
    platform.operator.send(workspace.id, [{"kind": "text", "text": "see"}, *parts])
    outcome = await poller.once()
    assert outcome.arrived == 0
    assert poller.texts == ["see"]
    assert digests(poller.folder) == on_disk


class OldInbox(Impostor):
    """An old platform with nothing but an inbox, which begins with the newest row."""

    def __init__(self, times: list[datetime], *, ties_turned: bool = False) -> None:
        """Hold a message for each time, oldest first; rows of one moment may come in any order."""
        super().__init__()
        self.rows: list[dict[str, Any]] = [
            {
                "id": str(uuid.uuid4()),
                "method": "message/send",
                "source_id": None,
                "created_at": when.isoformat(timespec="microseconds").replace("+00:00", "Z"),
                "request_body": {"params": {"message": {"parts": [{"text": str(n)}]}}},
            }
            for n, when in enumerate(times)
        ]
        self.shown = self.rows[::-1]
        if ties_turned:
            self.shown = sorted(self.rows, key=lambda row: str(row["created_at"]), reverse=True)

    async def answer(self, request: Request) -> Response:
        """Answer as old platforms did."""
        query = request.query_params
        if request.url.path.startswith("/registry/"):
            return as_json({"platform_inbound_secret": "secret"})
        if not request.url.path.endswith("/activity"):
            return PlainTextResponse("404 page not found", 404)
        limit = min(int(query.get("limit", "100")), 500)
        if "since_id" in query:
            ids = [row["id"] for row in self.rows]
            begin = ids.index(query["since_id"]) + 1
            return as_json(self.rows[begin : begin + limit])
        before = datetime.fromisoformat(query.get("before_ts", "9999-01-01T00:00:00Z"))
        older = (r for r in self.shown if datetime.fromisoformat(r["created_at"]) < before)
        return as_json(list(islice(older, limit)))


def moments(count: int, each: int, step: timedelta = timedelta(seconds=1)) -> list[datetime]:
    """Return so many times, each as often as ``each``."""
    begin = datetime(2026, 1, 1, tzinfo=UTC)
    return [begin + step * (n // each) for n in range(count)]


@pytest.mark.parametrize("ties_turned", [False, True])
@pytest.mark.parametrize(
    "times",
    [
        lambda: moments(1, 1),
        lambda: moments(250, 1),
        lambda: moments(250, 1, timedelta(microseconds=1)),
        lambda: moments(250, 7),
        lambda: moments(250, 64),
        lambda: moments(250, 100),
        lambda: moments(250, 250),
        lambda: moments(LONG_PAGE, LONG_PAGE),
        lambda: moments(1300, 300),
    ],
    ids=["1", "250", "250 close", "by 7", "by 64", "by 100", "all", "500 at once", "by 300"],
)
async def test_rows_of_one_moment_are_not_lost_at_the_edge_of_a_page(
    times: Callable[[], list[datetime]], ties_turned: bool
) -> None:
    """Whatever shares its time with the last row of a page; and each once, in order.

    Planted: strictly before the oldest; one page of rows of one moment taken for the beginning;
    pages of 100 for moments of more.
    """
    with OldInbox(times(), ties_turned=ties_turned) as old:
        client = PlatformClient(old.url, str(uuid.uuid4()), "token")
        read = await oldest_first(client, {"type": "a2a_receive", "limit": "100"}, 0)
        await client.close()
        assert len(old.requests) <= 3 + len(old.rows) // LONG_PAGE * 2 + 1
    if ties_turned:
        when = [row["created_at"] for row in read]
        assert when == sorted(when)
        read.sort(key=old.rows.index)
    assert read == old.rows


async def test_a_moment_longer_than_any_page_does_not_hide_what_is_older() -> None:
    """No question brings all the rows of such a moment; those before it are still read.

    Planted: the beginning taken to be where a page brings nothing new.
    """
    times = moments(50, 1)
    times += [times[-1] + timedelta(days=1)] * 700
    with OldInbox(times) as old:
        client = PlatformClient(old.url, str(uuid.uuid4()), "token")
        read = await oldest_first(client, {"type": "a2a_receive", "limit": "100"}, 0)
        await client.close()
    assert read == old.rows[:50] + old.rows[-LONG_PAGE:]


async def test_a_poller_of_an_inbox_in_bursts_handles_each_message_once(tmp_path: Path) -> None:
    """The same, through the poller: then it goes on by the cursor.

    Planted: the last row of the first page taken for the cursor.
    """
    with OldInbox(moments(130, 40)) as old:
        poller = Poller(old.url, Workspace(str(uuid.uuid4()), "token", ""), tmp_path)
        await poller.once()
        await poller.once()
        assert [message.row_id for message in poller.messages] == [row["id"] for row in old.rows]
        assert cursor_of(poller) == old.rows[-1]["id"]
