"""The client with answers that are not the platform's: none does harm, each is reported."""

import asyncio
import contextlib
import itertools
import uuid
from functools import partial

import pytest
from starlette.responses import Response

from bad_network import Answer, BadNetwork, Treatment, always
from client_calls import CALLS, JSON_CALLS, UNKNOWN, Call
from impostor import (
    GIB,
    HostilePlatform,
    OlderPlatform,
    Reply,
    as_json,
    captive_portal,
    deep_json,
    endless,
    endless_json,
    redirect,
)
from local_platform import LocalPlatform, Operator, Sample, Workspace
from molecule_workspace.inbox import client as platform_client
from molecule_workspace.inbox.client import (
    CursorGoneError,
    MissingError,
    PlatformClient,
    PlatformError,
    RefusedError,
    UnavailableError,
)

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_reported_and_not_followed(
    hostile: HostilePlatform, exposed_client: PlatformClient, status: int
) -> None:
    """Planted: redirects are followed."""
    with HostilePlatform() as elsewhere:
        hostile.replies[""] = lambda: redirect(elsewhere.url + "/x", status)
        for name, call in CALLS.items():
            with pytest.raises(UnavailableError, match=f"redirects to {elsewhere.url}/x") as error:
                await call(exposed_client)
            assert error.value.status == status, name
        assert elsewhere.requests == []
    assert {asked.headers["authorization"] for asked in hostile.requests} == {"Bearer the-token"}


@pytest.mark.parametrize("to", ["http://[", "//", "javascript:alert(1)", "\x1b[31mred", "x" * 9000])
async def test_a_redirect_to_nowhere_is_unavailable(
    network: BadNetwork, client: PlatformClient, to: str
) -> None:
    """Planted: the address is shown unescaped."""
    network.on_request = always(Treatment(answer=Answer(302, {"Location": to})))
    with pytest.raises(UnavailableError) as error:
        await client.activity({})
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 500


async def test_a_number_too_large_for_python_is_no_error_of_its_own(
    hostile: HostilePlatform, exposed_client: PlatformClient
) -> None:
    """It is text; the answer is then of another shape. Planted: json.loads, which refuses it."""
    hostile.replies[""] = lambda: Response('[{"n": ' + "9" * 100_000 + "}]")
    assert await exposed_client.activity({}) == [{"n": "9" * 100_000}]


NOT_JSON: dict[str, Reply] = {
    "html": captive_portal,
    "deep": deep_json,
    "empty": lambda: Response(b""),
    "not text": lambda: Response(b"\xff\xfe\xfd", media_type="application/json"),
}


@pytest.mark.parametrize("reply", NOT_JSON.values(), ids=NOT_JSON)
@pytest.mark.parametrize("call", JSON_CALLS.values(), ids=JSON_CALLS)
async def test_a_200_that_is_not_json_suggests_checking_the_address(
    hostile: HostilePlatform, exposed_client: PlatformClient, call: Call, reply: Reply
) -> None:
    """Planted: a RecursionError is not caught; HTML is read as an empty page."""
    hostile.replies[""] = reply
    with pytest.raises(UnavailableError, match=r"not JSON \(.+\); check the platform\'s address"):
        await call(exposed_client)


@pytest.mark.parametrize("value", [None, 1, "x", [1], {"acked": "true"}, {"acked": False}])
@pytest.mark.parametrize("name", ["register", "heartbeat", "ack"])
async def test_json_of_another_shape_is_an_unexpected_answer(
    hostile: HostilePlatform, exposed_client: PlatformClient, name: str, value: object
) -> None:
    """Planted: any 200 is an acknowledgement; the secret is not checked."""
    hostile.replies[""] = lambda: as_json(value)
    with pytest.raises(UnavailableError, match="check the platform's address"):
        await CALLS[name](exposed_client)


@pytest.mark.parametrize("value", [None, 1, "x", {}, {"rows": []}])
@pytest.mark.parametrize("name", ["activity", "unacked"])
async def test_a_page_that_is_not_an_array_is_an_unexpected_answer(
    hostile: HostilePlatform, exposed_client: PlatformClient, name: str, value: object
) -> None:
    """Planted: an object is accepted as a page."""
    hostile.replies[""] = lambda: as_json(value)
    with pytest.raises(UnavailableError, match="not a JSON array; check the platform's address"):
        await CALLS[name](exposed_client)


@pytest.mark.parametrize("reply", [endless_json, endless, lambda: endless(10 * GIB)])
async def test_an_endless_answer_is_cut_off_at_the_bound(
    network: BadNetwork,
    hostile: HostilePlatform,
    client: PlatformClient,
    monkeypatch: pytest.MonkeyPatch,
    reply: Reply,
) -> None:
    """Planted: no limit."""
    bound = 1 << 20
    monkeypatch.setattr(platform_client, "MAX_JSON_BYTES", bound)
    network.target = hostile.url
    hostile.replies[""] = reply
    async with asyncio.timeout(30):
        with pytest.raises(UnavailableError, match=f"more than {bound} bytes"):
            await client.activity({})
    # Plus what the socket buffers hold.
    assert network.sent() < bound + (16 << 20)


async def test_an_endless_refusal_ends(
    network: BadNetwork, client: PlatformClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not the platform's. Planted: the body of an error is read without limit."""
    monkeypatch.setattr(platform_client, "MAX_JSON_BYTES", 1 << 20)
    endless_401 = Answer(401, body=lambda: itertools.repeat(b"x" * 65536))
    network.on_request = always(Treatment(answer=endless_401))
    async with asyncio.timeout(30):
        with pytest.raises(UnavailableError, match="a proxy or a login page") as error:
            await CALLS["content"](client)
    assert error.value.status == 401


@pytest.mark.parametrize("status", [200, 500])
async def test_an_answer_that_drips_ends(
    network: BadNetwork, client: PlatformClient, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    """Planted: only silence ends the body of an answer."""
    monkeypatch.setattr(platform_client, "DRIP_TIMEOUT", 0.3)
    drip = Answer(status, body=lambda: itertools.repeat(b" "))
    network.on_request = always(Treatment(answer=drip, bytes_per_second=20))
    async with asyncio.timeout(20):
        with pytest.raises(UnavailableError, match=r"too slowly|Error \(500\)"):
            await client.activity({})


async def test_a_head_that_drips_ends(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planted: only silence ends the head of an answer."""
    monkeypatch.setattr(platform_client, "READ_TIMEOUT", 3.0)  # far above the interval of the drips
    monkeypatch.setattr(platform_client, "DRIP_TIMEOUT", 0.2)

    ended = asyncio.Semaphore(0)

    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nX: ")
        with contextlib.suppress(ConnectionError):
            while not reader.at_eof():
                writer.write(b"x")
                await writer.drain()
                await asyncio.sleep(0.1)
            writer.close()
            await writer.wait_closed()
        ended.release()

    async with await asyncio.start_server(drip, "127.0.0.1", 0) as server, asyncio.timeout(20):
        port = server.sockets[0].getsockname()[1]
        client = PlatformClient(f"http://127.0.0.1:{port}", workspace.id, workspace.token)
        for name in ("activity", "content"):
            with pytest.raises(UnavailableError, match="too slowly"):
                await CALLS[name](client)
            await ended.acquire()
        await client.close()


async def test_a_token_that_is_invalid_in_a_header_is_not_shown(hostile: HostilePlatform) -> None:
    """Planted: the HTTP library's error text is used."""
    client = PlatformClient(hostile.url, UNKNOWN, "secret-part\nX-Other: 1")
    with pytest.raises(PlatformError, match=r"cannot send a request to .+ is malformed") as error:
        await client.activity({})
    assert "secret-part" not in str(error.value)
    assert hostile.requests == []
    await client.close()


async def test_texts_of_the_platform_are_shortened_and_escaped(
    hostile: HostilePlatform, exposed_client: PlatformClient
) -> None:
    """Planted: the text is used unescaped."""
    nasty = "\x1b]0;owned\x07\r\n\u202e\ud800" + "long " * 10_000
    for status, kind in ((404, MissingError), (403, RefusedError), (500, UnavailableError)):
        hostile.replies[""] = partial(as_json, {"error": nasty, "code": "odd"}, status)
        with pytest.raises(kind, match="long") as error:
            await exposed_client.activity({})
        assert str(error.value).isprintable()
        assert len(str(error.value)) < 500


@pytest.mark.parametrize("reported", [{"error": 1, "code": [1]}, {"error": None}, [], "x", None, 7])
async def test_an_error_body_of_another_shape_does_no_harm(
    hostile: HostilePlatform, exposed_client: PlatformClient, reported: object
) -> None:
    """Planted: error and code are not checked."""
    hostile.replies[""] = lambda: as_json(reported, 404)
    with pytest.raises(MissingError, match=r"Not Found \(404\)") as error:
        await exposed_client.activity({})
    assert error.value.code == ""
    hostile.replies[""] = lambda: as_json(reported, 410)
    with pytest.raises(CursorGoneError):
        await exposed_client.activity({})


async def test_an_older_platform_has_no_list_but_all_the_rest(
    platform: LocalPlatform, network: BadNetwork, workspace: Workspace
) -> None:
    """Planted in the impostor: wait or order is forwarded; digests are left in; ranges work."""
    with OlderPlatform(network.url) as older:
        client = PlatformClient(older.url, workspace.id, workspace.token)
        assert await client.register({}, "poll", None) == workspace.inbound_secret
        assert await client.activity({"type": "a2a_receive"}, wait=20) == []
        assert network.requests[-1].query == "type=a2a_receive"
        canvas = Operator(older.url, platform.admin_token)
        staged = canvas.upload(workspace.id, [Sample("a", b"one"), Sample("b", b"two")])
        canvas.close()
        assert [set(file) for file in staged] == [{"uri", "name", "mimeType", "size"}] * 2
        rows = await client.activity({"order": "asc"}, wait=20)
        assert [row["request_body"]["name"] for row in rows] == ["b", "a"]
        assert all("seq" not in row and "sha256" not in row["request_body"] for row in rows)
        file_id = rows[1]["request_body"]["file_id"]
        with pytest.raises(MissingError, match="Not Found") as missing:
            await client.unacked(None, 10)
        assert missing.value.code == ""
        async with client.content(file_id, {"Range": "bytes=1-"}) as response:
            assert (response.status_code, await response.aread()) == (200, b"one")
            assert not {"etag", "repr-digest", "accept-ranges"} & set(response.headers)
            assert response.headers["Content-Length"] == "3"
        await client.ack(file_id)
        with pytest.raises(MissingError):
            await client.ack(str(uuid.uuid4()))
        await client.close()
    assert [entry["state"] for entry in platform.operator.pending(workspace.id)] == [
        "acked",
        "staged",
    ]


async def test_a_hostile_platform_can_hold_anything(
    hostile: HostilePlatform, exposed_client: PlatformClient
) -> None:
    """Planted in the impostor: since_id is ignored; acks are not recorded."""
    reported = hostile.announce(b"bytes", name="../../etc/passwd", size=10 * GIB)
    hostile.announce(lambda: endless(10 * GIB), file_id=UNKNOWN, size=1024, sha256=None)
    rows = await exposed_client.activity({})
    assert rows[0]["request_body"] == reported
    assert "sha256" not in rows[1]["request_body"]
    assert await exposed_client.activity({"since_id": rows[0]["id"]}) == rows[1:]
    async with exposed_client.content(reported["file_id"], {}) as response:
        assert await response.aread() == b"bytes"
    async with exposed_client.content(UNKNOWN, {}) as response:
        assert response.headers["Content-Length"] == str(10 * GIB)
        async for _ in response.aiter_raw():
            break
    await exposed_client.ack(UNKNOWN)
    assert hostile.acked == [UNKNOWN]
