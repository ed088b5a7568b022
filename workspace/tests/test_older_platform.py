"""An older platform, without wait, order, sha256, list and ranges: everything still works."""

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


async def test_a_history_of_more_than_a_page_is_read_from_the_oldest_row(
    platform: LocalPlatform, workspace: Workspace, poller: Poller
) -> None:
    """Files, the messages that refer to them, and later rows, in order.

    Planted: the newest page treated as the oldest; only one page read backwards; the pages not
    reversed.
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


async def test_an_interrupted_download_starts_again(
    platform: LocalPlatform, network: BadNetwork, workspace: Workspace, poller: Poller
) -> None:
    """Nothing proves that it is still the same file, so the part is discarded.

    Planted: an invented ETag; the part kept, and the whole file appended to it.
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


async def test_without_a_list_the_journal_knows_what_is_missing(
    platform: LocalPlatform, network: BadNetwork, workspace: Workspace, poller: Poller
) -> None:
    """Files whose rows the cursor has passed; then the cursor is lost too.

    Planted: a missing list reported as trouble; unfinished files not resumed at the start.
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
    """An old platform with only an inbox, which returns the newest row first."""

    def __init__(self, times: list[datetime], *, ties_turned: bool = False) -> None:
        """Create a message per timestamp, oldest first; equal timestamps have no fixed order."""
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
    """Return so many timestamps, each repeated ``each`` times."""
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
async def test_rows_of_one_timestamp_are_not_lost_between_pages(
    times: Callable[[], list[datetime]], ties_turned: bool
) -> None:
    """Rows with the timestamp of the last row of a page; each once, in order.

    Planted: strictly before the oldest; one page of a single timestamp treated as the beginning;
    pages of 100 for timestamps with more rows.
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


async def test_a_timestamp_with_more_rows_than_a_page_hides_no_older_rows() -> None:
    """No request returns all rows of such a timestamp; earlier rows are still read.

    Planted: a page without new rows treated as the beginning.
    """
    times = moments(50, 1)
    times += [times[-1] + timedelta(days=1)] * 700
    with OldInbox(times) as old:
        client = PlatformClient(old.url, str(uuid.uuid4()), "token")
        read = await oldest_first(client, {"type": "a2a_receive", "limit": "100"}, 0)
        await client.close()
    assert read == old.rows[:50] + old.rows[-LONG_PAGE:]


async def test_a_poller_of_an_inbox_in_bursts_handles_each_message_once(tmp_path: Path) -> None:
    """The same with the poller, which then continues with the cursor.

    Planted: the last row of the first page used as the cursor.
    """
    with OldInbox(moments(130, 40)) as old:
        poller = Poller(old.url, Workspace(str(uuid.uuid4()), "token", ""), tmp_path)
        await poller.once()
        await poller.once()
        assert [message.row_id for message in poller.messages] == [row["id"] for row in old.rows]
        assert cursor_of(poller) == old.rows[-1]["id"]
