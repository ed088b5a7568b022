"""Compatibility module: re-exports names of ``molecule_workspace``.

``sanitize_filename`` needs only the standard library; all other names need the extra ``ingest``.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

try:
    from molecule_workspace.names import sanitize_filename
except ModuleNotFoundError:  # imported from a checkout where the package is not installed
    sys.path.append(str(Path(__file__).parent / "src"))
    from molecule_workspace.names import sanitize_filename

if TYPE_CHECKING:
    from molecule_workspace.ingest.app import (
        INGEST_PATH,
        IngestLimits,
        StoredFile,
        ingest_app,
        ingest_route,
    )

__all__ = [
    "INGEST_PATH",
    "IngestLimits",
    "StoredFile",
    "ingest_app",
    "ingest_route",
    "sanitize_filename",
]


def __getattr__(name: str) -> Any:
    """Import the ingest when one of its names is first used."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from molecule_workspace.ingest import app

    return getattr(app, name)
