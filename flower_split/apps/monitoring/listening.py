"""A socket to serve HTTP on, or the reason why there is none."""

import errno
import socket

from flower_split.config.address import Address
from flower_split.errors import ConfigError


def listening(place: Address, name: str) -> socket.socket:
    """A socket that listens at `place`, whose address may be told at once; its caller closes it.

    Raises:
        ConfigError: it cannot be, by the `name` of the setting.
    """
    family = socket.AF_INET6 if ":" in place.host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((place.host, place.port))
        bound.listen()
    except OSError as error:
        bound.close()
        why = "it is in use" if error.errno == errno.EADDRINUSE else error.strerror
        raise ConfigError(
            f"{name} {place} cannot be listened on: {why}. Name another port; port 0 takes a "
            "free one"
        ) from error
    return bound
