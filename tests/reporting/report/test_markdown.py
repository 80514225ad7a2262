"""The Markdown of a report: tables that no name breaks out of."""

from dataclasses import replace

from flower_split.reporting.report.markdown import escaped, report_markdown, to_markdown
from flower_split.reporting.report.sections import Section, Table, Verbatim


def test_a_cell_stays_in_its_row():
    evil = "a|b\n| c | <b> [x](http://y) `z` *w*"
    table = Table(head=["silo", "why"], rows=[[evil, "x"]])
    lines = to_markdown([Section(title="T", parts=[table])]).strip().splitlines()
    assert lines[:4] == ["## T", "", "| silo | why |", "|---|---|"]
    assert len(lines) == 5
    assert escaped("a|b") == r"a\|b" and "\\<b\\>" in lines[4] and r"\[x\]" in lines[4]


def test_a_text_stays_in_its_fence():
    text = "````\nnot closed"
    written = to_markdown([Section(title="T", parts=[Verbatim(text=text)])])
    assert "\n`````\n````\nnot closed\n`````\n" in written


def test_the_report(result):
    text = report_markdown(replace(result, state="completed"))
    assert text.startswith("# m, 3 silos, 2 rounds\n\nState: completed\n")
    assert "| 0 | 12 | 20.09 | 2.718 | -86.5% | 4.953 | -45.1% |" in text
    assert "## Losses" not in text
