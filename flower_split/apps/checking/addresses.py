"""The trunk's address: whether it can be bound here, and whether its name leads anywhere."""

import socket

from flower_split.apps.checking.findings import Findings
from flower_split.config.address import Address, is_any, is_loopback
from flower_split.config.sections import SplitConfig
from flower_split.errors import ConfigError

TOPIC = "address"


def look_at_addresses(config: SplitConfig, findings: Findings) -> None:
    """Note what is to be said of `trunk.host`, `trunk.port` and `trunk.advertise`.

    The port is tried on this machine, where the check runs: a host that is not this machine's is a
    warning only, because the trunk may be meant for another.
    """
    trunk = config.trunk
    if trunk.service:
        findings.ok(TOPIC, f"the trunk is hosted by the service at {trunk.service}")
        return
    host = trunk.host
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host, trunk.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        findings.refuse(
            TOPIC, f"trunk.host {host!r} is no address that is known here: {error.strerror}"
        )
        return
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            findings.warn(
                TOPIC,
                f"the trunk could not listen on {host}:{trunk.port} of this machine "
                f"({error.strerror}): another program has the port, or the address is another "
                "machine's",
            )
        else:
            port = trunk.port or "a free port"
            findings.ok(TOPIC, f"the trunk listens on {host}, {port}")
    if trunk.advertise:
        _look_up(trunk.advertise, trunk.port, findings)
    elif is_loopback(host) and not is_any(host):
        findings.ok(TOPIC, "only silos on this machine reach it: trunk.host is loopback")


def _look_up(advertise: str, port: int, findings: Findings) -> None:
    try:
        told = Address.parse(advertise, what="trunk.advertise", port=port)
        socket.getaddrinfo(told.host, told.port or None, type=socket.SOCK_STREAM)
    except ConfigError as error:
        findings.refuse(TOPIC, str(error))
    except OSError as error:
        findings.warn(
            TOPIC,
            f"trunk.advertise {advertise!r} is no name that is known here ({error.strerror}): "
            "silos must know it",
        )
    else:
        findings.ok(TOPIC, f"silos connect to {advertise}")
