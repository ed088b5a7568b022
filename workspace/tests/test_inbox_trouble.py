"""Failures: which ones stop the poller, and which ones it recovers from."""

import asyncio
import contextlib
import time
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from bad_network import Answer, BadNetwork, Hook, Seen, Treatment, always
from local_platform import LocalPlatform, Sample, Workspace
from molecule_workspace.inbox import client as platform_client
from molecule_workspace.inbox.client import PlatformClient, RefusedError
from molecule_workspace.inbox.events import FileAcked, Recovered, Stopped, Trouble
from molecule_workspace.inbox.options import Options
from polling import QUICK, Poller, say

pytestmark = pytest.mark.anyio

HTML = Answer(200, {"Content-Type": "text/html"}, b"<html>please log in</html>")
BAD_GATEWAY = Answer(502, {"Content-Type": "text/html"}, b"<html>bad gateway</html>")


class Times:
    """A hook that records the times of requests to a path, and delegates to another hook."""

    def __init__(self, suffix: str, hook: Hook = lambda seen: None) -> None:
        """Watch requests whose path ends in ``suffix``."""
        self.suffix, self.hook = suffix, hook
        self.at: list[float] = []

    def __call__(self, seen: Seen) -> Treatment | None:
        """Record the time."""
        if seen.path.endswith(self.suffix):
            self.at.append(time.monotonic())
        return self.hook(seen)

    @property
    def gaps(self) -> list[float]:
        """Seconds between one request and the next."""
        return [later - earlier for earlier, later in pairwise(self.at)]


def first(count: int, treatment: Treatment, suffix: str) -> Hook:
    """Return a hook that applies to so many requests to a path, and no more."""
    left = iter(range(count))

    def hook(seen: Seen) -> Treatment | None:
        if seen.path.endswith(suffix) and next(left, None) is not None:
            return treatment
        return None

    return hook


def refuse(status: int, suffix: str) -> Hook:
    """Return a hook that refuses requests to a path with a status."""
    return always(
        Treatment(answer=Answer.of_json({"error": "not for you", "code": "refused"}, status)),
        suffix,
    )


async def test_a_wrong_token_stops_it_with_one_sentence(poller: Poller) -> None:
    """Nothing is retried.

    Planted: 401 retried.
    """
    poller.workspace = Workspace(poller.workspace.id, "wrong", "")
    with pytest.raises(RefusedError, match="rejected the token for workspace") as refused:
        await asyncio.wait_for(poller.run(), 10)
    assert "\n" not in str(refused.value)
    assert poller.of(Stopped)


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("suffix", ["/register", "/activity", "/heartbeat", "/pending-uploads"])
async def test_being_refused_anywhere_stops_it(
    network: BadNetwork, poller: Poller, status: int, suffix: str
) -> None:
    """Whichever request is refused first, although all others succeed.

    Planted: heartbeats that ignore every error; 403 retried.
    """
    network.on_request = refuse(status, suffix)
    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(pytest.raises(RefusedError))
        await stack.enter_async_context(poller.running())
        await poller.ended()
    assert network.count(suffix) == 1
    assert poller.of(Stopped)


@pytest.mark.parametrize(
    "answer",
    [
        Answer(403, {"Content-Type": "text/html"}, b"<h1>Blocked by the company's proxy</h1>"),
        Answer(401, {"WWW-Authenticate": "Basic realm=proxy"}),
        Answer.of_json({"message": "sign in"}, 401),
    ],
)
@pytest.mark.parametrize("suffix", ["/register", "/activity", "/heartbeat", "/pending-uploads"])
async def test_a_refusal_that_is_not_the_platforms_is_retried(
    network: BadNetwork,
    workspace: Workspace,
    platform: LocalPlatform,
    poller: Poller,
    suffix: str,
    answer: Answer,
) -> None:
    """A proxy that answers for a moment does not end the poller for good.

    Planted: 401 and 403 final whoever sent them.
    """
    poller.options = Options(poll_interval=0.1, heartbeat_interval=0.1, first_pause=0.05)
    network.on_request = always(Treatment(answer=answer), suffix)
    async with poller.running():
        await poller.until(lambda: network.count(suffix) > 1)
        network.on_request = lambda seen: None
        say(platform.operator, workspace, "after the proxy")
        await poller.until(lambda: poller.texts == ["after the proxy"])


async def test_an_invalid_registration_is_not_repeated(network: BadNetwork, poller: Poller) -> None:
    """A retry would send the same request.

    Planted: a 400 retried.
    """
    network.on_request = refuse(400, "/register")
    with pytest.raises(RefusedError, match="not for you"):
        await asyncio.wait_for(poller.run(), 10)
    assert network.count("/register") == 1


@pytest.mark.parametrize("how", ["token", "workspace", "heartbeat"])
async def test_being_refused_in_mid_run_stops_it(
    platform: LocalPlatform, network: BadNetwork, workspace: Workspace, poller: Poller, how: str
) -> None:
    """The token is revoked, the workspace is removed, or only a heartbeat reports it.

    Planted: RefusedError lost in a background task.
    """
    poller.options = Options(poll_interval=0.1, heartbeat_interval=0.1)
    path = f"/workspaces/{workspace.id}"
    operator = platform.operator
    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(pytest.raises(RefusedError))
        await stack.enter_async_context(poller.running())
        say(operator, workspace, "first")
        await poller.until(lambda: poller.texts == ["first"])
        if how == "token":
            for token in operator.call("GET", f"{path}/tokens"):
                operator.http.delete(f"{path}/tokens/{token['id']}").raise_for_status()
        elif how == "workspace":
            operator.remove(workspace.id)
        else:
            network.on_request = refuse(403, "/heartbeat")
        await poller.ended()
    assert not poller.of(Trouble)


async def test_a_server_that_is_not_the_platform_is_reported_at_once(
    network: BadNetwork, poller: Poller
) -> None:
    """A web server that is not the platform.

    Planted: 404 retried.
    """
    network.on_request = always(Treatment(answer=Answer(404, {}, b"404 page not found")))
    with pytest.raises(RefusedError, match=f"no platform at {network.url}"):
        await asyncio.wait_for(poller.run(), 10)


TROUBLES = {
    "500": Treatment(answer=Answer.of_json({"error": "boom"}, 500)),
    "502 in HTML": Treatment(answer=BAD_GATEWAY),
    "200 in HTML": Treatment(answer=HTML),
    "an object": Treatment(answer=Answer.of_json({"rows": []})),
    "half an answer": Treatment(cut_after=1),
    "no answer": Treatment(cut_after=0),
    "reset": Treatment(refuse=True, reset=True),
    "silence": Treatment(stall_after=0),
    "400": Treatment(answer=Answer.of_json({"error": "bad"}, 400)),
    "redirect": Treatment(answer=Answer(302, {"Location": "http://127.0.0.1:9/"}, b"")),
}


@pytest.mark.parametrize(
    ("name", "suffix"),
    [
        (name, suffix)
        for name in TROUBLES
        for suffix in ("/register", "/activity", "/pending-uploads")
        if (name, suffix) != ("400", "/register")  # that one stops it
    ],
)
async def test_trouble_passes_by_itself(
    platform: LocalPlatform,
    network: BadNetwork,
    workspace: Workspace,
    poller: Poller,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    suffix: str,
) -> None:
    """The failure is reported with its pause, then the recovery; and the message arrives.

    Planted: no Recovered; a 5xx that ends the run; a crash if the page is an object.
    """
    if name == "silence":
        patience = 0.3
        send = PlatformClient._send

        def impatient(
            self: PlatformClient,
            method: str,
            path: str,
            read_timeout: float | None = None,
            **request: Any,
        ) -> Any:
            if path.endswith(suffix) and not poller.of(Trouble):
                read_timeout = patience
            return send(self, method, path, read_timeout, **request)

        monkeypatch.setattr(PlatformClient, "_send", impatient)
    say(platform.operator, workspace, "hello")
    network.on_request = first(1, TROUBLES[name], suffix)
    async with poller.running():
        await poller.until(lambda: poller.texts == ["hello"])
        (trouble,) = poller.of(Trouble)
        assert 0.05 <= trouble.retry_in <= 0.1
        assert trouble.reason
        assert "\n" not in trouble.reason
        assert len(poller.of(Recovered)) == 1


async def test_an_outage_is_borne_with_few_requests(
    platform: LocalPlatform, network: BadNetwork, workspace: Workspace, poller: Poller
) -> None:
    """The pauses double, with jitter, and start again after the recovery.

    Planted: no growth; no jitter; a pause that stays long after the recovery.
    """
    outage = Times("/activity", always(Treatment(answer=BAD_GATEWAY)))
    async with poller.running():
        await poller.until(lambda: network.count("/activity") > 0)
        network.on_request = outage
        assert Options().first_pause == 1.0
        await poller.until(lambda: len(poller.of(Trouble)) == 5)
        pauses = [trouble.retry_in for trouble in poller.of(Trouble)]
        for pause, longest in zip(pauses, (0.1, 0.2, 0.4, 0.8, 1.6), strict=True):
            assert longest / 2 <= pause <= longest
        assert len({pause / 2**n for n, pause in enumerate(pauses)}) == 5
        assert len(outage.at) == 5
        assert all(gap >= pause - 0.01 for gap, pause in zip(outage.gaps, pauses, strict=False))
        network.on_request = lambda seen: None
        say(platform.operator, workspace, "hello")
        await poller.until(lambda: poller.texts == ["hello"])
        assert len(poller.of(Recovered)) == 1
        network.on_request = first(1, Treatment(answer=BAD_GATEWAY), "/activity")
        await poller.until(lambda: len(poller.of(Trouble)) == 6)
        assert poller.of(Trouble)[-1].retry_in <= 0.1


async def test_the_poller_reconnects_to_a_platform_that_was_down(
    platform: LocalPlatform, network: BadNetwork, workspace: Workspace, poller: Poller
) -> None:
    """Refused connections, at the start and in mid-run.

    Planted: a refused connection ends the run.
    """
    network.down(reset=True)
    async with poller.running():
        await poller.until(lambda: len(poller.of(Trouble)) == 1)
        assert "cannot reach" in poller.of(Trouble)[0].reason
        network.up()
        say(platform.operator, workspace, "one")
        await poller.until(lambda: poller.texts == ["one"])
        before = len(poller.of(Trouble))
        network.down(reset=True)
        await poller.until(lambda: len(poller.of(Trouble)) > before)
        say(platform.operator, workspace, "two")
        network.up()
        await poller.until(lambda: poller.texts == ["one", "two"])
        assert len(poller.of(Recovered)) == 2


@pytest.mark.parametrize(
    ("suffix", "status"),
    [
        ("/register", 429),
        ("/activity", 503),
        ("/activity", 429),
        ("/pending-uploads", 503),
        ("/heartbeat", 429),
        ("/content", 503),
        ("/ack", 429),
    ],
)
async def test_retry_after_is_honoured(
    platform: LocalPlatform,
    network: BadNetwork,
    workspace: Workspace,
    poller: Poller,
    suffix: str,
    status: int,
) -> None:
    """No such request before Retry-After has passed, and one soon after.

    Planted: Retry-After ignored, by each kind of request.
    """
    asked = Answer.of_json({"error": "later"}, status, Retry_After="1")
    times = Times(suffix, first(1, Treatment(answer=asked), suffix))
    network.on_request = times
    poller.options = replace(QUICK, heartbeat_interval=0.1)
    platform.operator.upload(workspace.id, [Sample("a.txt", b"a")])
    async with poller.running():
        await poller.until(lambda: bool(poller.of(FileAcked)) and len(times.at) >= 2)
    assert 1.0 <= times.gaps[0] < 10


async def test_a_held_request_is_followed_by_the_next_at_once(
    network: BadNetwork, poller: Poller
) -> None:
    """The interval has passed during the held request.

    Planted: the pause after every empty page.
    """
    poller.options = Options(poll_interval=0.4, wait=1)
    held = Times("/activity")
    network.on_request = held
    async with poller.running():
        await poller.until(lambda: len(held.at) == 5)
    assert all("wait=1" in seen.query for seen in network.requests if "activity" in seen.path)
    assert all(gap >= 0.9 for gap in held.gaps)
    assert min(held.gaps) < 1.3


async def test_a_platform_without_held_requests_is_polled_every_five_seconds(
    network: BadNetwork, poller: Poller, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not faster; after a page with rows the next is read immediately.

    Planted: no pause.
    """
    assert Options().poll_interval == 5.0
    poller.options = Options()
    empty = Answer.of_json([], 200)
    network.on_request = always(Treatment(answer=empty), "/activity")
    begun: list[float] = []  # by the poller's own clock: a request may be slow to arrive
    activity = PlatformClient.activity

    def timed(self: PlatformClient, *args: Any, **kwargs: Any) -> Any:
        begun.append(time.monotonic())
        return activity(self, *args, **kwargs)

    monkeypatch.setattr(PlatformClient, "activity", timed)
    async with poller.running():
        await poller.until(lambda: len(begun) == 2)
    assert 4.9 <= begun[1] - begun[0] < 10


async def test_a_single_round_gives_up_in_time(network: BadNetwork, poller: Poller) -> None:
    """With UnavailableError, and no Trouble for the last failure.

    Planted: ``once`` retries forever.
    """
    network.on_request = always(Treatment(answer=BAD_GATEWAY))
    with pytest.raises(platform_client.UnavailableError, match="502"):
        await asyncio.wait_for(poller.run(once=True, once_attempts=2), 15)
    assert len(poller.of(Trouble)) == 1
    assert QUICK.once_attempts == 6
