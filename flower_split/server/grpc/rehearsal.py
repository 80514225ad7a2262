"""The rehearsal: one handshake with the trunk's certificate, by gRPC's own TLS, before any port.

The files are checked before, in `tls`, where a reason can be given. What gRPC's own library makes
of a certificate only that library knows, so a server and a client of this process connect over a
socket in a temporary folder, as silos will. A port that is opened after it serves them.
"""

import logging
import tempfile
from pathlib import Path

import grpc
import grpc.aio

from flower_split.errors import ConfigError
from flower_split.tls import ClientTls, ServerTls
from flower_split.transport.grpc.channel import channel_credentials, server_credentials

logger = logging.getLogger(__name__)

_SECONDS = 10.0
_METHOD = "/flower_split.Rehearsal/Connect"
_NO_PROXY = ("grpc.enable_http_proxy", 0)


async def rehearse(tls: ServerTls, host: str) -> None:
    """Connect to a server with `tls` as to `host`, trusting the CA that silos are told to trust.

    Where they are told none, the trunk's own certificates are trusted.

    Raises:
        ConfigError: no silo could connect; says what gRPC's TLS says of it.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="fs-tls-") as folder:
            await _connect(tls, host, Path(folder))
    except OSError as error:
        logger.debug("the TLS handshake is not rehearsed: %s", error.strerror)


async def _connect(tls: ServerTls, host: str, folder: Path) -> None:
    server = grpc.aio.server()
    try:
        server.add_insecure_port(f"unix:{folder / 'plain'}")
    except RuntimeError:  # the path is too long, or there are no such sockets here
        return
    try:
        place = f"unix:{folder / 'tls'}"
        try:
            server.add_secure_port(place, server_credentials(tls, for_all=True))
        except RuntimeError as error:
            raise ConfigError(
                f"{tls.source}: gRPC's TLS does not take this certificate with this private key. "
                "Those on the curve P-256 or with RSA of 2048 bits are taken everywhere"
            ) from error
        await server.start()
        trust = ClientTls(ca=tls.trusted)
        options = [("grpc.ssl_target_name_override", host), _NO_PROXY]
        async with grpc.aio.secure_channel(place, channel_credentials(trust), options) as channel:
            refusal = await _refusal(channel)
        if refusal:
            raise ConfigError(
                f"{tls.source}: no silo can connect with this certificate: gRPC's TLS says "
                f"{refusal!r}"
            )
    finally:
        await server.stop(None)


def _as_it_is(data: bytes) -> bytes:
    return data


async def _refusal(channel: grpc.aio.Channel) -> str:
    """What the handshake fails with; empty where it does not."""
    try:
        # No such method is there: an answer is all that is asked for.
        await channel.unary_unary(_METHOD, _as_it_is, _as_it_is)(b"", timeout=_SECONDS)
    except grpc.aio.AioRpcError as error:
        if error.code() is grpc.StatusCode.UNAVAILABLE:
            return (error.details() or "").rpartition("OPENSSL_internal:")[2] or "no reason"
    return ""
