"""`flower-split serve`: what it refuses before it loads anything, and its end."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from tuned import save_tuned_run
from typer.testing import CliRunner

from flower_split.apps.cli import cli
from flower_split.apps.serving.server import read_key
from flower_split.errors import ConfigError


def serve(*arguments):
    done = CliRunner().invoke(cli, ["serve", *map(str, arguments)])
    assert done.exception is None or isinstance(done.exception, SystemExit)
    return done.exit_code, done.stdout, done.stderr


def test_a_port_that_is_taken_is_said() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        status, out, err = serve("/nowhere", "--port", other.getsockname()[1])
    assert (status, out) == (1, "") and "--port" in err and "in use" in err


@pytest.mark.parametrize(
    ("arguments", "ends_with", "says"),
    [
        (["--host", "0.0.0.0"], 2, "--api-key-file"),
        (["--api-key-file", "/nowhere/key"], 1, "cannot be read"),
        (["--host", "no.such.host.invalid", "--api-key-file", "KEY"], 1, "cannot listen"),
        (["--port", "0"], 1, "there is no folder"),
    ],
)
def test_what_is_wrong_is_said_first(tmp_path, arguments, ends_with, says) -> None:
    key = tmp_path / "key"
    key.write_text("k" * 32)
    key.chmod(0o600)
    status, out, err = serve("/nowhere/run", *(str(key) if a == "KEY" else a for a in arguments))
    assert (status, out) == (ends_with, "") and says in err and err.startswith("error: ")


@pytest.mark.parametrize(
    ("content", "mode", "says"),
    [
        (b"short", 0o600, "16 to 512"),
        (b"", 0o600, "16 to 512"),
        (b"k" * 600, 0o600, "16 to 512"),
        (b"two words are no key", 0o600, "without blanks"),
        (b"k" * 20 + b"\n" + b"k" * 20, 0o600, "one line"),
        (b"k" * 32, 0o644, "chmod 600"),
    ],
)
def test_a_key_is_checked(tmp_path: Path, content: bytes, mode: int, says: str) -> None:
    path = tmp_path / "key"
    path.write_bytes(content)
    path.chmod(mode)
    with pytest.raises(ConfigError, match=says):
        read_key(path)


def test_a_key_is_read_without_its_line_end(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_bytes(b"k" * 32 + b"\n")
    path.chmod(0o600)
    assert read_key(path) == "k" * 32


@pytest.mark.slow
def test_it_serves_until_it_is_interrupted(tmp_path) -> None:
    run = save_tuned_run(tmp_path)
    command = [sys.executable, "-m", "flower_split.apps.cli", "serve", str(run), "--port", "0"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ}
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            address = line.removeprefix("serving at ").partition(";")[0]
            body = {"prompt": "the sum", "max_tokens": 4}
            reply = httpx.post(f"{address}/completions", json=body, timeout=200, trust_env=False)
            assert reply.json()["usage"]["completion_tokens"] == 4
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=200)
        finally:
            process.kill()
    assert process.returncode == 130
    assert err.endswith("interrupted; the server has ended\n") and "Traceback" not in err
