"""The notebook runs, cell after cell, and prints what is stored below its cells."""

import contextlib
import io
import json
import re
from pathlib import Path

import pytest
import torch

NOTEBOOK = Path(__file__).parents[2] / "examples" / "notebook" / "split_fine_tuning.ipynb"
NUMBER = re.compile(r"\d+\.\d+(?:e-\d+)?")


def numbers(text):
    return [float(found) for found in NUMBER.findall(text)]


@pytest.mark.slow
def test_every_cell_prints_what_is_stored():
    told = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    cells = [cell for cell in told["cells"] if cell["cell_type"] == "code"]
    names: dict[str, object] = {}
    assert len(cells) == 6
    for number, cell in enumerate(cells):
        printed = io.StringIO()
        code = compile("".join(cell["source"]), f"cell {number}", "exec")
        with contextlib.redirect_stdout(printed):
            exec(code, names)
        stored = "".join(line for output in cell["outputs"] for line in output["text"])
        assert NUMBER.sub("", printed.getvalue()) == NUMBER.sub("", stored)
        torch.testing.assert_close(
            numbers(printed.getvalue()), numbers(stored), atol=2e-2, rtol=2e-2
        )
