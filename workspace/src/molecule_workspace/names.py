"""The rule for the names of chat uploads.

The platform applies the very same rule before it stages a file (``SanitizeFilename``, in Go), so a
file has one name however it travels.
"""

import posixpath
import re
from typing import Final

MAX_FILENAME_LENGTH: Final = 100
"""Characters in the longest name that is accepted."""

MAX_EXTENSION_LENGTH: Final = 16
"""Characters in the longest extension that survives a cut, dot included."""

FALLBACK_FILENAME: Final = "file"
"""Stands in for names that name nothing: the empty one, ``.`` and ``..``."""

_UNSAFE: Final = re.compile(r"[^A-Za-z0-9._-]")


def sanitize_filename(name: str) -> str:
    """Return the name under which a file called ``name`` by its sender is kept.

    The result has 1 to 100 characters of ``[A-Za-z0-9._-]`` and is never ``.`` or ``..``.
    Sanitizing it again changes nothing.

    Only the text after the last ``/`` counts, on every operating system. In it each code
    point that is not allowed, a space among them, becomes one ``_``. A name of more than 100
    characters is cut to 100; the text from its last dot stays at the end if that is at most
    16 characters, dot included.

    Bytes that are not UTF-8 should be decoded with ``surrogateescape``: that is one code
    point a byte, which is how the platform counts them.
    """
    base = _UNSAFE.sub("_", posixpath.basename(name))
    if len(base) > MAX_FILENAME_LENGTH:
        dot = base.rfind(".")
        keep_extension = dot >= 0 and len(base) - dot <= MAX_EXTENSION_LENGTH
        extension = base[dot:] if keep_extension else ""
        base = base[: MAX_FILENAME_LENGTH - len(extension)] + extension
    return FALLBACK_FILENAME if base in ("", ".", "..") else base
