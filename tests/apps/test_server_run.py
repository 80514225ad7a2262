"""The start of a run on the server: what it refuses before any silo hears of it."""

from dataclasses import replace

import pytest
from flwr.supercore.run import Run

from flower_split.apps.client_app import app as client_app
from flower_split.apps.in_process import InProcessGrid
from flower_split.apps.server_run import serve_run
from flower_split.errors import ConfigError

PROJECT = '[tool.flwr.app]\npublisher = "tests"\n'


def test_an_app_that_brought_data_along_is_refused_before_a_silo_gets_it(tmp_path, monkeypatch):
    monkeypatch.setenv("FLWR_HOME", str(tmp_path))
    unpacked = tmp_path / "apps" / "tests.notes.0.0.1.abcdef12"
    (unpacked / "data").mkdir(parents=True)
    (unpacked / "pyproject.toml").write_text(PROJECT)
    (unpacked / "data/notes.jsonl").write_text("a patient\n")
    grid = InProcessGrid(client_app, 2)
    grid.set_run(
        replace(
            Run.create_empty(7), fab_id="tests/notes", fab_version="0.0.1", fab_hash="abcdef1234"
        )
    )
    sent = []
    monkeypatch.setattr(grid, "push_messages", sent.append)
    with pytest.raises(ConfigError, match=r"data/notes.jsonl \(10 B, examples\)"):
        serve_run(grid, {"model.name": "flower_split.quickstart:base"})
    assert not sent
