"""Python code as another user: of an id that is in no list of users, and without a home."""

import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

OTHER = 54321
"""A user id that no machine has a name for."""

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")

_HOME = {"HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME", "FLOWER_SPLIT_CACHE", "USER", "LOGNAME"}

# The interpreter may lie where only root may look: there, it alone is shown to the other user.
_SHOWN = """
set -e
aside=$(mktemp -d)
mount --bind "$2" "$aside"
mount -t tmpfs -o mode=755 tmpfs "$1"
mkdir -p "$2"
mount --bind "$aside" "$2"
umount "$aside"
rmdir "$aside"
shift 2
exec "$@"
"""


@contextmanager
def folder_of_other() -> Iterator[Path]:
    """A folder that the other user may write into `tmp` of only; removed at the end."""
    folder = Path(tempfile.mkdtemp(prefix="fs-other-", dir="/tmp"))
    folder.chmod(0o755)
    (folder / "tmp").mkdir()
    (folder / "tmp").chmod(0o1777)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def as_other_user(code: str, **environment: str) -> str:
    """What `code` prints; skips where it cannot be run so, and fails where it fails itself.

    Args:
        code: Python.
        environment: Further variables; no home is named otherwise.
    """
    user = ("setpriv", f"--reuid={OTHER}", f"--regid={OTHER}", "--clear-groups")
    command = [*_reaching(), *user, sys.executable, "-c"]
    given = {name: value for name, value in os.environ.items() if name not in _HOME}
    given |= {"PYTHONDONTWRITEBYTECODE": "1", **environment}

    def run(text: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, text],
            env=given,
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            check=False,
        )

    if run("import flower_split, flwr, safetensors").returncode:
        pytest.skip("no other user can be shown the interpreter and the package")
    done = run(textwrap.dedent(code))
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _reaching() -> list[str]:
    base = Path(sys.base_prefix)
    hidden = [one for one in (base, *base.parents) if not one.stat().st_mode & 0o001]
    if not hidden:
        return []
    return ["unshare", "-m", "bash", "-c", _SHOWN, "bash", str(hidden[-1]), str(base)]
