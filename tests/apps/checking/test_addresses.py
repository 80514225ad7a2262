"""The trunk's address is tried where the check runs."""

import socket
from dataclasses import replace

import pytest
from toy_trunk import toy_config

from flower_split.apps.checking.addresses import look_at_addresses
from flower_split.apps.checking.findings import Findings
from flower_split.config.sections import TrunkConfig


def found(**trunk: object) -> list[tuple[str, str]]:
    findings = Findings()
    look_at_addresses(replace(toy_config(), trunk=TrunkConfig(**trunk)), findings)  # type: ignore[arg-type]
    return [(one.kind, one.text) for one in findings.all]


def test_loopback_is_free_and_only_for_this_machine() -> None:
    (first, second) = found()
    assert first == ("ok", "the trunk listens on 127.0.0.1, a free port")
    assert second[0] == "ok" and "loopback" in second[1]


def test_a_port_that_another_program_has() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        ((kind, text), *_) = found(port=taken.getsockname()[1])
    assert kind == "warning" and "Address already in use" in text


@pytest.mark.parametrize("host", ["no.such.host.invalid"])
def test_a_host_that_is_none(host: str) -> None:
    ((kind, text),) = found(host=host)
    assert kind == "problem" and host in text


def test_another_machines_address() -> None:
    ((kind, text), *_) = found(host="192.0.2.1")
    assert kind == "warning" and "another machine's" in text


def test_an_advertised_name() -> None:
    assert found(advertise="localhost:9443", port=0)[-1] == (
        "ok",
        "silos connect to localhost:9443",
    )
    kind, text = found(advertise="no.such.host.invalid:9443")[-1]
    assert kind == "warning" and "silos must know it" in text
