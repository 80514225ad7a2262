"""A trunk over several devices at a service: equal to one device, to the bit, for every run."""

import itertools
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from asking import opened
from sessions_alike import same
from steps import run_config
from tiny_checkpoint import save_tiny_model
from trunk_services import runs_of

from flower_split.config.run_config import read_run_config
from flower_split.control.served_runs import FREE_SECONDS, ServedRuns
from flower_split.errors import ConfigError
from flower_split.server.hosting.hosted_run import HostedRun
from flower_split.server.hosting.resolving import resolve_run
from flower_split.server.hosting.run_trunk import SiloChannel
from flower_split.server.stages.chain import Chain
from flower_split.transport.messages import BackwardRequest, ForwardRequest, StepRequest

WIDTH = 16
"""H of the tiny model, of whose four layers the trunk holds two."""
TWO = "cpu, cpu"
CHANNEL = SiloChannel(address="localhost:1", tls=False)
NOISE = {"dp.noise": 1.0, "dp.clip": 1.0, "train.max-grad-norm": 0.0}
ADALORA = {"peft.type": "ADALORA", "peft.total-step": 99}
MODES: dict[str, dict[str, Any]] = {
    "federated": {"lora.dropout": 0.1},
    "shared": {"trunk.adapters": "shared", "lora.r": 2, "seed": 5},
    "frozen": {"trunk.adapters": "frozen"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return save_tiny_model(tmp_path_factory.mktemp("model"), "llama")


@pytest.fixture(scope="module")
def runs(folder: Any) -> Iterator[ServedRuns]:
    made = runs_of(run_config(folder), devices=TWO)
    yield made
    made.end()


def values_of(folder: Any, changes: dict[str, Any]) -> dict[str, Any]:
    values = run_config(folder, **changes)
    if "peft.type" in changes:
        values = {key: value for key, value in values.items() if not key.startswith("lora.")}
    return values


def config_of(folder: Any, mode: str) -> Any:
    return read_run_config(run_config(folder, **MODES[mode]))


def own(config: Any) -> Any:
    """The engine of a run that hosts its trunk itself, on one device."""
    return HostedRun(config, resolve_run(config)).engine


def work(engine: Any) -> list[Any]:
    """Everything that a session of two steps yields, and what it leaves of a shared adapter."""
    session = opened(engine, engine.describe(), None)
    drawn = torch.Generator().manual_seed(3)
    answers = list[Any]()
    for number in range(4):
        step, (hidden, grad) = number // 2, torch.randn(2, 2, 5, WIDTH, generator=drawn)
        asked = ForwardRequest(
            step=step, microbatch=number, hidden=hidden, keep_graph=True, dropout=True
        )
        answers.append(session.forward(asked))
        answers.append(session.backward(BackwardRequest(step=step, microbatch=number, grad=grad)))
        if number % 2:
            taken = StepRequest(step=step, learning_rate=0.005, norms_before=(0.5,))
            answers.append(session.step(taken).norms)
    return [*answers, session.finish().steps, engine.shared_state()]


@pytest.mark.medium
def test_runs_of_all_modes_at_once_yield_what_each_yields_alone(
    folder: Any, runs: ServedRuns
) -> None:
    configs = {mode: config_of(folder, mode) for mode in MODES}
    alone = {mode: work(own(config)) for mode, config in configs.items()}
    open_now = {mode: runs.open(config, "", CHANNEL) for mode, config in configs.items()}
    together = dict[str, Any]()

    def go(mode: str) -> None:
        together[mode] = work(open_now[mode].hosted.engine)

    def come_and_go() -> None:
        runs.close(runs.open(configs["federated"], "", CHANNEL))

    threads = [threading.Thread(target=go, args=(mode,)) for mode in MODES]
    threads.append(threading.Thread(target=come_and_go))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for mode, run in open_now.items():
        assert isinstance(run.hosted.engine, Chain)
        assert same(together[mode], alone[mode]), mode
        runs.close(run)


def test_weights_exist_once_on_every_device(runs: ServedRuns) -> None:
    first, second = (
        [p.data_ptr() for s in runs.trunk.stages_of_run() for p in s.parameters()] for _ in range(2)
    )
    assert first == second and len({*first}) == len(first) > 2


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (ADALORA, r"peft\.type 'ADALORA'.*over cpu, cpu"),
        (NOISE, r"dp\.noise .*over cpu, cpu.*--device"),
        ({"split.max-bottom-layers": 2}, r"split\.max-bottom-layers .*over cpu, cpu.*--device"),
        ({"trunk.max-memory": 1e5}, r"trunk\.max-memory .*--max-memory"),
    ],
)
def test_what_stages_do_not_do_exactly_is_refused_by_name(
    folder: Any, runs: ServedRuns, changes: dict[str, Any], said: str
) -> None:
    values = values_of(folder, changes)
    with pytest.raises(ConfigError, match=said):
        runs.open(read_run_config(values), "", CHANNEL)
    assert runs.all == []


@pytest.mark.parametrize("changes", [NOISE, ADALORA])
def test_what_a_silo_does_alone_needs_no_trunk_of_one_stage(
    folder: Any, runs: ServedRuns, changes: dict[str, Any]
) -> None:
    values = values_of(folder, {**changes, "trunk.adapters": "frozen"})
    runs.close(runs.open(read_run_config(values), "", CHANNEL))


def test_a_run_is_bound_by_the_device_that_has_least(
    folder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = itertools.chain([6e9, 4e9, 8e9])
    monkeypatch.setattr(
        "flower_split.server.stages.local_chain.free_memory", lambda device: next(free)
    )
    values = run_config(folder)
    assert runs_of(values).trunk.max_memory == 6.0
    assert runs_of(values, devices=TWO).trunk.max_memory == 2.0  # which share what is there


@pytest.mark.parametrize("devices", ["cpu", TWO])
def test_what_a_run_had_is_freed_when_its_silos_have_noticed_its_end(
    folder: Any, devices: str
) -> None:
    now = 0.0
    runs = runs_of(run_config(folder), devices=devices, clock=lambda: now)
    run = runs.open(config_of(folder, "shared"), "", CHANNEL)
    work(run.hosted.engine)
    held = weakref.ref(run.hosted.engine)
    runs.close(run)
    del run
    now = FREE_SECONDS / 2
    runs.expire()
    now = FREE_SECONDS
    runs.expire()
    assert held() is None
    assert len(runs.trunk.stages_of_run()) == len(devices.split(","))
    runs.end()


def test_nothing_is_computed_for_a_run_while_another_one_begins(
    folder: Any, runs: ServedRuns
) -> None:
    run = runs.open(config_of(folder, "frozen"), "", CHANNEL)
    engine = run.hosted.engine
    session = opened(engine, engine.describe(), None)
    hidden = torch.zeros(1, 3, WIDTH)
    with runs.trunk.nothing_computed():
        asked = session.submit(ForwardRequest(step=0, microbatch=0, hidden=hidden))
        assert not asked.done()
        with pytest.raises(TimeoutError):
            asked.result(0.1)
    assert asked.result(30.0).shape == hidden.shape
    session.close()
    runs.close(run)
