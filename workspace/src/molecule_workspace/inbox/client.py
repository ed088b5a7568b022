"""The platform's HTTP API, as a workspace calls it: requests, and errors for the answers.

Every failure is one of five errors, so that callers decide by type and not by status:
``RefusedError`` is final; ``UnavailableError`` is worth a retry; ``MissingError`` (404) and
``CursorGoneError`` (410) are answers; ``CorruptError`` means bytes that are not those announced.
Redirects are never followed: the token must not be sent to another address.
"""

import asyncio
import contextlib
import email.utils
import random
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Final

import httpx

from molecule_workspace.inbox import tolerant

MAX_JSON_BYTES: Final = 64 << 20
"""Maximum size of a JSON answer. A page of the inbox ends soon after 2 MiB of bodies."""

MAX_RETRY_AFTER: Final = 300.0
"""Upper bound, in seconds, for Retry-After; the header could name a year."""

MAX_ERROR_TEXT: Final = 200
"""Maximum length, in characters, of a text from the platform in an error."""

DRIP_TIMEOUT: Final = 120.0
"""Maximum time, in seconds, to receive an answer's header, and again its JSON body.

READ_TIMEOUT does not bound a server that sends a byte now and then."""

KEEPALIVE: Final = 55.0
"""How long an idle connection is kept, in seconds: past the next poll, below a proxy's 60 s."""

CONNECT_TIMEOUT: Final = 10.0
READ_TIMEOUT: Final = 30.0
"""Maximum time, in seconds, without a byte. It ends a connection that was lost silently."""


class PlatformError(Exception):
    """Base class of the errors of ``PlatformClient``. The text is one sentence for a person."""


class RefusedError(PlatformError):
    """The platform refuses the workspace or its token; a retry gives the same answer."""


class UnavailableError(PlatformError):
    """The platform cannot be reached, or cannot answer now; a retry may succeed.

    ``retry_after`` is the pause in seconds that the platform asked for, or None. ``status`` is the
    HTTP status of the answer, None if there was none.
    """

    def __init__(
        self, reason: str, retry_after: float | None = None, status: int | None = None
    ) -> None:
        """Create the error."""
        super().__init__(reason)
        self.retry_after = retry_after
        self.status = status


class MissingError(PlatformError):
    """404. ``code`` is the platform's error code; "" if something else sent the answer."""

    def __init__(self, reason: str, code: str = "") -> None:
        """Create the error."""
        super().__init__(reason)
        self.code = code


class CursorGoneError(PlatformError):
    """410: the platform no longer has the row that the cursor names."""


class CorruptError(PlatformError):
    """The received bytes are not those that were announced."""


class Backoff:
    """Exponential backoff from ``first`` to ``most`` seconds, with jitter of up to half.

    Without the jitter all pollers would call a restarted platform at the same moment.
    """

    def __init__(self, first: float = 1.0, most: float = 60.0) -> None:
        """Start at the shortest pause."""
        self.first, self.most = first, most
        self.failures = 0

    def next(self, at_least: float | None = None) -> float:
        """Return the next pause in seconds; never less than ``at_least``."""
        longest = min(self.most, self.first * 2.0 ** min(self.failures, 30))
        self.failures += 1
        return max(longest * random.uniform(0.5, 1.0), at_least or 0.0)

    def reset(self) -> None:
        """Start again at the shortest pause, after a success."""
        self.failures = 0


class PlatformClient:
    """An HTTP client for one workspace of one platform.

    All methods raise ``RefusedError`` and ``UnavailableError``; ``MissingError`` and
    ``CursorGoneError`` where they say so.
    """

    def __init__(self, platform: str, workspace: str, token: str, *, connections: int = 8) -> None:
        """Create a client; nothing is sent. ``platform`` is a URL such as https://x.example."""
        self.platform = platform.rstrip("/")
        self.workspace = workspace
        self._http = httpx.AsyncClient(
            base_url=self.platform,
            headers={
                "Authorization": f"Bearer {token}",
                # Ranges, lengths and digests refer to the uncompressed bytes.
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
        """Register the workspace in ``mode`` "poll" or "push"; return the inbound secret."""
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
        """Send a heartbeat; return the inbound secret, which may have changed."""
        body = {"workspace_id": self.workspace} | dict(report)
        return _text(
            await self._json("POST", "/registry/heartbeat", json=body), "platform_inbound_secret"
        )

    async def activity(self, params: Mapping[str, str], wait: int = 0) -> list[Any]:
        """Read a page of the inbox. CursorGoneError: the row named by ``since_id`` was pruned.

        A value that cannot be read is a ``tolerant.Unreadable``; the rest of the page is there.

        The platform holds the request for up to ``wait`` seconds while there are no rows. An older
        platform ignores the parameter and answers immediately.
        """
        query = dict(params) | ({"wait": str(wait)} if wait else {})
        path = f"/workspaces/{self.workspace}/activity"
        page = await self._json(
            "GET",
            path,
            parse=tolerant.load_rows,
            params=query,
            read_timeout=wait + READ_TIMEOUT,
        )
        return _array(page)

    async def unacked(self, after: str | None, limit: int) -> list[Any]:
        """Read a page of the unacknowledged files, oldest first, after the file ``after``.

        MissingError: there is no such file, or an older platform has no such list.
        """
        params = {"state": "unacked", "limit": str(limit)} | ({"after": after} if after else {})
        path = f"/workspaces/{self.workspace}/pending-uploads"
        return _array(await self._json("GET", path, params=params))

    async def ack(self, file_id: str) -> None:
        """Acknowledge a file. MissingError: the platform no longer has it."""
        answer = await self._json(
            "POST", f"/workspaces/{self.workspace}/pending-uploads/{file_id}/ack"
        )
        if not (isinstance(answer, dict) and answer.get("acked") is True):
            raise _unexpected("no acknowledgement")

    @contextlib.asynccontextmanager
    async def content(
        self, file_id: str, headers: Mapping[str, str]
    ) -> AsyncIterator[httpx.Response]:
        """Open the content of a file; the response's status is 200, 206 or 416.

        MissingError: the platform no longer has the file.
        """
        path = f"/workspaces/{self.workspace}/pending-uploads/{file_id}/content"
        async with self._send("GET", path, headers=headers) as response:
            if response.status_code not in (200, 206, 416):
                await self._refuse(response)
            yield response

    async def _json(
        self,
        method: str,
        path: str,
        parse: Callable[[bytes], Any] = tolerant.loads,
        **request: Any,
    ) -> Any:
        async with self._send(method, path, **request) as response:
            if response.status_code != 200:
                await self._refuse(response)
            return await _read_json(response, parse)

    @contextlib.asynccontextmanager
    async def _send(
        self, method: str, path: str, read_timeout: float | None = None, **request: Any
    ) -> AsyncIterator[httpx.Response]:
        silence = READ_TIMEOUT if read_timeout is None else read_timeout
        timeout = httpx.Timeout(silence, connect=CONNECT_TIMEOUT)
        try:
            async with contextlib.AsyncExitStack() as stack:
                async with _within(silence + DRIP_TIMEOUT):
                    answering = self._http.stream(method, path, timeout=timeout, **request)
                    response = await stack.enter_async_context(answering)
                yield response
        except httpx.HTTPError as error:
            raise UnavailableError(_describe(error, self.platform)) from error
        except httpx.InvalidURL as error:
            # httpx parses the target of a redirect even if it does not follow it.
            raise UnavailableError(f"{self.platform} redirects to an invalid URL") from error

    async def _refuse(self, response: httpx.Response) -> None:
        """Raise the error for an answer other than the expected one."""
        try:
            answer = await _read_json(response)
        except UnavailableError:
            answer = None
        fields = answer if isinstance(answer, dict) else {}
        code = fields.get("code") if isinstance(fields.get("code"), str) else ""
        sentence = fields.get("error") if isinstance(fields.get("error"), str) else ""
        status = response.status_code
        said = f"{_printable(sentence or response.reason_phrase) or 'no reason'} ({status})"
        if status in (401, 403) and not code:
            # A proxy, a captive portal or a login page: the platform's answers have a code.
            raise UnavailableError(
                f"{self.platform} answered {said}, but not as the platform does; a proxy or a "
                "login page may stand in between",
                _retry_after(response),
                status,
            )
        if status == 401:
            raise RefusedError(
                f"the platform rejected the token for workspace {self.workspace}; check the token "
                "and the workspace id, or ask the platform's operator for a new token"
            )
        if status == 403:
            raise RefusedError(f"the platform refused this workspace: {said}")
        if status == 410 and code == "workspace_removed":
            raise RefusedError(f"workspace {self.workspace} was removed; register under a new id")
        if status == 410:
            raise CursorGoneError(said)
        if status == 404:
            raise MissingError(said, code or "")
        if response.has_redirect_location:
            target = _printable(response.headers["Location"])
            raise UnavailableError(
                f"{self.platform} redirects to {target} ({status}); "
                "the token is not sent there: if that address is right, pass it as the platform",
                status=status,
            )
        raise UnavailableError(f"the platform answered: {said}", _retry_after(response), status)


@contextlib.asynccontextmanager
async def _within(seconds: float) -> AsyncIterator[None]:
    """Raise UnavailableError for an answer that arrives in a trickle and does not end."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as error:
        raise UnavailableError("the platform's answer arrives too slowly") from error


async def _read_json(
    response: httpx.Response, parse: Callable[[bytes], Any] = tolerant.loads
) -> Any:
    body = bytearray()
    async with _within(DRIP_TIMEOUT):
        async for chunk in response.aiter_raw():
            body += chunk
            if len(body) > MAX_JSON_BYTES:
                raise _unexpected(f"more than {MAX_JSON_BYTES} bytes of JSON")
    try:
        return await asyncio.to_thread(parse, bytes(body))
    except (ValueError, RecursionError) as error:
        kind = _printable(response.headers.get("Content-Type", "")) or "no Content-Type"
        raise _unexpected(f"not JSON ({kind})") from error


def _printable(text: str) -> str:
    """Return text from the network as one short line that is safe on a terminal."""
    short = text if len(text) <= MAX_ERROR_TEXT else text[: MAX_ERROR_TEXT - 1] + "…"
    return "".join(c if c.isprintable() else " " for c in short).strip()


def _unexpected(got: str) -> UnavailableError:
    return UnavailableError(
        f"unexpected answer: {got}; check the platform's address, and whether a proxy or a login "
        "page answered instead"
    )


def _text(answer: Any, key: str) -> str:
    value = answer.get(key) if isinstance(answer, dict) else None
    if not isinstance(value, str):
        raise _unexpected(f"{key} is missing")
    return value


def _array(answer: Any) -> list[Any]:
    if not isinstance(answer, list):
        raise _unexpected("not a JSON array")
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
            # Its text quotes the malformed header, which may contain the token.
            return f"cannot send a request to {platform}: the token is malformed"
        case httpx.TimeoutException():
            return f"timed out waiting for {platform}"
        case _:
            return f"lost the connection to {platform} ({str(error) or type(error).__name__})"
