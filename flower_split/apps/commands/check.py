"""`flower-split check`: an app, or a model, before anything runs."""

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from flower_split.apps.commands.console import (
    NOT_DONE,
    errors_once,
    print_findings,
    print_json,
    quiet_libraries,
)

Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "-c",
        "--run-config",
        metavar="'KEY=VALUE …'",
        help="Settings that replace the app's; can be repeated.",
    ),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks and the whole log.")]
AsJson = Annotated[bool, typer.Option("--json", help="Answer as JSON, for a program.")]


def check_command(
    app: Annotated[
        str,
        typer.Argument(
            metavar="APP|MODEL",
            help="Folder of an app; or a model: a folder, package:folder or hub model.",
        ),
    ],
    run_config: Overrides = None,
    silos: Annotated[
        int, typer.Option(min=0, help="Silos of a simulation on this machine; 0 for none.")
    ] = 0,
    data: Annotated[
        str, typer.Option(metavar="PATH", help="One silo's own data, as its data-path.")
    ] = "",
    examples: Annotated[int, typer.Option(min=0, help="Rendered examples to show.")] = 3,
    revision: Annotated[str, typer.Option(help="Of a MODEL on the hub.")] = "",
    again: Annotated[
        bool, typer.Option("--again", help="Prove a MODEL's family anew, whatever was kept.")
    ] = False,
    task: Annotated[str, typer.Option(help="What a MODEL is for, as in model.task.")] = "causal-lm",
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Say what a run of APP would fail of, or whether MODEL is exact when it is cut.

    Of an app: what of its folder leaves the machine, settings, strategy, model, cut, memory, data
    with rendered examples, and the trunk's address. Everything is said at once; the status is 1
    where a run would fail.
    """
    from flower_split.apps.folder.completed import completed

    given = list(run_config or ())
    with errors_once(debug=debug, as_json=as_json, run_config=run_config), ExitStack() as stack:
        if not (Path(app) / "pyproject.toml").is_file():
            _check_model(app, revision, again, task, as_json)
            return
        quiet_libraries()
        folder = stack.enter_context(completed(Path(app), given))
        from flower_split.apps.checking.app_check import check_app

        _, findings = check_app(folder, given, silos=silos, data=data, examples=examples)
        if as_json:
            print_json(findings.as_json())
        else:
            print_findings(findings)
        if findings.problems:
            raise typer.Exit(NOT_DONE)


def _check_model(model: str, revision: str, again: bool, task: str, as_json: bool) -> None:
    from flower_split.apps.check import check

    said = check(model, revision=revision, again=again, task=task)
    if as_json:
        print_json({"ok": True, "text": said})
    else:
        print(said)
