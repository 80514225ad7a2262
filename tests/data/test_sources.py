"""Sources: files, objects, and functions of the user's own."""

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from flower_split.config.data import DataConfig
from flower_split.data import load_examples
from flower_split.data.reading.bad_rows import BadRows
from flower_split.errors import DataError

ROWS = [{"text": "one"}, {"text": "two"}]


@pytest.fixture
def module() -> Iterator[ModuleType]:
    module = ModuleType("data_of_a_silo")
    sys.modules[module.__name__] = module
    yield module
    del sys.modules[module.__name__]


def load(name: str, **partition: int) -> tuple[list[Any], bool]:
    examples, partitioned = load_examples(f"data_of_a_silo:{name}", **partition)
    return [examples[i] for i in range(len(examples))], partitioned


def test_functions_get_the_arguments_they_name(module: ModuleType) -> None:
    module.all = lambda: ROWS  # type: ignore[attr-defined]
    module.own = lambda partition_id, num_partitions: [  # type: ignore[attr-defined]
        {"text": f"{partition_id} of {num_partitions}"}
    ]
    module.count = lambda num_partitions: ROWS[:num_partitions]  # type: ignore[attr-defined]
    module.maybe = lambda partition_id=None: [{"text": str(partition_id)}]  # type: ignore[attr-defined]
    silo = {"partition_id": 1, "num_partitions": 2}
    assert load("all", **silo) == (ROWS, False)
    assert load("own", **silo) == ([{"text": "1 of 2"}], True)
    assert load("count", **silo) == (ROWS, False)
    assert load("maybe", **silo) == ([{"text": "1"}], True)
    assert load("maybe") == ([{"text": "None"}], False)


def test_a_functions_failure_keeps_its_text_to_the_log(
    module: ModuleType, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> None:
        raise RuntimeError("the patient's name")

    def refused() -> None:
        raise DataError("of its own")

    module.broken, module.refused = broken, refused  # type: ignore[attr-defined]
    with pytest.raises(DataError, match="failed with RuntimeError") as caught:
        load("broken")
    assert "patient" not in str(caught.value)
    assert "patient" in caplog.text
    with pytest.raises(DataError, match=r"^of its own$"):
        load("refused")


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ([], "has no examples"),
        ([{"text": "a"}, "b"], "example 2: expected a dict, not str"),
        ("text", "expected a datasets.Dataset or a list of dicts, not builtins.str"),
        (None, "not builtins.NoneType"),
        ({"dev": [], "test": []}, r"not a mapping of several \('dev', 'test'\): name one"),
        ({"train": [], "test": []}, r"split 'train': has no examples"),
    ],
)
def test_what_a_function_returns_is_checked(module: ModuleType, found: Any, message: str) -> None:
    module.found = lambda: found  # type: ignore[attr-defined]
    with pytest.raises(DataError, match=f"^data_of_a_silo:found.*{message}"):
        load("found")


def test_functions_that_cannot_be_called_are_refused(module: ModuleType) -> None:
    module.needy = lambda path: ROWS  # type: ignore[attr-defined]
    module.silos = lambda partition_id: ROWS  # type: ignore[attr-defined]
    module.number = 3  # type: ignore[attr-defined]
    for name, message in (
        ("needy", "nothing but the keyword arguments .*none of them"),
        ("silos", "missing a required argument: 'partition_id'"),
        ("number", "something that is not a function under 'number'"),
        ("absent", "has no 'absent'"),
    ):
        with pytest.raises(DataError, match=message):
            load(name)
    with pytest.raises(DataError, match="module 'no_such_module_here' cannot be imported"):
        load_examples("no_such_module_here:f")


def test_a_module_that_fails_on_import_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "fails_on_import.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(DataError, match="importing 'fails_on_import' failed with ZeroDivision"):
        load_examples("fails_on_import:f")


def test_objects_and_paths_are_sources(tmp_path: Path) -> None:
    examples, partitioned = load_examples(ROWS)
    assert (len(examples), examples.where(1), partitioned) == (2, "list, example 2", False)
    path = tmp_path / "silo.txt"
    path.write_text("one")
    assert load_examples(str(path))[0][0] == {"text": "one"}
    with pytest.raises(DataError, match=r"data\.path is empty"):
        load_examples("")


def test_datasets_are_sources() -> None:
    datasets = pytest.importorskip("datasets", exc_type=ImportError)
    examples, _ = load_examples(datasets.Dataset.from_list(ROWS))
    assert [examples.text(i, "text") for i in range(2)] == ["one", "two"]
    with pytest.raises(DataError, match="has no examples"):
        load_examples(datasets.Dataset.from_list([]))
    several = datasets.DatasetDict(
        train=datasets.Dataset.from_list(ROWS), test=datasets.Dataset.from_list(ROWS[:1])
    )
    examples, _ = load_examples(several)
    assert (len(examples), examples.ignored) == (2, ("test",))
    assert len(load_examples(several, split="test")[0]) == 1
    with pytest.raises(DataError, match="not a mapping of several"):
        load_examples(several, split="dev")


def streamed(rows: int) -> Iterator[dict[str, str]]:
    for number in range(rows):
        yield {"text": str(number)}


def test_a_stream_is_taken_up_to_the_bound_and_refused_without_one(module: ModuleType) -> None:
    datasets = pytest.importorskip("datasets", exc_type=ImportError)
    many = 10**9
    module.stream = lambda: datasets.IterableDataset.from_generator(  # type: ignore[attr-defined]
        streamed, gen_kwargs={"rows": many}
    )
    module.endless = lambda: streamed(many)  # type: ignore[attr-defined]
    module.own = lambda partition_id: streamed(many)  # type: ignore[attr-defined]
    bounded = DataConfig(max_examples=3)
    for name in ("stream", "endless"):
        examples, _ = load_examples(f"data_of_a_silo:{name}", config=bounded)
        assert [row["text"] for row in examples] == ["0", "1", "2"]
        with pytest.raises(DataError, match=f"{name}: is a stream .*set data.max-examples"):
            load_examples(f"data_of_a_silo:{name}")
    silo: dict[str, Any] = {"partition_id": 1, "num_partitions": 2, "config": bounded}
    assert len(load_examples("data_of_a_silo:stream", **silo)[0]) == 6  # three for each silo
    assert len(load_examples("data_of_a_silo:own", **silo)[0]) == 3


def test_a_stream_that_fails_keeps_its_text_to_the_log(
    module: ModuleType, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> Iterator[dict[str, str]]:
        yield {"text": "one"}
        raise RuntimeError("the patient's name")

    module.broken = broken  # type: ignore[attr-defined]
    with pytest.raises(DataError, match=r"reading the stream \(generator\) failed") as caught:
        load_examples("data_of_a_silo:broken", config=DataConfig(max_examples=9))
    assert "patient" not in str(caught.value)
    assert "patient" in caplog.text


def test_what_is_no_dict_is_skipped_where_bad_rows_are() -> None:
    bad = BadRows("skip")
    rows: Any = [{"text": "a"}, "b", {"text": "c"}]
    examples, _ = load_examples(rows, bad=bad)
    assert [row["text"] for row in examples] == ["a", "c"]
    assert examples.where(1) == "list, example 3"
    assert (bad.count, bad.places) == (1, ["example 2"])


def test_a_name_on_the_hub_is_a_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets", exc_type=ImportError)
    (tmp_path / "main").mkdir()
    for split, text in (("train", "one"), ("test", "two")):
        (tmp_path / "main" / f"{split}.jsonl").write_text(f'{{"text": "{text}"}}\n')
    load, asked = datasets.load_dataset, []

    def of_a_folder(name: str, subset: str | None, *, revision: str | None) -> Any:
        asked.append((name, subset, revision))
        return load(str(tmp_path / (subset or "main")))

    monkeypatch.setattr(datasets, "load_dataset", of_a_folder)
    config = DataConfig(subset="main", revision="v1")
    examples, _ = load_examples("owner/name", config=config)
    assert [row["text"] for row in examples] == ["one"]
    assert examples.ignored == ("test",)
    assert examples.where(0) == "owner/name, split 'train', row 1"
    assert asked == [("owner/name", "main", "v1")]
    with pytest.raises(DataError, match="has no split 'dev'; it has 'train', 'test'"):
        load_examples("owner/name", split="dev")


def test_a_name_that_is_nowhere_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    datasets = pytest.importorskip("datasets", exc_type=ImportError)

    def absent(*_: Any, **__: Any) -> None:
        raise ConnectionError("offline")

    monkeypatch.setattr(datasets, "load_dataset", absent)
    with pytest.raises(DataError, match=r"'owner/name' cannot be loaded, and .*ConnectionError"):
        load_examples("owner/name")
    assert "offline" in caplog.text
    for path in ("name", "owner/name.jsonl", "a/b/c"):
        with pytest.raises(DataError, match=f"there is no file {path}"):
            load_examples(path)
