"""The poller with the real platform: what it reads, and the order of messages."""

import asyncio
import contextlib
import uuid
from pathlib import Path
from typing import Any

import pytest

from bad_network import Answer, BadNetwork, Hook, Seen, Treatment, always, in_turn
from local_platform import LocalPlatform, Sample, Workspace
from molecule_workspace.inbox.client import UnavailableError
from molecule_workspace.inbox.events import (
    Connected,
    FileArrived,
    FileLost,
    MessageHandled,
    MessageReceived,
    Notice,
    Stopped,
    Trouble,
)
from molecule_workspace.inbox.messages import Message
from molecule_workspace.inbox.options import Options
from polling import Poller, attach, cursor_of, digests, file_id_of, rows_of, say, text_of

pytestmark = pytest.mark.anyio


def local_path(uri: str) -> Path:
    """Return the file that a workspace: URI names."""
    assert uri.startswith("workspace:/"), uri
    return Path(uri.removeprefix("workspace:"))


def uris(body: Any) -> list[str]:
    """Return the URIs of the file parts of a message."""
    parts = body["params"]["message"]["parts"]
    return [part["file"]["uri"] for part in parts if "file" in part]


def scripted(rows: list[Any]) -> Hook:
    """Return a hook that serves these rows as the inbox, and forwards everything else."""
    ids = [row.get("id") if isinstance(row, dict) else None for row in rows]

    def hook(seen: Seen) -> Treatment | None:
        if not seen.path.endswith("/activity"):
            return None
        query = dict(pair.split("=") for pair in seen.query.split("&"))
        begin = ids.index(query["since_id"]) + 1 if "since_id" in query else 0
        return Treatment(answer=Answer.of_json(rows[begin:]))

    return hook


def message_row(text: str, **changes: Any) -> dict[str, Any]:
    """Return a row in the platform's form."""
    body = {"params": {"message": {"parts": [{"kind": "text", "text": text}]}}}
    row = {"id": str(uuid.uuid4()), "seq": 1, "method": "message/send", "source_id": None}
    return row | {"created_at": "2026-01-01T00:00:00Z", "request_body": body} | changes


async def test_the_workspace_becomes_a_poll_workspace_that_lives(
    platform: LocalPlatform, network: BadNetwork, tmp_path: Path
) -> None:
    """The platform shows poll mode and a heartbeat that advances.

    Planted: no registration; one heartbeat only.
    """
    workspace = platform.operator.create("was push", "push", "http://127.0.0.1:9/")
    poller = Poller(network.url, workspace, tmp_path, Options(heartbeat_interval=0.1))

    def shown() -> dict[str, Any]:
        answer: dict[str, Any] = platform.operator.call("GET", f"/workspaces/{workspace.id}")
        return answer

    async with poller.running():
        await poller.until(lambda: bool(shown()["last_heartbeat_at"]))
        first = shown()["last_heartbeat_at"]
        await poller.until(lambda: shown()["last_heartbeat_at"] > first)
        assert shown()["delivery_mode"] == "poll"
    assert poller.of(Connected) == [Connected(network.url, workspace.id, tmp_path)]
    assert poller.of(Stopped) == [Stopped(0)]
    assert not poller.of(Trouble)


async def test_messages_are_handled_in_order_once_and_the_cursor_follows(
    platform: LocalPlatform, workspace: Workspace, poller: Poller
) -> None:
    """More than a page of earlier messages, and some that arrive later.

    Planted: newest first; no order=asc; the cursor of the page saved instead of the handled row.
    """
    before = [f"before {n}" for n in range(130)]
    say(platform.operator, workspace, *before)
    async with poller.running():
        await poller.until(lambda: len(poller.messages) == 130)
        say(platform.operator, workspace, "one", "two")
        await poller.until(lambda: len(poller.of(MessageHandled)) == 132)
        rows = [row["id"] for row in rows_of(platform.operator, workspace)]
        await poller.until(lambda: cursor_of(poller) == rows[-1])
    assert poller.texts == [*before, "one", "two"]
    assert [message.row_id for message in poller.messages] == rows
    assert (await poller.once()).unfinished == 0
    assert len(poller.messages) == 132


async def test_a_message_waits_for_its_file_and_keeps_its_place(
    platform: LocalPlatform, network: BadNetwork, workspace: Workspace, poller: Poller
) -> None:
    """Later files are fetched meanwhile; later messages wait.

    Planted: no waiting for files; messages handled in the order of their files; the cursor saved
    before the message is handled.
    """
    network.on_request = in_turn([Treatment(stall_after=1000)])
    slow, quick = Sample("slow.bin", b"s" * 3000), Sample("quick.bin", b"q" * 3000)
    seen_on_disk: list[bytes] = []

    async def look(message: Message) -> None:
        seen_on_disk.extend(local_path(uri).read_bytes() for uri in uris(message.body))

    poller.on_message = look
    async with poller.running():
        say(platform.operator, workspace, "first")
        (slow_id,) = attach(platform.operator, workspace, "slow", slow)
        await poller.until(lambda: network.sent("/content") >= 1000)
        (quick_id,) = attach(platform.operator, workspace, "quick", quick)
        say(platform.operator, workspace, "last")
        await poller.until(lambda: [e.file_id for e in poller.of(FileArrived)] == [quick_id])
        # Everything has been read; a message that does not wait would be handled by now.
        polls = network.count("/activity")
        await poller.until(lambda: network.count("/activity") > polls + 3)
        assert poller.texts == ["first"]
        rows = rows_of(platform.operator, workspace)
        assert cursor_of(poller) in [row["id"] for row in rows[:2]]
        network.release()
        await poller.until(lambda: len(poller.of(MessageHandled)) == 4)
    assert poller.texts == ["first", "slow", "quick", "last"]
    assert seen_on_disk == [slow.content, quick.content]
    assert [e.file_id for e in poller.of(FileArrived)] == [quick_id, slow_id]
    shown = [e.body for e in poller.of(MessageReceived)]
    assert [local_path(uri).name[33:] for body in shown for uri in uris(body)] == [
        "slow.bin",
        "quick.bin",
    ]


async def test_files_arrive_while_the_handler_is_busy(
    platform: LocalPlatform, workspace: Workspace, poller: Poller
) -> None:
    """A slow handler does not delay files.

    Planted: files journaled only when their row is handled.
    """
    go_on = asyncio.Event()

    async def think(message: Message) -> None:
        if text_of(message.body) == "think":
            await go_on.wait()

    poller.on_message = think
    async with poller.running():
        say(platform.operator, workspace, "think")
        await poller.until(lambda: poller.texts == ["think"])
        ids = attach(
            platform.operator, workspace, "see", *(Sample(f"{n}.txt", b"x") for n in range(5))
        )
        await poller.until(lambda: {e.file_id for e in poller.of(FileArrived)} == set(ids))
        assert poller.texts == ["think"]
        go_on.set()
        await poller.until(lambda: poller.texts == ["think", "see"])


@pytest.mark.parametrize(
    ("answer", "lost"),
    [
        (Answer.of_json({"error": "not found", "code": "pending_upload_not_found"}, 404), 1),
        (Answer(200, {"Content-Type": "text/plain"}, b"XXXXX"), 0),
    ],
    ids=["gone", "broken"],
)
async def test_a_file_that_cannot_arrive_does_not_block_its_message(
    platform: LocalPlatform,
    network: BadNetwork,
    workspace: Workspace,
    poller: Poller,
    answer: Answer,
    lost: int,
) -> None:
    """The message keeps the platform's URI; later messages are handled too.

    Planted: a lost or corrupt file never settles.
    """
    # Slow enough that the message is already waiting.
    network.on_request = always(Treatment(answer=answer, delay=0.2), "/content")
    attach(platform.operator, workspace, "see", Sample("a.txt", b"hello"))
    say(platform.operator, workspace, "after")
    async with poller.running():
        await poller.until(lambda: poller.texts == ["see", "after"])
    (uri,) = uris(poller.messages[0].body)
    assert uri.startswith(f"platform-pending:{workspace.id}/")
    assert len(poller.of(FileLost)) == lost
    assert digests(poller.folder) == {}


async def test_messages_of_the_agent_itself_are_skipped(
    platform: LocalPlatform, workspace: Workspace, poller: Poller
) -> None:
    """Rows from the workspace itself, and notify rows, as the real platform writes them.

    Planted: is_for not called; the cursor not moved past skipped rows.
    """
    own = {"Authorization": f"Bearer {workspace.token}"}
    path = f"/workspaces/{workspace.id}/a2a"
    envelope = {"jsonrpc": "2.0", "id": "1", "params": {"message": {"parts": [{"text": "own"}]}}}
    operator = platform.operator
    operator.call("POST", path, json=envelope | {"method": "message/send"}, headers=own)
    operator.call("POST", path, json=envelope | {"method": "notify"})
    say(operator, workspace, "news")
    operator.call("POST", path, json=envelope | {"method": "notify"})
    await poller.once()
    assert poller.texts == ["news"]
    assert cursor_of(poller) == rows_of(operator, workspace)[-1]["id"]


async def test_rows_of_other_agents_are_handled_and_forged_files_are_not(
    network: BadNetwork, poller: Poller
) -> None:
    """Another agent may send messages, also notify ones; only the platform announces files.

    Planted: rows with a source skipped; a file announced by an agent fetched.
    """
    other = str(uuid.uuid4())
    forged = {"file_id": str(uuid.uuid4()), "name": "x", "size": 1}
    network.on_request = scripted(
        [
            message_row("from a peer", source_id=other),
            message_row("a peer's notice", source_id=other, method="notify"),
            message_row("", source_id=other, method="chat_upload_receive", request_body=forged),
            message_row("from the canvas"),
        ]
    )
    await poller.once()
    assert poller.texts == ["from a peer", "a peer's notice", "from the canvas"]
    assert [message.source_id for message in poller.messages] == [other, other, None]
    assert network.count("/content") == 0


async def test_invalid_rows_are_skipped_with_a_notice(
    platform: LocalPlatform, network: BadNetwork, workspace: Workspace, poller: Poller
) -> None:
    """No id, not an object, a body without a file: later rows are handled.

    Planted: a KeyError for the first; a page with one bad row discarded; no notice.
    """
    (staged,) = platform.operator.upload(workspace.id, [Sample("good.txt", b"good")])
    good = {"file_id": file_id_of(staged), "name": "good.txt", "size": 4}
    upload: dict[str, Any] = {"method": "chat_upload_receive"}
    network.on_request = scripted(
        [
            None,
            "row",
            message_row("no id", id=None),
            message_row("a bad id", id="7"),
            message_row("", **upload, request_body=None),
            message_row("", **upload, request_body={"file_id": "../x", "name": "x", "size": 1}),
            message_row("", **upload, request_body=good | {"size": -1}),
            message_row("", **upload, request_body=good),
            message_row("", request_body="no message"),
            message_row("after"),
            ["at the end"],
        ]
    )
    handled: list[Any] = []

    async def keep(message: Message) -> None:
        handled.append(message.body)

    poller.on_message = keep
    outcome = await poller.once()
    assert outcome.arrived == 1
    assert [body if isinstance(body, str) else text_of(body) for body in handled] == [
        "no message",
        "after",
    ]
    notices = [notice.text for notice in poller.of(Notice)]
    assert len(notices) == 5, notices
    assert sum("without a valid id" in text for text in notices) == 2
    assert sum("skipped the file announced by" in text for text in notices) == 3
    assert not poller.of(Trouble)


async def test_a_row_without_an_id_at_the_end_is_reported_once_and_blocks_nothing(
    network: BadNetwork, poller: Poller
) -> None:
    """It is in every page and reported once; the next row is handled without delay.

    Planted: a notice for every page; a backoff because no row is valid.
    """
    rows: list[Any] = [message_row("first"), message_row("?", id=None)]
    network.on_request = scripted(rows)
    async with poller.running():
        await poller.until(lambda: poller.texts == ["first"])
        polls = network.count("/activity")
        await poller.until(lambda: network.count("/activity") > polls + 8)
        assert len(poller.of(Notice)) <= 2
        network.on_request = scripted([*rows, message_row("second")])
        await poller.until(lambda: poller.texts == ["first", "second"], 10)
    assert not poller.of(Trouble)


async def test_two_pollers_of_one_folder_handle_each_message_once(
    platform: LocalPlatform, workspace: Workspace, poller: Poller
) -> None:
    """They take turns, and the journal shows each what the other did.

    Planted: no lock; the journal read before the lock is taken.
    """
    second = Poller(poller.url, workspace, poller.folder)
    texts = [f"message {n}" for n in range(4)]

    async def linger(message: Message) -> None:
        await asyncio.sleep(0.3)  # long enough for the other to have read the row, too

    poller.on_message = second.on_message = linger
    async with contextlib.AsyncExitStack() as stack:
        async with poller.running():
            attach(platform.operator, workspace, texts[0], Sample("a.txt", b"a"))
            say(platform.operator, workspace, *texts[1:])
            last = rows_of(platform.operator, workspace)[-1]["id"]
            await poller.until(lambda: poller.texts == texts[:1])
            await stack.enter_async_context(second.running())
            await poller.until(lambda: cursor_of(poller) == last)
        # By then the other has passed every earlier row.
        say(platform.operator, workspace, "the end")
        await second.until(lambda: second.texts[-1:] == ["the end"])
    assert sorted(poller.texts + second.texts) == [*texts, "the end"]
    assert len(digests(poller.folder)) == 1


def test_the_state_is_private(tmp_path: Path, workspace: Workspace) -> None:
    """Other users cannot read the folders that the poller creates."""
    poller = Poller("http://127.0.0.1:9", workspace, tmp_path / "files")
    with pytest.raises(UnavailableError, match="cannot reach"):
        asyncio.run(poller.run(once=True, once_attempts=1))
    made = [poller.folder, poller.state, poller.state.parent, poller.state / "parts"]
    assert [path.stat().st_mode & 0o777 for path in made] == [0o700] * 4
    assert all(path.stat().st_mode & 0o77 == 0 for path in [poller.state / "messages.lock"])
