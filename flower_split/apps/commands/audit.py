"""`flower-split audit`: what can be reconstructed of a silo's text from what leaves it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flower_split.apps.commands.check import AsJson, Debug, Overrides
from flower_split.apps.commands.console import (
    errors_once,
    print_json,
    quiet_libraries,
    show_line,
)

if TYPE_CHECKING:
    from flower_split.audit import Outcome


def audit_command(
    target: Annotated[
        str,
        typer.Argument(
            metavar="APP|MODEL",
            help="Folder of an app; or a model: a folder, package:folder or hub model.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the report.")] = Path("audit"),
    adapter: Annotated[
        Path | None, typer.Option(help="PEFT folder of an adapter that both ends have loaded.")
    ] = None,
    data: Annotated[
        str, typer.Option(metavar="PATH", help="Texts to attack, read as the run reads its data.")
    ] = "",
    public: Annotated[
        str, typer.Option(metavar="PATH", help="Texts that an attacker learns from.")
    ] = "",
    policy: Annotated[
        Path | None, typer.Option(help="TOML file with the most that may be found.")
    ] = None,
    budget: Annotated[float, typer.Option(metavar="MINUTES", help="How long it may take.")] = 60.0,
    seed: Annotated[int, typer.Option(help="Of everything random but the noise.")] = 0,
    documents: Annotated[int, typer.Option(help="Texts that are attacked.")] = 32,
    tokens: Annotated[int, typer.Option(help="Tokens of a text that are looked at.")] = 48,
    public_documents: Annotated[
        int, typer.Option(help="Texts at most that an attacker learns from.")
    ] = 600,
    sweeps: Annotated[
        bool, typer.Option(help="Look at other cuts and codecs than the run's own too.")
    ] = True,
    with_texts: Annotated[
        bool, typer.Option("--with-texts", help="Also write what was reconstructed, in a page.")
    ] = False,
    device: Annotated[str, typer.Option(help="Where the model computes: cpu, cuda, auto.")] = "cpu",
    run_config: Overrides = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Try to reconstruct a silo's texts from what its split would send. Nothing leaves the silo.

    The status is 0 where the policy holds, 3 where more was found, 4 where an instrument check
    failed and 5 where the budget was used up, so that there is no verdict. What is found is a lower
    bound of what leaks.
    """
    with errors_once(debug=debug, as_json=as_json, interrupted="no report was written"):
        quiet_libraries()
        from flower_split.apps.checking.auditing import PAGE, Asked, audit
        from flower_split.audit import AuditSettings, Budget, read_policy

        timed = Budget(budget)

        def say(text: str) -> None:
            if not as_json:
                show_line("INFO", f"{timed.spent:6.0f} s  {text}")

        outcome = audit(
            Asked(
                target=target,
                given=run_config or (),
                out=out,
                adapter=adapter,
                data=data,
                public=public,
                device=device,
                sweeps=sweeps,
                with_texts=with_texts,
            ),
            read_policy(policy),
            AuditSettings(
                documents=documents,
                tokens=tokens,
                public_documents=public_documents,
                seed=seed,
            ),
            timed,
            say,
        )
        if as_json:
            print_json({"ok": outcome.status == 0, **outcome.fields})
        else:
            _print(outcome)
            print(f"the report is in {out / PAGE}")
        if outcome.status:
            raise typer.Exit(outcome.status)


def _print(outcome: "Outcome") -> None:
    from rich.table import Table

    from flower_split.apps.commands.console import console
    from flower_split.audit.outcome import VERDICTS

    table = Table(title="What was found", title_justify="left")
    for column in ("attack", "party", "tokens", "whole texts", "labels", "model's guess", "other"):
        table.add_column(column)
    for one in outcome.attacks:
        found = one.recovery
        table.add_row(
            f"{one.key} {one.name}",
            one.party,
            "" if found is None else f"{found.tokens.value:.1%}",
            "" if found is None else f"{found.documents.value:.1%}",
            "" if one.labels is None else f"{one.labels.value:.1%}",
            "" if one.guess is None else f"{one.guess.value:.1%}",
            "" if one.share is None else f"{one.share.value:.2f}",
        )
    out = console()
    out.print(table)
    for control in outcome.controls:
        word = "[green]passed[/]" if control.passed else "[red]failed[/]"
        out.print(f"{word}  {control.name}: ", end="")
        out.print(control.measured, markup=False)
    for name in outcome.above:
        value, key = outcome.strongest()[name]
        out.print(
            f"{name}: {value:.1%} by {key}; the policy allows {outcome.policy.limits[name]:.1%}"
        )
    out.print(outcome.sentence, markup=False)
    out.print(f"[bold]{VERDICTS[outcome.status]}[/]")
