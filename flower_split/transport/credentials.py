"""gRPC's credentials for the trunk's channel, and the rule of when there may be none."""

import grpc

from flower_split.config.address import Address
from flower_split.errors import ConfigError
from flower_split.tls import ClientTls, ServerTls
from flower_split.transport.channel import Options


def server_credentials(tls: ServerTls, *, for_all: bool = False) -> grpc.ServerCredentials:
    """Credentials of a server.

    Args:
        tls: The certificate, and the CA of the client certificates that are demanded.
        for_all: Whether none is demanded all the same.
    """
    client_ca = b"" if for_all else tls.client_ca
    return grpc.ssl_server_credentials(
        [(tls.private_key, tls.certificate)],
        root_certificates=client_ca or None,
        require_client_auth=bool(client_ca),
    )


def channel_credentials(tls: ClientTls) -> grpc.ChannelCredentials:
    """Credentials of a channel to a trunk that `tls` believes.

    Raises:
        ConfigError: this machine's own roots are asked for and cannot be found.
    """
    return grpc.ssl_channel_credentials(
        root_certificates=tls.roots,
        private_key=tls.private_key or None,
        certificate_chain=tls.certificate or None,
    )


def open_channel(
    address: Address, credentials: grpc.ChannelCredentials | None, options: Options
) -> grpc.Channel:
    """A channel to the trunk at `address`; without credentials it is not encrypted."""
    if credentials is None:
        return grpc.insecure_channel(str(address), options)
    return grpc.secure_channel(str(address), credentials, options)


def check_plaintext(address: Address, *, allowed: bool) -> None:
    """Raise `ConfigError` when a channel without TLS would leave this machine unasked."""
    if not allowed and not address.is_loopback:
        raise ConfigError(
            f"{address} can be reached from other machines, so the trunk's channel needs TLS: "
            "pass tls=, or plaintext=True where the network between both ends is trusted"
        )
