"""The recipe of a way to read data, followed by a package outside flower_split."""

import csv
import json
from pathlib import Path

import pytest
import torch
from in_process_grid import InProcessGrid
from outside_package import install
from tiny_checkpoint import save_tiny_run, tiny_run_config

from flower_split.apps.client_app import app as client_app
from flower_split.apps.server_run import serve_run
from flower_split.data.files import read_file
from flower_split.errors import DataError

GROUP = "flower_split.readers"
CODE = """
import csv
from collections.abc import Iterator
from pathlib import Path


def read_piped(content: bytes, path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    rows = csv.DictReader(content.decode().splitlines(), delimiter="|")
    for row in rows:
        yield rows.line_num, row


def read_nothing(content: bytes, path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    yield from ()


def read_texts(content: bytes, path: Path) -> Iterator[str]:
    yield content.decode()


def fail(content: bytes, path: Path) -> Iterator[str]:
    raise RuntimeError(content.decode())
"""


@pytest.mark.medium
def test_a_reader_of_another_package_reads_a_silos_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin = {GROUP: {"psv": "pipe_reader:read_piped"}}
    monkeypatch.syspath_prepend(str(install(tmp_path / "site", "pipe_reader", plugin, CODE)))
    save_tiny_run(tmp_path)
    lines = (tmp_path / "texts.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    with (tmp_path / "texts.PSV").open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, rows[0], delimiter="|")
        table.writeheader()
        table.writerows(rows)
    assert read_file(tmp_path / "texts.PSV").where(1) == f"{tmp_path / 'texts.PSV'}, line 3"

    adapters = []
    for name in ("texts.jsonl", "texts.PSV"):
        changes = {"num-server-rounds": 1, "data.path": str(tmp_path / name)}
        config = tiny_run_config(tmp_path, **changes)
        result = serve_run(InProcessGrid(client_app, 3, run_config=config), config)
        adapters.append(result.arrays.to_torch_state_dict())
    assert all(torch.equal(tensor, adapters[1][name]) for name, tensor in adapters[0].items())


@pytest.mark.parametrize(
    ("ending", "target", "said"),
    [
        ("odd", "no_such_module:read", "cannot be imported from no_such_module:read"),
        ("odd", "broken_reader:__name__", "must be read by a function, not by a str"),
        ("odd", "broken_reader:read_nothing", "is empty: it has 6 bytes and no example"),
        ("odd", "broken_reader:read_texts", "a mapping of fields, and yielded a str"),
        ("odd", "broken_reader:fail", "failed with RuntimeError"),
        *(
            (ending, "broken_reader:read_piped", "the name of one of flower_split's own")
            for ending in ("txt", "csv", "parquet")
        ),
    ],
)
def test_a_broken_reader_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str, target: str, said: str
) -> None:
    install(tmp_path / "site", "broken_reader", {GROUP: {ending: target}}, CODE)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    path = tmp_path / f"silo.{ending}"
    path.write_text("secret")
    with pytest.raises(DataError, match=said) as caught:
        read_file(path)
    assert str(path) in str(caught.value) and "secret" not in str(caught.value)


def test_two_packages_with_one_ending_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("first_reader", "second_reader"):
        install(tmp_path / "site", package, {GROUP: {"psv": f"{package}:read_piped"}}, CODE)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    (tmp_path / "silo.psv").write_text("text\n")
    with pytest.raises(DataError, match="first_reader and second_reader"):
        read_file(tmp_path / "silo.psv")


def test_an_unknown_ending_is_answered_with_those_of_plugins_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin = {GROUP: {"psv": "known_reader:read_piped"}}
    monkeypatch.syspath_prepend(str(install(tmp_path, "known_reader", plugin, CODE)))
    (tmp_path / "silo.xml").write_text("<text/>")
    with pytest.raises(DataError, match=r"'\.xml'; expected one of .*\.jsonl.*\.psv"):
        read_file(tmp_path / "silo.xml")
