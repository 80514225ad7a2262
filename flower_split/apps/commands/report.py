"""`flower-split report`: what a run has come to, as a page for people or as Markdown."""

from pathlib import Path
from typing import Annotated

import typer

from flower_split.apps.commands.check import Debug
from flower_split.apps.commands.console import errors_once


def report_command(
    run: Annotated[Path, typer.Argument(help="A run's output folder, or its result.json.")],
    out: Annotated[
        Path | None, typer.Option(help="File to write; by default report.html beside the result.")
    ] = None,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print Markdown instead, or write it to --out.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Write the report of RUN, finished or not: one HTML file that needs nothing else."""
    with errors_once(debug=debug):
        from flower_split.apps.run_report import result_of, write_report
        from flower_split.reporting.report import REPORT, report_page
        from flower_split.reporting.report.markdown import report_markdown

        path, result = result_of(run)
        if markdown and out is None:
            print(report_markdown(result))
            return
        target = out or path.with_name(REPORT)
        write_report(report_markdown(result) if markdown else report_page(result), target)
        print(f"the report is in {target}")
