"""The trunk's channel as the run config wants it: where it listens, and its certificate."""

from flower_split.config.address import Address, bare_host, is_any
from flower_split.config.sections import SplitConfig
from flower_split.tls import ServerTls
from flower_split.tls.pem import read_pem


def bind_address(config: SplitConfig) -> str:
    """`host:port` that the trunk's server binds."""
    return str(Address(bare_host(config.trunk.host), config.trunk.port))


def advertised_address(config: SplitConfig) -> str:
    """`trunk.advertise`, with the configured port if it has none; port 0 is the bound one."""
    given, trunk = config.trunk.advertise, config.trunk
    return str(Address.parse(given, port=trunk.port)) if given else ""


def server_tls(config: SplitConfig) -> ServerTls | None:
    """The trunk's certificate; None without TLS.

    Raises:
        ConfigError: with the file that is missing or does not fit.
    """
    tls, trunk = config.tls, config.trunk
    if tls.mode == "off":
        return None
    if tls.mode == "files":
        return ServerTls.from_files(
            tls.certificate, tls.private_key, ca=tls.ca, client_ca=tls.client_ca
        )
    advertised = advertised_address(config)
    hosts = [Address.parse(advertised, port=0).host] if advertised else []
    if not is_any(trunk.host):
        hosts.append(bare_host(trunk.host))
    client_ca = read_pem(tls.client_ca, "tls.client-ca") if tls.client_ca else b""
    return ServerTls.ephemeral(*hosts, client_ca=client_ca)
