"""The account of a silo's steps of DP-SGD: it never counts fewer than were taken."""

import json
from pathlib import Path

import pytest

from flower_split.client.drawn_steps import DrawnSteps
from flower_split.client.state.folder import StateFolder
from flower_split.client.step_account import BLOCK, FILE, StepAccount, step_account
from flower_split.config.privacy import DpConfig
from flower_split.errors import ConfigError, SequenceError, StateError
from flower_split.privacy import SampledGaussians

DP = DpConfig(noise=1.0, clip=0.1)


def account(root: Path, silo: str = "north", dp: DpConfig = DP) -> StepAccount:
    return StepAccount.of(StateFolder(root=root), "run", silo, dp, expected=10)


def begin(of: StepAccount, *, examples: int = 100, steps: int = 3, left: int = 1) -> StepAccount:
    of.begin(examples=examples, steps=steps, rounds_left=left)
    return of


def test_steps_add_up_over_sessions(tmp_path: Path) -> None:
    first = begin(account(tmp_path))
    for _ in range(BLOCK + 3):
        first.taking()
    told = first.close()
    assert (told["dp-steps"], told["dp-examples"]) == (BLOCK + 3, 100)
    assert first.close() == told
    second = begin(account(tmp_path))
    second.taking()
    assert second.close() == {**told, "dp-steps": BLOCK + 4}
    assert begin(account(tmp_path, "south")).close()["dp-steps"] == 0


def test_a_session_that_never_ended_counts_as_more(tmp_path: Path) -> None:
    gone = begin(account(tmp_path))
    gone.taking()
    del gone
    assert begin(account(tmp_path)).close()["dp-steps"] == BLOCK


def test_a_step_is_counted_before_it_is_taken(tmp_path: Path) -> None:
    begin(account(tmp_path)).taking()
    (file,) = tmp_path.glob(f"dp/*/*/{FILE}")
    assert json.loads(file.read_bytes())["steps"] >= 1


def test_the_fewest_examples_count(tmp_path: Path) -> None:
    begin(account(tmp_path), examples=100).close()
    begin(account(tmp_path), examples=40).close()
    assert begin(account(tmp_path), examples=200).close()["dp-examples"] == 40


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    begin(account(tmp_path)).close()
    (file,) = tmp_path.glob(f"dp/*/*/{FILE}")
    file.write_text('{"id": 3, "steps": -1, "examples": 2}')
    with pytest.raises(StateError, match="no guarantee can be told"):
        account(tmp_path)


def test_there_is_none_without_dp_sgd_or_training(tmp_path: Path) -> None:
    states = StateFolder(root=tmp_path)
    for dp, trains in ((DpConfig(), True), (DP, False)):
        with step_account(dp, states, "run", "north", expected=8, trains=trains) as found:
            assert found is None
    assert not list(tmp_path.iterdir())


def epsilon(steps: int) -> float:
    return SampledGaussians(noise=1.0, chance=0.1, times=steps).epsilon(1e-5)


def test_a_round_that_would_go_beyond_is_refused_with_the_noise_that_would_do(
    tmp_path: Path,
) -> None:
    pytest.importorskip("dp_accounting")
    dp = DpConfig(noise=1.0, clip=0.1, max_epsilon=epsilon(5))
    first = begin(account(tmp_path, dp=dp), steps=3, left=4)
    for _ in range(3):
        first.taking()
    first.close()
    again = account(tmp_path, dp=dp)
    with pytest.raises(ConfigError, match=r"silo north trains no further round.*dp.noise \d"):
        begin(again, steps=3, left=3)
    begin(again, steps=2, left=1)
    again.taking()
    again.taking()
    with pytest.raises(ConfigError, match="takes no further step"):
        again.taking()
    assert again.close()["dp-steps"] == 5


def test_the_noise_that_is_told_would_do(tmp_path: Path) -> None:
    pytest.importorskip("dp_accounting")
    release = SampledGaussians(noise=1.0, chance=0.1, times=50)
    wanted = release.least_noise(1e-5, 1.0)
    assert SampledGaussians(noise=wanted, chance=0.1, times=50).epsilon(1e-5) <= 1.0
    assert SampledGaussians(noise=0.98 * wanted, chance=0.1, times=50).epsilon(1e-5) > 1.0


def test_a_step_has_the_examples_that_were_drawn_for_it() -> None:
    drawn = DrawnSteps()
    steps = drawn.noting(iter([[{"a": 1}], [{"a": 2}], [{"a": 3}]]))  # type: ignore[arg-type]
    first = next(steps)
    with pytest.raises(SequenceError, match="drawn for it"):
        drawn.use(list(first), 0)
    drawn.use(first, 0)
    with pytest.raises(SequenceError, match=r"session\.train_steps"):
        drawn.use(first, 1)
    second = next(steps)
    with pytest.raises(SequenceError, match="and no others"):
        drawn.use(second, 0)
    drawn.use(second, 1)
