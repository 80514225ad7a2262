"""A silo's failure reaches the server as one sentence with its name; nothing prints a traceback."""

import logging

import pytest
from flwr.app import Context, RecordDict
from in_process_grid import RUN_ID, InProcessGrid

from flower_split.apps.answering import answering, silo_name
from flower_split.apps.client_app import app as client_app
from flower_split.apps.debugging import DEBUG, WithoutTracebacks
from flower_split.apps.server_app import app as server_app
from flower_split.errors import DataError, RoundError
from flower_split.reporting import read_result


def context_of(**node_config):
    return Context(1, 42, node_config, RecordDict(), {})


@pytest.mark.parametrize(
    ("node_config", "name"),
    [
        ({"silo": "north"}, "north"),
        ({"partition-id": 0}, "0"),
        ({}, "42"),
        ({"silo": "o'brien\n"}, "obrien "),
    ],
)
def test_the_name_of_a_silo(node_config, name):
    assert silo_name(context_of(**node_config)) == name


def run(run_config, **grid):
    in_process = InProcessGrid(client_app, 3, run_config=run_config, **grid)
    server_app(in_process, Context(RUN_ID, 1, {}, RecordDict(), dict(run_config)))


def test_missing_data_is_said_once_for_all_silos_and_without_a_traceback(
    run_config, caplog, tmp_path
):
    values = {**run_config, "data.path": "/nowhere.jsonl", "output-dir": str(tmp_path)}
    with caplog.at_level(logging.INFO), pytest.raises(RoundError) as caught:
        run(values)
    said = str(caught.value)
    assert said.count("/nowhere.jsonl") == 1
    assert "- silos 0, 1, 2: " in said
    assert "Traceback" not in caplog.text
    # The result names the silos too, though none has opened a session.
    assert read_result(tmp_path / "result.json").silos == ["0", "1", "2"]


def test_one_silo_that_fails_is_named_and_the_run_goes_on(run_config, caplog, tmp_path):
    values = {**run_config, "output-dir": str(tmp_path)}
    nodes = [{}, {"silo": "north", "data-path": "no.module:nothing"}, {}]
    with caplog.at_level(logging.WARNING):
        run(values, node_config=nodes)
    warned = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    counted = [text for text in warned if text.startswith("silo north: no reply that counts: ")]
    assert counted and "no.module" in counted[0]
    failures = [one.failures for one in read_result(tmp_path / "result.json").rounds]
    assert all({*found} == {"north"} for found in failures)
    assert not any("silo 'north'" in found["north"] for found in failures)


def test_an_error_that_is_not_ours_stays_as_it_is():
    def broken(_message, _context):
        raise KeyError("x")

    with pytest.raises(KeyError):
        answering(broken)(None, context_of())


@pytest.mark.parametrize("debug", ["", "1"])
def test_flowers_log_has_no_traceback_of_our_errors_unless_asked(debug, monkeypatch, caplog):
    monkeypatch.setenv(DEBUG, debug)
    logger = logging.getLogger("flower_split.test")
    quiet = WithoutTracebacks()
    logger.addFilter(quiet)
    try:
        try:
            raise DataError("the file is empty")
        except DataError as error:
            logger.error("%s raised an exception", "ServerApp", exc_info=error)
            logger.error("Traceback (most recent call last):\n …")
        try:
            raise KeyError("x")
        except KeyError as error:
            logger.error("a bug", exc_info=error)
    finally:
        logger.removeFilter(quiet)
    assert ("DataError" in caplog.text) == bool(debug)
    assert ("ServerApp raised an exception: the file is empty" in caplog.text) != bool(debug)
    assert caplog.text.count("Traceback") == (3 if debug else 1)  # of the bug
