"""Names of a certificate: which hosts it stands for, by RFC 9525 (no common name)."""

import ipaddress

from cryptography import x509


def certificate_names(certificate: x509.Certificate) -> list[str]:
    """DNS names and IP addresses of the subject alternative name."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return []
    addresses = names.get_values_for_type(x509.IPAddress)
    return [*names.get_values_for_type(x509.DNSName), *map(str, addresses)]


def covers(certificate: x509.Certificate, host: str) -> bool:
    """Whether `certificate` stands for `host`: an IP address without brackets, or a DNS name."""
    names = certificate_names(certificate)
    try:
        return str(ipaddress.ip_address(host)) in names
    except ValueError:
        pass
    wanted = host.lower().rstrip(".")
    parent = wanted.partition(".")[2]
    for name in (name.lower().rstrip(".") for name in names):
        if name == wanted or (parent and "." in parent and name == f"*.{parent}"):
            return True
    return False


def subject_names(hosts: tuple[str, ...]) -> x509.SubjectAlternativeName:
    """A subject alternative name of `hosts`, each once."""
    entries: list[x509.GeneralName] = []
    for host in dict.fromkeys(hosts):
        try:
            entries.append(x509.IPAddress(ipaddress.ip_address(host)))
        except ValueError:
            entries.append(x509.DNSName(host))
    return x509.SubjectAlternativeName(entries)
