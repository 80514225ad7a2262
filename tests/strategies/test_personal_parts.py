"""Personal parts, FedProx and SCAFFOLD in a plain Flower + PEFT app."""

import pytest
import torch
from flwr.serverapp.strategy import FedAdam, FedProx, Krum
from steps import steps_of
from tiny_checkpoint import save_tiny_model
from uncut_model import initial_arrays, peft_model
from uncut_run import exchange_in, run_uncut, uncut_app

from flower_split.config.model import LoraSettings
from flower_split.config.sections import StrategyConfig
from flower_split.strategies import PersonalParts, build_inner

LORA = LoraSettings(r=4, alpha=8.0)
COUNTS = {"min_train_nodes": 3, "fraction_evaluate": 0.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("models") / "llama", layers=2)


def make(name, **settings):
    settings = {"fraction_evaluate": 0.0, "min_nodes": 3, **settings}
    return build_inner(StrategyConfig(name=name, **settings), LORA)


def is_personal(name):
    return ".layers.1." in name


@pytest.mark.sampled(keep=2)
@pytest.mark.parametrize("name", ["flora", "fedexlora", "rolora", "fedsalora", "krum", "fedadam"])
def test_personal_modules_never_leave_and_go_on_from_the_silos_own(folder, tmp_path, name):
    seen = {}
    app = uncut_app(folder, exchange_in(tmp_path / "state"), seen=seen)
    strategy = make(name, personal=("layers.1",))
    assert isinstance(strategy, PersonalParts)
    received = []
    aggregate = strategy.aggregate_train

    def spy(server_round, replies):
        replies = list(replies)
        received.extend(set(reply.content["arrays"]) for reply in replies)
        return aggregate(server_round, replies)

    strategy.aggregate_train = spy
    initial = initial_arrays(folder)
    result, _ = run_uncut(strategy, app, initial)
    assert len(received) == 6
    assert not any(is_personal(n) for names in received for n in names)
    for partition in range(3):
        last, now = seen[1, partition], seen[2, partition]
        mine = [n for n in now.before if is_personal(n)]
        assert mine
        for tensor in mine:
            assert torch.equal(now.before[tensor], last.after[tensor])
        assert not any(is_personal(n) for n in now.message.content["arrays"])
    arrays = result.arrays.to_torch_state_dict()
    for tensor in filter(is_personal, initial):
        assert (arrays[tensor].numpy() == initial[tensor].numpy()).all()


def test_a_silo_that_lost_its_own_part_fails_once_and_starts_it_anew(folder, tmp_path):
    import shutil

    app = uncut_app(folder, exchange_in(tmp_path / "state"))
    strategy = make("fedavglora", personal=("layers.1",))
    failures = []
    aggregate = strategy.aggregate_train

    def spy(server_round, replies):
        replies = list(replies)
        failures.append([r.error.reason for r in replies if r.has_error()])
        if server_round == 1:
            shutil.rmtree(tmp_path / "state" / "1")
        return aggregate(server_round, replies)

    strategy.aggregate_train = spy
    run_uncut(strategy, app, initial_arrays(folder), rounds=3)
    assert [len(found) for found in failures] == [0, 1, 0]
    assert "personal tensors of this silo" in failures[1][0]


def by_hand(folder, mu, rounds=1):
    """Plain PyTorch: silo 0's adapter after a round with the proximal term in its loss."""
    model = peft_model(folder)
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    start = {n: p.detach().clone() for n, p in trained.items()}
    optimizer = torch.optim.AdamW(trained.values(), lr=5e-3, weight_decay=0.0)
    model.train()
    for (batch,) in steps_of(0, 1)[0]:
        pull = sum(((p - start[n]) ** 2).sum() for n, p in trained.items())
        (model(**batch).loss + 0.5 * mu * pull).backward()
        optimizer.step()
        optimizer.zero_grad()
    return {n.replace(".default", ""): p.detach() for n, p in trained.items()}


@pytest.mark.parametrize(
    "strategy",
    [
        lambda: make("fedavglora", options={"proximal_mu": 3.0}),
        lambda: FedProx(proximal_mu=3.0, **COUNTS),
    ],
    ids=["lora", "flower"],
)
def test_the_proximal_term_is_that_of_the_loss(folder, tmp_path, strategy):
    seen = {}
    app = uncut_app(folder, exchange_in(tmp_path / "state"), seen=seen)
    run_uncut(strategy(), app, initial_arrays(folder), rounds=1)
    for name, tensor in by_hand(folder, 3.0).items():
        torch.testing.assert_close(seen[1, 0].after[name], tensor, atol=1e-6, rtol=1e-4)


def test_without_drift_to_correct_scaffold_equals_fedavg_in_its_first_round(folder, tmp_path):
    results = [
        run_uncut(
            make(name),
            uncut_app(folder, exchange_in(tmp_path / name)),
            initial_arrays(folder),
            rounds=1,
        )[0]
        for name in ("scaffoldlora", "fedavglora")
    ]
    ours, theirs = (result.arrays.to_torch_state_dict() for result in results)
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


def test_scaffolds_common_variate_is_the_weighted_mean_of_the_silos_mean_gradients(
    folder, tmp_path
):
    """With all silos in every round; and their corrections cancel in the average."""
    seen = {}
    app = uncut_app(folder, exchange_in(tmp_path / "state"), seen=seen)
    strategy = make("scaffoldlora")
    controls = []
    aggregate = strategy.aggregate_train

    def spy(server_round, replies):
        replies = list(replies)
        changes = {r.metadata.src_node_id: r.content["arrays"] for r in replies}
        weights = {r.metadata.src_node_id: r.content["metrics"]["num-examples"] for r in replies}
        controls.append((changes, weights))
        return aggregate(server_round, replies)

    strategy.aggregate_train = spy
    run_uncut(strategy, app, initial_arrays(folder), rounds=2)
    own, total = {}, sum(controls[0][1].values())
    for changes, _ in controls:
        for silo, arrays in changes.items():
            for name, array in arrays.items():
                if name.startswith("control:"):
                    held = own.setdefault(silo, {})
                    held[name] = held.get(name, 0) + torch.tensor(array.numpy()).double()
    for name, common in strategy.control.items():
        mean = sum(
            own[silo]["control:" + name] * weight / total for silo, weight in controls[0][1].items()
        )
        torch.testing.assert_close(common.double(), mean, atol=1e-6, rtol=1e-4)
    assert any(control.abs().max() > 0 for control in strategy.control.values())


def test_wrapped_strategies_see_no_personal_tensor():
    assert PersonalParts(Krum(), ["head"]).is_personal("base_model.model.head.lora_A.weight")
    assert not PersonalParts(FedAdam(), ["layers.1"]).is_personal("m.layers.11.q.lora_A.weight")
