"""Key usage: what a certificate's key may be used for, and nothing besides."""

from cryptography import x509

_USES = (
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
    "encipher_only",
    "decipher_only",
)


def key_usage(*granted: str) -> x509.KeyUsage:
    """The extension that grants these uses, by the names of `x509.KeyUsage`'s arguments."""
    return x509.KeyUsage(**{name: name in granted for name in _USES})
