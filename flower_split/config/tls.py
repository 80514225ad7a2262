"""TLS of the trunk's channel: where its certificate comes from, and whom the trunk believes."""

from dataclasses import dataclass

from flower_split.config.checks import one_of
from flower_split.errors import ConfigError

TLS_MODES = ("ephemeral", "files", "off")


@dataclass(frozen=True, kw_only=True)
class TlsConfig:
    """TLS of the trunk's channel. All paths are files of the server."""

    mode: str = "ephemeral"
    """One of `TLS_MODES`: a certificate of the run's own, the operator's files, or no TLS."""
    certificate: str = ""
    """PEM file with the trunk's certificate and the intermediate ones; for `files`."""
    private_key: str = ""
    """PEM file with the certificate's unencrypted private key; for `files`."""
    ca: str = ""
    """PEM file with the CA that silos are told to trust; empty for the silos' own roots."""
    client_ca: str = ""
    """PEM file with the CA of the silos' certificates, which are then demanded."""
    allow_plaintext: bool = False
    """Whether `off` is allowed on addresses that other machines reach."""

    def __post_init__(self) -> None:
        one_of("tls.mode", self.mode, TLS_MODES)
        if self.mode == "files" and not (self.certificate and self.private_key):
            raise ConfigError(
                "tls.mode 'files' needs both tls.certificate and tls.private-key: set them, or "
                "set tls.mode to 'ephemeral'"
            )
