"""`flower-split submit`, `resume`, `status`, `logs` and `stop`: a deployment's runs, by name."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from flower_split.apps.commands.check import AsJson, Debug, Overrides
from flower_split.apps.commands.console import (
    GOES_ON,
    NOT_DONE,
    console,
    errors_once,
    print_findings,
    print_json,
    quiet_libraries,
    show_line,
    shown_once,
)
from flower_split.errors import UsageError

if TYPE_CHECKING:
    from flower_split.apps.flower.deployed import DeployedRun

Connection = Annotated[
    str,
    typer.Option(
        metavar="NAME", help="Connection of Flower's config.toml; by default its default one."
    ),
]
RunName = Annotated[
    str, typer.Argument(metavar="[RUN]", help="Such as quickstart-2; by default the last run.")
]


def submit_command(
    app: Annotated[Path, typer.Argument(help="Folder with the app's pyproject.toml.")],
    run_config: Overrides = None,
    superlink: Connection = "",
    detach: Annotated[bool, typer.Option("--detach", help="Do not wait for its end.")] = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Give APP to a SuperLink, and show a line a round until it ends.

    The status is 0 only if the run completed, or was submitted with --detach. The run goes on when
    this command is interrupted.
    """
    with errors_once(debug=debug, as_json=as_json, interrupted=GOES_ON, run_config=run_config):
        _submit(app, list(run_config or ()), superlink, detach=detach, as_json=as_json)


def resume_command(
    run: RunName = "",
    run_config: Overrides = None,
    superlink: Connection = "",
    detach: Annotated[bool, typer.Option("--detach", help="Do not wait for its end.")] = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Submit a run that has ended once more, to go on after the last round that was saved.

    App and settings are those that `flower-split submit` gave it, on this machine; -c changes
    those that may change. The status is as that of submit.
    """
    with errors_once(debug=debug, as_json=as_json, interrupted=GOES_ON, run_config=run_config):
        from flower_split.apps.flower.deployed import Deployment
        from flower_split.apps.flower.flwr_command import FlwrError
        from flower_split.apps.flower.submitted import recall
        from flower_split.apps.folder.overrides import rendered

        _check_name(run, "goes on with `flower-split run APP --output-dir {run} -c resume=true`")
        former = Deployment(superlink).run(run)
        if former.is_going:
            raise FlwrError(
                f"{former.name} has not ended, its status is {former.status}: wait for its end, or "
                f"flower-split stop {former.name}"
            )
        made_of = recall(former.run_id, former.name)
        given = [rendered(made_of.overrides), *(run_config or ()), "resume=true"]
        _submit(made_of.app, given, superlink, detach=detach, as_json=as_json, resumes=former.name)


def _submit(
    app: Path,
    given: list[str],
    superlink: str,
    *,
    detach: bool,
    as_json: bool,
    resumes: str = "",
) -> None:
    """Check and submit an app, and follow the run.

    Raises:
        FlwrError: it is not taken or does not complete.
        Exit: the app has problems, which are printed.
    """
    from flower_split.apps.folder.completed import completed

    with completed(app, given) as folder:
        quiet_libraries()
        from flower_split.apps.checking.app_check import check_app
        from flower_split.apps.flower.deployed import Deployment
        from flower_split.apps.flower.submitted import Submitted, remember

        found, findings = check_app(folder, given, here=False)
        if not as_json:
            print_findings(findings, all_of_them=False)
        if found is None or findings.problems:
            if as_json:
                print_json(findings.as_json())
            raise typer.Exit(NOT_DONE)
        output = str(found.settings.get("output-dir") or "")
        deployment = Deployment(superlink)
        run = deployment.submit(found)
        try:
            remember(run.run_id, Submitted(app=app.resolve(), overrides=found.overrides))
        except OSError as error:
            print(f"flower-split resume will not know {run.name}: {error}", file=sys.stderr)
        if not as_json:
            what = f"{run.name}, which resumes {resumes}" if resumes else run.name
            print(f"submitted as {what}; flower-split stop {run.name} stops it", flush=True)
        if not detach:
            deployment.follow(run, _not_shown if as_json else shown_once(findings))
            run = deployment.run(run.run_id)
            if not as_json:
                where = (
                    f"its results are in {output} on the server" if output else "it kept nothing"
                )
                print(f"{run.name} completed; {where}")
        if as_json:
            print_json({"ok": True, "run": _plain(run)})


def status_command(
    run: RunName = "",
    superlink: Connection = "",
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Show all runs, or one with its last round and the silos in it.

    Of one run the status is 1 where it failed or was stopped.
    """
    with errors_once(debug=debug, as_json=as_json):
        from flower_split.apps.flower.deployed import Deployment

        _check_name(run, "is shown by `flower-split report {run}`, and live by `monitor`")
        deployment = Deployment(superlink)
        online = deployment.online()
        if not run:
            runs = deployment.runs()
            if as_json:
                print_json({"silos-connected": online, "runs": [_plain(one) for one in runs]})
            else:
                _print_runs(runs, online)
            return
        one = deployment.run(run)
        last = deployment.last_round(one)
        if as_json:
            print_json({"silos-connected": online, "run": _plain(one), "last-round": last})
        else:
            _print_runs([one], online)
            print(last or "no round has ended yet")
            if one.details:
                print(one.details)
        if one.status.startswith("finished") and not one.status.endswith("completed"):
            raise typer.Exit(NOT_DONE)


def logs_command(
    run: RunName = "",
    superlink: Connection = "",
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Until the run ends.")] = False,
    everything: Annotated[bool, typer.Option("--all", help="Every line, not a digest.")] = False,
    debug: Debug = False,
) -> None:
    """Show what happened in a run: a line a round, and what went wrong once.

    With --follow the status is 1 where the run does not complete.
    """
    with errors_once(debug=debug or everything, interrupted=GOES_ON):
        from flower_split.apps.flower.deployed import Deployment
        from flower_split.apps.simulate import show_log

        _check_name(run, "has its log in {run}/run.log")
        deployment = Deployment(superlink)
        one = deployment.run(run)
        if follow:
            deployment.follow(one, show_line)
            return
        shown = list[tuple[str, str]]()
        show_log(deployment.log(one), lambda level, text: shown.append((level, text)))
        for level, text in shown:
            show_line(level, text)
        if not shown:
            print(f"{one.name} has nothing to tell yet, its status is {one.status}")


def stop_command(
    run: RunName = "",
    superlink: Connection = "",
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Stop a run, and wait until it has ended; an error where it has ended already."""
    with errors_once(debug=debug, as_json=as_json):
        from flower_split.apps.flower.deployed import Deployment

        _check_name(run, "ends with the command that runs it")
        deployment = Deployment(superlink)
        one = deployment.stop(deployment.run(run))
        if as_json:
            print_json({"ok": True, "run": _plain(one)})
        else:
            print(f"{one.name} ended as {one.status}")


def _check_name(run: str, instead: str) -> None:
    """Raise `UsageError` where `run` is no run's name, but the folder of one on this machine."""
    if "/" in run:
        raise UsageError(
            f"{run} is a path, and a deployment's runs have names such as quickstart-2: a run on "
            f"this machine {instead.format(run=run)}"
        )


def _print_runs(runs: "list[DeployedRun]", online: int) -> None:
    table = Table(title=f"{online} silo{'s' * (online != 1)} connected", title_justify="left")
    for column in ("run", "status", "submitted", "elapsed"):
        table.add_column(column, overflow="fold")
    for one in runs:
        table.add_row(one.name, one.status, one.submitted, one.elapsed)
    console().print(table)


def _plain(run: "DeployedRun") -> dict[str, Any]:
    return {key.replace("_", "-"): value for key, value in asdict(run).items()}


def _not_shown(_level: str, _text: str) -> None:
    pass
