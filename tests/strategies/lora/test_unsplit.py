"""The LoRA strategies in a plain Flower + PEFT app, on a tiny model, over several rounds."""

import pytest
import torch
from peft import PeftModel
from tiny_checkpoint import save_tiny_model
from uncut_model import base_model, dense_logits, initial_arrays, logits
from uncut_run import exchange_in, run_uncut, uncut_app

from flower_split.adapters import save_whole
from flower_split.config.model import LoraSettings
from flower_split.config.sections import StrategyConfig
from flower_split.lowrank import combined, pair_up, split_folded
from flower_split.strategies import INNER_STRATEGIES, LoraStrategy, build_inner

LORA = LoraSettings(r=4, alpha=8.0)
MIXED = [{"r": 2, "alpha": 4}, {"r": 4, "alpha": 16}, {"r": 6, "alpha": 6, "rslora": True}]
NAMES = sorted(
    name
    for name, kind in INNER_STRATEGIES.items()
    if isinstance(kind, type) and issubclass(kind, LoraStrategy)
)
MIXING = [name for name in NAMES if INNER_STRATEGIES[name].mixed_ranks]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("models") / "llama", layers=2)


def make(name, **settings):
    return build_inner(StrategyConfig(name=name, min_nodes=3, **settings), LORA)


def updates_of(state, scale):
    """Dense update by module."""
    whole = combined({n: t.double() for n, t in state.items()}, scale)
    return {p.module: whole[p.b] @ whole[p.a] for p in pair_up(whole)}


@pytest.mark.sampled(keep=3)
@pytest.mark.parametrize(
    ("name", "loras"),
    [*((name, None) for name in NAMES), *((name, MIXED) for name in MIXING)],
)
def test_two_rounds_with_evaluation_train_and_export_as_one_standard_adapter(
    folder, tmp_path, name, loras
):
    """The exported adapter, loaded by stock PEFT, computes what the dense updates do."""
    seen = {}
    app = uncut_app(folder, exchange_in(tmp_path / "state"), loras=loras, seen=seen)
    initial = initial_arrays(folder)
    strategy = make(name)
    result, grid = run_uncut(strategy, app, initial)
    assert set(result.evaluate_metrics_clientapp) == {1, 2}
    assert len(grid.sent) == 12
    state = result.arrays.to_torch_state_dict()
    trained, _ = split_folded(state)
    assert list(trained) == list(initial)
    assert any(
        trained[name].shape != array.shape or (trained[name].numpy() != array.numpy()).any()
        for name, array in initial.items()
    )
    scale = strategy.scaling.factor
    save_whole(state, tmp_path / "adapter", scale=scale, base_model=str(folder))
    loaded = PeftModel.from_pretrained(base_model(folder), tmp_path / "adapter")
    dense = dense_logits(folder, updates_of(state, scale))
    torch.testing.assert_close(logits(loaded), dense, atol=1e-5, rtol=1e-5)
    if name != "fedsalora" and loras is None:
        # What a silo evaluates is the global model.
        torch.testing.assert_close(seen["evaluate", 2, 0], dense, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["fedexlora", "flora"])
def test_a_silo_computes_with_what_was_folded(folder, tmp_path, name):
    """Base, folded and own adapter together equal the dense sum, before the first step."""
    seen = {}
    app = uncut_app(folder, exchange_in(tmp_path / "state"), seen=seen)
    first, _ = run_uncut(make(name), app, initial_arrays(folder), rounds=1)
    again = {}
    app = uncut_app(folder, exchange_in(tmp_path / "other"), seen=again)
    run_uncut(make(name), app, initial_arrays(folder), rounds=2)
    arrays = again[2, 1].message.content["arrays"].to_torch_state_dict()
    _, folded = split_folded(arrays)
    assert folded
    assert {n: t.tolist() for n, t in arrays.items()} == {
        n: t.tolist() for n, t in first.arrays.to_torch_state_dict().items()
    }
    after = again[2, 1]
    own = {**after.after, **folded}
    dense = dense_logits(folder, updates_of(own, LORA.alpha / LORA.r))
    torch.testing.assert_close(after.logits, dense, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("name", "parts"), [("ffalora", ["B", "B"]), ("rolora", ["B", "A"])])
def test_only_the_trained_factor_changes_and_travels(folder, tmp_path, name, parts):
    seen, replies = {}, []
    app = uncut_app(folder, exchange_in(tmp_path / "state"), seen=seen)
    strategy = make(name, fraction_evaluate=0.0)
    aggregate = strategy.aggregate_train

    def spy(server_round, received):
        received = list(received)
        replies.append([set(reply.content["arrays"]) for reply in received])
        return aggregate(server_round, received)

    strategy.aggregate_train = spy
    run_uncut(strategy, app, initial_arrays(folder))
    for number, part in enumerate(parts, start=1):
        for partition in range(3):
            one = seen[number, partition]
            changed = {n for n, t in one.before.items() if not torch.equal(t, one.after[n])}
            assert changed
            assert all(f".lora_{part}." in n for n in changed)
        for names in replies[number - 1]:
            assert names == {n for n in one.before if f".lora_{part}." in n}


def test_under_fedsa_every_silo_goes_on_from_its_own_b(folder, tmp_path):
    seen = {}
    app = uncut_app(folder, exchange_in(tmp_path / "state"), seen=seen)
    run_uncut(make("fedsalora"), app, initial_arrays(folder), rounds=3)
    for number in (2, 3):
        for partition in range(3):
            last, now = seen[number - 1, partition], seen[number, partition]
            for name in now.before:
                if ".lora_B." in name:
                    assert torch.equal(now.before[name], last.after[name])
                else:
                    assert torch.equal(now.before[name], seen[number, 0].before[name])
    b = next(name for name in now.before if ".lora_B." in name)
    assert not torch.equal(seen[3, 0].before[b], seen[3, 1].before[b])
    torch.testing.assert_close(seen["evaluate", 3, 2].shape, seen[3, 2].logits.shape)


def test_under_scaffold_a_single_silo_has_no_drift_to_correct(folder, tmp_path):
    ends = {}
    for name in ("fedavglora", "scaffoldlora"):
        strategy = build_inner(StrategyConfig(name=name, min_nodes=1), LORA)
        app = uncut_app(folder, exchange_in(tmp_path / name))
        result, _ = run_uncut(strategy, app, initial_arrays(folder), silos=1, rounds=3)
        ends[name] = result.arrays.to_torch_state_dict()
    for name, tensor in ends["fedavglora"].items():
        torch.testing.assert_close(ends["scaffoldlora"][name], tensor, msg=name)


def test_the_first_message_fits_silos_of_any_rank(folder, tmp_path):
    """B is zero at the start, so that every silo starts from the base model's output."""
    seen = {}
    app = uncut_app(folder, exchange_in(tmp_path / "state"), loras=MIXED, seen=seen)
    run_uncut(make("flexlora"), app, initial_arrays(folder), rounds=1)
    initial = initial_arrays(folder).to_torch_state_dict()
    for partition, lora in enumerate(MIXED):
        for name, tensor in seen[1, partition].before.items():
            if ".lora_A." in name:
                rows = min(lora["r"], LORA.r)
                assert tensor.shape[0] == lora["r"]
                assert torch.equal(tensor[:rows], initial[name][:rows])
            else:
                assert not tensor.any()
