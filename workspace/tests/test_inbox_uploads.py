"""Files, when something is lost between announcement and acknowledgement."""

import asyncio
import contextlib
import time
from pathlib import Path

import pytest

from bad_network import Answer, BadNetwork, Seen, Treatment, always, in_turn
from local_platform import LocalPlatform, Sample, Workspace
from molecule_workspace.inbox.events import FileAcked, FileArrived, FileDelayed, FileLost, Trouble
from molecule_workspace.inbox.uploads import parse_file
from poller import acked, journal, noise, parts, states
from polling import DEADLINE, Poller, digests

pytestmark = pytest.mark.anyio

MIB = 1 << 20
ACKED = Answer.of_json({"acked": True})
PROXY_404 = Answer(404, {"Content-Type": "text/html"}, b"<h1>404 Not Found</h1>")
GONE_410 = Answer.of_json({"error": "gone", "code": "gone"}, 410)


async def arrive_unacknowledged(
    platform: LocalPlatform, network: BadNetwork, poller: Poller, *samples: Sample
) -> list[Path]:
    """Let files arrive without acknowledgement; return their paths."""
    platform.operator.upload(poller.workspace.id, samples)
    network.on_request = always(Treatment(answer=ACKED), "/ack")
    await poller.once()
    network.on_request = always(Treatment())
    paths = [event.path for event in poller.of(FileArrived)]
    deadline = time.monotonic() + DEADLINE  # the platform records it after the last byte was sent
    while states(platform.operator, poller.workspace) != ["fetched"] * len(samples):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)
    poller.events.clear()
    return paths


async def test_a_row_that_is_read_again_writes_no_second_copy(
    platform: LocalPlatform, network: BadNetwork, workspace: Workspace, poller: Poller
) -> None:
    """Even without the cursor: files in the journal are not fetched.

    Planted: every row is recorded as wanted, known or not.
    """
    samples = [Sample("same.txt", b"1"), Sample("same.txt", b"1"), Sample("empty.txt", b"")]
    platform.operator.upload(workspace.id, samples)
    await poller.once()
    (poller.state / "cursor.json").unlink()
    outcome = await poller.once()
    assert outcome.arrived == 0
    assert len(digests(poller.folder)) == 3
    assert network.count("/content") == 3
    assert network.count("/ack") == 3


async def test_an_acknowledgement_whose_answer_is_lost_is_repeated(
    platform: LocalPlatform, network: BadNetwork, workspace: Workspace, poller: Poller
) -> None:
    """The acknowledgement is retried without another download.

    Planted: a lost answer counts as an acknowledgement; a lost answer makes the file wanted again.
    """
    network.on_request = in_turn([Treatment(cut_after=0), Treatment(refuse=True)], "/ack")
    platform.operator.upload(workspace.id, [Sample("a.txt", b"a")])
    async with poller.running():
        await poller.until(lambda: acked(poller, 1))
    assert network.count("/ack") == 3
    assert network.count("/content") == 1
    assert len(poller.of(FileDelayed)) == 2
    assert len(poller.of(FileArrived)) == 1
    assert len(digests(poller.folder)) == 1
    assert states(platform.operator, workspace) == ["acked"]


async def test_what_the_list_has_unacknowledged_is_acknowledged_again(
    platform: LocalPlatform, network: BadNetwork, workspace: Workspace, poller: Poller
) -> None:
    """The journal has acked, the platform (restored from a backup) has not: only the ack is sent.

    Planted: listed files that the journal knows are ignored; acked becomes wanted.
    """
    before = await arrive_unacknowledged(platform, network, poller, Sample("a.txt", b"a"))
    assert journal(poller, "SELECT state FROM files") == [("acked",)]
    await poller.once()
    assert states(platform.operator, workspace) == ["acked"]
    assert network.count("/content") == 1
    assert [path.name for path in before] == list(digests(poller.folder))


async def test_a_crash_after_the_rename_loses_nothing(
    platform: LocalPlatform, network: BadNetwork, workspace: Workspace, poller: Poller
) -> None:
    """The file has its final name, but is wanted in the journal: acknowledged, not fetched.

    Planted: the final name not checked before the download; no event for a file that was found.
    """
    before = await arrive_unacknowledged(platform, network, poller, Sample("a.txt", b"abc"))
    journal(poller, "UPDATE files SET state = 'wanted'")
    await poller.once()
    assert states(platform.operator, workspace) == ["acked"]
    assert network.count("/content") == 1
    (arrived,) = poller.of(FileArrived)
    assert [arrived.path] == before
    assert (arrived.size, arrived.sha256) == (3, digests(poller.folder)[arrived.path.name])
    assert len(digests(poller.folder)) == 1


async def test_a_crash_before_the_rename_loses_nothing(
    platform: LocalPlatform, network: BadNetwork, workspace: Workspace, poller: Poller
) -> None:
    """A complete part is renamed, an incomplete one resumed, and a wrong one fetched again.

    Planted: a complete part is fetched again; its digest is not compared.
    """
    content = noise(MIB)
    samples = [Sample(f"{i}.bin", content) for i in range(3)]
    paths = await arrive_unacknowledged(platform, network, poller, *samples)
    journal(poller, "UPDATE files SET state = 'wanted'")
    paths.sort(key=lambda path: path.suffixes and path.name[33:])
    for path, left in zip(paths, (content, content[:-5], bytes(MIB)), strict=True):
        path.unlink()
        (poller.state / "parts" / f"{path.name}.part").write_bytes(left)
    before = network.sent("/content")
    async with poller.running():
        await poller.until(lambda: acked(poller, 3))
    assert network.sent("/content") - before == 5 + MIB
    assert len(set(digests(poller.folder).values())) == 1
    assert [path.read_bytes() == content for path in paths] == [True] * 3
    assert parts(poller) == []
    assert [event.name for event in poller.of(FileDelayed)] == ["2.bin"]


async def test_a_part_without_a_digest_is_not_trusted_after_a_crash(
    platform: LocalPlatform, network: BadNetwork, poller: Poller
) -> None:
    """An older platform announces no SHA-256: a part left by a crash is not trusted.

    Planted: a part of the announced size is renamed unchecked.
    """
    content = noise(MIB)
    samples = [Sample("a.bin", content), Sample("b.bin", content)]
    paths = await arrive_unacknowledged(platform, network, poller, *samples)
    journal(poller, "UPDATE files SET state = 'wanted', sha256 = NULL")
    for path, left in zip(paths, (bytes(MIB), bytes(1000)), strict=True):
        path.unlink()
        (poller.state / "parts" / f"{path.name}.part").write_bytes(left)
    await poller.once()
    assert [path.read_bytes() == content for path in paths] == [True, True]


async def test_parts_without_an_entry_are_deleted_at_the_start(
    platform: LocalPlatform, workspace: Workspace, poller: Poller
) -> None:
    """An unreadable journal leaves parts without entries, of up to 1 GiB each.

    Planted: nothing is deleted.
    """
    await poller.once()
    orphan = poller.state / "parts" / f"{'0' * 32}-a.bin.part"
    orphan.write_bytes(b"left")
    await poller.once()
    assert parts(poller) == []


async def test_a_404_or_410_of_a_proxy_loses_nothing(
    platform: LocalPlatform, network: BadNetwork, workspace: Workspace, poller: Poller
) -> None:
    """A proxy in front of a restarting platform answers 404; only the platform's 404 is final.

    Planted: any 404 to a download loses the file; any 404 to an ack counts as an ack; a
    410 ends the poller.
    """
    bad = {
        "/content": [Treatment(answer=PROXY_404), Treatment(answer=GONE_410)],
        "/ack": [Treatment(answer=PROXY_404), Treatment(answer=GONE_410)],
        "/pending-uploads": [Treatment(answer=GONE_410)],
    }

    def answer(seen: Seen) -> Treatment | None:
        for suffix, left in bad.items():
            if seen.path.endswith(suffix) and left:
                return left.pop(0)
        return None

    network.on_request = answer
    platform.operator.upload(workspace.id, [Sample("a.txt", b"a")])
    async with poller.running():
        await poller.until(lambda: acked(poller, 1))
    assert poller.of(FileLost) == []
    assert len(poller.of(FileDelayed)) == 4
    assert len(poller.of(Trouble)) == 1
    assert states(platform.operator, workspace) == ["acked"]
    assert bad == {"/content": [], "/ack": [], "/pending-uploads": []}


async def test_a_file_that_the_platform_forgot_needs_no_acknowledgement(
    platform: LocalPlatform, network: BadNetwork, workspace: Workspace, poller: Poller
) -> None:
    """An older platform's 404 has no code.

    Planted: the acknowledgement is retried forever.
    """
    forgotten = {"error": "pending upload not found, expired, or already acked"}
    network.on_request = always(Treatment(answer=Answer.of_json(forgotten, 404)), "/ack")
    platform.operator.upload(workspace.id, [Sample("a.txt", b"a")])
    assert (await poller.once()).unfinished == 0
    assert len(poller.of(FileAcked)) == 1


async def test_a_file_over_the_maximum_size_is_lost_and_stays_lost(
    platform: LocalPlatform, network: BadNetwork, workspace: Workspace, poller: Poller
) -> None:
    """It stays unacknowledged; a run with a higher limit fetches it from the list.

    Planted: reopened whenever the list is read.
    """
    platform.operator.upload(workspace.id, [Sample("a.bin", bytes(2000)), Sample("b.bin", b"b")])
    outcome = await poller.run(once=True, max_file_bytes=1999)
    assert (outcome.arrived, outcome.lost) == (1, 1)
    assert "has 2000 bytes; the maximum is 1999" in poller.of(FileLost)[0].reason
    assert (await poller.run(once=True, max_file_bytes=1999)).lost == 0
    assert network.count("/content") == 1
    assert (await poller.run(once=True, max_file_bytes=2000)).arrived == 1
    assert states(platform.operator, workspace) == ["acked", "acked"]


async def test_once_leaves_what_keeps_failing_to_the_next_run(
    platform: LocalPlatform, network: BadNetwork, workspace: Workspace, poller: Poller
) -> None:
    """The event of the last failure shows that there is no retry."""
    network.on_request = always(Treatment(refuse=True), "/content")
    platform.operator.upload(workspace.id, [Sample("a.txt", b"a")])
    outcome = await poller.run(once=True, once_attempts=2)
    assert (outcome.arrived, outcome.lost, outcome.unfinished) == (0, 0, 1)
    assert [event.retry_in is None for event in poller.of(FileDelayed)] == [False, True]
    network.on_request = always(Treatment())
    assert (await poller.once()).arrived == 1


async def test_a_thousand_files_arrive_and_the_loop_is_never_blocked(
    platform: LocalPlatform, network: BadNetwork, workspace: Workspace, poller: Poller
) -> None:
    """Heartbeats and long polls continue: the event loop never blocks for half a second.

    The machine itself may stall three times. Planted: a download that sleeps in the event loop.
    """
    contents = [noise(1024, seed) for seed in range(1000)]
    for at in range(0, 1000, 50):
        batch = [Sample(f"{at}.bin", content) for content in contents[at : at + 50]]
        platform.operator.upload(workspace.id, batch)
    pauses: list[float] = []

    async def watch() -> None:
        while True:
            before = time.monotonic()
            await asyncio.sleep(0)
            pauses.append(time.monotonic() - before)
            await asyncio.sleep(0.01)

    direct = Poller(platform.base_url, workspace, poller.folder)
    start = time.monotonic()
    watching = asyncio.create_task(watch())
    await asyncio.wait_for(direct.run(once=True), 120)
    print(f"1000 files: {time.monotonic() - start:.1f} s, longest pause {max(pauses):.3f} s")
    watching.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await watching
    assert sorted(pauses)[-4] < 0.5
    assert len(set(digests(poller.folder).values())) == 1000
    assert len(direct.of(FileArrived)) == 1000


@pytest.mark.parametrize(
    "wrong",
    [
        None,
        [],
        {},
        {"file_id": 7},
        {"file_id": "../../../../../../../../etc/passwd/x"},
        {"file_id": "0" * 32},
        {"size": -1},
        {"size": True},
        {"size": 1.5},
        {"size": 1 << 63},
        {"size": "1"},
        {"sha256": "abc"},
        {"sha256": 7},
    ],
)
def test_an_announcement_that_makes_no_sense_is_refused(wrong: object) -> None:
    """Only valid descriptions get into the journal."""
    good = {"file_id": "0b0e0b6c-1111-4222-8333-123456789abc", "name": "a", "size": 1}
    assert parse_file(good | {"sha256": None}).sha256 is None
    with pytest.raises(ValueError, match=r"^its "):
        parse_file(good | wrong if isinstance(wrong, dict) and wrong else wrong)


def test_an_announcement_is_kept_in_one_form() -> None:
    """Ids and digests become lower case; names are sanitized."""
    announced = {
        "file_id": "0B0E0B6C-1111-4222-8333-123456789ABC",
        "name": "a\ud800\x1b[2J\x00\n.txt",
        "sha256": "AB" * 32,
    }
    parsed = parse_file(announced)
    assert parsed.file_id == "0b0e0b6c-1111-4222-8333-123456789abc"
    assert parsed.sha256 == "ab" * 32
    assert parsed.name == "a___2J__.txt"
    assert parse_file(announced | {"name": ["x"]}).name == "file"
