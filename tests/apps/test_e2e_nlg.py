"""The app with another model and real instruction data: a pretrained model learns the E2E task.

The split run must reach what plain PEFT reaches on the uncut model from the same start, batches
and optimizer. Model and data are looked for beside the repository and never downloaded.
"""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from flwr.app import Context, RecordDict
from in_process_grid import RUN_ID, InProcessGrid
from peft import PeftModel, get_peft_model, set_peft_model_state_dict
from peft.utils import get_peft_model_state_dict
from transformers import AutoModelForCausalLM, get_linear_schedule_with_warmup

from flower_split.adapters import initial_state, resolve_lora
from flower_split.apps.client_app import app as client_app
from flower_split.apps.server_app import app as server_app
from flower_split.client.node_config import NodeConfig
from flower_split.client.silo_data import silo_batches
from flower_split.config.run_config import read_run_config
from flower_split.reporting import read_result
from flower_split.training import evaluate

SHARED = Path(__file__).parents[3] / "shared" / "data"
MODEL, DATA = SHARED / "models" / "stories260K", SHARED / "datasets" / "e2e_nlg"
RATE = 1e-2

pytestmark = pytest.mark.skipif(not MODEL.is_dir(), reason=f"there is no {MODEL}")

RUN_CONFIG = {
    "model.name": str(MODEL),
    "data.path": str(DATA / "train.jsonl"),
    "data.eval-path": str(DATA / "valid.jsonl"),
    "data.prompt": "mr",
    "data.text": "text",
    "data.partitioner": "none",
    "lora.r": 8,
    "split.bottom-layers": 1,
    "split.top-layers": 1,
    "data.max-examples": 1000,
    "train.batch-size": 16,
    "train.learning-rate": RATE,
    # At a constant rate the loss still moves by several percent from one step to the next.
    "train.schedule": "linear",
    "num-server-rounds": 1,
    "strategy.min-nodes": 1,
}


def _train_uncut(model, batches):
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=RATE, weight_decay=0.0)
    schedule = get_linear_schedule_with_warmup(optimizer, 0, len(batches))
    model.train()
    for batch in batches:
        model(**batch, use_cache=False).loss.backward()
        torch.nn.utils.clip_grad_norm_(trainable, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()


def _losses(folder, codec):
    """Held-out losses before and after an epoch with `codec` on all hops."""
    wire = {f"wire.{hop}": codec for hop in ("h1", "h2", "g2", "g1")}
    run_config = {**RUN_CONFIG, **wire, "output-dir": str(folder)}
    grid = InProcessGrid(client_app, 1, run_config=run_config)
    server_app(grid, Context(RUN_ID, 1, {}, RecordDict(), dict(run_config)))
    return [loss for _, loss in read_result(folder / "result.json").losses("0")]


@pytest.fixture(scope="module")
def exact(tmp_path_factory):
    """`folder` and `losses` of the run whose wire rounds nothing."""
    folder = tmp_path_factory.mktemp("exact")
    return SimpleNamespace(folder=folder, losses=_losses(folder, "fp32"))


@pytest.mark.exhaustive
@pytest.mark.timeout(900)
def test_an_int8_wire_ends_where_a_float32_wire_ends(exact, tmp_path):
    _, coarse = _losses(tmp_path, "int8")
    assert coarse != exact.losses[-1]
    assert coarse <= 1.01 * exact.losses[-1]


@pytest.mark.exhaustive
@pytest.mark.timeout(900)
def test_the_split_reaches_what_plain_peft_reaches(exact):
    before, after = exact.losses
    config = read_run_config(RUN_CONFIG)
    silo = silo_batches(config, NodeConfig(partition_id=0, num_partitions=1))
    base = AutoModelForCausalLM.from_pretrained(MODEL)
    plan = resolve_lora(base, config.lora)
    start = initial_state(base, config.lora, seed=config.seed)
    uncut = get_peft_model(base, plan.peft_config())
    set_peft_model_state_dict(uncut, start)
    assert evaluate(uncut, silo.held_out()).loss == pytest.approx(before, rel=1e-6)
    _train_uncut(uncut, list(silo.train(1)))
    assert evaluate(uncut, silo.held_out()).loss == pytest.approx(after, rel=1e-5)

    base = AutoModelForCausalLM.from_pretrained(MODEL)
    exported = get_peft_model_state_dict(PeftModel.from_pretrained(base, exact.folder / "adapter"))
    for name, tensor in get_peft_model_state_dict(uncut).items():
        largest = tensor.abs().max()
        assert (exported[name] - tensor).abs().max() <= 1e-6 * largest, name

    perplexities = torch.tensor([before, after]).exp().tolist()
    assert perplexities[0] > 70
    assert perplexities[1] < 2.8
