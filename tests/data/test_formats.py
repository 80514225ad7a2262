"""Formats: a table reads to the same examples, whichever of them it is written in."""

import csv
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flower_split.data import load_examples
from flower_split.data.examples import find_field

Table = list[dict[str, str]]

TEXTS = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0\ufeff"), max_size=12
)
TABLES = st.lists(st.fixed_dictionaries({"ask": TEXTS, "text": TEXTS}), min_size=1, max_size=6)


def as_lines(table: Table, end: str = "\n") -> bytes:
    return end.join(json.dumps(row, ensure_ascii=False) for row in table).encode() + end.encode()


def as_table(table: Table, separator: str = ",", encoding: str = "utf-8") -> bytes:
    written = io.StringIO(newline="")
    rows = csv.writer(written, delimiter=separator)
    rows.writerow(["ask", "text"])
    rows.writerows([row["ask"], row["text"]] for row in table)
    return written.getvalue().encode(encoding)


PLAIN: dict[str, Callable[[Table], bytes]] = {
    "a.jsonl": as_lines,
    "b.ndjson": lambda table: b"\xef\xbb\xbf" + as_lines(table, "\r\n"),
    "c.jsonl.gz": lambda table: gzip.compress(as_lines(table, "\r")),
    "d.json": lambda table: json.dumps(table).encode(),
    "e.json": lambda table: json.dumps({"version": 1, "data": table}, indent=2).encode(),
    "f.json": lambda table: "\n".join(json.dumps(row, indent=1) for row in table).encode(),
    "g.json": as_lines,
    "h.csv": as_table,
    "i.tsv": lambda table: as_table(table, "\t"),
    "j.csv.gz": lambda table: gzip.compress(as_table(table)),
}


def read(path: Path, **options: Any) -> Table:
    examples, _ = load_examples(str(path), **options)
    return [dict(row) for row in examples]


def write(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(table=TABLES)
@pytest.mark.parametrize("name", PLAIN)
def test_every_text_format_reads_to_the_same_table(tmp_path: Path, name: str, table: Table) -> None:
    path = write(tmp_path, name, PLAIN[name](table))
    examples, _ = load_examples(str(path))
    backwards = [dict(examples[i]) for i in reversed(range(len(examples)))]
    assert [dict(row) for row in examples] == table == backwards[::-1]
    assert [row for _, rows in examples.batches() for row in rows] == table


@pytest.mark.medium
@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(table=TABLES)
def test_arrows_formats_read_to_the_same_table(
    tmp_path_factory: pytest.TempPathFactory, table: Table
) -> None:
    datasets = pytest.importorskip("datasets", exc_type=ImportError)
    pyarrow = pytest.importorskip("pyarrow")
    feather = pytest.importorskip("pyarrow.feather")
    folder = tmp_path_factory.mktemp("arrow")
    columns = pyarrow.Table.from_pylist(table)
    data = datasets.Dataset(columns)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
        data.to_parquet(folder / "a.parquet")
        data.save_to_disk(folder / "saved")
        feather.write_feather(columns, folder / "b.arrow")
        with (
            pyarrow.OSFile(str(folder / "c.arrow"), "wb") as file,
            pyarrow.ipc.new_stream(file, columns.schema) as stream,
        ):
            stream.write_table(columns)
        for name in ("a.parquet", "saved", "b.arrow", "c.arrow"):
            assert read(folder / name) == table


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(table=TABLES, encoding=st.sampled_from(["utf-16", "utf-32-be", "utf-8-sig", "gb18030"]))
def test_encodings_read_to_the_same_table(tmp_path: Path, table: Table, encoding: str) -> None:
    from flower_split.config.data import DataConfig

    config = DataConfig(encoding=encoding)
    for name, content in (
        ("a.jsonl", as_lines(table).decode().encode(encoding)),
        ("b.csv", as_table(table, encoding=encoding)),
        ("c.json", json.dumps(table, ensure_ascii=False).encode(encoding)),
    ):
        assert read(write(tmp_path, name, content), config=config) == table


@settings(max_examples=60, deadline=None)
@given(name=st.text(st.characters(categories=["L", "M"]), min_size=1, max_size=6))
def test_a_fields_name_is_found_in_either_unicode_form(name: str) -> None:
    import unicodedata

    composed, apart = (unicodedata.normalize(form, name) for form in ("NFC", "NFD"))
    assert find_field({"x1": 0, composed: 1}, apart) == composed
    assert find_field({"x1": 0, apart: 1}, composed) == apart
