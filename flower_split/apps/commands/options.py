"""Options that were left without their value, said so in a sentence."""

from collections.abc import Sequence
from typing import Any

import click
from typer.core import TyperGroup


class Commands(TyperGroup):
    """The commands, the ones below them too, whose options say what is wanted of them."""

    def invoke(self, ctx: click.Context) -> Any:
        """As Click does."""
        given = [*ctx._protected_args, *ctx.args]
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            said = _without_value(self, ctx, given)
            if said:
                raise click.UsageError(said, error.ctx or ctx) from None
            raise


def _without_value(command: click.Command, ctx: click.Context, given: Sequence[str]) -> str:
    """Which option of the called command has no value; empty where another thing is wrong."""
    for word in given:
        found = command.get_command(ctx, word) if isinstance(command, click.Group) else None
        if found is None:
            break
        command = found
    options = {
        name: option
        for option in command.params
        if isinstance(option, click.Option)
        for name in option.opts
    }
    for name, after in zip(given, [*given[1:], None], strict=True):
        option = options.get(name)
        if option is None or option.is_flag or option.count:
            continue
        if after is None or after.partition("=")[0] in {*options, "--help"}:
            followed = "nothing" if after is None else after
            help_ = " ".join((option.help or "").split())
            value = option.make_metavar(ctx)
            return f"{name} wants a value, {value}, and is followed by {followed}. {help_}".strip()
    return ""
