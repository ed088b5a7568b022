"""The poller's half of the wire: one HTTP connection pool, and what each answer means.

Whatever goes wrong ends in one of five errors, so that the callers decide by kind and not by
status: ``RefusedError`` stops the poller, ``UnavailableError`` is tried again, ``MissingError``
and ``CursorGoneError`` are answers, ``CorruptError`` is an answer that contradicts itself.
Redirects are never followed: the token is for one address only.
"""

import asyncio
import contextlib
import email.utils
import json
import random
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any, Final

import httpx

MAX_JSON_BYTES: Final = 64 << 20
"""Longest answer that is read as JSON. A page of the inbox ends soon after 2 MiB of bodies."""

MAX_RETRY_AFTER: Final = 300.0
"""Longest pause, in seconds, that the platform may ask for; it could ask for a year."""

MAX_TOLD: Final = 200
"""Longest text of the platform, in characters, that is shown to a person."""

DRIP_TIMEOUT: Final = 120.0
"""Longest time, in seconds, for the head of an answer once it may come, and for its JSON."""

KEEPALIVE: Final = 55.0
"""How long an idle connection is kept, in seconds: past the next poll, within a proxy's 60 s."""

CONNECT_TIMEOUT: Final = 10.0
READ_TIMEOUT: Final = 30.0
"""Longest silence in an answer, in seconds. A cut connection that nobody reports ends by it."""


class InboxError(Exception):
    """What can go wrong between a poller and its platform. The text is for a person."""


class RefusedError(InboxError):
    """The platform does not want this poller; trying again changes nothing."""


class UnavailableError(InboxError):
    """The platform cannot be reached or cannot answer now. ``retry_after`` is in seconds.

    ``status`` is the HTTP status of an answer, None if there was none.
    """

    def __init__(
        self, reason: str, retry_after: float | None = None, status: int | None = None
    ) -> None:
        """Keep the reason, the pause that the platform asked for if it did, and the status."""
        super().__init__(reason)
        self.retry_after = retry_after
        self.status = status


class MissingError(InboxError):
    """404. ``code`` is the platform's, "" from something that is not this platform."""

    def __init__(self, reason: str, code: str = "") -> None:
        """Keep the reason and the platform's code."""
        super().__init__(reason)
        self.code = code


class CursorGoneError(InboxError):
    """410: the row behind the cursor is gone, or the workspace is."""


class CorruptError(InboxError):
    """Bytes that are not those announced."""


class Backoff:
    """Pauses that double from ``first`` to ``most`` seconds, each cut by up to half at random.

    The randomness keeps the pollers of a platform that comes back from coming all at once.
    """

    def __init__(self, first: float = 1.0, most: float = 60.0) -> None:
        """Start at the shortest pause."""
        self.first, self.most = first, most
        self.failures = 0

    def next(self, at_least: float | None = None) -> float:
        """Return the next pause, in seconds; never less than the platform asked for."""
        longest = min(self.most, self.first * 2.0 ** min(self.failures, 30))
        self.failures += 1
        return max(longest * random.uniform(0.5, 1.0), at_least or 0.0)

    def reset(self) -> None:
        """Begin again: it worked."""
        self.failures = 0


class PlatformClient:
    """Speaks to one platform as one workspace."""

    def __init__(self, platform: str, workspace: str, token: str, *, connections: int = 8) -> None:
        """Prepare a client; nothing is sent yet. ``platform`` is a URL such as https://x.example."""
        self.platform = platform.rstrip("/")
        self.workspace = workspace
        self._http = httpx.AsyncClient(
            base_url=self.platform,
            headers={
                "Authorization": f"Bearer {token}",
                # Ranges, lengths and digests are those of the bytes themselves.
                "Accept-Encoding": "identity",
                "User-Agent": "molecule-workspace",
            },
            timeout=httpx.Timeout(READ_TIMEOUT, connect=CONNECT_TIMEOUT),
            limits=httpx.Limits(
                max_connections=connections,
                max_keepalive_connections=connections,
                keepalive_expiry=KEEPALIVE,
            ),
            follow_redirects=False,
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def register(self, agent_card: Mapping[str, Any], mode: str, url: str | None) -> str:
        """Say how this workspace is reached; return the inbound secret."""
        body: dict[str, Any] = {
            "id": self.workspace,
            "agent_card": agent_card,
            "delivery_mode": mode,
        }
        answer = await self._json(
            "POST", "/registry/register", json=body | ({"url": url} if url else {})
        )
        return _text(answer, "platform_inbound_secret")

    async def heartbeat(self, report: Mapping[str, Any]) -> str:
        """Say that this workspace lives; return the inbound secret, which may be new."""
        body = {"workspace_id": self.workspace} | dict(report)
        return _text(
            await self._json("POST", "/registry/heartbeat", json=body), "platform_inbound_secret"
        )

    async def activity(self, params: Mapping[str, str], wait: int = 0) -> list[Any]:
        """Read a page of the inbox.

        A platform that can holds the request for up to ``wait`` seconds while there is nothing;
        an older one does not know the parameter and answers at once.
        """
        query = dict(params) | ({"wait": str(wait)} if wait else {})
        path = f"/workspaces/{self.workspace}/activity"
        return _array(await self._json("GET", path, params=query, read_timeout=wait + READ_TIMEOUT))

    async def unacked(self, after: str | None, limit: int) -> list[Any]:
        """Read a page of the files that wait to be acknowledged, oldest first."""
        params = {"state": "unacked", "limit": str(limit)} | ({"after": after} if after else {})
        path = f"/workspaces/{self.workspace}/pending-uploads"
        return _array(await self._json("GET", path, params=params))

    async def ack(self, file_id: str) -> None:
        """Acknowledge a file. MissingError: the platform has forgotten it."""
        answer = await self._json(
            "POST", f"/workspaces/{self.workspace}/pending-uploads/{file_id}/ack"
        )
        if not (isinstance(answer, dict) and answer.get("acked") is True):
            raise _not_the_platform("something else than an acknowledgement")

    @contextlib.asynccontextmanager
    async def content(
        self, file_id: str, headers: Mapping[str, str]
    ) -> AsyncIterator[httpx.Response]:
        """Open the bytes of a file; the response's status is 200, 206 or 416."""
        path = f"/workspaces/{self.workspace}/pending-uploads/{file_id}/content"
        async with self._send("GET", path, headers=headers) as response:
            if response.status_code not in (200, 206, 416):
                await self._refuse(response)
            yield response

    async def _json(self, method: str, path: str, **request: Any) -> Any:
        async with self._send(method, path, **request) as response:
            if response.status_code != 200:
                await self._refuse(response)
            return await _read_json(response)

    @contextlib.asynccontextmanager
    async def _send(
        self, method: str, path: str, read_timeout: float | None = None, **request: Any
    ) -> AsyncIterator[httpx.Response]:
        silence = READ_TIMEOUT if read_timeout is None else read_timeout
        timeout = httpx.Timeout(silence, connect=CONNECT_TIMEOUT)
        try:
            async with contextlib.AsyncExitStack() as stack:
                async with _not_dripping(silence + DRIP_TIMEOUT):
                    answering = self._http.stream(method, path, timeout=timeout, **request)
                    response = await stack.enter_async_context(answering)
                yield response
        except httpx.HTTPError as error:
            raise UnavailableError(_describe(error, self.platform)) from error
        except httpx.InvalidURL as error:
            # httpx looks at the target of a redirect even if it is not to follow it.
            raise UnavailableError(f"{self.platform} redirects to what is no address") from error

    async def _refuse(self, response: httpx.Response) -> None:
        """Raise the error that an answer other than the expected one means."""
        try:
            answer = await _read_json(response)
        except UnavailableError:
            answer = None
        told = answer if isinstance(answer, dict) else {}
        code = told.get("code") if isinstance(told.get("code"), str) else ""
        sentence = told.get("error") if isinstance(told.get("error"), str) else ""
        status = response.status_code
        said = f"{_shown(sentence or response.reason_phrase) or 'no reason'} ({status})"
        if status == 401:
            raise RefusedError(
                f"the platform does not accept this token for workspace {self.workspace}; "
                "check both, or ask its operator for a new token"
            )
        if status == 403:
            raise RefusedError(f"the platform refuses this workspace: {said}")
        if status == 410 and code == "workspace_removed":
            raise RefusedError(f"workspace {self.workspace} was removed; register under a new id")
        if status == 410:
            raise CursorGoneError(said)
        if status == 404:
            raise MissingError(said, code or "")
        if response.has_redirect_location:
            raise UnavailableError(
                f"{self.platform} says that it is now at {_shown(response.headers['Location'])} "
                f"({status}); the token is not sent there: if it is right, use that address",
                status=status,
            )
        raise UnavailableError(f"the platform answers: {said}", _retry_after(response), status)


@contextlib.asynccontextmanager
async def _not_dripping(seconds: float) -> AsyncIterator[None]:
    """End what is never silent for long, but never done either."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as error:
        raise UnavailableError("the platform answers too slowly") from error


async def _read_json(response: httpx.Response) -> Any:
    body = bytearray()
    async with _not_dripping(DRIP_TIMEOUT):
        async for chunk in response.aiter_raw():
            body += chunk
            if len(body) > MAX_JSON_BYTES:
                raise _not_the_platform(f"more than {MAX_JSON_BYTES} bytes")
    try:
        return await asyncio.to_thread(json.loads, bytes(body))
    except (ValueError, RecursionError) as error:
        kind = _shown(response.headers.get("Content-Type", "")) or "something"
        raise _not_the_platform(f"{kind} that is no JSON") from error


def _shown(text: str) -> str:
    """Return what came over the network as one short line that is safe on a terminal."""
    short = text if len(text) <= MAX_TOLD else text[: MAX_TOLD - 1] + "…"
    return "".join(c if c.isprintable() else " " for c in short).strip()


def _not_the_platform(got: str) -> UnavailableError:
    return UnavailableError(
        f"the answer is {got}; is the address right, or is a login page or a proxy in between?"
    )


def _text(answer: Any, key: str) -> str:
    value = answer.get(key) if isinstance(answer, dict) else None
    if not isinstance(value, str):
        raise _not_the_platform(f"without {key}")
    return value


def _array(answer: Any) -> list[Any]:
    if not isinstance(answer, list):
        raise _not_the_platform("no list")
    return answer


def _retry_after(response: httpx.Response) -> float | None:
    """Read Retry-After (RFC 9110, 10.2.3): seconds, or a date."""
    value = response.headers.get("Retry-After", "").strip()
    if not value:
        return None
    if value.isascii() and value.isdigit():
        seconds = float(value[:12])
    else:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, OverflowError):
            return None
    return min(max(seconds, 0.0), MAX_RETRY_AFTER)


def _describe(error: httpx.HTTPError, platform: str) -> str:
    match error:
        case httpx.ConnectTimeout() | httpx.ConnectError():
            return f"cannot reach {platform} ({str(error) or 'no connection'})"
        case httpx.LocalProtocolError():
            # Its text quotes the header that is wrong, which may be the token's.
            return f"no request can be made to {platform} with this token"
        case httpx.TimeoutException():
            return f"{platform} is silent"
        case _:
            return f"the connection to {platform} broke ({str(error) or type(error).__name__})"
