"""A run whose silos demand evidence is the run without, or its silos send nothing."""

import sys

import pytest
import torch
from evidence import attester
from outside_package import install
from split_run import run_split
from steps import run_config
from tiny_checkpoint import save_tiny_model

from flower_split.errors import RoundError

DEMANDS = {"trunk-verifier": "double"}


@pytest.fixture
def plug_ins(tmp_path, monkeypatch):
    """The double, as a package of somebody else's."""
    groups = {
        "flower_split.attesters": {"double": "evidence:attester"},
        "flower_split.verifiers": {"double": "evidence:verifier"},
    }
    monkeypatch.syspath_prepend(str(install(tmp_path / "packages", "of_the_double", groups)))
    assert attester.__module__ in sys.modules


@pytest.mark.medium
def test_a_run_with_evidence_is_the_run_without(tmp_path, plug_ins):
    values = run_config(save_tiny_model(tmp_path / "model", "llama"))
    without, _ = run_split(values)
    attested, _ = run_split({**values, "trunk.attester": "double"}, node_config=DEMANDS)
    assert [record.failure for record in attested.history if record.failure] == []
    for name, tensor in without.adapter.items():
        assert torch.equal(torch.as_tensor(attested.adapter[name]), torch.as_tensor(tensor)), name


@pytest.mark.medium
def test_without_evidence_no_session_is_opened(tmp_path, plug_ins):
    values = run_config(save_tiny_model(tmp_path / "model", "llama"))
    with pytest.raises(RoundError, match=r"no attester .*trunk\.attester"):
        run_split(values, node_config=DEMANDS)
    plain = {**values, "tls.mode": "off", "trunk.attester": "double"}
    with pytest.raises(RoundError, match="there is none of a channel without TLS"):
        run_split(plain, node_config=DEMANDS)
