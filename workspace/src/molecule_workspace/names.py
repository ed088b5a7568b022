"""Sanitizing of file names.

The platform applies the same rule (``SanitizeFilename``, in Go) before it stages a file, so that a
file has the same name whether it was polled or pushed.
"""

import posixpath
import re
from typing import Final

MAX_FILENAME_LENGTH: Final = 100
"""Maximum length of a sanitized name, in characters."""

MAX_EXTENSION_LENGTH: Final = 16
"""Maximum length of an extension that is kept when a name is shortened, including the dot."""

FALLBACK_FILENAME: Final = "file"
"""Replaces the empty name, ``.`` and ``..``."""

_UNSAFE: Final = re.compile(r"[^A-Za-z0-9._-]")


def sanitize_filename(name: str) -> str:
    """Return the sanitized form of a file name as its sender wrote it.

    The result has 1 to 100 characters of ``[A-Za-z0-9._-]`` and is never ``.`` or ``..``. The
    function is idempotent.

    Only the text after the last ``/`` is used, on every operating system. Each code point in it
    that is not allowed, including a space, becomes one ``_``. A name of more than 100 characters
    is shortened to 100; its extension is kept if it has at most 16 characters, dot included.

    Decode bytes that are not UTF-8 with ``surrogateescape``: it maps each byte to one code point,
    which is how the platform counts them.
    """
    base = _UNSAFE.sub("_", posixpath.basename(name))
    if len(base) > MAX_FILENAME_LENGTH:
        dot = base.rfind(".")
        keep_extension = dot >= 0 and len(base) - dot <= MAX_EXTENSION_LENGTH
        extension = base[dot:] if keep_extension else ""
        base = base[: MAX_FILENAME_LENGTH - len(extension)] + extension
    return FALLBACK_FILENAME if base in ("", ".", "..") else base
