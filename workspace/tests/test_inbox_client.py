"""How the client interprets answers: the type of error, and its text."""

import asyncio
import email.utils
import time

import pytest

from bad_network import Answer, BadNetwork, Treatment, always
from client_calls import CALLS, UNKNOWN
from impostor import (
    HostilePlatform,
    much_later,
)
from local_platform import LocalPlatform, Sample, Workspace
from molecule_workspace.inbox import client as platform_client
from molecule_workspace.inbox.client import (
    MAX_RETRY_AFTER,
    Backoff,
    CursorGoneError,
    MissingError,
    PlatformClient,
    RefusedError,
    UnavailableError,
)

pytestmark = pytest.mark.anyio


async def test_a_file_goes_all_the_way(
    platform: LocalPlatform, client: PlatformClient, workspace: Workspace
) -> None:
    """Planted: the limit or the cursor of the list is not sent; ack is a GET."""
    assert await client.register({"name": "me"}, "poll", None) == workspace.inbound_secret
    assert await client.heartbeat({"active_tasks": 0}) == workspace.inbound_secret
    samples = [Sample("a.txt", b"one"), Sample("b.txt", b"two!")]
    platform.operator.upload(workspace.id, samples)

    rows = await client.activity({"type": "a2a_receive", "order": "asc"}, wait=5)
    assert [row["request_body"]["name"] for row in rows] == ["a.txt", "b.txt"]
    first = await client.unacked(None, 1)
    second = await client.unacked(first[0]["file_id"], 1)
    assert [len(first), len(second)] == [1, 1]
    file_id = first[0]["file_id"]
    assert [row["request_body"]["file_id"] for row in rows] == [file_id, second[0]["file_id"]]

    async with client.content(file_id, {}) as response:
        assert (response.status_code, await response.aread()) == (200, b"one")
        etag = response.headers["ETag"]
    async with client.content(file_id, {"Range": "bytes=1-", "If-Range": etag}) as response:
        assert (response.status_code, await response.aread()) == (206, b"ne")
    async with client.content(file_id, {"Range": "bytes=9-"}) as response:
        assert response.status_code == 416
    await client.ack(file_id)
    await client.ack(file_id)
    assert await client.unacked(None, 10) == second


async def test_a_held_request_does_not_time_out(
    network: BadNetwork, client: PlatformClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planted: the read timeout of a held poll does not include the wait."""
    monkeypatch.setattr(platform_client, "READ_TIMEOUT", 0.7)
    network.on_request = always(Treatment(answer=Answer.of_json([]), delay=1.5))
    assert await client.activity({}, wait=10) == []
    assert network.requests[-1].query == "wait=10"


async def test_a_wrong_token_is_refused_everywhere(
    network: BadNetwork, workspace: Workspace
) -> None:
    """Planted: 401 is unavailable; the token is in the text."""
    unauthorized = PlatformClient(network.url, workspace.id, "no-such-token")
    for name, call in CALLS.items():
        with pytest.raises(RefusedError, match="rejected the token for workspace") as refused:
            await call(unauthorized)
        assert workspace.id in str(refused.value), name
        assert "ask the platform's operator" in str(refused.value)
        assert "no-such-token" not in str(refused.value)
    await unauthorized.close()


async def test_a_forbidden_workspace_is_refused_with_the_reason(
    network: BadNetwork, client: PlatformClient
) -> None:
    """Planted: 403 is unavailable; the platform's text is dropped."""
    reported = {"error": "registration is closed; ask the operator", "code": "registration_closed"}
    network.on_request = always(Treatment(answer=Answer.of_json(reported, 403)))
    with pytest.raises(RefusedError, match=r"registration is closed; ask the operator \(403\)"):
        await client.register({}, "poll", None)


async def test_a_removed_workspace_is_refused(
    platform: LocalPlatform, network: BadNetwork, workspace: Workspace
) -> None:
    """Planted: every 410 is a lost cursor."""
    platform.operator.remove(workspace.id)
    removed = PlatformClient(network.url, workspace.id, platform.admin_token)
    with pytest.raises(RefusedError, match=f"{workspace.id} was removed; register under a new id"):
        await removed.register({}, "poll", None)
    await removed.close()


async def test_a_lost_cursor_and_a_missing_file_are_different_errors(
    client: PlatformClient,
) -> None:
    """Planted: 410 is unavailable; 404 is unavailable; the code is dropped."""
    with pytest.raises(CursorGoneError, match="since_id"):
        await client.activity({"since_id": UNKNOWN})
    with pytest.raises(MissingError, match="expired, or already acked") as missing:
        await client.ack(UNKNOWN)
    assert missing.value.code
    with pytest.raises(MissingError, match="expired, or already acked"):
        await CALLS["content"](client)


async def test_an_invalid_parameter_is_reported_with_its_status(client: PlatformClient) -> None:
    """Planted: the status of an answer is not kept."""
    with pytest.raises(UnavailableError, match=r"since_secs.*\(400\)") as error:
        await client.activity({"since_secs": "none"})
    assert (error.value.status, error.value.retry_after) == (400, None)


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
async def test_temporary_failures_are_unavailable(
    network: BadNetwork, client: PlatformClient, status: int
) -> None:
    """Planted: Retry-After is read for 503 only; a body that is not JSON hides the status."""
    page = Answer(status, {"Content-Type": "text/html", "Retry-After": "7"}, b"<html>sorry</html>")
    network.on_request = always(Treatment(answer=page))
    for name, call in CALLS.items():
        with pytest.raises(UnavailableError, match=rf"the platform answered: .+ \({status}\)") as e:
            await call(client)
        assert (e.value.retry_after, e.value.status) == (7.0, status), name
        assert "<html>" not in str(e.value)


YEAR = 365 * 86400


@pytest.mark.parametrize(
    ("value", "least", "most"),
    [
        ("0", 0, 0),
        ("30", 30, 30),
        (str(YEAR), MAX_RETRY_AFTER, MAX_RETRY_AFTER),
        ("9" * 5000, MAX_RETRY_AFTER, MAX_RETRY_AFTER),
        pytest.param(
            email.utils.formatdate(time.time() + YEAR, usegmt=True),
            MAX_RETRY_AFTER,
            MAX_RETRY_AFTER,
            id="in a year",
        ),
        pytest.param(
            email.utils.formatdate(time.time() - 60, usegmt=True), 0, 0, id="a minute ago"
        ),
        ("Fri, 31 Dec 9999 23:59:59 GMT", MAX_RETRY_AFTER, MAX_RETRY_AFTER),
        ("Mon, 01 Jan 0001 00:00:00 -0000", None, None),
        ("", None, None),
        ("soon", None, None),
        ("-5", None, None),
        ("1.5", None, None),
        ("\u00b2", None, None),
        ("nan", None, None),
        ("Fri, 99 Foo 2026 25:61:61 GMT", None, None),
    ],
)
async def test_reads_retry_after(
    hostile: HostilePlatform,
    exposed_client: PlatformClient,
    value: str,
    least: float | None,
    most: float | None,
) -> None:
    """Planted: the year is not capped; a past date is negative; dates are not read."""
    hostile.replies[""] = lambda: much_later(value)
    with pytest.raises(UnavailableError) as error:
        await exposed_client.activity({})
    got = error.value.retry_after
    if least is None or most is None:
        assert got in (None, 0.0)
    else:
        assert got is not None
        assert least <= got <= most


async def test_retry_after_may_be_a_date(
    hostile: HostilePlatform, exposed_client: PlatformClient
) -> None:
    """Planted: the date is taken in local time."""
    hostile.replies[""] = lambda: much_later(email.utils.formatdate(time.time() + 100, usegmt=True))
    with pytest.raises(UnavailableError) as error:
        await exposed_client.activity({})
    assert error.value.retry_after == pytest.approx(100, abs=20)


@pytest.mark.parametrize("name", ["activity", "ack", "content"])
@pytest.mark.parametrize("after", [0, 1])
async def test_silence_ends(
    platform: LocalPlatform,
    network: BadNetwork,
    workspace: Workspace,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    after: int,
) -> None:
    """Planted: no read timeout."""
    monkeypatch.setattr(platform_client, "READ_TIMEOUT", 0.3)
    client = PlatformClient(network.url, workspace.id, workspace.token)
    page = Answer.of_json([])
    network.on_request = always(Treatment(answer=page, stall_after=after))
    async with asyncio.timeout(20):
        with pytest.raises(UnavailableError, match="timed out waiting for"):
            await CALLS[name](client)
    await client.close()


async def test_a_connection_that_breaks_is_unavailable_and_the_next_call_works(
    network: BadNetwork, client: PlatformClient
) -> None:
    """Planted: an httpx error is not translated."""
    for treatment in (
        Treatment(refuse=True),
        Treatment(refuse=True, reset=True),
        Treatment(cut_after=0),
        Treatment(cut_after=1),
        Treatment(cut_after=1, reset=True),
        Treatment(answer=b"SSH-2.0-OpenSSH_9.2\r\n"),
        Treatment(answer=b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n"),
        Treatment(answer=b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 200_000 + b"\r\n"),
    ):
        network.on_request = always(treatment)
        with pytest.raises(UnavailableError, match="lost the connection") as error:
            await client.activity({})
        assert (error.value.status, error.value.retry_after) == (None, None)
        network.on_request = lambda seen: None
        assert await client.activity({}) == []


async def test_an_unreachable_platform_is_named(
    network: BadNetwork, client: PlatformClient
) -> None:
    """Planted: the address is not in the text."""
    network.down()
    for name, call in CALLS.items():
        with pytest.raises(UnavailableError, match=f"cannot reach {network.url}"):
            await call(client)
        assert name
    network.up()
    assert await client.activity({}) == []
    lost = PlatformClient("http://no-such-host.invalid", UNKNOWN, "t")
    with pytest.raises(UnavailableError, match=r"cannot reach http://no-such-host\.invalid"):
        await lost.activity({})
    await lost.close()


async def test_content_that_breaks_off_is_unavailable(
    platform: LocalPlatform, network: BadNetwork, client: PlatformClient, workspace: Workspace
) -> None:
    """Planted: a truncated file is treated as complete."""
    staged = platform.operator.upload(workspace.id, [Sample("a.bin", bytes(100_000))])
    file_id = staged[0]["uri"].rpartition("/")[2]
    network.on_request = always(Treatment(cut_after=70_000), "/content")
    got = bytearray()

    async def fetch() -> None:
        async with client.content(file_id, {}) as response:
            async for piece in response.aiter_raw():
                got.extend(piece)

    with pytest.raises(UnavailableError, match="lost the connection"):
        await fetch()
    assert got == bytes(70_000)


def test_pauses_double_up_to_the_most_and_vary() -> None:
    """Planted: no jitter; no upper bound; the exponent overflows; reset does nothing."""
    backoff = Backoff(first=1.0, most=60.0)
    for longest in (1, 2, 4, 8, 16, 32, 60, 60):
        assert longest / 2 <= backoff.next() <= longest
    seen = {backoff.next() for _ in range(3000)}
    assert all(30 <= pause <= 60 for pause in seen)
    assert max(seen) - min(seen) > 15
    backoff.reset()
    assert backoff.next() <= 1.0


def test_a_pause_is_never_shorter_than_retry_after() -> None:
    """Planted: Retry-After is a maximum."""
    backoff = Backoff(first=1.0, most=60.0)
    assert backoff.next(at_least=100.0) >= 100.0
    assert backoff.next(at_least=0.0) >= 1.0
