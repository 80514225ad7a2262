"""A real deployment: SuperLink with TLS and SuperNode authentication, two SuperNodes, one round."""

import re

import pytest
import torch
from federation import COMPLETED, Federation, Node, write_app
from peft import PeftModel
from tiny_checkpoint import save_texts, save_tiny_model
from transformers import AutoModelForCausalLM

from flower_split.reporting import read_result

pytestmark = [pytest.mark.timeout(600), pytest.mark.slow]


def test_a_round_over_tls_yields_an_adapter_that_loads(tmp_path):
    model = save_tiny_model(tmp_path / "model")
    config = {
        "model.name": str(model),
        "data.path": str(save_texts(tmp_path / "texts.jsonl")),
        "data.eval-fraction": 0.25,
        "train.batch-size": 3,
        "train.learning-rate": 1e-2,
        "train.max-length": 16,
        "lora.r": 2,
        "num-server-rounds": 1,
        "evaluate-initial": False,
        "output-dir": str(tmp_path / "output"),
    }
    app = write_app(tmp_path / "app", config)
    nodes = [Node(config={"partition-id": i, "num-partitions": 2}) for i in range(2)]
    with Federation(tmp_path / "federation", nodes, tls=True) as federation:
        ports = set(federation.listening())
        ended = federation.run(app)
        assert ended.status == COMPLETED, f"{ended}\n{federation.logs()}"
        federation.assert_idle(ports)
        said = federation.run_log(ended.run_id)
        assert re.search(r"the trunk listens on 127\.0\.0\.1:\d+, TLS", said), said
    report = read_result(tmp_path / "output" / "result.json")
    assert report.silos == ["0", "1"]
    assert report.rounds[-1].failures == {}
    base = AutoModelForCausalLM.from_pretrained(model)
    ids = torch.arange(4, 12)[None]
    before = base(ids).logits
    adapted = PeftModel.from_pretrained(base, tmp_path / "output" / "adapter")
    assert not torch.equal(adapted(ids).logits, before)
