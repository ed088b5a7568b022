"""Text for people: escaping for terminals, sizes, durations, message bodies.

File names, message texts and error reasons come from the network. Control and invisible
characters in them are escaped: they could control the terminal or disguise a name.
"""

import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

LARGE_FILE_BYTES: Final = 4 << 20
"""Files up to this size get neither a "fetching" line nor a progress bar."""

MAX_TEXT: Final = 10_000
"""Characters of a message's text that are shown."""

MAX_NAME: Final = 120
"""Characters of a file's name that are shown."""

# Joiners only combine emoji; other invisible characters can reverse the direction of text.
_JOINERS: Final = frozenset("\u200c\u200d")
_UNSHOWN: Final = frozenset(("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"))
_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB")


def clean(text: str) -> str:
    """Return the text as one line, with control and invisible characters escaped."""
    return "".join(
        c
        if c in _JOINERS or unicodedata.category(c) not in _UNSHOWN
        else c.encode("unicode_escape").decode("ascii")
        for c in text
    )


def clean_name(name: str) -> str:
    """Return a file's name, escaped and shortened to MAX_NAME characters."""
    shown = clean(name) or "(no name)"
    return shown if len(shown) <= MAX_NAME else f"{shown[:MAX_NAME]}…"


def size(n: int) -> str:
    """Format a number of bytes, such as "1.5 MiB"."""
    value, power = float(n), 0
    while value >= 1023.95 and power < len(_UNITS) - 1:
        value, power = value / 1024, power + 1
    return f"{value:.1f} {_UNITS[power]}" if power else f"{n} B"


def duration(seconds: float) -> str:
    """Format a duration in seconds, or in minutes from two minutes on."""
    if seconds < 9.95:
        return f"{max(seconds, 0.1):.1f} s"
    if seconds < 119.5:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min"


def files(n: int) -> str:
    """Return "1 file" or "2 files"."""
    return f"{n} file" if n == 1 else f"{n} files"


def stopped(incomplete: int) -> str:
    """Return the last line of a run."""
    if not incomplete:
        return "stopped"
    verbs = "is incomplete and resumes" if incomplete == 1 else "are incomplete and resume"
    return f"stopped; {files(incomplete)} {verbs} at the next start"


def message(body: Any) -> Iterator[str]:
    """Yield the lines of a message: the text of its parts, and its files."""
    for part in _parts(body):
        text = part.get("text")
        if isinstance(text, str):
            cut = len(text) - MAX_TEXT
            yield from map(clean, re.split(r"\r\n|[\r\n]", text[:MAX_TEXT]))
            if cut > 0:
                yield f"({cut} more characters)"
        file = part.get("file")
        for holder in (part, file if isinstance(file, dict) else {}):
            for key in ("uri", "url"):
                uri = holder.get(key)
                if isinstance(uri, str):
                    yield f"file: {clean(uri.removeprefix('workspace:'))}"


def _parts(body: Any) -> Iterator[dict[str, Any]]:
    params = body.get("params") if isinstance(body, dict) else None
    inner = params.get("message") if isinstance(params, dict) else None
    for holder in (body, params, inner):
        parts = holder.get("parts") if isinstance(holder, dict) else None
        if isinstance(parts, list):
            yield from (part for part in parts if isinstance(part, dict))


def path(where: Path) -> str:
    """Return a path, escaped."""
    return clean(str(where))
