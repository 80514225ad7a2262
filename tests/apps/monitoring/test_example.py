"""The example's queries ask for metrics that a run has, and its files name one another."""

import json
import re
from pathlib import Path

import pytest

pytest.importorskip("prometheus_client")

from prometheus_client.parser import text_string_to_metric_families

from flower_split.reporting.live import RunView
from flower_split.reporting.live.metrics import SILO_STATES, RunMetrics

FOLDER = Path(__file__).parents[3] / "examples" / "monitoring"
KNOWN = {
    name
    for family in text_string_to_metric_families(RunMetrics().text(RunView()).decode())
    for name in (family.name, f"{family.name}_total" if family.type == "counter" else family.name)
}


def test_boards_and_alerts_ask_for_metrics_that_there_are():
    board = json.loads((FOLDER / "grafana" / "board.json").read_text())
    asked = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    asked += re.findall(r"expr: (.*)", (FOLDER / "alerts.yml").read_text())
    names = {name for expr in asked for name in re.findall(r"flower_split_\w+", expr)}
    assert len(asked) > 12 and names <= KNOWN
    states = {one for expr in asked for one in re.findall(r'silos\{state=~?"([^"]*)"', expr)}
    assert {state for one in states for state in one.split("|")} <= {*SILO_STATES}


def test_every_file_that_is_mounted_is_there():
    mounted = re.findall(r"- (\./[\w./]+):", (FOLDER / "compose.yaml").read_text())
    assert len(mounted) == 5 and all((FOLDER / name).is_file() for name in mounted)
