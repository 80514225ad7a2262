"""A federated run on quantized weights equals plain Flower on the model quantized alike."""

from functools import partial

import pytest
import uncut_model
from flwr.serverapp.strategy import FedAvg
from quantized_models import quantized
from split_run import TOLERANCE, failed_rounds, largest_difference, run_split
from steps import KEEPING, SILOS, run_config
from tiny_models import tiny_model
from uncut_run import run_uncut, uncut_app

pytest.importorskip("bitsandbytes")
pytest.importorskip("torchao")

LONG = {"max_position_embeddings": 256}
ROUNDS = KEEPING["num-server-rounds"]
LORA = {"targets": KEEPING["lora.target-modules"]}


def fedavg():
    return FedAvg(fraction_evaluate=0.0, min_train_nodes=SILOS)


@pytest.mark.slow
@pytest.mark.sampled(keep=1)
@pytest.mark.parametrize("kind", ["nf4", "int8", "torchao-int8"])
def test_every_adapter_tensor_equals_that_of_the_uncut_run(kind, tmp_path):
    folder = tmp_path / "model"
    tiny_model(layers=4, hidden_size=64, intermediate_size=128, **LONG).save_pretrained(folder)
    initial = uncut_model.initial_arrays(folder, **LORA)

    values = run_config(folder, **{**KEEPING, "model.quantization": kind})
    ours, _ = run_split(values, fedavg(), initial)
    assert failed_rounds(ours) == set()
    app = uncut_app(
        folder,
        config=run_config(folder, **KEEPING),
        loras={**LORA, "base": partial(quantized, kind=kind)},
    )
    theirs, _ = run_uncut(fedavg(), app, initial, rounds=ROUNDS)
    ours, theirs = (result.arrays.to_torch_state_dict() for result in (ours, theirs))
    assert largest_difference(ours, theirs) <= TOLERANCE
