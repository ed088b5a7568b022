"""The files that the demo and the e2e check send, with realistic sizes and names."""

import os
from collections.abc import Sequence

from local_platform import Sample

KIB = 1 << 10
MIB = 1 << 20


def sample_requests() -> list[list[Sample]]:
    """Return the files, grouped by request, as the canvas attaches them."""
    text = ("The quick brown fox jumps over the lazy dog. " * 23)[:KIB]
    return [
        [
            Sample("one-byte.bin", b"1", "application/octet-stream"),
            Sample("empty.txt", b"", "text/plain"),
            Sample("one-kib.txt", text.encode(), "text/plain"),
            Sample("100-kib.pdf", os.urandom(100 * KIB), "application/pdf"),
        ],
        [
            Sample("Übersicht für Jörg.txt", _text("umlauts and spaces"), "text/plain"),
            Sample('so-called "final" version.txt', _text("quotes"), "text/plain"),
            Sample("../../etc/passwd", _text("a path"), "text/plain"),
            Sample(f"{'long-name-' * 15}"[:146] + ".txt", _text("150 characters"), "text/plain"),
            Sample("\U0001f680 launch \U0001f389.txt", _text("emoji"), "text/plain"),
            Sample("C:\\dir\\x.txt", _text("a path of Windows"), "text/plain"),
            Sample(".env", _text("a dotfile")),
            Sample("twice.txt", _text("the first of two with one name"), "text/plain"),
            Sample("twice.txt", _text("the second of two with one name"), "text/plain"),
        ],
        [Sample("5-mib.zip", os.urandom(5 * MIB), "application/zip")],
        [Sample("40-mib.mp4", os.urandom(40 * MIB), "video/mp4")],
    ]


def within(
    requests: Sequence[Sequence[Sample]], per_file: int, per_request: int, max_files: int
) -> tuple[list[list[Sample]], list[Sample]]:
    """Split the requests by the platform's limits; also return the files that are too large."""
    sent: list[list[Sample]] = []
    left_out: list[Sample] = []
    for request in requests:
        batch: list[Sample] = []
        for sample in request:
            if len(sample.content) > min(per_file, per_request):
                left_out.append(sample)
                continue
            total = sum(len(s.content) for s in batch) + len(sample.content)
            if batch and (total > per_request or len(batch) == max_files):
                sent.append(batch)
                batch = []
            batch.append(sample)
        if batch:
            sent.append(batch)
    return sent, left_out


def _text(what: str) -> bytes:
    return f"A file whose name shows {what}.\n".encode()
