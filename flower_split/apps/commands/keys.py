"""`flower-split keys`: the certificates and keys of a deployment, made once and kept."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from flower_split.apps.commands.check import Debug
from flower_split.apps.commands.console import errors_once, usage
from flower_split.errors import ConfigError

keys_cli = typer.Typer(
    no_args_is_help=True,
    help="Certificates and keys of a deployment. Private ones are for their owner only and are "
    "never printed. Nothing is overwritten: to renew one, move its files away first.",
)

Folder = Annotated[Path, typer.Argument(help="Where the files are, or will be.")]
Name = Annotated[str, typer.Argument(help="Its name, which names its files.")]


@keys_cli.command("ca")
def ca_command(folder: Folder, debug: Debug = False) -> None:
    """Make an authority of the deployment's own: ca.crt, ca.key."""
    with _writing(folder, debug=debug):
        from flower_split.tls.provisioning import make_ca

        _print(make_ca(folder))


@keys_cli.command("server")
def server_command(
    folder: Folder,
    host: Annotated[list[str], typer.Argument(help="Names and addresses that silos connect to.")],
    debug: Debug = False,
) -> None:
    """Make a SuperLink's or a trunk's certificate, signed by the authority: server.crt, .key."""
    with _writing(folder, debug=debug):
        from flower_split.tls.provisioning import make_server

        _print(make_server(folder, host))


@keys_cli.command("silo")
def silo_command(folder: Folder, name: Name, debug: Debug = False) -> None:
    """Make a SuperNode's key pair: NAME.key, NAME.pub."""
    with _writing(folder, name, debug=debug):
        from flower_split.tls.provisioning import make_silo

        _print(make_silo(folder, name))


@keys_cli.command("silo-certificate")
def silo_certificate_command(folder: Folder, name: Name, debug: Debug = False) -> None:
    """Make the certificate by which the trunk knows a silo: NAME-trunk.crt, .key."""
    with _writing(folder, name, debug=debug):
        from flower_split.tls.provisioning import make_silo_certificate

        _print(make_silo_certificate(folder, name))


@keys_cli.command("strategy")
def strategy_command(folder: Folder, name: Name, debug: Debug = False) -> None:
    """Make the certificate by which a trunk service knows a ServerApp: NAME-strategy.crt, .key."""
    with _writing(folder, name, debug=debug):
        from flower_split.tls.provisioning import make_strategy

        _print(make_strategy(folder, name))


@contextmanager
def _writing(folder: Path, name: str | None = None, *, debug: bool) -> Iterator[None]:
    with errors_once(debug=debug):
        with usage():
            if name is not None and not _names_a_file(name):
                raise ConfigError(
                    "NAME names files: letters, digits, dots, hyphens and underscores, not "
                    f"{name!r}"
                )
        try:
            yield
        except FileExistsError as error:
            raise ConfigError(
                f"{error.filename} exists already: move it away to make a new one"
            ) from error
        except FileNotFoundError as error:
            raise ConfigError(
                f"there is no {error.filename}: make it by `flower-split keys ca {folder}`"
            ) from error
        except (OSError, ValueError) as error:
            raise ConfigError(f"no keys can be made in {folder}: {error}") from error


def _names_a_file(name: str) -> bool:
    plain = name.replace("-", "").replace("_", "").replace(".", "")
    return plain.isascii() and plain.isalnum() and not name.startswith((".", "-"))


def _print(files: list[Path]) -> None:
    for file in files:
        print(file)
