"""Parsing and validation of the arguments of ``molecule-workspace``, and reading of secrets.

An invalid argument raises ``ArgumentError``, whose text is one sentence for a person. The command
then ends with exit code 2, before it has changed anything.
"""

import ipaddress
import json
import os
import re
import stat
import urllib.parse
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from molecule_workspace.inbox.uploads import parse_uuid

MAX_SECRET_BYTES: Final = 4096
"""Maximum size of a token file. A larger file is not a token."""

MAX_CARD_BYTES: Final = 1 << 20

MAX_SIZE: Final = 1 << 40
"""Maximum value of a size option: 1 TiB, as in the platform's settings."""

PLATFORM_URL: Final = "the platform's address, such as https://platform.example"
PUBLIC_URL: Final = (
    "the address at which the platform reaches this machine, such as https://agent.example:8090"
)

_UNITS: Final = {"": 1} | {
    unit + ending: base**power
    for power, unit in enumerate("kmgt", 1)
    for base, ending in ((1024, ""), (1000, "b"), (1024, "ib"))
}
_SIZE: Final = re.compile(r"(\d{1,15}(?:\.\d{1,6})?) ?([a-z]*)")
_SECRET: Final = re.compile(r"[\x21-\x7e]+")


class ArgumentError(Exception):
    """An argument is invalid. The text says which one, and what to pass instead."""


def parse_url(name: str, what: str, text: str) -> str:
    """Return a URL without trailing slash; ``what`` describes the URL, with an example."""
    wrong = f"invalid {name} {text!r}: expected {what}"
    try:
        url = urllib.parse.urlsplit(text)
        port_is_right = url.port is None or url.port > 0
    except ValueError:
        raise ArgumentError(wrong) from None
    plain = text.isascii() and text.isprintable() and " " not in text
    if not (plain and port_is_right and url.scheme in ("http", "https") and url.hostname):
        raise ArgumentError(wrong)
    if url.username is not None or url.query or url.fragment:
        raise ArgumentError(f"{wrong}, without user name, query or fragment")
    return text.rstrip("/")


def is_unencrypted(url: str) -> bool:
    """Return whether ``url`` is plain http to another machine."""
    parts = urllib.parse.urlsplit(url)
    host = parts.hostname or ""
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = host == "localhost" or host.endswith(".localhost")
    return parts.scheme == "http" and not loopback


def parse_workspace(text: str) -> str:
    """Return the workspace's id in its usual form."""
    workspace = parse_uuid(text)
    if workspace is None:
        raise ArgumentError(
            f"invalid --workspace {text!r}: expected the workspace's id, "
            "such as 123e4567-e89b-42d3-a456-426614174000"
        )
    return workspace


def parse_size(option: str, text: str) -> int:
    """Return a size in bytes; the units are those of the platform's settings."""
    found = _SIZE.fullmatch(text.strip().lower())
    unit = _UNITS.get(found[2] if found[2] != "b" else "") if found else None
    size = int(float(found[1]) * unit) if found and unit else 0
    if not 1 <= size <= MAX_SIZE:
        raise ArgumentError(
            f"invalid {option} {text!r}: expected a size from 1 to 1TiB, such as 100MiB"
        )
    return size


def parse_listen(name: str, text: str) -> tuple[str, int]:
    """Return host and port of an address to listen on."""
    host, colon, port = text.rpartition(":")
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not (colon and host and port.isascii() and port.isdecimal() and int(port) < 1 << 16):
        raise ArgumentError(
            f"invalid {name} {text!r}: expected host:port, such as 127.0.0.1:8090 "
            "(port 0: any free port)"
        )
    return host, int(port)


def read_secret(
    what: str, option: str, file: Path | None, variable: str, env: Mapping[str, str]
) -> tuple[str, str | None]:
    """Return a token or secret, and a warning if other users can read its file."""
    warning = None
    if file is not None:
        try:
            with file.open("rb") as opened:
                mode = os.fstat(opened.fileno()).st_mode
                kept = opened.read(MAX_SECRET_BYTES + 1)
        except OSError as error:
            raise ArgumentError(f"{option}: cannot read {file} ({error.strerror})") from None
        if stat.S_ISREG(mode) and mode & 0o077:
            warning = f"other users of this machine can read {file}; run: chmod 600 {file}"
        found, where = kept.decode("ascii", "replace").strip(), str(file)
    else:
        found, where = env.get(variable, "").strip(), variable
        if not found:
            raise ArgumentError(
                f"no {what}: write it to a file and pass {option} FILE, or set {variable}"
            )
    if not found:
        raise ArgumentError(f"{where} is empty; it must contain the {what}")
    if len(found) > MAX_SECRET_BYTES or not _SECRET.fullmatch(found):
        raise ArgumentError(
            f"{where} does not contain a {what}: expected one line of printable ASCII characters"
        )
    return found, warning


def read_agent_card(file: Path) -> dict[str, Any]:
    """Return the JSON object in a file."""
    try:
        with file.open("rb") as opened:
            card = json.loads(opened.read(MAX_CARD_BYTES + 1))
    except OSError as error:
        raise ArgumentError(f"--agent-card: cannot read {file} ({error.strerror})") from None
    except (ValueError, RecursionError):
        card = None
    if not isinstance(card, dict):
        raise ArgumentError(f"--agent-card: {file} does not contain a JSON object")
    return card
