"""A part leaves its figures with their machine, a picture, and its ratios in the last line."""

import json

from rich.table import Table
from throughput.part import Report, publish


def test_what_a_part_leaves(tmp_path, capsys):
    table = Table("what")
    table.add_row("a row of the table")
    report = Report(
        ratios={"one_over_two": 0.5},
        figures={"one": 1, "two": [2]},
        tables=[table],
        draw=lambda figure: figure.subplots().plot([1, 2]),
    )
    publish("sample", report, tmp_path / "made", toy=True)
    out = capsys.readouterr().out
    assert "a row of the table" in out
    assert json.loads(out.splitlines()[-1]) == {"one_over_two": 0.5}
    stored = json.loads((tmp_path / "made/sample.json").read_text())
    assert stored["ratios"] == {"one_over_two": 0.5}
    assert stored["figures"] == {"one": 1, "two": [2]}
    assert stored["toy"] is True
    assert stored["machine"]["cores"] >= 1
    assert "torch" in stored["machine"]["versions"]
    assert (tmp_path / "made/sample.png").read_bytes().startswith(b"\x89PNG")
