"""The command line: its help, and its errors for invalid arguments."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from command import run
from molecule_workspace.cli import main as cli_main
from molecule_workspace.cli.arguments import parse_size
from molecule_workspace.cli.connect import unusable
from molecule_workspace.inbox.uploads import DEFAULT_FOLDER

Main = Callable[..., tuple[int, list[str], list[str]]]

HERE = Path(__file__).resolve().parent.parent
ID = "123e4567-e89b-42d3-a456-426614174000"
URL = "http://127.0.0.1:1"


@pytest.fixture
def token(tmp_path: Path) -> Path:
    """A token that no platform knows."""
    path = tmp_path / "token"
    path.touch(mode=0o600)
    path.write_text("a-token\n", encoding="ascii")
    return path


@pytest.fixture
def main(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Main:
    """The command in this process, which is faster than starting one."""
    for name in [name for name in os.environ if name.startswith("MOLECULE_")]:
        monkeypatch.delenv(name)

    def call(*arguments: str | Path, env: Mapping[str, str] | None = None) -> Any:
        for name, value in (env or {}).items():
            monkeypatch.setenv(name, value)
        try:
            code = cli_main.main([str(argument) for argument in arguments])
        except SystemExit as ended:
            code = int(ended.code or 0)
        reported = capsys.readouterr()
        return code, reported.out.splitlines(), reported.err.splitlines()

    return call


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["--help"], ["connect", "ingest", "--version"]),
        (["connect", "--help"], ["--exec CMD", "--once", "examples:", "Ctrl-C"]),
        (["ingest", "--help"], ["--listen HOST:PORT", "--secret-file FILE", "examples:"]),
        (["--version"], ["molecule-workspace 0."]),
    ],
)
def test_help_shows_options_and_examples(arguments: list[str], shown: list[str]) -> None:
    """Planted: an epilog that argparse reflows into one paragraph."""
    done = run(*arguments)
    text = "\n".join(done.out)
    assert done.process.returncode == 0
    assert not done.err
    assert [word for word in shown if word not in text] == []
    assert "examples:" not in shown or "\nexamples:\n" in text


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"--platform": None}, "MOLECULE_PLATFORM"),
        ({"--platform": "platform.example"}, "such as https://platform.example"),
        ({"--platform": "ftp://platform.example"}, "such as https://platform.example"),
        ({"--platform": "http://x:port"}, "such as https://platform.example"),
        ({"--platform": "http://[::1"}, "such as https://platform.example"),
        ({"--platform": "http://x/\u202e"}, "such as https://platform.example"),
        ({"--platform": "https://me:secret@x.example"}, "without user name"),
        ({"--platform": "https://x.example/?a=b"}, "without user name, query or fragment"),
        ({"--workspace": None}, "MOLECULE_WORKSPACE"),
        ({"--workspace": "laptop"}, "expected the workspace's id"),
        ({"--workspace": ID[:-1]}, "expected the workspace's id"),
        ({"--token-file": None}, "MOLECULE_TOKEN"),
        ({"--token-file": "/nonexistent/token"}, "cannot read /nonexistent/token"),
        ({"--token-file": "/"}, "cannot read / (Is a directory)"),
        ({"--token-file": "/dev/null"}, "/dev/null is empty"),
        ({"--token-file": "/dev/zero"}, "does not contain a token"),
        ({"--token-file": str(HERE / "pyproject.toml")}, "does not contain a token"),
        ({"--dir": "/dev/null/files"}, "choose a writable folder with --dir"),
        ({"--max-file": "many"}, "invalid --max-file 'many'"),
        ({"--max-file": "0"}, "such as 100MiB"),
        ({"--max-file": "2TiB"}, "such as 100MiB"),
        ({"--agent-card": "/nonexistent/card"}, "cannot read /nonexistent/card"),
        ({"--agent-card": str(HERE / "pyproject.toml")}, "does not contain a JSON object"),
        ({"--nonsense": "1"}, "unrecognized arguments: --nonsense"),
        ({"--token": "a-token"}, "unrecognized arguments: --token"),
    ],
)
def test_an_invalid_argument_is_one_sentence(
    changes: dict[str, str | None], said: str, token: Path, tmp_path: Path, main: Main
) -> None:
    """Planted: abbreviated options allowed (--token for --token-file); any URL accepted."""
    options: dict[str, str | None] = {
        "--platform": URL,
        "--workspace": ID,
        "--token-file": str(token),
        "--dir": str(tmp_path / "files"),
    }
    options |= changes
    given = [text for pair in options.items() if pair[1] is not None for text in pair if text]
    code, out, err = main("connect", *given)
    assert (code, out, len(err)) == (2, [], 1)
    assert said in err[0]
    assert err[0].startswith("molecule-workspace")


@pytest.mark.parametrize("arguments", [[], ["fetch"]])
def test_without_a_command_the_help_is_named(arguments: list[str]) -> None:
    """One sentence and exit code 2, as for every invalid argument."""
    done = run(*arguments)
    assert (done.process.returncode, len(done.err)) == (2, 1)
    assert "--help" in done.err[0]


def test_an_unusable_default_folder_suggests_dir() -> None:
    """On most laptops /workspace is not writable; for root, in CI, it is."""
    said = unusable(DEFAULT_FOLDER, PermissionError(13, "Permission denied"))
    assert said == (
        "cannot store files in the default folder /workspace/.molecule/chat-uploads "
        "(Permission denied); choose a writable folder with --dir DIR"
    )


def test_options_come_from_the_environment(tmp_path: Path, main: Main) -> None:
    """Including the token; then there is no file to warn about."""
    env = {"MOLECULE_PLATFORM": URL, "MOLECULE_WORKSPACE": ID.upper(), "MOLECULE_TOKEN": "a-token"}
    _, _, err = main("connect", "--dir", tmp_path, "--workspace", "laptop", env=env)
    assert "'laptop'" in err[0], "an option beats the environment"
    code, _, err = main("connect", "--dir", "/dev/null/files", env=env)
    assert (code, len(err)) == (2, 1)
    assert "/dev/null/files" in err[0], "nothing else is missing"


def test_a_token_that_others_can_read_is_warned_about(token: Path, main: Main) -> None:
    """Planted: the mode not checked."""
    arguments = ["connect", "--platform", URL, "--workspace", ID, "--dir", "/dev/null/files"]
    token.chmod(0o640)
    _, _, err = main(*arguments, "--token-file", token)
    assert err[0].endswith(f"other users of this machine can read {token}; run: chmod 600 {token}")
    token.chmod(0o600)
    _, _, err = main(*arguments, "--token-file", token)
    assert "warning" not in err[0]


@pytest.mark.parametrize(
    ("url", "warned"),
    [
        ("http://platform.example", True),
        ("http://192.168.1.9:8080", True),
        ("https://platform.example", False),
        ("http://localhost:8080", False),
        ("http://127.9.9.9", False),
        ("http://[::1]:8080", False),
    ],
)
def test_an_unencrypted_platform_is_warned_about(
    url: str, warned: bool, token: Path, main: Main
) -> None:
    """Planted: the scheme not checked."""
    options = ["--workspace", ID, "--token-file", token, "--dir", "/dev/null/files"]
    _, _, err = main("connect", "--platform", url, *options)
    assert ("warning" in err[0] and "https://" in err[0]) is warned


@pytest.mark.parametrize(
    ("text", "size"),
    [("1", 1), ("100MiB", 100 << 20), ("100 MB", 10**8), ("1.5GiB", 3 << 29), ("10k", 10240)],
)
def test_sizes_are_those_of_the_platforms_settings(text: str, size: int) -> None:
    """Binary and decimal units."""
    assert parse_size("--max-file", text) == size


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--secret-file"),
        (["--secret-file", "{token}", "--url", "https://x.example"], "either"),
        (["--secret-file", "/nonexistent/secret"], "cannot read /nonexistent/secret"),
        (["--secret-file", "{token}", "--listen", "8090"], "host:port"),
        (["--secret-file", "{token}", "--listen", "x:99999"], "host:port"),
        (["--secret-file", "{token}", "--max-request", "x"], "--max-request"),
        (["--secret-file", "{token}", "--dir", "/dev/null/x"], "with --dir"),
        (["--url", "https://x.example"], "--platform"),
        (["--url", "here", "--platform", URL], "invalid --url 'here'"),
    ],
)
def test_an_invalid_argument_of_ingest_is_one_sentence(
    arguments: list[str], said: str, token: Path, main: Main
) -> None:
    """Before the socket is opened."""
    given = [argument.replace("{token}", str(token)) for argument in arguments]
    code, out, err = main("ingest", *given)
    assert (code, out, len(err)) == (2, [], 1)
    assert said in err[0]
