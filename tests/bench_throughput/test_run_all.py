"""The runner puts the parts' ratios together, whatever becomes of a part."""

import json

import pytest
import run_all
import typer

WRITE = "import sys; print('working'); print('{\"%s\": 2.0}'); sys.exit(%d)"


def run(folder, monkeypatch, capfd, scripts):
    """The exit status and the last line, for parts that are these scripts."""
    for name, text in scripts.items():
        (folder / f"{name}.py").write_text(text)
    monkeypatch.setattr(run_all, "FOLDER", folder)
    monkeypatch.setattr(run_all, "PARTS", tuple(scripts))
    with pytest.raises(typer.Exit) as exit_info:
        run_all.main(toy=True, out=folder / "out")
    return exit_info.value.exit_code, json.loads(capfd.readouterr().out.splitlines()[-1])


def test_the_last_line_has_every_ratio(tmp_path, monkeypatch, capfd):
    scripts = {name: WRITE % (name, 0) for name in run_all.RATIOS}
    status, last = run(tmp_path, monkeypatch, capfd, scripts)
    assert status == 0
    assert last == dict.fromkeys(run_all.RATIOS, 2.0)
    assert json.loads((tmp_path / "out/ratios.json").read_text()) == last


def test_a_part_that_fails_leaves_a_hole_and_stops_no_other(tmp_path, monkeypatch, capfd):
    first, second, *_ = run_all.RATIOS
    scripts = {first: WRITE % (first, 3), second: WRITE % (second, 0)}
    status, last = run(tmp_path, monkeypatch, capfd, scripts)
    assert status == 1
    assert (last[first], last[second]) == (None, 2.0)


def test_every_part_is_a_script():
    assert all((run_all.FOLDER / f"{name}.py").is_file() for name in run_all.PARTS)
