"""The diagnosis of a connection that failed: what is wrong at an address, found by a second look.

gRPC says little and differs between versions, so after a failure the address is probed step by
step with Python's own `socket` and `ssl`, and with the same trust: name, TCP, TLS, HTTP/2. Where
gRPC goes through a proxy, so does the look, and whatever it finds names the proxy.
"""

import socket
import ssl
import tempfile
import threading
from queue import Empty, SimpleQueue

from flower_split.config.address import Address
from flower_split.errors import CertificateError, ConfigError, TrunkError, TrunkUnavailableError
from flower_split.tls import ClientTls
from flower_split.transport.grpc.proxy import Proxy, ProxyError

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
_SETTINGS = 4  # type of the frame that an HTTP/2 server begins with

# OpenSSL's numbers of a failed verification.
_EXPIRED, _NOT_YET, _SELF_SIGNED, _OTHER_NAME, _OTHER_IP = 10, 9, 18, 62, 64


def diagnose(address: str, tls: ClientTls | None, seconds: float) -> TrunkError | None:
    """What keeps this machine from a trunk at `address`; None when nothing is found wrong.

    Args:
        address: `host:port`.
        tls: What the failed connection trusted; None for plaintext.
        seconds: How long the look may take.
    """
    found: SimpleQueue[TrunkError | None] = SimpleQueue()
    peer = Address.parse(address)
    proxy = Proxy.of(peer)

    def look() -> None:
        try:
            found.put(_probe(peer, tls, seconds, proxy))
        except Exception:  # a look that fails finds nothing
            found.put(None)

    # a daemon: resolving a name cannot be interrupted
    threading.Thread(target=look, name="trunk-diagnosis", daemon=True).start()
    try:
        error = found.get(timeout=seconds + 0.5)
    except Empty:
        error = _unreachable(address, "its name was not resolved in time: check this machine's DNS")
    if proxy is None:
        return error
    error = error or _unreachable(
        address, "no session came about, and nothing else was found wrong"
    )
    return type(error)(
        f"{error}. The connection goes through {proxy}: have it let HTTP/2 pass to {address}, or "
        f"connect directly, by {peer.host!r} in $no_proxy"
    )


def _probe(
    address: Address, tls: ClientTls | None, seconds: float, proxy: Proxy | None
) -> TrunkError | None:
    connection = _connect(address, seconds, proxy)
    if isinstance(connection, TrunkError):
        return connection
    with connection:
        if tls is not None:
            return _probe_tls(connection, address, tls)
        if _speaks_http2(connection):
            return None
    again = _connect(address, seconds, proxy)
    if isinstance(again, TrunkError):
        return again
    with again:
        if _speaks_tls(again):
            return CertificateError(
                f"trunk at {address}: speaks TLS, and this silo was told to connect without it: "
                "give this silo the trunk's CA, or the same tls.mode as the server"
            )
    return _no_trunk(address)


def _connect(address: Address, seconds: float, proxy: Proxy | None) -> socket.socket | TrunkError:
    if proxy is not None:
        return _connect_by(proxy, address, seconds)
    try:
        return socket.create_connection((address.host, address.port), seconds)
    except socket.gaierror as error:
        return _unreachable(
            address,
            f"the name {address.host!r} cannot be resolved here ({error.strerror}): check "
            "trunk.advertise on the server, and this machine's DNS",
        )
    except ConnectionRefusedError:
        return _unreachable(
            address,
            "the connection was refused: no trunk listens there any more, or host or port are "
            "wrong. Check trunk.advertise, and that the run is still going",
        )
    except TimeoutError:
        return _unreachable(
            address,
            "no answer: a firewall drops the connection, or the host is down. Check "
            "trunk.advertise, and that this machine may open connections to that port",
        )
    except OSError as error:
        return _unreachable(
            address,
            f"cannot be reached from here ({error.strerror}): check trunk.advertise and this "
            "machine's network",
        )


def _connect_by(proxy: Proxy, address: Address, seconds: float) -> socket.socket | TrunkError:
    try:
        return proxy.connect(address, seconds)
    except ProxyError as error:
        return _unreachable(address, f"{proxy} does not connect to it: {error}")
    except OSError as error:
        why = "no answer" if isinstance(error, TimeoutError) else error.strerror
        return _unreachable(address, f"{proxy} cannot be reached ({why})")


def _probe_tls(connection: socket.socket, address: Address, tls: ClientTls) -> TrunkError | None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_alpn_protocols(["h2"])
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # as gRPC does
    try:
        context.load_verify_locations(cadata=tls.roots.decode("ascii", "ignore"))
        if tls.certificate:
            _show(context, tls)
        with context.wrap_socket(connection, server_hostname=address.host) as secured:
            return _after_handshake(secured, address, tls)
    except (ConfigError, ssl.SSLCertVerificationError) as error:
        return _untrusted(address, error, tls)
    except (ssl.SSLEOFError, ssl.SSLZeroReturnError):
        return _closed(address)
    except ssl.SSLError as error:
        if error.reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "UNKNOWN_PROTOCOL"):
            return CertificateError(
                f"trunk at {address}: speaks no TLS at that port, which this silo demands: check "
                "host and port, or turn TLS on at the server (tls.mode)"
            )
        return CertificateError(
            f"trunk at {address}: the TLS handshake failed ({error.reason or 'no reason given'})"
        )
    except TimeoutError:
        return _no_trunk(address)
    except OSError:
        return _closed(address)


def _show(context: ssl.SSLContext, tls: ClientTls) -> None:
    """Have the look show the silo's certificate as its session does; `ssl` takes it from files."""
    with tempfile.TemporaryFile() as file:  # which has no name, and is this user's alone
        file.write(tls.certificate + b"\n" + tls.private_key)
        file.flush()
        context.load_cert_chain(f"/proc/self/fd/{file.fileno()}")


def _after_handshake(secured: ssl.SSLSocket, address: Address, tls: ClientTls) -> TrunkError | None:
    """In TLS 1.3 a client learns only after its handshake that its certificate was missing."""
    if secured.selected_alpn_protocol() != "h2":
        return _no_trunk(address)
    try:
        if _speaks_http2(secured):
            return None
    except TimeoutError:
        return _no_trunk(address)
    except OSError:  # gRPC's server resets or closes, without a word of TLS
        pass
    if tls.certificate:
        return CertificateError(
            f"trunk at {address}: demands a client certificate and does not accept this silo's: "
            "the CA that signed it must be the server's tls.client-ca, and its purpose (extended "
            "key usage), if it names one, client authentication"
        )
    return CertificateError(
        f"trunk at {address}: demands a client certificate and this silo has none: set "
        "trunk-certificate and trunk-private-key in its node config"
    )


def _untrusted(address: Address, error: Exception, tls: ClientTls) -> TrunkError:
    code = error.verify_code if isinstance(error, ssl.SSLCertVerificationError) else 0
    if code == _EXPIRED:
        problem = "its certificate expired: renew it at the server, or set this machine's clock"
    elif code == _NOT_YET:
        problem = "its certificate is not valid yet: compare the clocks of both machines"
    elif code == _SELF_SIGNED:
        problem = (
            "its certificate is self-signed, and this silo was not told to trust it: set trunk-ca "
            "in the node config (or tls.ca at the server) to the CA that signed it"
        )
    elif code in (_OTHER_NAME, _OTHER_IP):
        problem = (
            f"its certificate is not for the host {address.host!r}: advertise a host that the "
            "certificate names (trunk.advertise), or renew it with this one"
        )
    elif code:
        trusted = f"the CA of {tls.source}" if tls.ca else "this machine's own roots"
        problem = (
            f"its certificate was signed by a CA that this silo does not trust ({trusted}): set "
            "trunk-ca in the node config (or tls.ca at the server) to the CA that signed it. If "
            "it should be the right one, someone may sit between the two"
        )
    else:
        problem = str(error)
    return CertificateError(f"trunk at {address}: {problem}")


def _speaks_http2(connection: socket.socket) -> bool:
    connection.sendall(_PREFACE)
    head = b""
    while len(head) < 9 and (more := connection.recv(9 - len(head))):
        head += more
    return len(head) == 9 and head[3] == _SETTINGS


def _speaks_tls(connection: socket.socket) -> bool:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # nothing is sent: this only asks whether TLS is spoken
    try:
        context.wrap_socket(connection).close()
    except OSError:
        return False
    return True


def _no_trunk(address: Address) -> TrunkError:
    return _unreachable(
        address,
        "something accepts connections there and is no trunk, or a trunk that has as many "
        "connections as its process may: check host and port, or try again in a while",
    )


def _closed(address: Address) -> TrunkError:
    return _unreachable(
        address,
        "closed the connection during the TLS handshake: it may be no trunk, speak no TLS, be "
        "about to end, or have as many connections as its process may. Check host and port, or "
        "try again in a while",
    )


def _unreachable(address: object, problem: str) -> TrunkUnavailableError:
    return TrunkUnavailableError(f"trunk at {address}: {problem}")
