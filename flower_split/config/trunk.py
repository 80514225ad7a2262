"""The trunk: its adapters, its server, the bounds of what it holds, and the TLS of its channel."""

from dataclasses import dataclass

from flower_split.config.checks import at_least, device_name, in_range, one_of
from flower_split.config.model import AUTOCAST, DTYPES
from flower_split.errors import ConfigError

TRUNK_ADAPTERS = ("federated", "shared", "frozen")
LOCAL, RAY = "local", "ray"
ENGINES = (LOCAL, RAY)
TLS_MODES = ("ephemeral", "files", "off")


MOST_STAGES, MOST_REPLICAS = 1024, 256


@dataclass(frozen=True, kw_only=True)
class TrunkConfig:
    """The trunk's adapters and the server that hosts it."""

    adapters: str = "federated"
    """One of `TRUNK_ADAPTERS`."""
    device: str = "auto"
    """Where the trunk computes: `cpu`, `mps`, `cuda`, `cuda:N`, or `auto`, the first of `cuda`,
    `mps` and `cpu` that the server has."""
    devices: tuple[str, ...] = ()
    """Devices over which the trunk's layers are laid, such as `cuda:0, cuda:1`, each with as many
    as its free memory has room for; empty for `device` alone. Several microbatches are computed
    at once, each by another device; see [services.md](services.md#a-trunk-over-several-devices)."""
    engine: str = LOCAL
    """One of `ENGINES`: the trunk computes in the process that hosts it, or as actors of a
    [Ray](https://docs.ray.io) cluster, on one machine or several; see
    [services.md](services.md#a-trunk-over-several-machines)."""
    stages: int = 1
    """On Ray: actors over which the trunk's layers are laid, one after the other."""
    replicas: int = 1
    """On Ray: trunks of so many stages, each with all of the trunk's layers. A silo's session is
    placed on the one that has the fewest."""
    dtype: str = ""
    """The trunk's weights: one of `DTYPES`; empty takes `model.dtype`."""
    autocast: str = "off"
    """Dtype of the trunk's matrix products, whatever its weights are: one of `AUTOCAST`."""
    host: str = "127.0.0.1"
    """Address the trunk's server binds, such as `0.0.0.0` or `::`."""
    port: int = 0
    """Port the trunk's server binds; 0 takes a free one."""
    advertise: str = ""
    """`host:port` that silos are told to connect to; empty for the bound address. Without a port,
    or with port 0, it means the bound port."""
    service: str = ""
    """`host:port` of the control port of a [trunk service](services.md#the-trunk-service), which
    hosts the trunk in place of the ServerApp's process; empty for none. `device`, `host`, `port`,
    `advertise`, `attester` and all of `tls` are then the service's own affair."""
    service_ca: str = ""
    """PEM file, of the server, with the CA of the service's certificate; empty for the machine's
    own roots."""
    service_certificate: str = ""
    """PEM file, of the server, with the certificate by which the service knows this strategy; empty
    for no TLS, with a service on loopback."""
    service_key: str = ""
    """PEM file with the certificate's unencrypted private key."""
    service_timeout: float = 300.0
    """Seconds for which a run waits for its trunk service where that is gone."""
    attester: str = ""
    """Name of an installed plug-in that makes evidence of what runs the trunk, for silos whose
    `trunk-verifier` demands it; empty for none; see [privacy.md](privacy.md#attestation)."""
    shares_adapter: bool = False
    """Whether a silo may read and write the trunk's part of its own adapter, so that any optimizer
    trains it (`SplitSession(trunk_parameters=True)`) and its saved adapters are whole."""
    connect_timeout: float = 30.0
    """Seconds that a silo takes at most to find out whether the trunk answers."""
    reconnect_timeout: float = 4.0
    """Seconds for which the trunk holds the session of a silo whose connection broke, and within
    which the silo goes on where it was. 0 ends a session with its connection."""
    max_sessions: int = 64
    """Sessions that may be open at once."""
    max_in_flight: int = 8
    """Microbatches of one session whose activations the trunk keeps."""
    max_message_tokens: int = 65536
    """Bound of `batch x sequence length` of a single microbatch."""
    max_cached_tokens: int = 262144
    """Bound of `rows x tokens` that one session may hold in key-value caches."""
    max_memory: float = 0.0
    """Bound, in GB, of the memory that one pass may need, as it is estimated from its shape; 0
    chooses half of the memory that is free as the trunk starts, on a GPU four fifths."""

    batching: bool = False
    """Whether requests of different silos are computed together, as rows of one batch. Results
    then differ in their last bits from run to run; turn it off for runs that must not."""
    batch_tokens: int = 4096
    """Tokens of one batch of several silos, padding included."""
    gather_ms: float = 5.0
    """Milliseconds that a request waits at most for others to share its batch."""
    recompute: bool = False
    """Whether the trunk keeps no activations, and computes each microbatch once more for its
    backward pass."""
    max_activation_tokens: int = 0
    """Bound of the tokens whose activations the trunk keeps, over all silos; 0 for none. Beyond it
    silos wait, or have microbatches computed once more for their backward pass."""

    def __post_init__(self) -> None:
        one_of("trunk.adapters", self.adapters, TRUNK_ADAPTERS)
        device_name("trunk.device", self.device)
        check_devices(self.devices)
        one_of("trunk.engine", self.engine, ENGINES)
        for name, most in (("stages", MOST_STAGES), ("replicas", MOST_REPLICAS)):
            in_range(f"trunk.{name}", getattr(self, name), 1, most)
            at_least(f"trunk.{name}", getattr(self, name), 1)
        if self.dtype:
            one_of("trunk.dtype", self.dtype, DTYPES)
        one_of("trunk.autocast", self.autocast, AUTOCAST)
        in_range("trunk.port", self.port, 0, 65535)
        at_least("trunk.port", self.port, 0)
        in_range("trunk.connect-timeout", self.connect_timeout, 0.0, 3600.0, open_low=True)
        in_range("trunk.service-timeout", self.service_timeout, 1.0, 1e6)
        in_range("trunk.reconnect-timeout", self.reconnect_timeout, 0.0, 3600.0)
        for name in ("max_sessions", "max_in_flight", "max_message_tokens", "max_cached_tokens"):
            at_least(f"trunk.{name.replace('_', '-')}", getattr(self, name), 1)
        in_range("trunk.max-memory", self.max_memory, 0.0, 1e6)
        at_least("trunk.batch-tokens", self.batch_tokens, 1)
        in_range("trunk.gather-ms", self.gather_ms, 0.0, 10_000.0)
        at_least("trunk.max-activation-tokens", self.max_activation_tokens, 0)


def check_devices(names: tuple[str, ...], *, key: str = "trunk.device") -> None:
    """Raise `ConfigError` unless a trunk may be laid over devices of these names, or over none.

    Args:
        names: The devices.
        key: What errors call the setting of a single device; with an s, that of several.
    """
    several = f"{key}s"
    for name in names:
        try:
            device_name(several, name)
        except ConfigError as error:
            raise ConfigError(
                f"{several} must be names with commas between them, each cpu, mps, cuda or "
                f"cuda:N, not {name!r}"
            ) from error
    kinds = sorted({name.partition(":")[0] for name in names})
    if len(names) == 1:
        raise ConfigError(
            f"{several} names {names[0]!r} alone, and is for several devices: name two at "
            f"least, with commas, or set {key}"
        )
    if "auto" in kinds:
        raise ConfigError(f"{several} must name every device: 'auto' means one of them")
    if len(kinds) > 1:
        raise ConfigError(
            f"{several} must name devices of one kind, not {' and '.join(kinds)}, which round "
            "differently"
        )
    places = [_place(name) for name in names]
    twice = sorted({name for name in places if places.count(name) > 1})
    if twice and kinds != ["cpu"]:
        raise ConfigError(
            f"{several} names {twice[0]} twice, which computes no faster for it: name every "
            "device once"
        )


def _place(name: str) -> str:
    """A device's name as all write it."""
    kind, _, number = name.partition(":")
    return f"{kind}:{int(number or 0)}" if kind == "cuda" else name


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
