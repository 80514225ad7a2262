"""Real runs with the filter: honest ones are as without it, and a hostile silo is left out."""

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, MetricRecord
from in_process_grid import FIRST_NODE
from split_run import failed_rounds, run_split
from steps import run_config
from tiny_checkpoint import save_tiny_model

MIXED = [{"r": 2, "alpha": 4.0}, {"r": 4, "alpha": 16.0}, {"r": 6, "alpha": 6.0}]
HOSTILE = 1
CASES = {
    "fedavglora": ("fedavglora", None, {}),
    "flora, mixed": ("flora", MIXED, {}),
    "scaffoldlora": ("scaffoldlora", None, {}),
    "prompt": (
        "fedavg",
        None,
        {
            "peft.type": "PROMPT_TUNING",
            "peft.num-virtual-tokens": 4,
            "train.max-length": 16,
            "trunk.adapters": "frozen",
            **{"lora.r": 8, "lora.alpha": 16, "lora.target-modules": "all-linear"},  # none is used
        },
    ),
    "hetlora, mixed": ("hetlora", MIXED, {}),
    "fedsalora": ("fedsalora", None, {}),
    "rolora": ("rolora", None, {}),
    "dora": ("fedmedian", None, {"peft.use-dora": True}),
    "personal": ("fedavg", None, {"strategy.personal": "layers.1, layers.3"}),
    "shared": ("fedavg", None, {"trunk.adapters": "shared"}),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture
def run(folder, monkeypatch, tmp_path):
    """A run of two rounds without evaluations, whose silos know nothing of another one's."""
    numbers = iter(range(9))

    def started(name, mode, **options):
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / str(next(numbers))))
        return run_case(folder, name, mode, **options)

    return started


def run_case(folder, name, mode, **options):
    strategy, loras, changes = CASES[name]
    changes = {"strategy.fraction-evaluate": 0.0, "strategy.min-replies": 2, **changes}
    values = run_config(folder, **{"strategy.name": strategy, "strategy.filter": mode}, **changes)
    return run_split({**values, "strategy.filter-share": 1.0}, loras=loras, **options)[0]


def times_a_thousand(reply):
    """For `InProcessGrid`: one silo's part is far off, and it tells a million examples."""
    if reply.metadata.src_node_id == FIRST_NODE + HOSTILE and not reply.has_error():
        content = reply.content
        for name, arrays in list(content.array_records.items()):
            far = {n: Array(np.float32(1000) * (a.numpy() + 1)) for n, a in arrays.items()}
            content[name] = ArrayRecord(far)
        for name, metrics in list(content.metric_records.items()):
            content[name] = MetricRecord({**dict(metrics.items()), "num-examples": 10**6})
    return [reply]


def failing(message, context):
    if context.node_config["partition-id"] == HOSTILE:
        raise OSError("no disk")


def bits(result):
    return {name: array.numpy().tobytes() for name, array in result.arrays.items()}


@pytest.mark.slow
@pytest.mark.sampled(keep=1)
@pytest.mark.parametrize("name", CASES)
def test_honest_silos_pass_and_a_hostile_one_is_as_if_it_had_failed(run, name):
    plain, filtered = (run(name, mode) for mode in ("off", "refuse"))
    assert failed_rounds(filtered) == failed_rounds(plain) == set()
    assert bits(filtered) == bits(plain)
    ran = run(name, "refuse", tamper=times_a_thousand)
    assert failed_rounds(ran) == {(HOSTILE, 1), (HOSTILE, 2)}
    assert all("round's median" in r.failure for r in ran.history if r.failure)
    if CASES[name][2].get("trunk.adapters") != "shared":  # which it has stepped already
        assert bits(ran) == bits(run(name, "off", before=failing))
