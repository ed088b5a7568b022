"""What the tests share: a real platform, started once a run."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from local_platform import LocalPlatform


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Run coroutine tests on asyncio, which is what the package uses."""
    return "asyncio"


@pytest.fixture(scope="session")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalPlatform]:
    """A platform that all tests may use, each with workspaces of its own; nobody stops it."""
    folder: Path = tmp_path_factory.mktemp("platform")
    with LocalPlatform(folder, {"PUSH_ALLOW_CIDRS": "127.0.0.0/8"}) as running:
        yield running
