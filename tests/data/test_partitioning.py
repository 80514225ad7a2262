"""Partitioning: disjoint, complete, the same for the same seed."""

import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flower_split.config.sections import DataConfig
from flower_split.data import Examples, partition
from flower_split.data.reading.bad_rows import BadRows
from flower_split.errors import DataError


def examples(length: int, **columns: list[Any]) -> Examples:
    rows = [
        {"text": str(i), **{name: values[i] for name, values in columns.items()}}
        for i in range(length)
    ]
    return Examples.all_of(rows, origin="here")


def silos(data: Examples, of: int, seed: int = 0, **options: Any) -> list[list[int]]:
    config = DataConfig(**options)
    return [
        [int(part[i]["text"]) for i in range(len(part))]
        for part in (
            partition(data, config, partition_id=silo, num_partitions=of, seed=seed)
            for silo in range(of)
        )
    ]


@settings(max_examples=50, deadline=None)
@given(length=st.integers(1, 60), of=st.integers(1, 12), seed=st.integers(0, 2**40))
def test_iid_is_disjoint_complete_and_even(length: int, of: int, seed: int) -> None:
    if of > length:
        with pytest.raises(DataError, match=f"silo {length} of {of} has no data"):
            silos(examples(length), of, seed)
        return
    parts = silos(examples(length), of, seed)
    assert sorted(i for part in parts for i in part) == list(range(length))
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1
    assert parts == silos(examples(length), of, seed)


def test_iid_mixes_and_follows_the_seed() -> None:
    first, second = (silos(examples(100), 2, seed) for seed in (0, 1))
    assert first != second
    assert first[0] != list(range(50))


def test_none_gives_every_silo_all() -> None:
    assert silos(examples(3), 2, partitioner="none") == [[0, 1, 2]] * 2


@pytest.mark.parametrize("silo", [-1, 2])
def test_a_silo_out_of_range_is_refused(silo: int) -> None:
    with pytest.raises(DataError, match=f"below num_partitions 2, not {silo}"):
        partition(examples(9), DataConfig(), partition_id=silo, num_partitions=2, seed=0)


@pytest.mark.parametrize("partitioner", ["dirichlet", "natural"])
def test_without_the_extra_the_install_command_is_named(
    partitioner: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "flwr_datasets.partitioner", None)
    data = examples(4, label=[0, 0, 1, 1])
    with pytest.raises(DataError, match=r"pip install 'flower-split\[data\]'"):
        silos(data, 2, partitioner=partitioner, partition_by="label")


class TestWithFlwrDatasets:
    @pytest.fixture(autouse=True)
    def _needed(self) -> None:
        pytest.importorskip("flwr_datasets", exc_type=ImportError)

    @pytest.mark.parametrize("alpha", [0.3, 100.0])
    def test_dirichlet_is_disjoint_and_complete(self, alpha: float) -> None:
        data = examples(90, label=[i % 3 for i in range(90)])
        options: dict[str, Any] = {
            "partitioner": "dirichlet",
            "partition_by": "label",
            "dirichlet_alpha": alpha,
        }
        parts = silos(data, 3, **options)
        assert sorted(i for part in parts for i in part) == list(range(90))
        assert parts == silos(data, 3, **options)
        assert parts != silos(data, 3, seed=1, **options)

    def test_a_small_alpha_makes_silos_unlike(self) -> None:
        data = examples(300, label=[i % 3 for i in range(300)])

        def largest_share(alpha: float) -> float:
            parts = silos(
                data, 3, partitioner="dirichlet", partition_by="label", dirichlet_alpha=alpha
            )
            return max(
                sum(i % 3 == k for i in part) / len(part) for part in parts for k in range(3)
            )

        assert largest_share(0.1) > 0.7 > 0.5 > largest_share(1000.0)

    def test_dirichlet_without_enough_for_all_is_refused(self) -> None:
        for length in (2, 4):
            with pytest.raises(DataError, match="cannot be partitioned by 'label' into 3 silos"):
                silos(
                    examples(length, label=[0] * length),
                    3,
                    partitioner="dirichlet",
                    partition_by="label",
                )

    @pytest.mark.parametrize(
        "ids", [["b", "a", "b", "c", "a"], [7, -1, 7, 10**30, -1]], ids=["text", "numbers"]
    )
    def test_natural_ids_are_silos_in_their_order(self, ids: list[Any]) -> None:
        parts = silos(examples(5, who=ids), 3, partitioner="natural", partition_by="who")
        assert parts == [[1, 4], [0, 2], [3]]

    @pytest.mark.parametrize("partitioner", ["dirichlet", "natural"])
    def test_nothing_is_printed(self, partitioner: str, capfd: pytest.CaptureFixture[str]) -> None:
        silos(examples(8, who=["a", "b"] * 4), 2, partitioner=partitioner, partition_by="who")
        assert capfd.readouterr() == ("", "")

    def test_natural_with_other_numbers_of_silos(self) -> None:
        data = examples(4, who=["a", "a", "b", "c"])
        options: dict[str, Any] = {"partitioner": "natural", "partition_by": "who"}
        with pytest.raises(DataError, match=r"silo 3 of 4 has no data: .* 3 different ids"):
            silos(data, 4, **options)
        assert silos(data, 2, **options) == [[0, 1], [2]]
        config = DataConfig(**options)
        part = partition(data, config, partition_id=0, num_partitions=2, seed=0)
        assert part.ignored == ("1 of the 3 ids in column 'who', because there are 2 silos",)

    def test_rows_without_an_id_are_skipped_where_bad_rows_are(self) -> None:
        data = examples(4, who=["a", None, 3, "b"])
        config = DataConfig(partitioner="natural", partition_by="who")
        bad = BadRows("skip")
        part = partition(data, config, partition_id=1, num_partitions=2, seed=0, bad=bad)
        assert [row["text"] for row in part] == ["3"]
        assert (bad.count, bad.places) == (2, ["example 2", "example 3"])

    @pytest.mark.parametrize(
        ("labels", "message"),
        [
            ([0, "a"], "example 2: column 'label' must be all text .* str, before int"),
            ([0.5, 1.0], "example 1: .*is float"),
            ([0, None], "example 2: field 'label' is null"),
        ],
    )
    def test_a_broken_column_is_named(self, labels: list[Any], message: str) -> None:
        with pytest.raises(DataError, match=message):
            silos(examples(2, label=labels), 1, partitioner="natural", partition_by="label")

    def test_a_missing_column_is_named(self) -> None:
        with pytest.raises(DataError, match="no field 'label'; the fields there are 'text'"):
            silos(examples(2), 1, partitioner="natural", partition_by="label")
