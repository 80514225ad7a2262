"""CSV and TSV: cells are text, and rows that do not fit the header are told with their lines."""

from pathlib import Path

import pytest

from flower_split.data.files import read_file
from flower_split.data.reading.bad_rows import BadRows
from flower_split.errors import DataError


def file(folder: Path, content: str, name: str = "silo.csv") -> Path:
    path = folder / name
    path.write_bytes(content.encode())
    return path


def test_cells_are_text_as_they_stand(tmp_path: Path) -> None:
    content = 'id,text\n007,NA\n1.50,null\n,"a ""b"", c\nsecond line"\n\n8, spaced \n'
    rows = read_file(file(tmp_path, content))
    assert list(rows) == [
        {"id": "007", "text": "NA"},
        {"id": "1.50", "text": "null"},
        {"id": "", "text": 'a "b", c\nsecond line'},
        {"id": "8", "text": " spaced "},
    ]
    assert [rows.where(i).rpartition(" ")[2] for i in range(4)] == ["2", "3", "4", "7"]


def test_a_cell_may_be_long(tmp_path: Path) -> None:
    import csv

    before = csv.field_size_limit()
    rows = read_file(file(tmp_path, f'text\n"{"x" * 300_000}"\n'))
    assert len(rows[0]["text"]) == 300_000
    assert csv.field_size_limit() == before


BROKEN = 'id,text\n1,fine\n2,"a" b\n3,two,more\n4\nid,text\n5,"c\nd"e\n6,last\n'


def test_bad_rows_are_counted_and_named(tmp_path: Path) -> None:
    bad = BadRows("skip")
    rows = read_file(file(tmp_path, BROKEN), bad=bad)
    assert [row["text"] for row in rows] == ["fine", "last"]
    assert bad.places == ["line 3", "line 4", "line 5", "line 6", "lines 7 to 8"]
    assert bad.count == 6


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('id,text\n2,"a" b\n', "line 2: quotes that do not match"),
        ("id,text\n1,a\n2,b,c\n", "line 3: has 3 cells for 2 columns"),
        ("id,text\n1\n", "line 2: has 1 cells for 2 columns"),
        ("id,text\n1,a\nid,text\n", "line 3: names the columns once more"),
        ("text,id,text\na,1,b\n", r"line 1: two columns have the same name \(columns 1 and 3\)"),
        ("text\n", "is empty: it has 5 bytes and no example"),
        ("", "is empty: it has 0 bytes"),
    ],
)
def test_what_does_not_fit_is_told(tmp_path: Path, content: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        read_file(file(tmp_path, content))


@pytest.mark.parametrize("rule", ["stop", "skip"])
def test_a_quote_that_is_never_closed_is_no_row_to_skip(tmp_path: Path, rule: str) -> None:
    content = 'id,text\n1,fine\n2,"a quote\n' + "3,more\n" * 50
    with pytest.raises(DataError, match="line 3: a quote is opened there and never closed"):
        read_file(file(tmp_path, content), bad=BadRows(rule))


def test_a_line_with_a_nul_is_a_bad_row_and_not_the_end(tmp_path: Path) -> None:
    path = tmp_path / "silo.csv"
    path.write_bytes(b"text\none\nan other line with a \0\nthree\n")
    bad = BadRows("skip")
    assert [row["text"] for row in read_file(path, bad=bad)] == ["one", "three"]
    assert bad.places == ["line 3"]
    with pytest.raises(DataError, match="line 3: has a NUL byte"):
        read_file(path)


def test_another_separator_is_told(tmp_path: Path) -> None:
    rows = read_file(file(tmp_path, "id;text\n1;a\n"))
    with pytest.raises(DataError, match="seem to be separated by ';': separate them by commas"):
        rows.text(0, "text")


def test_a_first_line_of_data_stays_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = read_file(file(tmp_path, "John Smith,ill\nJane,well\n"))
    with pytest.raises(DataError, match="must name its columns, and has 2") as caught:
        rows.text(0, "text")
    assert "Smith" not in str(caught.value)
    assert "Smith" in caplog.text
    near = read_file(file(tmp_path, "id,Text\n1,a\n"))
    with pytest.raises(DataError, match="did you mean 'Text'"):
        near.text(0, "text")


def test_an_error_does_not_quote_the_data(tmp_path: Path) -> None:
    for content in (
        'text\n"the patient" x\n',
        "text\nthe patient,2\n",
        "the patient,the patient\n",
    ):
        with pytest.raises(DataError) as caught:
            read_file(file(tmp_path, content))
        assert "patient" not in str(caught.value)
