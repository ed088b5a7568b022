"""``make demo`` and ``make e2e``: see files travel from the chat to a folder, and compare them.

``demo.py`` starts a platform of its own and throws it away. ``demo.py e2e`` takes one that runs:
BASE_URL and ADMIN_TOKEN from the environment, and PUSH_LISTEN, the host:port of this machine at
which that platform may call it. Exit code 0 only if every file arrived, byte for byte; 1 if not;
2 if an argument is missing. Nothing is left behind, however it ends.
"""

import contextlib
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import httpx

from demo_check import Check, Result
from demo_samples import sample_requests, within
from demo_table import show
from local_platform import LocalPlatform, Operator, PlatformFailedError
from molecule_workspace.cli.arguments import PLATFORM_URL, ArgumentError, parse_listen, parse_url
from molecule_workspace.cli.lines import clean, size

PUSH_LISTEN: Final = "127.0.0.1:0"


def main(argv: Sequence[str], env: Mapping[str, str]) -> int:
    """Run the demo, or with ``e2e`` the check of a platform that runs; return the exit code."""
    staging = list(argv) == ["e2e"]
    if argv and not staging:
        return _complain("the only argument there is is 'e2e'", 2)
    try:
        with _ending_cleanly(), tempfile.TemporaryDirectory(prefix="molecule-demo-") as folder:
            return check_running(Path(folder), env) if staging else demo(Path(folder))
    except ArgumentError as error:
        return _complain(str(error), 2)
    except httpx.HTTPError as error:
        return _complain(f"the platform cannot be reached: {error}", 1)
    except (PlatformFailedError, OSError) as error:
        return _complain(str(error), 1)
    except KeyboardInterrupt:
        return _complain("interrupted; all is cleaned up", 130)


def demo(folder: Path) -> int:
    """Check a platform that is made for it, with its data in ``folder``."""
    say("starting a platform with a PostgreSQL of its own")
    settings = {"PUSH_ALLOW_CIDRS": "127.0.0.0/8"}
    with LocalPlatform(folder / "platform", settings) as platform:
        return check(platform.operator, folder, "demo", PUSH_LISTEN)


def check_running(folder: Path, env: Mapping[str, str]) -> int:
    """Check the platform at BASE_URL; ArgumentError if it is not said where that is."""
    missing = [name for name in ("BASE_URL", "ADMIN_TOKEN") if not env.get(name)]
    if missing:
        raise ArgumentError(
            f"{' and '.join(missing)} not given; say "
            "make e2e BASE_URL=https://platform.example ADMIN_TOKEN=..."
        )
    base_url = parse_url("BASE_URL", PLATFORM_URL, env["BASE_URL"])
    listen = env.get("PUSH_LISTEN") or PUSH_LISTEN
    parse_listen("PUSH_LISTEN", listen)
    operator = Operator(base_url, env["ADMIN_TOKEN"])
    try:
        operator.call("GET", "/health")
        return check(operator, folder, "e2e check", listen)
    finally:
        operator.close()


def check(operator: Operator, folder: Path, name: str, listen: str) -> int:
    """Send everything, show what came of it; return the exit code."""
    begun = time.monotonic()
    limits = operator.call("GET", "/uploads/limits")
    requests, left_out = within(
        sample_requests(),
        limits["per_file_bytes"],
        limits["per_request_bytes"],
        limits["max_files"],
    )
    with Check(operator, folder, name, say) as run:
        run.connect()
        refused = run.serve(listen)
        run.post(requests)
        run.send()
        run.arrive()
        results = run.results()
    notes = [
        f"left out: {sample.name}; the platform takes no {size(len(sample.content))}"
        for sample in left_out
    ]
    show(results, run.problems, refused, notes)
    return conclude(results, run.problems, time.monotonic() - begun)


def conclude(results: Sequence[Result], problems: Sequence[str], seconds: float) -> int:
    """Say how it ended; return the exit code."""
    right = sum(result.right for result in results)
    say(f"{right} of {len(results)} deliveries are right, in {seconds:.1f} s")
    return 0 if results and right == len(results) and not problems else 1


def say(line: str) -> None:
    """Tell how it goes."""
    print(clean(line), flush=True)


def _complain(sentence: str, code: int) -> int:
    print(clean(sentence), file=sys.stderr)
    return code


@contextlib.contextmanager
def _ending_cleanly() -> Iterator[None]:
    """Turn the first signal into an end with all its cleaning up, and ignore the next ones."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def end(*_: object) -> None:
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = {number: signal.signal(number, end) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.environ))
