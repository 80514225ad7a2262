"""An app as a whole: archive, settings, strategy, model, cut, memory, data, address; no Ray."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from flower_split.adapters import method_problems
from flower_split.apps.checking.addresses import look_at_addresses
from flower_split.apps.checking.data_check import DP, Whose, look_at_data
from flower_split.apps.checking.findings import Findings
from flower_split.apps.checking.memory_check import look_at_memory
from flower_split.apps.checking.model_check import look_at_model
from flower_split.apps.checking.trunk_check import look_at_trunk
from flower_split.apps.folder.app import App
from flower_split.apps.folder.archive import check_archive
from flower_split.config.address import is_loopback
from flower_split.config.run_config import read_run_config
from flower_split.config.sections import SplitConfig
from flower_split.privacy.statement import figures
from flower_split.reporting.figures import four_digits, in_bytes
from flower_split.strategies import build_inner, inner_problems
from flower_split.strategies.central_privacy import CentralPrivacy
from flower_split.strategies.inner import central_privacy, check_inner, least_nodes

EXAMPLES = 3
"""Rendered examples that a check shows."""


def check_app(
    folder: Path,
    given: Sequence[str] = (),
    *,
    silos: int = 0,
    data: str = "",
    own: Mapping[str, str] | None = None,
    examples: int = EXAMPLES,
    here: bool = True,
) -> tuple[App | None, Findings]:
    """The app in `folder`, where it can be read, and everything that is to be said of it.

    Args:
        folder: With the app's `pyproject.toml`.
        given: Overrides, as of `-c`.
        silos: Silos of a simulation on this machine; 0 for a deployment.
        data: Path of one silo's own data, in place of the app's.
        own: Path of every silo's own data by its name, in place of the app's.
        examples: How many rendered examples are made.
        here: Whether model, data and address are this machine's, as they are not where an app is
            only submitted.
    """
    findings = Findings()
    with findings.looking("archive"):
        files = check_archive(folder)
        findings.ok(
            "archive",
            f"{in_bytes(sum(files.values()))} leave this machine, for every party: "
            f"{', '.join(files)}",
        )
    app, unknown = None, list[str]()
    with findings.looking("settings"):
        app = App.read(folder, given, unknown=unknown)
    if app is None:
        return None, findings
    for problem in unknown:
        findings.refuse("settings", problem)
    if not app.is_ready_made:
        findings.ok("settings", f"are read by the app's own ServerApp, {app.server}: not checked")
        return app, findings
    config = None
    with findings.looking("settings"):
        config = read_run_config(
            app.settings, check_strategy=inner_problems, check_method=method_problems
        )
    if config is None:
        findings.warn("settings", "model, data and address are looked at when these are mended")
    else:
        _look_at_rounds(config, silos, findings)
        if not here:
            _look_from_afar(config, findings)
            return app, findings
        model = look_at_model(config, findings)
        if model is not None:
            look_at_trunk(config, model.size.cuts, silos, findings)
        longest = 0
        if app.trains_as_configured:
            whose = Whose(silos=silos or config.strategy.min_nodes, path=data, own=own or {})
            known = model.size.parameters if model else 0
            longest = look_at_data(
                model.config if model else config,
                whose,
                findings,
                examples=examples,
                parameters=known,
            )
        if model is not None:
            look_at_memory(model, longest, silos, findings)
        look_at_addresses(config, findings)
    return app, findings


def _look_from_afar(config: SplitConfig, findings: Findings) -> None:
    """Note what hardly fits a deployment."""
    if not config.output_dir:
        findings.warn(
            "settings", "output-dir is empty: nothing of the run will be kept on the server"
        )
    if is_loopback(config.trunk.host) and not config.trunk.service:
        findings.warn(
            "address",
            f"trunk.host {config.trunk.host} is loopback: silos on other machines cannot reach the "
            "trunk; set it to an address of the server's, and trunk.advertise to what silos "
            "connect to",
        )


def _look_at_rounds(config: SplitConfig, silos: int, findings: Findings) -> None:
    """Note what is to be said of the strategy and of how many silos it takes."""
    with findings.looking("strategy"):
        inner = build_inner(config.strategy, config.lora)
        check_inner(inner, config.lora, config.peft)
        train = config.train
        how = (
            f"{train.local_steps} steps"
            if train.local_steps
            else f"{train.local_epochs} pass{'es' * (train.local_epochs > 1)} over the data"
        )
        findings.ok(
            "strategy",
            f"{config.strategy.name}, {config.num_server_rounds} rounds of {how}, learning rate "
            f"{four_digits(train.learning_rate)}",
        )
        if (central := central_privacy(inner)) is not None:
            _look_at_releases(central, config.num_server_rounds, findings)
        least = max(least_nodes(inner, "train"), least_nodes(inner, "evaluate"))
        if 0 < silos < least:
            key = (
                "lower strategy.min-nodes"
                if config.strategy.min_nodes == least
                else f"{type(inner).__name__} needs as many"
            )
            findings.refuse(
                "strategy",
                f"a round starts with {least} silos at least, and there are {silos}: raise "
                f"--silos, or {key}",
            )


def _look_at_releases(central: CentralPrivacy, rounds: int, findings: Findings) -> None:
    """Note what central differential privacy comes to over the whole run."""
    epsilon, within = central.foreseen(rounds)
    text = f"{figures(epsilon, central.delta)} for all data of a silo after {rounds} rounds"
    if within == rounds:
        findings.ok(DP, text)
    else:
        findings.warn(
            DP,
            f"{text}, and strategy.dp-max-epsilon {central.max_epsilon:g} ends the run after "
            f"{within} of them: raise strategy.dp-noise or make fewer rounds",
        )
