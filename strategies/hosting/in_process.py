"""The trunk in the strategy's own process: loaded for its run, and served to the silos."""

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from flower_split.attestation import attester_of
from flower_split.config.sections import SplitConfig
from flower_split.config.trunk import RAY
from flower_split.server.cluster.ray_chain import ray_chain
from flower_split.server.grpc.server import TrunkServer
from flower_split.server.grpc.service import ServiceLimits
from flower_split.server.hosting.hosted_run import HostedRun
from flower_split.server.hosting.resolving import open_pack, resolve_run
from flower_split.server.hosting.run_trunk import SiloChannel
from flower_split.strategies.hosting.channel import advertised_address, bind_address, server_tls

logger = logging.getLogger(__name__)


@contextmanager
def in_process_trunk(config: SplitConfig) -> Iterator[HostedRun]:
    """The trunk of runs with this configuration, which silos can reach within the context.

    Raises:
        ModelError: the model cannot be loaded, or not be cut there.
        AdapterError: the adapter settings do not fit the model.
        ConfigError: the address cannot be bound, the TLS files are not good, or virtual tokens
            leave no place for a sequence in the model's context.
    """
    tls = server_tls(config)  # before the model is loaded: it fails in no time
    with ExitStack() as stack:
        resolved = resolve_run(config)
        pack = open_pack(config)
        if pack is not None:
            stack.enter_context(pack)
        engine = None
        if config.trunk.engine == RAY:
            digest = "" if pack is None else pack.digest
            engine = stack.enter_context(ray_chain(config, resolved, pack=digest))
        run = HostedRun(config, resolved, pack=pack, engine=engine)
        server = stack.enter_context(
            TrunkServer(
                run.engine,
                bind_address(config),
                admit=run.tickets,
                pack=pack,
                limits=ServiceLimits(
                    session=run.limits,
                    max_sessions=config.trunk.max_sessions,
                    max_deliveries=config.trunk.max_sessions,
                    hidden_size=resolved.hidden_size,
                    reconnect_timeout=config.trunk.reconnect_timeout,
                ),
                tls=tls,
                plaintext=config.tls.allow_plaintext,
                advertise=advertised_address(config),
                attester=attester_of(config.trunk.attester),
            )
        )
        run.serve_at(
            SiloChannel(
                address=server.address,
                tls=tls is not None,
                ca="" if tls is None else tls.ca.decode("ascii", "ignore"),
            )
        )
        logger.info(
            "the trunk listens on %s, %s", server.address, "no TLS" if tls is None else "TLS"
        )
        yield run
