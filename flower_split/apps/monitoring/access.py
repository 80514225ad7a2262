"""Who may see the live page: this machine's user by loopback, others with a token."""

import hmac
import secrets
from pathlib import Path

from flower_split.errors import StateError
from flower_split.private_files import make_folder, read_whole, write_new
from flower_split.user_folders import user_folder

TOKEN_BYTES = 32
SHORTEST = 16
"""Characters of a token in a file that a user names."""
FILE = "monitor-token"
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")


class Access:
    """Decides about requests.

    Args:
        token: What a reader must know; empty lets every reader in whose browser was sent to this
            machine's loopback by name: a page of another site, whose name was made to lead here,
            is not one.
    """

    def __init__(self, token: str = "") -> None:
        self._token = token

    @property
    def needs_token(self) -> bool:
        """Whether a token is asked for."""
        return bool(self._token)

    def admits(self, host: str, told: str) -> bool:
        """Whether a request is answered; takes as long for a wrong token as for the right one.

        Args:
            host: The request's `Host`.
            told: The token that it brings; empty where it brings none.
        """
        if not self._token:
            name, _, port = host.rpartition(":")
            return (name if name and port.isdecimal() else host) in LOOPBACK_NAMES
        return hmac.compare_digest(told.encode("utf-8", "replace"), self._token.encode())


def read_token(path: Path | None) -> tuple[str, Path]:
    """The token of `path`, or of a file of this user's own, which is made where it is missing.

    Raises:
        StateError: the file cannot be read or made, others may read it, or its token is too short.
    """
    file = path or user_folder("XDG_STATE_HOME", ".local/state", key="--token-file") / FILE
    try:
        if not file.exists():
            make_folder(file.parent)
            write_new(file, f"{secrets.token_urlsafe(TOKEN_BYTES)}\n".encode())
        if file.stat().st_mode & 0o077:
            raise StateError(f"{file} may be read by others: run `chmod 600 {file}`")
        token = read_whole(file).decode("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise StateError(f"the token file {file} cannot be used: {error}") from error
    if len(token) < SHORTEST or not token.isprintable():
        raise StateError(
            f"{file} must hold a token of at least {SHORTEST} printable characters: remove the "
            "file, and another one is made"
        )
    return token, file
