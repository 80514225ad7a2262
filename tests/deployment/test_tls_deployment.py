"""A real deployment: SuperLink with TLS and SuperNode authentication, two SuperNodes, one round."""

import re
from types import SimpleNamespace

import pytest
import torch
from benchmark_scripts import load_benchmark
from peft import PeftModel
from transformers import AutoModelForCausalLM

from flower_split.reporting import read_result

pytestmark = [pytest.mark.timeout(600), pytest.mark.slow]

round_cost = load_benchmark("round_cost")


@pytest.fixture(scope="module")
def a_round(over_tls, tmp_path_factory):
    """`folder` of a run of one round, its `report`, and the `log` of its ServerApp.

    The run is the benchmark's of a round's cost.
    """
    folder = tmp_path_factory.mktemp("round")
    ports = set(over_tls.listening())
    ended = round_cost.run(over_tls, folder, 1)
    over_tls.assert_idle(ports)
    report = read_result(folder / "output" / "result.json")
    return SimpleNamespace(folder=folder, report=report, log=over_tls.run_log(ended.run_id))


def test_a_round_over_tls_yields_an_adapter_that_loads(a_round):
    said = a_round.log
    assert re.search(r"the trunk listens on 127\.0\.0\.1:\d+, TLS", said), said
    assert a_round.report.silos == ["0", "1"]
    assert a_round.report.rounds[-1].failures == {}
    base = AutoModelForCausalLM.from_pretrained(a_round.folder / "model")
    ids = torch.arange(4, 12)[None]
    before = base(ids).logits
    adapted = PeftModel.from_pretrained(base, a_round.folder / "output" / "adapter")
    assert not torch.equal(adapted(ids).logits, before)


def test_a_real_round_is_taken_apart(a_round):
    parts = round_cost.breakdown(a_round.report.rounds[-1])
    assert set(parts) == set(round_cost.PARTS) and all(value >= 0 for value in parts.values())
