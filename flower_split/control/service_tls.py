"""`ServiceTls`: a trunk service's certificate, and whom each of its ports takes."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from cryptography.hazmat.primitives.serialization import Encoding

from flower_split.errors import ConfigError
from flower_split.tls import ServerTls
from flower_split.tls.checks import check_chain, check_validity
from flower_split.tls.pem import parse_certificates, read_pem


@dataclass(frozen=True, kw_only=True)
class ServiceTls:
    """Certificates of a service.

    Raises:
        ConfigError: nobody could call the control port, or anybody could.
    """

    data: ServerTls
    """With the CA of the silos' certificates, where those are demanded."""
    control: ServerTls
    """With the CA of the strategies' certificates."""
    strategies: frozenset[str]
    """Thumbprints of the certificates that may call."""

    def __post_init__(self) -> None:
        if not self.control.client_ca or not self.strategies:
            raise ConfigError(
                "the control port takes strategies with a certificate only: name each one's with "
                "--strategy, and the CA that signed them with --strategy-ca"
            )

    @classmethod
    def from_files(
        cls,
        certificate: str,
        private_key: str,
        *,
        ca: str = "",
        silo_ca: str = "",
        strategies: Sequence[str] = (),
        strategy_ca: str = "",
    ) -> Self:
        """The operator's, from PEM files.

        Args:
            certificate: The service's own, at both ports.
            private_key: Its key.
            ca: Of the same; silos are told to trust it. Empty for their own roots.
            silo_ca: Of the silos' certificates, which are then demanded.
            strategies: The certificate of every strategy that may call.
            strategy_ca: Of those; empty for `ca`.

        Raises:
            ConfigError: with the file that is missing, unreadable, malformed or does not fit.
        """
        own = {"certificate": certificate, "private_key": private_key, "ca": ca}
        signer = strategy_ca or ca
        prints = set[str]()
        for path in strategies:
            what = f"the strategy's certificate {path!r}"
            chain = parse_certificates(read_pem(path, what), what)
            check_validity(chain[0], what)
            if signer:
                roots = parse_certificates(read_pem(signer, "--strategy-ca"), "--strategy-ca")
                check_chain(chain, roots, what)
            der = chain[0].public_bytes(Encoding.DER)
            prints.add(hashlib.sha256(der).hexdigest())
        return cls(
            data=ServerTls.from_files(**own, client_ca=silo_ca),
            control=ServerTls.from_files(**own, client_ca=signer),
            strategies=frozenset(prints),
        )
