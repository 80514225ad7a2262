"""The proof for LoRA strategies: a split run equals an unsplit one, adapter for adapter."""

import pytest
import torch
from split_run import TOLERANCE, largest_difference, run_split
from steps import run_config
from tiny_checkpoint import save_tiny_model
from uncut_model import initial_arrays
from uncut_run import exchange_in, run_uncut, uncut_app

from flower_split.config.run_config import read_run_config
from flower_split.strategies import INNER_STRATEGIES, LoraStrategy, build_inner

ROUNDS = 2  # the second resumes from all that the first one left
NAMES = sorted(
    name
    for name, kind in INNER_STRATEGIES.items()
    if isinstance(kind, type) and issubclass(kind, LoraStrategy)
)
MIXING = [name for name in NAMES if INNER_STRATEGIES[name].mixed_ranks]
ALPHAS = [{"alpha": 4.0}, {"alpha": 8.0}, {"alpha": 32.0}]
MIXED = [{"r": 2, "alpha": 4.0}, {"r": 4, "alpha": 16.0}, {"r": 6, "alpha": 6.0}]

CASES = [
    *((name, None, {}) for name in [*NAMES, "fedprox"]),
    *((name, MIXED, {}) for name in MIXING),
    ("fedavglora", ALPHAS, {}),
    ("flora", MIXED, {"lora.rslora": True}),
    ("fedavg", None, {"strategy.personal": "layers.1, layers.3"}),
    ("flexlora", MIXED, {"strategy.personal": "layers.1, layers.3"}),
    ("scaffoldlora", None, {"strategy.proximal-mu": 0.5, "train.max-grad-norm": 0.05}),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("models") / "llama")


def uncut_loras(values, loras):
    """Arguments of `peft_model` by partition."""
    config = read_run_config(values)
    run = {"r": config.lora.r, "alpha": config.lora.alpha, "rslora": config.lora.rslora}
    return [{**run, **lora} for lora in loras or [{}] * 3]


@pytest.mark.sampled(keep=2)
@pytest.mark.parametrize(("name", "loras", "changes"), CASES)
def test_a_split_run_equals_the_unsplit_one(folder, tmp_path, state_home, name, loras, changes):
    if name == "fedprox":
        changes = {**changes, "strategy.proximal-mu": 0.5}
    values = run_config(folder, **{"strategy.name": name}, **changes)
    config = read_run_config(values)
    initial = initial_arrays(folder, r=config.lora.r, alpha=config.lora.alpha)
    ours, _ = run_split(values, initial=initial, loras=loras)
    exchange = exchange_in(tmp_path / "state")
    app = uncut_app(folder, exchange, config=values, loras=uncut_loras(values, loras))
    theirs, _ = run_uncut(build_inner(config.strategy, config.lora), app, initial, rounds=ROUNDS)
    assert not any(record.failure for record in ours.history)
    assert list(ours.arrays) == list(theirs.arrays)
    mine, plain = ours.arrays.to_torch_state_dict(), theirs.arrays.to_torch_state_dict()
    assert {n: t.shape for n, t in mine.items()} == {n: t.shape for n, t in plain.items()}
    assert largest_difference(mine, plain) <= TOLERANCE
    assert any(
        plain[n].shape != t.shape or not torch.equal(plain[n], t)
        for n, t in initial.to_torch_state_dict().items()
    )
    for server_round in range(1, ROUNDS + 1):
        assert ours.evaluate_metrics_clientapp[server_round]["eval-loss"] == pytest.approx(
            theirs.evaluate_metrics_clientapp[server_round]["eval-loss"], rel=1e-6
        )


def shrinks(partition, server_round):
    """The second silo's node comes back with another rank in the third round."""
    return {"r": 2 if (partition, server_round >= 3) == (1, True) else 4, "alpha": 8.0}


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("name", "loras"), [("rolora", None), ("ffalora", None), ("flexlora", shrinks)]
)
def test_moments_wait_for_their_tensor_and_end_with_the_rank(
    folder, tmp_path, state_home, name, loras
):
    """`train.keep-optimizer`, where not every tensor is trained in every round."""
    rounds = 4 if name == "rolora" else 3
    values = run_config(folder, **{"strategy.name": name, "train.keep-optimizer": True})
    values |= {"num-server-rounds": rounds, "strategy.fraction-evaluate": 0.0}
    config = read_run_config(values)
    initial = initial_arrays(folder)

    def before(message, context):
        if loras is not None:
            partition = context.node_config["partition-id"]
            own = loras(partition, message.content["config"]["split.round"])
            context.node_config.update({"lora-r": own["r"], "lora-alpha": own["alpha"]})

    ours, _ = run_split(values, initial=initial, before=before)
    app = uncut_app(folder, exchange_in(tmp_path), config=values, loras=loras)
    inner = build_inner(config.strategy, config.lora)
    theirs, _ = run_uncut(inner, app, initial, rounds=rounds)
    assert not any(record.failure for record in ours.history)
    mine, plain = ours.arrays.to_torch_state_dict(), theirs.arrays.to_torch_state_dict()
    assert largest_difference(mine, plain) <= TOLERANCE
