"""``make demo`` and ``make e2e``: send files through a platform, and compare what arrives.

``demo.py`` starts a temporary platform. ``demo.py e2e`` uses a running one: BASE_URL and
ADMIN_TOKEN from the environment, and PUSH_LISTEN, the host:port of this machine that the platform
can reach. Exit codes: 0 every file arrived, byte for byte; 1 otherwise; 2 an argument is missing.
Workspaces, processes and files are removed at the end, however it ends.
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
        return _complain("unknown argument; the only one is 'e2e'", 2)
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
        return _complain("interrupted; everything is cleaned up", 130)


def demo(folder: Path) -> int:
    """Start a platform with its data in ``folder``, and check it."""
    say("starting a platform with a private PostgreSQL")
    settings = {"PUSH_ALLOW_CIDRS": "127.0.0.0/8"}
    with LocalPlatform(folder / "platform", settings) as platform:
        return check(platform.operator, folder, "demo", PUSH_LISTEN)


def check_running(folder: Path, env: Mapping[str, str]) -> int:
    """Check the platform at BASE_URL. ArgumentError: BASE_URL or ADMIN_TOKEN is missing."""
    missing = [name for name in ("BASE_URL", "ADMIN_TOKEN") if not env.get(name)]
    if missing:
        raise ArgumentError(
            f"{' and '.join(missing)} not set; run "
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
    """Send all samples and show the results; return the exit code."""
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
        f"not sent: {sample.name}; {size(len(sample.content))} exceed the platform's limit"
        for sample in left_out
    ]
    show(results, run.problems, refused, notes)
    return conclude(results, run.problems, time.monotonic() - begun)


def conclude(results: Sequence[Result], problems: Sequence[str], seconds: float) -> int:
    """Print the conclusion; return the exit code."""
    right = sum(result.right for result in results)
    say(f"{right} of {len(results)} deliveries are correct, in {seconds:.1f} s")
    return 0 if results and right == len(results) and not problems else 1


def say(line: str) -> None:
    """Print a line of progress."""
    print(clean(line), flush=True)


def _complain(sentence: str, code: int) -> int:
    print(clean(sentence), file=sys.stderr)
    return code


@contextlib.contextmanager
def _ending_cleanly() -> Iterator[None]:
    """Turn the first signal into KeyboardInterrupt, so that all is cleaned up; ignore others."""
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
