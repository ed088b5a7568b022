"""The table of results of the demo."""

import sys
from collections.abc import Sequence
from typing import Final

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from demo_check import Result
from molecule_workspace.cli.lines import clean, size

MAX_NAME: Final = 30
DIGEST: Final = 12
"""Number of hex digits of a SHA-256 that are shown."""

WIDTH: Final = 112
"""Minimum width; also the width without a terminal."""


def show(
    results: Sequence[Result], problems: Sequence[str], refused: str, notes: Sequence[str]
) -> None:
    """Print the table and the problems; ``refused`` says why push was not checked."""
    console = Console(markup=False, highlight=False, emoji=False)
    console.width = max(console.width, WIDTH) if sys.stdout.isatty() else WIDTH
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("mode")
    table.add_column("name as sent", no_wrap=True)
    table.add_column("size", justify="right", no_wrap=True)
    table.add_column("SHA-256 sent", no_wrap=True)
    table.add_column("arrived", no_wrap=True)
    table.add_column("seconds", justify="right")
    table.add_column("state", no_wrap=True)
    for result in results:
        table.add_row(
            result.mode,
            Text(_shortened(clean(result.name))),
            size(result.size),
            result.sent[:DIGEST],
            result.arrived[:DIGEST] or "-",
            "-" if result.seconds is None else f"{result.seconds:.2f}",
            Text(result.state, style="" if result.right else "bold red"),
        )
    if refused:
        table.add_row("push", Text("NOT CHECKED", style="bold red"), "-", "-", "-", "-", "refused")
    console.print(table)
    for note in notes:
        console.print(Text(clean(note)), soft_wrap=True)
    for problem in problems:
        console.print(Text(f"WRONG: {clean(problem)}", style="bold red"), soft_wrap=True)
    if refused:
        console.print(
            Text(
                f"push was NOT checked: the platform refuses {clean(refused)}. Set "
                "PUSH_LISTEN=host:port, an address of this machine that the platform can reach, "
                "or start the platform with PUSH_ALLOW_CIDRS for this address.",
                style="bold red",
            ),
            soft_wrap=True,
        )


def _shortened(name: str) -> str:
    return name if len(name) <= MAX_NAME else f"{name[: MAX_NAME - 1]}…"
