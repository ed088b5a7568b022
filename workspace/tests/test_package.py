"""The published package: the wheel is built, installed in a new environment, and used there."""

import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent.parent

SAMPLE = """\
import asyncio
from pathlib import Path

from molecule_workspace import Inbox, PlatformError, Message, Options, PlatformClient


async def handle(message: Message) -> None:
    print(message.method, message.body)


async def main() -> None:
    client = PlatformClient("https://platform.example", "id", "token")
    try:
        await Inbox(client, Path("files"), handle, print, Options(once=True)).run()
    except PlatformError as error:
        print(error)
    finally:
        await client.close()


asyncio.run(main())
"""


def run(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a program until it exits, outside the checkout."""
    return subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the sdist, and the wheel from it; return the wheel."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(HERE)]
    done = run(*command, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(list(folder.glob("*.tar.gz"))) == 1
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def python(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel in a new environment, which borrows the dependencies of this one.

    A ``.pth`` file adds them to the path after the environment's own packages, so that the wheel
    takes precedence over the editable installation.
    """
    folder = tmp_path_factory.mktemp("venv")
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    done = run(
        sys.executable, "-m", "pip", f"--python={python}", "install", "--quiet", "--no-deps",
        "--no-index", built, cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (site,) = folder.glob("lib/python*/site-packages")
    lent = next(path for path in sys.path if path.endswith("site-packages"))
    (site / "lent.pth").write_text(lent + "\n", encoding="utf-8")
    return python


def test_the_wheel_has_the_package_and_nothing_else(built: Path) -> None:
    """Planted: devtools in the package list; py.typed left out; the old module left out."""
    with zipfile.ZipFile(built) as wheel:
        names = set(wheel.namelist())
        (metadata,) = (wheel.read(n).decode() for n in names if n.endswith(".dist-info/METADATA"))
    top = {name.partition("/")[0] for name in names}
    assert {t for t in top if not t.endswith(".dist-info")} == {
        "internal_chat_uploads.py",
        "molecule_workspace",
    }
    sources = HERE / "src" / "molecule_workspace"
    wanted = {f"molecule_workspace/{p.relative_to(sources)}" for p in sources.rglob("*.py")}
    assert wanted | {"molecule_workspace/py.typed"} <= names
    for line in (
        "License-Expression: Apache-2.0",
        "Requires-Python: >=3.11",
        "Provides-Extra: ingest",
        "Project-URL: Repository, https://github.com/molecule-ai/platform",
    ):
        assert line in metadata
    assert "Classifier: Operating System :: POSIX" in metadata
    assert "molecule-workspace connect" in metadata  # the README


def test_the_installed_command_works(python: Path, tmp_path: Path) -> None:
    """It prints its help, outside the checkout, and is the wheel's."""
    where = run(python, "-c", "import molecule_workspace as m; print(m.__file__)", cwd=tmp_path)
    assert Path(where.stdout.strip()).is_relative_to(python.parent.parent), where
    done = run(python.with_name("molecule-workspace"), "--help", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "connect" in done.stdout


def test_the_installed_package_is_typed(python: Path, tmp_path: Path) -> None:
    """A program passes mypy --strict. Planted: py.typed removed; ``Inbox`` untyped."""
    (tmp_path / "sample.py").write_text(SAMPLE, encoding="utf-8")
    done = run(
        sys.executable, "-m", "mypy", "--strict", "--python-executable", python, "sample.py",
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_without_the_extra_ingest_says_what_to_install(python: Path, tmp_path: Path) -> None:
    """Connect needs no web server; ingest without one ends with one sentence."""
    program = (
        "import sys\n"
        "class Missing:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in ('starlette', 'uvicorn'):\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Missing())\n"
        "import molecule_workspace, internal_chat_uploads\n"
        "from molecule_workspace.cli.main import main\n"
        "sys.exit(main(['ingest', '--secret-file', '/dev/null']))\n"
    )
    done = run(python, "-c", program, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "pip install 'molecule-workspace[ingest]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_rule_for_names_needs_no_installation(tmp_path: Path) -> None:
    """Existing programs import the old module from a checkout, with only the standard library."""
    program = (
        f"import sys; sys.path.insert(0, {str(HERE)!r})\n"
        "import internal_chat_uploads\n"
        "print(internal_chat_uploads.sanitize_filename('a b/ü.txt'))\n"
        "assert 'httpx' not in sys.modules\n"
    )
    done = run(sys.executable, "-I", "-S", "-c", program, cwd=tmp_path)
    assert done.stdout == "_.txt\n", done.stderr
