"""The cursor: whatever happens to it, nothing is lost and nothing is handled twice."""

import asyncio
import json
import time
import uuid
from dataclasses import replace

import pytest

from bad_network import Answer, BadNetwork, Hook, Seen, Treatment
from local_platform import LocalPlatform, Sample, Workspace
from molecule_workspace.inbox.client import UnavailableError
from molecule_workspace.inbox.events import (
    FileArrived,
    MessageFailed,
    MessageHandled,
    Notice,
    Trouble,
)
from molecule_workspace.inbox.messages import Message
from polling import Poller, attach, cursor_of, digests, rows_of, say

pytestmark = pytest.mark.anyio

GONE = Answer.of_json({"error": "no such row; omit since_id", "code": "cursor_gone"}, 410)


def gone(times: int, *, even_the_beginning: bool = False) -> Hook:
    """Return a hook that answers a cursor with 410 so many times."""
    left = iter(range(times))

    def hook(seen: Seen) -> Treatment | None:
        at_cursor = "since_id=" in seen.query or even_the_beginning
        if seen.path.endswith("/activity") and at_cursor and next(left, None) is not None:
            return Treatment(answer=GONE)
        return None

    return hook


@pytest.mark.parametrize(
    "cursor",
    [
        None,
        b"",
        b"\x00\xff{",
        b"[]",
        b'{"since_id": 7}',
        b'{"since_id": "no row"}',
        json.dumps({"since_id": str(uuid.uuid4())}).encode(),
    ],
    ids=["missing", "empty", "garbage", "list", "number", "no UUID", "no row of this inbox"],
)
async def test_a_useless_cursor_loses_nothing(
    platform: LocalPlatform, workspace: Workspace, poller: Poller, cursor: bytes | None
) -> None:
    """The inbox is read from its oldest row; the journal knows what was handled.

    The last case is a real 410.

    Planted: the journal not used; the file's text sent unchecked (400 forever); 410 as an error.
    """
    operator = platform.operator
    ids = attach(operator, workspace, "before", Sample("a.txt", b"a"), Sample("b.txt", b"b"))
    await poller.once()
    on_disk = digests(poller.folder)
    path = poller.state / "cursor.json"
    path.unlink() if cursor is None else path.write_bytes(cursor)
    ids += attach(operator, workspace, "after", Sample("c.txt", b"c"))
    await poller.once()
    assert poller.texts == ["before", "after"]
    assert digests(poller.folder).items() >= on_disk.items()
    assert len(digests(poller.folder)) == 3
    assert sorted(event.file_id for event in poller.of(FileArrived)) == sorted(ids)
    assert cursor_of(poller) == rows_of(operator, workspace)[-1]["id"]


async def test_410_in_mid_run_resets_without_losing(
    platform: LocalPlatform, network: BadNetwork, workspace: Workspace, poller: Poller
) -> None:
    """Twice, with a message in the handler and rows in the queue.

    Planted: rows that are still in the queue handled twice.
    """
    go_on = asyncio.Event()

    async def think(message: Message) -> None:
        await go_on.wait()

    poller.on_message = think
    async with poller.running():
        say(platform.operator, workspace, "0", "1", "2")
        await poller.until(lambda: poller.texts == ["0"])
        network.on_request = gone(2)
        await poller.until(lambda: len(poller.of(Notice)) == 2)
        attach(platform.operator, workspace, "3", Sample("a.txt", b"a"))
        await poller.until(lambda: len(poller.of(FileArrived)) == 1)
        go_on.set()
        await poller.until(lambda: len(poller.of(MessageHandled)) == 4)
        last = rows_of(platform.operator, workspace)[-1]["id"]
        await poller.until(lambda: cursor_of(poller) == last)
    assert poller.texts == ["0", "1", "2", "3"]
    assert not poller.of(Trouble)


async def test_endless_410s_are_not_a_hot_loop(
    platform: LocalPlatform, network: BadNetwork, workspace: Workspace, poller: Poller
) -> None:
    """The pauses grow; rows that can be read are still handled.

    Planted: no pause after 410; a pause that does not grow.
    """
    say(platform.operator, workspace, "read from the beginning")
    network.on_request = gone(10**9)
    begun = time.monotonic()
    async with poller.running():
        await poller.until(lambda: len(poller.of(Notice)) == 5)
        assert poller.texts == ["read from the beginning"]
        # Two pages per attempt, the oldest and the next.
        assert network.count("/activity") <= 10
        assert time.monotonic() - begun > (1 + 2 + 4 + 8) * poller.options.first_pause / 2


@pytest.mark.parametrize("beginning", [False, True])
async def test_endless_410s_end_a_run_with_once(
    network: BadNetwork, poller: Poller, platform: LocalPlatform, beginning: bool
) -> None:
    """A run with ``once`` ends with an error.

    Planted: ``once`` loops forever.
    """
    say(platform.operator, poller.workspace, "x")
    network.on_request = gone(10**9, even_the_beginning=beginning)
    with pytest.raises(UnavailableError, match="cannot read the inbox"):
        await asyncio.wait_for(poller.run(once=True, once_attempts=2), 15)


async def test_a_file_whose_row_was_pruned_is_found_in_the_list(
    platform: LocalPlatform, network: BadNetwork, workspace: Workspace, poller: Poller
) -> None:
    """The list is read at the start, after 410, and every few minutes.

    Planted: the list not read, at each of the three.
    """
    lost = False

    def hook(seen: Seen) -> Treatment | None:
        if not seen.path.endswith("/activity"):
            return None
        return Treatment(answer=GONE if lost and "since_id" in seen.query else Answer.of_json([]))

    def names() -> list[str]:
        return [event.name for event in poller.of(FileArrived)]

    async def polled() -> None:
        polls = network.count("/activity")
        await poller.until(lambda: network.count("/activity") > polls + 1)

    say(platform.operator, workspace, "a row for the cursor")
    await poller.once()
    network.on_request = hook
    platform.operator.upload(workspace.id, [Sample("start.txt", b"content")])
    async with poller.running():
        await poller.until(lambda: names() == ["start.txt"])
        await polled()
        platform.operator.upload(workspace.id, [Sample("gone.txt", b"content")])
        await polled()
        assert names() == ["start.txt"]
        lost = True
        await poller.until(lambda: names() == ["start.txt", "gone.txt"])
    poller.options = replace(poller.options, reconcile_interval=0.3)
    async with poller.running():
        await polled()
        platform.operator.upload(workspace.id, [Sample("later.txt", b"content")])
        await poller.until(lambda: names() == ["start.txt", "gone.txt", "later.txt"])


async def test_cancelled_in_mid_handler_a_message_is_handled_again(
    platform: LocalPlatform, workspace: Workspace, poller: Poller
) -> None:
    """The cursor stays before it, and messages handled earlier are not handled again.

    Planted: the record, or the cursor, written before the handler returns.
    """
    stuck = asyncio.Event()

    async def stick(message: Message) -> None:
        if len(poller.messages) == 2:
            await stuck.wait()

    poller.on_message = stick
    say(platform.operator, workspace, "one", "two", "three")
    async with poller.running():
        await poller.until(lambda: poller.texts == ["one", "two"])
        assert cursor_of(poller) == rows_of(platform.operator, workspace)[0]["id"]
    assert cursor_of(poller) == rows_of(platform.operator, workspace)[0]["id"]
    await poller.once()
    assert poller.texts == ["one", "two", "two", "three"]


async def test_a_failing_handler_is_retried_and_then_skipped(
    platform: LocalPlatform, workspace: Workspace, poller: Poller
) -> None:
    """After each pause; then the next message is handled, and a restart does not repeat it.

    Planted: no retry; endless retries; an error that ends the poller; a CancelledError from
    inside the handler that silently ends the handling of messages.
    """
    failures = [ValueError("broken"), OSError(), asyncio.CancelledError(), RuntimeError("still")]
    left = iter(failures)

    async def fail(message: Message) -> None:
        if error := next(left, None):
            raise error

    poller.on_message = fail
    say(platform.operator, workspace, "one", "two")
    await poller.once()
    assert poller.texts == ["one"] * 4 + ["two"]
    reported = [(event.reason, event.retry_in) for event in poller.of(MessageFailed)]
    assert reported == [
        ("broken", 0.05),
        ("OSError", 0.05),
        ("CancelledError", 0.05),
        ("still", None),
    ]
    assert len(poller.of(MessageHandled)) == 1
    await poller.once()
    assert poller.texts == ["one"] * 4 + ["two"]


async def test_once_waits_for_files_or_leaves_their_messages(
    platform: LocalPlatform, network: BadNetwork, workspace: Workspace, poller: Poller
) -> None:
    """A file that does not arrive in this run leaves its message, and later ones, to the next.

    Planted: the message handled without its file; the cursor moved past it.
    """
    unavailable = Treatment(answer=Answer.of_json({"error": "busy"}, 503))
    network.on_request = lambda seen: unavailable if seen.path.endswith("/content") else None
    say(platform.operator, workspace, "before")
    attach(platform.operator, workspace, "with a file", Sample("a.txt", b"a"))
    say(platform.operator, workspace, "after")
    poller.options = replace(poller.options, once_attempts=2)
    outcome = await poller.once()
    assert (outcome.arrived, outcome.lost, outcome.unfinished) == (0, 0, 1)
    assert poller.texts == ["before"]
    assert cursor_of(poller) in [row["id"] for row in rows_of(platform.operator, workspace)[:2]]
    network.on_request = lambda seen: None
    outcome = await poller.once()
    assert (outcome.arrived, outcome.lost, outcome.unfinished) == (1, 0, 0)
    assert poller.texts == ["before", "with a file", "after"]
