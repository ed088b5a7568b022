"""Two pollers of one workspace at once."""

import asyncio
import contextlib
import hashlib
from collections import Counter
from pathlib import Path

import pytest

from bad_network import BadNetwork, Treatment, in_turn
from local_platform import LocalPlatform, Sample, Workspace
from molecule_workspace.inbox.events import (
    FileArrived,
    FileDelayed,
    FileLost,
    FileProgress,
    Notice,
    Trouble,
)
from poller import noise, start_process, states
from polling import Poller, digests

pytestmark = pytest.mark.anyio

KIB = 1 << 10
MIB = 1 << 20
SAMPLES = [Sample(f"{i}.bin", noise(2 * MIB if i % 10 == 0 else 10 * KIB, i)) for i in range(60)]
WRONG = (FileDelayed, FileLost, Notice, Trouble)


@pytest.fixture
def workspace(platform: LocalPlatform) -> Workspace:
    """A workspace with files of several sizes."""
    workspace = platform.operator.create("two")
    platform.operator.upload(workspace.id, SAMPLES)
    return workspace


def copies(folder: Path) -> Counter[str]:
    """Count the files in a folder by digest."""
    return Counter(digests(folder).values())


EXACTLY_ONE = Counter(hashlib.sha256(sample.content).hexdigest() for sample in SAMPLES)


def wrong(poller: Poller) -> list[object]:
    """Return the events that report a failure."""
    return [event for event in poller.events if isinstance(event, WRONG)]


async def test_two_inboxes_share_a_folder(
    platform: LocalPlatform, network: BadNetwork, workspace: Workspace, tmp_path: Path
) -> None:
    """Each file is fetched once, by one of them, and nothing fails.

    Planted: no lock on the part; a part that another has just renamed is started again; names
    chosen by each poller.
    """
    slow = [Treatment(bytes_per_second=4 * MIB, delay=0.01)] * 30
    network.on_request = in_turn(slow)
    pair = [Poller(network.url, workspace, tmp_path / "files") for _ in range(2)]
    outcomes = await asyncio.gather(*(poller.once() for poller in pair))
    assert copies(tmp_path / "files") == EXACTLY_ONE
    assert [wrong(poller) for poller in pair] == [[], []]
    assert sum(outcome.arrived for outcome in outcomes) == len(SAMPLES)
    assert network.count("/content") == len(SAMPLES)
    assert states(platform.operator, workspace) == ["acked"] * len(SAMPLES)


async def test_one_takes_over_what_the_other_left(
    platform: LocalPlatform, network: BadNetwork, workspace: Workspace, tmp_path: Path
) -> None:
    """The first one is stopped during a download; the second has waited for the part and resumes.

    Planted: a part that another has locked is never retried.
    """
    big = platform.operator.pending(workspace.id)[0]["file_id"]
    network.on_request = in_turn([Treatment(stall_after=MIB + 100 * KIB)], f"{big}/content")
    first, second = (Poller(network.url, workspace, tmp_path / "files") for _ in range(2))
    async with contextlib.AsyncExitStack() as stack:
        async with first.running():
            await first.until(lambda: big in {event.file_id for event in first.of(FileProgress)})
            await stack.enter_async_context(second.running())
            await second.until(lambda: states(platform.operator, workspace).count("acked") == 59)
        await second.until(lambda: states(platform.operator, workspace).count("acked") == 60)
    assert copies(tmp_path / "files") == EXACTLY_ONE
    assert network.sent("/content") < 1.1 * sum(len(sample.content) for sample in SAMPLES)


async def test_two_inboxes_with_folders_of_their_own_both_have_everything(
    platform: LocalPlatform, network: BadNetwork, workspace: Workspace, tmp_path: Path
) -> None:
    """An acknowledged file stays available to the other one until it is swept.

    Planted: files that the platform lists as acked are ignored.
    """
    pair = [Poller(network.url, workspace, tmp_path / str(i)) for i in range(2)]
    outcomes = await asyncio.gather(*(poller.once() for poller in pair))
    for poller, outcome in zip(pair, outcomes, strict=True):
        assert copies(poller.folder) == EXACTLY_ONE
        assert wrong(poller) == []
        assert outcome.arrived == len(SAMPLES)
    assert states(platform.operator, workspace) == ["acked"] * len(SAMPLES)


async def test_two_processes_share_a_folder(
    platform: LocalPlatform, network: BadNetwork, workspace: Workspace, tmp_path: Path
) -> None:
    """The same with processes, which share only the disk and start at the same time.

    Planted: as for two inboxes.
    """
    network.on_request = in_turn([Treatment(bytes_per_second=4 * MIB, delay=0.01)] * 30)
    pair = [start_process(network.url, workspace, tmp_path / "files") for _ in range(2)]
    reported = [
        (await asyncio.to_thread(process.communicate, timeout=60))[0].splitlines()
        for process in pair
    ]
    assert [process.returncode for process in pair] == [0, 0]
    kinds = Counter(line.partition(" ")[0] for lines in reported for line in lines)
    assert not {kind.__name__ for kind in WRONG} & kinds.keys(), reported
    assert kinds[FileArrived.__name__] == len(SAMPLES)
    assert copies(tmp_path / "files") == EXACTLY_ONE
    assert network.count("/content") == len(SAMPLES)
    assert states(platform.operator, workspace) == ["acked"] * len(SAMPLES)
