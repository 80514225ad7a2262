"""The trunk at a service elsewhere, as the run config names it."""

from collections.abc import Iterator
from contextlib import contextmanager

from flower_split.config.sections import SplitConfig
from flower_split.control.caller import ControlCaller
from flower_split.control.service_trunk import ServiceTrunk
from flower_split.tls import ClientTls


@contextmanager
def service_trunk(config: SplitConfig) -> Iterator[ServiceTrunk]:
    """A run with this configuration at `trunk.service`, open within the context.

    Raises:
        TrunkError: the service cannot be reached, or does not take the run.
        ModelError, AdapterError, ConfigError: as for a trunk in this process; and the files of the
            certificate are not good.
    """
    trunk = config.trunk
    tls = None
    if trunk.service_certificate:
        tls = ClientTls.from_files(
            ca=trunk.service_ca,
            certificate=trunk.service_certificate,
            private_key=trunk.service_key,
        )
    with (
        ControlCaller(trunk.service, tls, patience=trunk.service_timeout) as caller,
        ServiceTrunk(config, caller) as opened,
    ):
        yield opened
