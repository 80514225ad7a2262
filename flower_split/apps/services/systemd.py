"""systemd: what a service tells it, where it has started the service to be told."""

import logging
import os
import socket

logger = logging.getLogger(__name__)


def tell_systemd(state: str) -> None:
    """As sd_notify(3), `READY=1` for instance; nothing where systemd did not start this process."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
            told.connect(address)
            told.sendall(state.encode())
    except OSError as error:
        logger.warning("systemd was not told %s: %s", state, error)
