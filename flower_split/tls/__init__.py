"""TLS of the trunk's channel: certificates made, read and checked; no sockets and no wires."""

from flower_split.tls.credentials import ClientTls, ServerTls

__all__ = ["ClientTls", "ServerTls"]
