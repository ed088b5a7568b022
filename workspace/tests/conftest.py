"""Shared fixtures: a real platform, started once per run, and proxies in front of it."""

from collections.abc import AsyncIterator, Generator, Iterator
from pathlib import Path

import pytest

from bad_network import BadNetwork
from client_calls import UNKNOWN
from impostor import HostilePlatform
from local_platform import LocalPlatform, Workspace
from molecule_workspace.inbox.client import PlatformClient
from polling import Poller


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Run coroutine tests on asyncio, which is what the package uses."""
    return "asyncio"


@pytest.fixture(scope="session")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalPlatform]:
    """A platform that all tests share; each creates its own workspaces, and none stops it."""
    folder: Path = tmp_path_factory.mktemp("platform")
    with LocalPlatform(folder, {"PUSH_ALLOW_CIDRS": "127.0.0.0/8"}) as running:
        yield running


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Attach the end of the shared platform's log to a failure."""
    report = yield
    shared = getattr(item, "funcargs", {}).get("platform")
    if report.failed and isinstance(shared, LocalPlatform):
        tail = shared.log.read_bytes()[-8000:].decode("utf-8", "replace")
        report.sections.append(("the platform's log ends with", tail))
    return report


@pytest.fixture
def workspace(platform: LocalPlatform) -> Workspace:
    """A poll workspace for one test."""
    return platform.operator.create("test")


@pytest.fixture
def network(platform: LocalPlatform) -> Iterator[BadNetwork]:
    """A proxy in front of the platform, transparent until a test sets a hook."""
    with BadNetwork(platform.base_url) as running:
        yield running


@pytest.fixture
def poller(network: BadNetwork, workspace: Workspace, tmp_path: Path) -> Poller:
    """A poller behind the network, not started."""
    return Poller(network.url, workspace, tmp_path / "files")


@pytest.fixture
async def client(network: BadNetwork, workspace: Workspace) -> AsyncIterator[PlatformClient]:
    """A client behind the network."""
    connected = PlatformClient(network.url, workspace.id, workspace.token)
    yield connected
    await connected.close()


@pytest.fixture
def hostile() -> Iterator[HostilePlatform]:
    """A hostile platform."""
    with HostilePlatform() as running:
        yield running


@pytest.fixture
async def exposed_client(hostile: HostilePlatform) -> AsyncIterator[PlatformClient]:
    """A client of the hostile platform."""
    connected = PlatformClient(hostile.url, UNKNOWN, "the-token")
    yield connected
    await connected.close()
