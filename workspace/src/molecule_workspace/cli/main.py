"""The command ``molecule-workspace``: its arguments, its exit codes, and nothing else.

Exit codes: 0 done or stopped, 1 the platform refused or something could not be finished, 2 the
arguments are wrong, 130 interrupted before it was done. What a person can mend is one sentence on
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
from molecule_workspace.inbox.poller import Options
from molecule_workspace.inbox.uploads import DEFAULT_FOLDER, DEFAULT_MAX_FILE_BYTES

PROGRAM: Final = "molecule-workspace"

_INGEST_EXTRA: Final = ("starlette", "uvicorn", "anyio", "h11")
"""Top-level modules that the extra ``ingest`` installs."""

_DESCRIPTION: Final = "The workspace's side of the platform: files from the chat to a folder."

_CONNECT: Final = """\
Read the workspace's inbox until Ctrl-C: files that people attach to the chat appear in a folder,
and messages that mention them are shown, or handed to a command, with the local files' names.
"""

_CONNECT_EXAMPLES: Final = f"""\
examples:
  {PROGRAM} connect --platform https://platform.example \\
      --workspace 123e4567-e89b-42d3-a456-426614174000 --token-file token --dir ~/chat-files

  # each message, as a line of JSON, to a program
  {PROGRAM} connect ... --exec 'jq -r .params.message.parts[].text >> messages.txt'

  # from cron: take what there is, then end (exit code 1 if something is still missing)
  {PROGRAM} connect ... --once

  # the token from the environment, events for a program
  MOLECULE_TOKEN=... {PROGRAM} connect ... --json | my-program

The command of --exec gets the message on its standard input, and MOLECULE_WORKSPACE,
MOLECULE_ROW_ID and MOLECULE_METHOD in its environment. If it fails, it is run again after 1, 5
and 25 seconds. Files that are not complete when it stops go on with the next start.
"""


_INGEST: Final = """\
Serve the uploads that the platform hands to a push workspace, and store their files in a folder,
until Ctrl-C. Registers the workspace under --url, which brings the secret that only the platform
has; or takes the secret from a file, where something else registers the workspace.
"""

_INGEST_EXAMPLES: Final = f"""\
examples:
  # the platform calls https://agent.example:8090, where a TLS proxy passes it on to this
  {PROGRAM} ingest --listen 127.0.0.1:8091 --url https://agent.example:8090 \\
      --platform https://platform.example \\
      --workspace 123e4567-e89b-42d3-a456-426614174000 --token-file token --dir ~/chat-files

  # the agent registers the workspace by itself and keeps the secret in a file
  {PROGRAM} ingest --listen 127.0.0.1:8091 --secret-file secret --dir ~/chat-files
"""


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one sentence."""

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
    # No option is taken for another (allow_abbrev): --token would be --token-file.
    parser.add_argument(
        "--version", action="version", version=f"%(prog)s {importlib.metadata.version(PROGRAM)}"
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    connecting = commands.add_parser(
        "connect",
        help="files and messages for a workspace that nobody can call",
        description=_CONNECT,
        epilog=_CONNECT_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _add_platform(connecting)
    _add_folder(connecting)
    connecting.add_argument("--exec", metavar="CMD", help="run this shell command for each message")
    connecting.add_argument(
        "--once", action="store_true", help="handle what there is, wait for its files, and end"
    )
    connecting.add_argument(
        "--max-file",
        metavar="SIZE",
        default=f"{DEFAULT_MAX_FILE_BYTES >> 30}GiB",
        help="longest file to take (default: %(default)s)",
    )
    _add_agent_card(connecting)
    connecting.set_defaults(run=_connect)

    serving = commands.add_parser(
        "ingest",
        help="uploads for a workspace that the platform calls",
        description=_INGEST,
        epilog=_INGEST_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    serving.add_argument(
        "--listen",
        metavar="HOST:PORT",
        default="127.0.0.1:8090",
        help="address to serve on; port 0: any free one (default: %(default)s)",
    )
    _add_platform(serving)
    serving.add_argument(
        "--url", metavar="URL", help="where the platform reaches this machine; registers it there"
    )
    _add_agent_card(serving)
    serving.add_argument(
        "--secret-file",
        metavar="FILE",
        type=Path,
        help="file that holds the inbound secret (or MOLECULE_INBOUND_SECRET), "
        "if something else registers the workspace",
    )
    _add_folder(serving)
    serving.add_argument(
        "--max-file",
        metavar="SIZE",
        default="100MiB",
        help="longest file to take (default: %(default)s)",
    )
    serving.add_argument(
        "--max-request",
        metavar="SIZE",
        default="100MiB",
        help="all files of one upload together (default: %(default)s)",
    )
    serving.set_defaults(run=_ingest)
    return parser


def _add_platform(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--platform", metavar="URL", help="the platform's address (or MOLECULE_PLATFORM)"
    )
    parser.add_argument(
        "--workspace", metavar="ID", help="the workspace's id, a UUID (or MOLECULE_WORKSPACE)"
    )
    parser.add_argument(
        "--token-file",
        metavar="FILE",
        type=Path,
        help="file that holds the workspace's token (or MOLECULE_TOKEN, the token itself)",
    )


def _add_agent_card(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--agent-card",
        metavar="FILE",
        type=Path,
        help="JSON object that describes the agent to the platform",
    )


def _add_folder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dir",
        metavar="DIR",
        type=Path,
        default=DEFAULT_FOLDER,
        help="folder that files go to (default: %(default)s)",
    )
    parser.add_argument(
        "--json", action="store_true", help="one JSON object per event and line, for programs"
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
        # With --json, standard output is ours alone.
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
            f"ingest needs {error.name}, which is not installed; "
            "run: pip install 'molecule-workspace[ingest]'"
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
        raise ArgumentError("give either --secret-file or --url, which registers the workspace")
    elif parsed.secret_file is None and not env.get("MOLECULE_INBOUND_SECRET"):
        raise ArgumentError(
            "give --url URL with --platform, --workspace and --token-file, to register; "
            "or --secret-file FILE if something else does that"
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
        raise FailedError("stopped, since nobody reads the output any more")
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
        raise ArgumentError("give the platform's address with --platform URL, or MOLECULE_PLATFORM")
    platform = arguments.parse_url("--platform", arguments.PLATFORM_URL, platform)
    workspace = parsed.workspace or env.get("MOLECULE_WORKSPACE")
    if not workspace:
        raise ArgumentError("give the workspace's id with --workspace ID, or MOLECULE_WORKSPACE")
    workspace = arguments.parse_workspace(workspace)
    token, warning = arguments.read_secret(
        "token", "--token-file", parsed.token_file, "MOLECULE_TOKEN", env
    )
    _warn(parsed, warning)
    if arguments.is_unencrypted(platform):
        _warn(
            parsed,
            f"{platform} is not encrypted, so that others can read the token; use https://",
        )
    return platform, workspace, token
