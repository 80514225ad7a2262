"""Certificates and keys of a deployment: a CA, the server's certificate, the silos' key pairs.

::

    python keys.py ca FOLDER                            # ca.crt, ca.key
    python keys.py server FOLDER HOST [HOST …]          # server.crt, server.key, signed by the CA
    python keys.py silo FOLDER NAME                     # NAME.key, NAME.pub
    python keys.py strategy FOLDER NAME                 # NAME-strategy.crt, NAME-strategy.key

Private keys are readable by their owner only and are never printed. Nothing is overwritten: to
renew a certificate, move the old files away first.
"""

import argparse
import os
import sys
from pathlib import Path

from flower_split.errors import ConfigError
from flower_split.tls.provisioning import make_ca, make_server, make_silo, make_strategy


def main() -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name, help_text in (
        ("ca", "a certificate authority"),
        ("server", "the SuperLink's certificate, signed by that authority"),
        ("silo", "a SuperNode's key pair"),
        ("strategy", "the certificate by which a trunk service knows a ServerApp"),
    ):
        command = commands.add_parser(name, help=help_text)
        command.add_argument("folder", type=Path, help="where the files are, or will be")
        if name == "server":
            command.add_argument("host", nargs="+", help="name or IP address that silos connect to")
        if name in ("silo", "strategy"):
            command.add_argument("name", help="its name, which names its files")
    given = parser.parse_args()
    os.umask(0o077)  # for the folders that are made
    try:
        if given.command == "ca":
            written = make_ca(given.folder)
        elif given.command == "server":
            written = make_server(given.folder, given.host)
        elif given.command == "strategy":
            written = make_strategy(given.folder, given.name)
        else:
            written = make_silo(given.folder, given.name)
    except FileExistsError as error:
        print(f"{error.filename} exists already: move it away to make a new one", file=sys.stderr)
        return 1
    except (ConfigError, OSError, ValueError) as error:
        print(f"keys.py {given.command}: {error}", file=sys.stderr)
        return 1
    print(*written, sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
