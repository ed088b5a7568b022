"""The command ``molecule-workspace``: its options and exit codes.

Exit codes: 0 done or stopped; 1 the platform refused, or something could not be finished; 2 invalid
arguments; 130 interrupted before it was done. An error that the user can fix is one sentence on
standard error, never a traceback.
"""

import argparse
import asyncio
import importlib.metadata
import os
import sys
from collections.abc import Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NoReturn

from molecule_workspace.cli import arguments
from molecule_workspace.cli.arguments import ArgumentError
from molecule_workspace.cli.connect import FAILED, INTERRUPTED, Connection, FailedError, connect
from molecule_workspace.cli.display import Display, discard_output, open_display
from molecule_workspace.inbox.options import Options
from molecule_workspace.inbox.uploads import DEFAULT_FOLDER, DEFAULT_MAX_FILE_BYTES

PROGRAM: Final = "molecule-workspace"

_INGEST_EXTRA: Final = ("starlette", "uvicorn", "anyio", "h11")
"""Top-level modules that the extra ``ingest`` installs."""

_DESCRIPTION: Final = "Receive the files and messages of a Molecule chat on this machine."

_CONNECT: Final = """\
Poll the workspace's inbox until Ctrl-C. Files attached to the chat are downloaded to a folder.
Messages are shown or passed to a command; where they refer to a file, they name the local copy.
"""

_CONNECT_EXAMPLES: Final = f"""\
examples:
  {PROGRAM} connect --platform https://platform.example \\
      --workspace 123e4567-e89b-42d3-a456-426614174000 --token-file token --dir ~/chat-files

  # pass each message, as one line of JSON, to a command
  {PROGRAM} connect ... --exec 'jq -r .params.message.parts[].text >> messages.txt'

  # from cron: handle what is in the inbox, then exit (exit code 1 if something is still missing)
  {PROGRAM} connect ... --once

  # the token from the environment, the events to a program
  MOLECULE_TOKEN=... {PROGRAM} connect ... --json | my-program

The --exec command gets the message on standard input, and MOLECULE_WORKSPACE, MOLECULE_ROW_ID and
MOLECULE_METHOD in its environment. If it fails, it is run again after 1, 5 and 25 seconds; after
that the message is skipped. Downloads that are incomplete at the end resume at the next start.
"""


_INGEST: Final = """\
Receive the uploads that the platform pushes to this workspace, until Ctrl-C, and store the files
in a folder. With --url the workspace is registered in push mode, and the platform's answer contains
the inbound secret. If another program registers the workspace, pass the secret with --secret-file.
"""

_INGEST_EXAMPLES: Final = f"""\
examples:
  # the platform calls https://agent.example:8090; a TLS proxy there forwards to port 8091
  {PROGRAM} ingest --listen 127.0.0.1:8091 --url https://agent.example:8090 \\
      --platform https://platform.example \\
      --workspace 123e4567-e89b-42d3-a456-426614174000 --token-file token --dir ~/chat-files

  # another program registers the workspace and keeps the inbound secret in a file
  {PROGRAM} ingest --listen 127.0.0.1:8091 --secret-file secret --dir ~/chat-files
"""


class _Parser(argparse.ArgumentParser):
    """A parser that reports an error in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    parser = _Parser(
        prog=PROGRAM,
        description=_DESCRIPTION,
        epilog=f"examples: {PROGRAM} connect --help, {PROGRAM} ingest --help",
        allow_abbrev=False,
    )
    # allow_abbrev=False: --token would be read as --token-file, and a token is not a file name.
    parser.add_argument(
        "--version", action="version", version=f"%(prog)s {importlib.metadata.version(PROGRAM)}"
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    connecting = commands.add_parser(
        "connect",
        help="receive files and messages by polling (works behind NAT)",
        description=_CONNECT,
        epilog=_CONNECT_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _add_platform(connecting)
    _add_folder(connecting)
    connecting.add_argument("--exec", metavar="CMD", help="run this shell command for each message")
    connecting.add_argument(
        "--once", action="store_true", help="handle what is in the inbox, then exit"
    )
    connecting.add_argument(
        "--max-file",
        metavar="SIZE",
        default=f"{DEFAULT_MAX_FILE_BYTES >> 30}GiB",
        help="maximum size of one file (default: %(default)s)",
    )
    _add_agent_card(connecting)
    connecting.set_defaults(run=_connect)

    serving = commands.add_parser(
        "ingest",
        help="receive uploads over HTTP (the platform must reach this machine)",
        description=_INGEST,
        epilog=_INGEST_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    serving.add_argument(
        "--listen",
        metavar="HOST:PORT",
        default="127.0.0.1:8090",
        help="address to listen on; port 0: any free port (default: %(default)s)",
    )
    _add_platform(serving)
    serving.add_argument(
        "--url", metavar="URL", help="register this URL, at which the platform reaches this machine"
    )
    _add_agent_card(serving)
    serving.add_argument(
        "--secret-file",
        metavar="FILE",
        type=Path,
        help="file with the inbound secret (or MOLECULE_INBOUND_SECRET), "
        "if another program registers the workspace",
    )
    _add_folder(serving)
    serving.add_argument(
        "--max-file",
        metavar="SIZE",
        default="100MiB",
        help="maximum size of one file (default: %(default)s)",
    )
    serving.add_argument(
        "--max-request",
        metavar="SIZE",
        default="100MiB",
        help="maximum size of all files of one upload (default: %(default)s)",
    )
    serving.set_defaults(run=_ingest)
    return parser


def _add_platform(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--platform", metavar="URL", help="URL of the platform (or MOLECULE_PLATFORM)"
    )
    parser.add_argument(
        "--workspace", metavar="ID", help="id of the workspace, a UUID (or MOLECULE_WORKSPACE)"
    )
    parser.add_argument(
        "--token-file",
        metavar="FILE",
        type=Path,
        help="file with the workspace's token (or the token itself in MOLECULE_TOKEN)",
    )


def _add_agent_card(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--agent-card",
        metavar="FILE",
        type=Path,
        help="file with a JSON object that describes the agent to the platform",
    )


def _add_folder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dir",
        metavar="DIR",
        type=Path,
        default=DEFAULT_FOLDER,
        help="folder for received files (default: %(default)s)",
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object per event, for programs"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parsed = make_parser().parse_args(argv)
    try:
        code: int = parsed.run(parsed, os.environ)
    except ArgumentError as error:
        _complain(parsed.command, str(error))
        return 2
    except FailedError as error:
        _complain(parsed.command, str(error))
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
    return code


def _complain(command: str, sentence: str) -> None:
    print(f"{PROGRAM} {command}: {sentence}", file=sys.stderr)


def _connect(parsed: argparse.Namespace, env: Mapping[str, str]) -> int:
    platform, workspace, token = _identity(parsed, env)
    options = Options(
        once=parsed.once,
        max_file_bytes=arguments.parse_size("--max-file", parsed.max_file),
        agent_card=_agent_card(parsed),
    )
    asked = Connection(
        platform,
        workspace,
        token,
        parsed.dir.expanduser(),
        parsed.exec,
        # With --json, standard output carries nothing but events.
        sys.stderr.fileno() if parsed.json else None,
        options,
    )
    display = open_display(
        as_json=parsed.json,
        handled_by="the command" if parsed.exec is not None else "",
        once=parsed.once,
    )
    return _run(connect(asked, display), display)


def _ingest(parsed: argparse.Namespace, env: Mapping[str, str]) -> int:
    # Imported here: connect starts without loading a web server, and works without the extra.
    try:
        from molecule_workspace.cli.ingest import Ingest, Registration, ingest
        from molecule_workspace.ingest.app import IngestLimits
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in _INGEST_EXTRA:
            raise
        raise FailedError(
            f"{error.name} is not installed; run: pip install 'molecule-workspace[ingest]'"
        ) from error

    listen = arguments.parse_listen("--listen", parsed.listen)
    limits = IngestLimits(
        max_file_bytes=arguments.parse_size("--max-file", parsed.max_file),
        max_request_bytes=arguments.parse_size("--max-request", parsed.max_request),
    )
    secret = registration = None
    if parsed.url is not None and parsed.secret_file is None:
        url = arguments.parse_url("--url", arguments.PUBLIC_URL, parsed.url)
        registration = Registration(*_identity(parsed, env), url, _agent_card(parsed))
    elif parsed.url is not None:
        raise ArgumentError("pass either --secret-file or --url, not both")
    elif parsed.secret_file is None and not env.get("MOLECULE_INBOUND_SECRET"):
        raise ArgumentError(
            "pass --url URL with --platform, --workspace and --token-file to register the "
            "workspace, or --secret-file FILE if another program registers it"
        )
    else:
        secret, warning = arguments.read_secret(
            "inbound secret", "--secret-file", parsed.secret_file, "MOLECULE_INBOUND_SECRET", env
        )
        _warn(parsed, warning)
    asked = Ingest(listen, parsed.dir.expanduser(), limits, secret, registration)
    display = open_display(as_json=parsed.json)
    return _run(ingest(asked, display), display)


def _run(work: Coroutine[Any, Any, int], display: Display) -> int:
    try:
        code = asyncio.run(work)
    finally:
        display.close()
        try:
            sys.stdout.flush()
        except OSError:
            discard_output()
    if display.closed:
        raise FailedError("stopped: standard output was closed")
    return code


def _agent_card(parsed: argparse.Namespace) -> Mapping[str, Any]:
    if parsed.agent_card is None:
        return Options().agent_card
    return arguments.read_agent_card(parsed.agent_card)


def _warn(parsed: argparse.Namespace, warning: str | None) -> None:
    if warning:
        _complain(parsed.command, f"warning: {warning}")


def _identity(parsed: argparse.Namespace, env: Mapping[str, str]) -> tuple[str, str, str]:
    """Return platform, workspace and token, from the options or the environment."""
    platform = parsed.platform or env.get("MOLECULE_PLATFORM")
    if not platform:
        raise ArgumentError("no platform: pass --platform URL, or set MOLECULE_PLATFORM")
    platform = arguments.parse_url("--platform", arguments.PLATFORM_URL, platform)
    workspace = parsed.workspace or env.get("MOLECULE_WORKSPACE")
    if not workspace:
        raise ArgumentError("no workspace: pass --workspace ID, or set MOLECULE_WORKSPACE")
    workspace = arguments.parse_workspace(workspace)
    token, warning = arguments.read_secret(
        "token", "--token-file", parsed.token_file, "MOLECULE_TOKEN", env
    )
    _warn(parsed, warning)
    if arguments.is_unencrypted(platform):
        _warn(
            parsed,
            f"{platform} is not encrypted: others on the network can read the token; use https://",
        )
    return platform, workspace, token
