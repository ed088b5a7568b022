"""Every call of a PlatformClient, to test how each interprets the same answer."""

from collections.abc import Awaitable, Callable

from molecule_workspace.inbox.client import PlatformClient

UNKNOWN = "00000000-0000-4000-8000-000000000000"

Call = Callable[[PlatformClient], Awaitable[object]]


async def _content(client: PlatformClient) -> bytes:
    async with client.content(UNKNOWN, {}) as response:
        return b"".join([piece async for piece in response.aiter_raw()])


CALLS: dict[str, Call] = {
    "register": lambda client: client.register({}, "poll", None),
    "heartbeat": lambda client: client.heartbeat({}),
    "activity": lambda client: client.activity({}),
    "unacked": lambda client: client.unacked(None, 10),
    "ack": lambda client: client.ack(UNKNOWN),
    "content": _content,
}
JSON_CALLS = {name: call for name, call in CALLS.items() if name != "content"}
