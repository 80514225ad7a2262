"""The account of a silo's noise: it never counts less than what has left."""

import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from flower_split.client.noise_account import BLOCK, ROWS, NoiseAccount, noise_account
from flower_split.client.state.folder import StateFolder
from flower_split.config.wire import WireConfig
from flower_split.errors import StateError

NOISY = WireConfig(h1_clip=1.0, h1_noise=1.0)


def account(root: Path, run: str = "run", silo: str = "north") -> NoiseAccount:
    return NoiseAccount.of(StateFolder(root=root), run, silo)


def counted(root: Path, run: str = "run", silo: str = "north") -> tuple[int, int]:
    told = account(root, run, silo).close()
    return told["h1-rows"], told["g2-rows"]


def test_rows_add_up_over_sessions(tmp_path: Path) -> None:
    first = account(tmp_path)
    first.leaving("h1", 5)
    first.leaving("h1", BLOCK)
    first.leaving("g2", 3)
    first.leaving("attention_mask", 7)
    told = first.close()
    assert (told["h1-rows"], told["g2-rows"]) == (BLOCK + 5, 3)
    assert first.close() == told
    second = account(tmp_path)
    second.leaving("g2", 2)
    assert second.close() == {**told, "g2-rows": 5}
    assert counted(tmp_path, silo="south") == counted(tmp_path, run="other") == (0, 0)


def test_a_session_that_never_ended_counts_as_more(tmp_path: Path) -> None:
    gone = account(tmp_path)
    gone.leaving("h1", 100)
    del gone
    assert counted(tmp_path) == (100 + BLOCK, 0)


def test_it_counts_before_anything_leaves(tmp_path: Path) -> None:
    open_account = account(tmp_path)
    open_account.leaving("h1", 2 * BLOCK)
    (file,) = tmp_path.glob(f"noise/*/*/{ROWS}")
    assert json.loads(file.read_bytes())["h1"] >= 2 * BLOCK


def test_two_sessions_at_once(tmp_path: Path) -> None:
    both = [account(tmp_path), account(tmp_path)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: both[n % 2].leaving("h1", 700), range(400)))
    for one in both:
        one.close()
    assert counted(tmp_path) == (280_000, 0)


def test_a_lost_account_is_another_one(tmp_path: Path) -> None:
    before = account(tmp_path).close()["noise-account"]
    assert account(tmp_path).close()["noise-account"] == before
    (file,) = tmp_path.glob(f"noise/*/*/{ROWS}")
    file.unlink()
    assert account(tmp_path).close()["noise-account"] != before


@pytest.mark.parametrize("content", ["", "[]", '{"id": 1, "h1": -1, "g2": 0}', '{"h1": 1}'])
def test_a_damaged_account_is_refused(tmp_path: Path, content: str) -> None:
    account(tmp_path)
    (file,) = tmp_path.glob(f"noise/*/*/{ROWS}")
    file.write_text(content)
    with pytest.raises(StateError, match=r"is damaged.*Start a new run"):
        account(tmp_path)


def test_accounts_that_nobody_uses_are_removed(tmp_path: Path) -> None:
    account(tmp_path, run="old")
    (old,) = tmp_path.glob("noise/*/*")
    long_ago = time.time() - 15 * 24 * 3600
    os.utime(old, (long_ago, long_ago))
    account(tmp_path, run="old")  # its own stays
    os.utime(old, (long_ago, long_ago))
    account(tmp_path, run="new")
    assert [path.name.partition("-")[0] for path in (tmp_path / "noise").iterdir()] == ["new"]


def test_none_where_nothing_gets_noise(tmp_path: Path) -> None:
    states = StateFolder(root=tmp_path)
    for wire in (WireConfig(), WireConfig(h1_clip=1.0), WireConfig(h2_clip=1.0, h2_noise=1.0)):
        with noise_account(wire, states, "run", "north") as none:
            assert none is None
    with noise_account(NOISY, states, "run", "north") as some:
        assert some is not None
    assert list(tmp_path.iterdir()) == [tmp_path / "noise"]


def test_rows_that_cannot_be_counted_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "noise").write_text("")
    with pytest.raises(StateError, match="name another folder with state-dir"):
        account(tmp_path)
