"""`flower-split deployment local`: a whole secured deployment on this machine, by one command."""

import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flower_split.apps.commands.check import Debug, Overrides
from flower_split.apps.commands.console import (
    NOT_DONE,
    errors_once,
    print_findings,
    quiet_libraries,
    shown_once,
)
from flower_split.apps.commands.run import OUTPUTS, absolute_paths
from flower_split.errors import ConfigError, FlowerSplitError, UsageError

if TYPE_CHECKING:
    from flower_split.apps.flower.local_federation import LocalSilo

deployment_cli = typer.Typer(
    no_args_is_help=True, add_completion=False, help="A deployment as a whole."
)

SILOS = 3
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
RESERVED = frozenset({"ca", "server", "app"})
"""Folders of parties that are no silo."""


@deployment_cli.callback()
def main() -> None:
    """A deployment as a whole."""


@deployment_cli.command("local")
def local_command(
    app: Annotated[
        Path | None,
        typer.Argument(help="Folder with the app's pyproject.toml; by default a trial."),
    ] = None,
    silo: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[=PATH]",
            help="A silo, with its own data; else with its part of the app's. Can be repeated.",
        ),
    ] = None,
    run_config: Overrides = None,
    output_dir: Annotated[
        Path | None,
        typer.Option(help="Folder for the results; by default outputs/ and the app's name."),
    ] = None,
    keep: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Keep certificates, keys, logs and the silos' states there, and use them again.",
        ),
    ] = None,
    debug: Debug = False,
) -> None:
    """Run APP in a deployment of its own on this machine: a SuperLink, and a SuperNode a silo.

    Everything is secured as between organisations: TLS on both channels, registered SuperNodes, a
    certificate of every silo's for the trunk. Prints a line a round, a table at the end and where
    the results are. The status is 0 only if the run completed. At the end, and at Ctrl-C,
    everything is stopped.
    """
    with errors_once(debug=debug, run_config=run_config):
        quiet_libraries()
        from flower_split.apps.simulate import interruptible

        with interruptible():
            _run(app, _silos(silo or ()), list(run_config or ()), output_dir, keep)


def _run(
    app: Path | None,
    silos: "list[LocalSilo]",
    given: list[str],
    output_dir: Path | None,
    keep: Path | None,
) -> None:
    from flower_split.apps.checking.app_check import check_app
    from flower_split.apps.flower.deployed import Deployment
    from flower_split.apps.flower.local_federation import CONNECTION, LocalFederation
    from flower_split.apps.flower.party_folder import party_folder
    from flower_split.apps.folder.app import App
    from flower_split.apps.folder.completed import completed
    from flower_split.apps.folder.overrides import Value, parse_overrides, rendered
    from flower_split.apps.folder.template import new_app
    from flower_split.apps.simulate import OUTPUT_KEY, tell_result
    from flower_split.private_files import make_folder

    with party_folder(keep) as folder:
        if app is None:
            app = folder / "app"
            if not app.exists():
                new_app(app, name="trial")
        read = App.read(app)
        service = {**read.settings, **parse_overrides(given)}.get("trunk.service")
        federation = LocalFederation(folder, silos, hosts_trunk=not service)
        settings: dict[str, Value] = {}
        if read.is_ready_made:
            settings = {**federation.trunk_settings, "strategy.min-nodes": len(silos)}
        # What is given on the command line comes last, and so counts.
        given = [rendered(settings), *given] if settings else given
        if output_dir is not None:
            given.append(rendered({OUTPUT_KEY: str(output_dir.absolute())}))
        with completed(app, given) as complete:
            own = {one.name: one.data for one in silos if one.data}
            found, findings = check_app(complete, given, silos=len(silos), own=own, examples=0)
            print_findings(findings, all_of_them=False)
            if found is None or findings.problems:
                raise typer.Exit(NOT_DONE)
            given += absolute_paths(found)
            named = str(found.settings.get(OUTPUT_KEY) or "")
            output = Path(named) if named else Path(OUTPUTS) / found.name
            output = make_folder(output.absolute())
            given.append(rendered({OUTPUT_KEY: str(output)}))
            with completed(complete, given) as ready, federation:
                deployment = Deployment(CONNECTION, federation.environment)
                started = time.time()
                run = deployment.submit(App.read(ready, given))
                print(f"submitted as {run.name}", flush=True)
                try:
                    deployment.follow(run, shown_once(findings))
                except FlowerSplitError as error:
                    if keep is not None:
                        error.add_note(f"the parties' logs are in {folder}/*/log")
                    raise
    tell_result(output, since=started)
    print("everything was stopped" + (f"; keys and logs are in {folder}" if keep else ""))


def _silos(given: "list[str] | tuple[()]") -> "list[LocalSilo]":
    """The silos that options name.

    Raises:
        UsageError: a name is no file's or comes twice, or some have data and some not.
        ConfigError: data is not there.
    """
    from flower_split.apps.flower.local_federation import LocalSilo
    from flower_split.data.callables import is_reference

    words = list(given) or [f"silo-{number}" for number in range(1, SILOS + 1)]
    found: list[LocalSilo] = []
    for word in words:
        name, _, data = word.partition("=")
        if not NAME.fullmatch(name) or name in RESERVED:
            raise UsageError(
                f"--silo {word}: expected NAME or NAME=PATH, the name of letters, digits, dots, "
                f"hyphens and underscores, and none of {', '.join(sorted(RESERVED))}"
            )
        if name in {one.name for one in found}:
            raise UsageError(f"--silo {name} comes twice: every silo has a name of its own")
        if data and not is_reference(data):
            if not Path(data).exists():
                raise ConfigError(f"--silo {word}: there is no {data}")
            data = str(Path(data).resolve())
        found.append(LocalSilo(name=name, data=data))
    if len({bool(one.data) for one in found}) > 1:
        raise UsageError(
            "some --silo have data of their own and some not: name every silo's as NAME=PATH, or "
            "none's"
        )
    return found
