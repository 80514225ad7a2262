"""Keys are made once, for their owner only; what is in the way, or missing, is one sentence."""

import stat

import pytest
from typer.testing import CliRunner

from flower_split.apps.cli import cli


def keys(*words):
    return CliRunner().invoke(cli, ["keys", *map(str, words)])


def test_keys_are_their_owners_and_are_never_replaced(tmp_path):
    folder = tmp_path / "keys"
    for words in (
        ["ca", folder],
        ["server", folder, "host.example", "::1"],
        ["silo", folder, "one"],
        ["silo-certificate", folder, "one"],
        ["strategy", folder, "north"],
    ):
        made = keys(*words)
        assert made.exit_code == 0, made.output
        assert all(str(folder) in line for line in made.stdout.splitlines())
        again = keys(*words)
        assert again.exit_code == 1 and "exists already" in again.stderr
        assert "PRIVATE" not in made.output + again.output
    private = sorted(path.name for path in folder.glob("*.key"))
    names = ["ca.key", "north-strategy.key", "one-trunk.key", "one.key", "server.key"]
    assert private == names
    assert all(stat.S_IMODE((folder / name).stat().st_mode) == 0o600 for name in private)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_without_an_authority_it_says_how_to_make_one(tmp_path):
    failed = keys("server", tmp_path, "host.example")
    assert failed.exit_code == 1 and f"flower-split keys ca {tmp_path}" in failed.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["../one", "a b", ".hidden", "-x", "", "müller"])
def test_a_name_that_is_no_files_is_refused(tmp_path, name):
    failed = keys("silo", tmp_path, "--", name)
    assert failed.exit_code == 2 and "names files" in failed.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_authority_is_one_sentence(tmp_path):
    keys("ca", tmp_path)
    (tmp_path / "ca.crt").write_text("nothing")
    failed = keys("strategy", tmp_path, "north")
    assert failed.exit_code == 1 and "no keys can be made in" in failed.stderr
    assert "Traceback" not in failed.output
