"""Where a session's model comes from: the silo's own checkpoint, or the server's delivery."""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Protocol

from flower_split.client.file_stamps import Stamps, file_stamps
from flower_split.client.node_config import NodeConfig
from flower_split.config.sections import ModelConfig, SplitConfig
from flower_split.delivery.cache import PartCache
from flower_split.delivery.fetching import DeliveryStream, Fetched, fetch_pack
from flower_split.errors import HandshakeError
from flower_split.tls import ClientTls
from flower_split.transport.invitation import DeliveryOffer, Invitation
from flower_split.transport.messages import Ticket
from flower_split.user_folders import user_folder


class OpenDelivery(Protocol):
    """Opens a stream of the model's delivery; `GrpcDelivery` describes the arguments."""

    def __call__(
        self,
        address: str,
        ticket: Ticket,
        *,
        tls: ClientTls | None,
        plaintext: bool,
        connect_timeout: float,
    ) -> DeliveryStream:
        """The stream, which connects when it is first read."""
        ...


class ModelSource:
    """A model, which is fetched when it is first asked for; equal where the model is the same.

    Args:
        config: The run config's model.
        pack: Digest of the pack that the server delivers; empty for the silo's own checkpoint.
        fetch: Fetches the pack; called once at most, and forgotten then.
    """

    def __init__(
        self, config: ModelConfig, pack: str = "", fetch: Callable[[], Fetched] | None = None
    ) -> None:
        # A delivered model is named by what it holds.
        stamps: Stamps = () if pack else file_stamps(config.name)
        self.key = (config, pack, stamps)
        """Tells models apart, and one from itself after its files were changed; holds nothing of
        the session."""
        self.pack = pack
        self._config = config
        self._fetch = fetch
        self._fetched: Fetched | None = None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ModelSource) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    @property
    def name(self) -> str:
        """What loaders take as the model's name; a delivered model's is its folder.

        Raises:
            TrunkError: the server does not deliver it.
            DeliveryError: it cannot be kept on the silo's disk.
        """
        if self._fetch is not None:
            self._fetched = self._fetch()
            self._fetch = None
        return self._config.name if self._fetched is None else str(self._fetched.folder)

    @property
    def revision(self) -> str:
        """What loaders take as the model's revision."""
        return "" if self.pack else self._config.revision

    @property
    def statistics(self) -> dict[str, int | float]:
        """What fetching it took in this session; nothing for the silo's own checkpoint."""
        if not self.pack:
            return {}
        fetched = self._fetched
        return {
            "delivery-bytes": 0 if fetched is None else fetched.num_bytes,
            "delivery-seconds": 0.0 if fetched is None else fetched.seconds,
        }


def model_source(
    config: SplitConfig,
    invitation: Invitation,
    node: NodeConfig,
    tls: ClientTls | None,
    open_delivery: OpenDelivery,
) -> ModelSource:
    """Where the model of a session comes from.

    Args:
        config: The run's configuration.
        invitation: What the message says of the trunk.
        node: The silo's own configuration.
        tls: Which trunk is believed; None where the channel may be without encryption.
        open_delivery: Opens a stream of the delivery.

    Raises:
        HandshakeError: run config and invitation do not agree on who has the model.
    """
    offer, delivery = invitation.offer, config.model.delivery
    if (delivery == "server") != (offer is not None):
        raise HandshakeError(
            f"the silo's run config says model.delivery {delivery!r}, and the server "
            f"{'delivers' if offer else 'does not deliver'} the model; start both from the same "
            "run configuration"
        )
    if offer is None:
        return ModelSource(config.model)
    open_stream = partial(
        open_delivery,
        invitation.address,
        tls=tls,
        plaintext=tls is None,  # allowed by now
        connect_timeout=config.trunk.connect_timeout,
    )
    give_up = time.monotonic() + invitation.seconds
    return ModelSource(config.model, offer.pack, partial(_fetch, offer, open_stream, node, give_up))


def _fetch(
    offer: DeliveryOffer,
    open_stream: Callable[[Ticket], DeliveryStream],
    node: NodeConfig,
    give_up: float,
) -> Fetched:
    return fetch_pack(
        offer.pack,
        offer.tickets,
        open_stream,
        PartCache(_cache_folder(node)),
        limit=node.max_download_gib << 30,
        patience=max(0.0, give_up - time.monotonic()),
    )


def _cache_folder(node: NodeConfig) -> Path:
    named = Path(node.cache_dir) if node.cache_dir else None
    return named or user_folder("XDG_CACHE_HOME", ".cache", key="cache-dir")
