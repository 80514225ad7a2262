"""Nodes of the log are called by their silos' names, whoever writes the line."""

import logging

import pytest

from flower_split.strategies.hosting.named_nodes import silos_named

NODE, OTHER = 5441112843913619014, 17906000000000000001


@pytest.fixture
def handler(caplog):
    loggers = [logging.getLogger(name) for name in ("flwr", "flower_split")]
    for logger in loggers:
        logger.addHandler(caplog.handler)
        logger.setLevel(logging.INFO)
    yield caplog.handler
    for logger in loggers:
        logger.removeHandler(caplog.handler)


def test_lines_of_flower_and_our_own_name_the_silo(handler):
    names: dict[int, str] = {}
    flower, ours = logging.getLogger("flwr"), logging.getLogger("flower_split.server.tickets")
    with silos_named(lambda: names):
        flower.info("Received error in reply from node %d: %s", NODE, "node 7 of 100% of them")
        names[NODE] = "clinic-a"
        flower.info("Received error in reply from node %d: %s", NODE, "no field 'text'")
        ours.warning("node %d came with another certificate; node %d did not", NODE, OTHER)
        ours.warning("nodes %d, %d: no reply that counts", OTHER, NODE)
        names[NODE] = "clinic\n-a"
        ours.warning("node %d is gone", NODE)
    flower.info("node %d", NODE)
    told = list(dict.fromkeys(record.getMessage() for record in handler.records))
    assert told == [
        f"Received error in reply from node {NODE}: node 7 of 100% of them",
        "Received error in reply from silo clinic-a: no field 'text'",
        f"silo clinic-a came with another certificate; node {OTHER} did not",
        f"silo clinic-a and node {OTHER}: no reply that counts",
        f"node {NODE} is gone",
        f"node {NODE}",
    ]
