"""`flower-split run`: an app in a simulation on this machine, checked first, with what it left."""

import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flower_split.apps.commands.check import AsJson, Debug, Overrides
from flower_split.apps.commands.console import (
    NOT_DONE,
    console,
    errors_once,
    print_findings,
    print_json,
    quiet_libraries,
    show_line,
    shown_once,
)
from flower_split.errors import ConfigError, FlowerSplitError

if TYPE_CHECKING:
    from flower_split.apps.folder.app import App

PATHS = ("model.name", "data.path", "data.eval-path")
"""Keys that may name a file or folder."""
OUTPUTS = "outputs"
"""Folder, below the working directory, for the results of runs that name no other."""


def run_command(
    app: Annotated[Path, typer.Argument(help="Folder with the app's pyproject.toml.")],
    silos: Annotated[int, typer.Option(min=1, help="Simulated silos.")] = 3,
    run_config: Overrides = None,
    output_dir: Annotated[
        Path | None,
        typer.Option(help="Folder for the results; by default outputs/ and the app's name."),
    ] = None,
    gpus: Annotated[float, typer.Option(min=0.0, help="Share of a GPU for each silo.")] = 0.0,
    check: Annotated[bool, typer.Option(help="Check the app first.")] = True,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Run APP with simulated silos, and wait for its end.

    Prints a line a round, a table at the end and where the results are. The status is 0 only if the
    run completed.
    """
    from flower_split.apps.folder.completed import completed

    given = list(run_config or ())
    with (
        errors_once(debug=debug, as_json=as_json, run_config=run_config),
        completed(app, given) as app,
    ):
        from flower_split.apps.folder.app import App
        from flower_split.apps.simulate import (
            LOG,
            OUTPUT_KEY,
            check_output,
            check_simulation,
            interruptible,
            is_since,
            simulate,
            tell_result,
        )

        check_simulation()
        if output_dir is not None:
            check_output(output_dir)
        show: Callable[[str, str], None] = show_line
        if check:
            quiet_libraries()
            from flower_split.apps.checking.app_check import check_app

            checked, findings = check_app(
                app, [*given, *_output(app, given, output_dir)], silos=silos, examples=0
            )
            if not as_json:
                print_findings(findings, all_of_them=False)
                show = shown_once(findings)
            if findings.problems or checked is None:
                if as_json:
                    print_json(findings.as_json())
                raise typer.Exit(NOT_DONE)
        found = App.read(app, given)
        given += absolute_paths(found)
        folder = output_dir
        if folder is not None and not found.reads(OUTPUT_KEY):
            raise ConfigError(
                f"the app has no key {OUTPUT_KEY} that --output-dir could set: add it to "
                "[tool.flwr.app.config]"
            )
        if folder is None and found.reads(OUTPUT_KEY):
            named = str(found.settings[OUTPUT_KEY])
            folder = Path(named) if named else Path(OUTPUTS) / found.name
        started = time.time()
        try:
            with interruptible():
                simulate(
                    app,
                    silos=silos,
                    output_dir=folder,
                    run_config=given,
                    gpus=gpus,
                    show=_on_error_output if as_json else show,
                )
        except FlowerSplitError as error:
            if folder is not None and is_since(folder / LOG, started):
                error.add_note(f"the whole log is in {folder / LOG}")
            raise
        except KeyboardInterrupt:
            from flower_split.strategies.output import CHECKPOINTS

            if folder is not None and (folder / CHECKPOINTS).is_dir():
                print(
                    "the rounds that were complete are kept: the same command with "
                    "-c resume=true goes on after the last one",
                    file=sys.stderr,
                )
            raise
        if as_json:
            print_json(_answer(folder))
        elif folder is None:
            console().print("the app has no key output-dir: nothing of the run was kept")
        else:
            tell_result(folder, since=started)


def absolute_paths(app: "App") -> list[str]:
    """Overrides by which silos and server, whose working directories are others, find paths.

    Relative paths that lead somewhere from here are meant so.
    """
    from flower_split.apps.folder.overrides import rendered

    given = {key: str(app.settings.get(key) or "") for key in PATHS}
    return [
        rendered({key: str(Path(value).resolve())})
        for key, value in given.items()
        if value and not Path(value).is_absolute() and Path(value).exists()
    ]


def _answer(folder: Path | None) -> dict[str, Any]:
    from flower_split.apps.simulate import RESULT
    from flower_split.reporting import read_result

    answer: dict[str, Any] = {"ok": True, "output-dir": None, "silos": {}, "left": []}
    if folder is not None:
        answer["output-dir"] = str(folder.resolve())
        answer["left"] = sorted(one.name for one in folder.iterdir())
        if (folder / RESULT).is_file():
            result = read_result(folder / RESULT)
            answer["silos"] = {silo: dict(result.losses(silo)) for silo in result.silos}
    return answer


def _on_error_output(level: str, text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _output(app: Path, given: list[str], folder: Path | None) -> list[str]:
    """The override by which the check learns where the run's output goes; none without the key."""
    from flower_split.apps.folder.app import App
    from flower_split.apps.folder.overrides import rendered
    from flower_split.apps.simulate import OUTPUT_KEY

    with suppress(FlowerSplitError):  # the check says what is wrong with the app
        found = App.read(app, given)
        if found.reads(OUTPUT_KEY):
            chosen = folder or Path(str(found.settings[OUTPUT_KEY]) or Path(OUTPUTS) / found.name)
            return [rendered({OUTPUT_KEY: str(chosen.absolute())})]
    return []
