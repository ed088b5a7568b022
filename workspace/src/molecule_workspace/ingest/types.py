"""The MIME type of an uploaded file: the sender's, or one derived from the name.

The rule and the table are the same as the platform's (``CleanMIMEType``, in Go), so that a file has
the same type whether it was pushed or polled. ``testdata`` has the cases that both are tested with.
"""

import mimetypes
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

UNKNOWN_MIME_TYPE: Final = "application/octet-stream"
"""The type of a file about which nothing is known."""

MAX_MIME_NAME_LENGTH: Final = 127
"""Maximum length of a type and of a subtype, in characters (RFC 6838, 4.2)."""

_NAME: Final = rf"[!#$%&'*+\-.^_`|~0-9A-Za-z]{{1,{MAX_MIME_NAME_LENGTH}}}"
_PLAIN: Final = re.compile(f"{_NAME}/{_NAME}")

COMMON_MIME_TYPES: Final[Mapping[str, str]] = MappingProxyType(
    {
        ".7z": "application/x-7z-compressed",
        ".avif": "image/avif",
        ".bmp": "image/bmp",
        ".bz2": "application/x-bzip2",
        ".c": "text/x-c",
        ".cpp": "text/x-c++",
        ".css": "text/css",
        ".csv": "text/csv",
        ".diff": "text/x-diff",
        ".doc": "application/msword",
        ".docx": "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
        ".epub": "application/epub+zip",
        ".flac": "audio/flac",
        ".gif": "image/gif",
        ".go": "text/x-go",
        ".gz": "application/gzip",
        ".heic": "image/heic",
        ".htm": "text/html",
        ".html": "text/html",
        ".java": "text/x-java",
        ".jpeg": "image/jpeg",
        ".jpg": "image/jpeg",
        ".js": "text/javascript",
        ".json": "application/json",
        ".log": "text/plain",
        ".m4a": "audio/mp4",
        ".md": "text/markdown",
        ".mjs": "text/javascript",
        ".mov": "video/quicktime",
        ".mp3": "audio/mpeg",
        ".mp4": "video/mp4",
        ".odp": "application/vnd.oasis.opendocument.presentation",
        ".ods": "application/vnd.oasis.opendocument.spreadsheet",
        ".odt": "application/vnd.oasis.opendocument.text",
        ".ogg": "audio/ogg",
        ".pdf": "application/pdf",
        ".png": "image/png",
        ".ppt": "application/vnd.ms-powerpoint",
        ".pptx": "application/vnd.openxmlformats-officedocument.presentationml.presentation",
        ".py": "text/x-python",
        ".rs": "text/x-rust",
        ".rtf": "application/rtf",
        ".sh": "application/x-sh",
        ".sql": "application/sql",
        ".svg": "image/svg+xml",
        ".tar": "application/x-tar",
        ".tgz": "application/gzip",
        ".tif": "image/tiff",
        ".tiff": "image/tiff",
        ".toml": "application/toml",
        ".ts": "text/x-typescript",
        ".tsv": "text/tab-separated-values",
        ".tsx": "text/x-typescript",
        ".txt": "text/plain",
        ".wav": "audio/wav",
        ".webm": "video/webm",
        ".webp": "image/webp",
        ".xls": "application/vnd.ms-excel",
        ".xlsx": "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
        ".xml": "application/xml",
        ".xz": "application/x-xz",
        ".yaml": "application/yaml",
        ".yml": "application/yaml",
        ".zip": "application/zip",
        ".zst": "application/zstd",
    }
)
"""Types of common attachments. They take precedence over the machine's tables, which differ between
distributions; most of them map .ts to a video type."""


def clean_mime_type(content_type: str, name: str) -> str:
    """Return the MIME type of a file with the header ``content_type`` and the sanitized ``name``.

    It is the Content-Type without parameters; if that is not type/subtype, the type of the name's
    extension; else ``application/octet-stream``. The result is always two lower-case tokens
    (RFC 9110) of at most 127 characters, separated by a slash, and therefore safe in a header.
    """
    extension = name[name.rfind(".") :].lower() if "." in name else ""
    return (
        _plain(content_type)
        or COMMON_MIME_TYPES.get(extension, "")
        or _plain(_machine_type(extension))
        or UNKNOWN_MIME_TYPE
    )


def _plain(content_type: str) -> str:
    mime_type = content_type.partition(";")[0].strip(" \t")
    return mime_type.lower() if _PLAIN.fullmatch(mime_type) else ""


def _machine_type(extension: str) -> str:
    if not mimetypes.inited:
        mimetypes.init()
    return mimetypes.types_map.get(extension, "")
