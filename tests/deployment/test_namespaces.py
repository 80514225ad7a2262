"""Different machines: server and silos in network namespaces with addresses of their own."""

from contextlib import nullcontext

import pytest
from federation import COMPLETED, Federation, Node
from namespaces import SERVER, machines, permitted, shaped, supports

from flower_split.reporting import read_result

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.slow,
    pytest.mark.skipif(not permitted(), reason="this user may not make network namespaces"),
]

ROUND_TRIP = 0.05
NETEM = ("netem", "delay", "25ms", "rate", "100mbit")
"""At both ends of every silo's cable."""


@pytest.fixture(scope="module")
def apart(tmp_path_factory):
    """A federation over TLS whose parties share no network but a bridge."""
    with machines(2) as (server, silos):
        nodes = [
            Node(config={"partition-id": number, "num-partitions": 2}, prefix=prefix)
            for number, prefix in enumerate(silos)
        ]
        folder = tmp_path_factory.mktemp("apart") / "home"
        with Federation(folder, nodes, tls=True, host=SERVER, prefix=server) as running:
            yield running


@pytest.fixture(scope="module")
def report(apart, tiny, tmp_path_factory):
    """Of a run between the machines, over cables that are slow where the kernel can do that."""
    output = tmp_path_factory.mktemp("output")
    ports = set(apart.listening())
    with shaped(2, *NETEM) if supports(*NETEM) else nullcontext():
        ended = apart.run(tiny.app, trunk__host=SERVER, output_dir=str(output))
    assert ended.status == COMPLETED, f"{ended}\n{apart.logs()}"
    apart.assert_idle(ports)
    return read_result(output / "result.json")


def test_a_round_between_machines(report):
    assert report.silos == ["0", "1"] and report.rounds[-1].failures == {}


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("advertised", "said"),
    [
        pytest.param("10.213.77.99:9443", "10.213.77.99:9443", marks=pytest.mark.exhaustive),
        pytest.param("trunk.invalid:9443", "cannot be resolved", marks=pytest.mark.exhaustive),
        ("127.0.0.1:9443", "refused"),
    ],
)
def test_an_address_that_no_silo_reaches_is_named(apart, tiny, advertised, said):
    """The last one is the server's own loopback, which every silo takes for its own."""
    ports = set(apart.listening())
    one_silo = {"strategy__fraction_train": 0.5, "strategy__min_nodes": 1}
    address = {"trunk__host": SERVER, "trunk__advertise": advertised}
    ended = apart.run(tiny.app, trunk__connect_timeout=5.0, **address, **one_silo)
    assert ended.status == "finished:failed"
    assert advertised in ended.details and said in ended.details
    assert "trunk.advertise" in ended.details
    apart.assert_idle(ports)


@pytest.mark.exhaustive
@pytest.mark.skipif(
    not supports(*NETEM), reason="this kernel has no netem (tc qdisc add … netem), or tc is missing"
)
def test_a_round_over_a_slow_network(report):
    """Every pass through the trunk waits for a round trip, and says so."""
    last = report.rounds[-1]
    assert set(last.train_counters) == {"0", "1"}
    for told in last.train_counters.values():
        assert told["seconds-waiting"] >= told["optimizer-steps"] * ROUND_TRIP
