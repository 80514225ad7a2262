"""The live page's own process beside a run."""

import socket

import httpx
import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")

from flower_split.apps.monitoring.beside import monitor_beside
from flower_split.errors import ConfigError


@pytest.mark.medium
def test_it_serves_the_page_and_metrics_until_the_run_ends(run, log, loss):
    with monitor_beside(run, "127.0.0.1:0") as (address,):
        assert "tiny-model" in httpx.get(address).text
        told = httpx.get(f"{address}metrics")
        assert told.headers["content-type"].startswith("text/plain; version=")
        assert 'flower_split_silo_loss{purpose="evaluate",silo="north"} 3.25' in told.text
        assert httpx.get(f"{address}health").text == "ok\n"
    with pytest.raises(httpx.ConnectError):
        httpx.get(address)


@pytest.mark.medium
def test_a_port_in_use_is_said_by_its_key(run):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with (
            pytest.raises(ConfigError, match=f"monitor-address {address} .*it is in use"),
            monitor_beside(run, address),
        ):
            pass


@pytest.mark.medium
def test_other_addresses_than_loopback_need_a_token_that_no_log_has(
    run, log, monkeypatch, tmp_path
):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    with monitor_beside(run, "0.0.0.0:0") as told:
        token = (tmp_path / "state" / "flower-split" / "monitor-token").read_text().strip()
        assert token not in " ".join(told) and "monitor-token" in told[0]
        port = told[1].rstrip("/").rpartition(":")[2]
        metrics = f"http://127.0.0.1:{port}/metrics"
        assert httpx.get(metrics).status_code == 403
        admitted = httpx.get(metrics, headers={"authorization": f"Bearer {token}"})
        assert admitted.status_code == 200 and "flower_split_round" in admitted.text
