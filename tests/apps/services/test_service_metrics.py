"""What a trunk service tells Prometheus: what it does now and did so far, to whom it may."""

import socket
from types import SimpleNamespace

import httpx
import pytest

pytest.importorskip("prometheus_client")
pytest.importorskip("starlette")

from prometheus_client.parser import text_string_to_metric_families
from steps import run_config
from tiny_checkpoint import save_tiny_model
from trunk_services import at, learned, serving
from typer.testing import CliRunner

from flower_split.apps.cli import cli
from flower_split.apps.services.metrics_port import metrics_port
from flower_split.apps.services.service_metrics import PREFIX, ServiceMetrics
from flower_split.control.served_runs import RunFigures, ServiceFigures
from flower_split.errors import ConfigError
from flower_split.server.compute.queue import Computed

FREE = {"cuda:0": 3e9, "cuda:1": 5e9}
"""Bytes of devices."""


def told(metrics):
    """By name and labels, the service's own."""
    families = text_string_to_metric_families(metrics.text().decode())
    return {
        (one.name.removeprefix(PREFIX), *one.labels.values()): one.value
        for family in families
        for one in family.samples
    }


def computed(number):
    return Computed(passes=number, tokens=10 * number, seconds=number / 4)


def test_it_tells_of_every_run_and_of_those_that_were():
    runs = [
        RunFigures(name="0badcafe", sessions=2, waiting=1, room=512, computed=computed(4)),
        RunFigures(name="deadbeef", sessions=0, waiting=0, room=1024, computed=computed(8)),
    ]
    service = SimpleNamespace(
        figures=ServiceFigures(runs=runs, computed=computed(16), opened=3),
        model=SimpleNamespace(name="tiny"),
        is_draining=False,
        num_sessions=2,
        num_deliveries=1,
        trunk=SimpleNamespace(devices="cuda:0, cuda:1", unused_memory=lambda: FREE),
    )
    found = told(ServiceMetrics(service))
    assert found["model_info", "cuda:0, cuda:1", "tiny"] == 1
    for device, free in FREE.items():
        assert found["free_memory_bytes", device] == free
    assert found["runs",] == 2 and found["opened_runs_total",] == 3
    assert found["open_sessions",] == 2 and found["open_deliveries",] == 1
    assert found["passes_total",] == 16 and found["tokens_total",] == 160
    assert found["compute_seconds_total",] == 4
    assert (
        found["run_tokens_total", "0badcafe"] == 40 and found["run_room_bytes", "deadbeef"] == 1024
    )
    assert found["run_waiting", "0badcafe"] == 1


@pytest.mark.medium
def test_what_a_run_computed_counts_when_it_is_closed(tmp_path):
    values = run_config(save_tiny_model(tmp_path / "model", "llama"))
    with serving(values) as service:
        metrics = ServiceMetrics(service)
        assert told(metrics)["tokens_total",] == 0
        assert told(metrics)["free_memory_bytes", "cpu"] > 0
        learned(at(service, values))
        found = told(metrics)
        assert found["runs",] == 0 and found["opened_runs_total",] == 1
        assert found["passes_total",] > 0 and found["tokens_total",] > found["passes_total",]
        assert found["compute_seconds_total",] > 0 and found["draining",] == 0
        assert service.drain(1.0)
        assert told(metrics)["draining",] == 1


def test_health_is_told_to_anyone_and_figures_to_those_with_the_token(tmp_path):
    token = tmp_path / "token"
    token.write_text("a-token-of-some-length")
    token.chmod(0o600)
    draining = []
    with metrics_port(
        "127.0.0.1:0",
        lambda: b"figures 1\n",
        name="--metrics",
        is_draining=lambda: bool(draining),
        token_file=token,
    ) as where:
        address, _, words = where.partition(", ")
        assert str(token) in words
        health = address.removesuffix("/metrics") + "/health"
        assert httpx.get(health).text == "ok\n"
        draining.append(True)
        assert httpx.get(health).status_code == 503
        for wrong in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Basic x"}):
            assert httpx.get(address, headers=wrong).status_code == 403
        told = {"authorization": "Bearer a-token-of-some-length"}
        assert httpx.get(address, headers=told).text == "figures 1\n"
        assert httpx.post(address, headers=told).status_code == 405
    with pytest.raises(httpx.ConnectError):
        httpx.get(health)


def test_a_name_that_leads_to_loopback_is_no_reader_without_a_token():
    with metrics_port("127.0.0.1:0", lambda: b"", name="--metrics") as address:
        assert httpx.get(address, headers={"host": "evil.example"}).status_code == 403
        assert httpx.get(address).status_code == 200


def test_a_port_in_use_is_said_by_the_options_name(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with (
            pytest.raises(ConfigError, match=r"--metrics .* it is in use"),
            metrics_port(address, lambda: b"", name="--metrics"),
        ):
            pass
    wrong = CliRunner().invoke(cli, ["trunk", "serve", str(tmp_path), "--metrics", "9446"])
    assert wrong.exit_code == 2 and "--metrics must be host:port" in wrong.stderr
