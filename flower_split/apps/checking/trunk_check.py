"""The trunk of a run: over which devices or stages its layers are laid, and whether they are there.

No Ray is started, and no cluster is asked.
"""

from flower_split.apps.checking.findings import Findings
from flower_split.config.sections import SplitConfig
from flower_split.config.trunk import RAY
from flower_split.devices import resolve_device
from flower_split.errors import ConfigError
from flower_split.segments import Cuts
from flower_split.server.stages.placement import check_stages, stage_devices

TOPIC = "trunk"


def look_at_trunk(config: SplitConfig, cuts: Cuts, silos: int, findings: Findings) -> None:
    """Note how a trunk in stages is laid out; refuse what cannot be.

    Args:
        config: The run's.
        cuts: Around the trunk's layers.
        silos: Of a simulation, whose trunk is on this machine; 0 for a deployment, whose server may
            be another one.
        findings: Takes them.
    """
    trunk = config.trunk
    if trunk.service:
        return
    layers = len(cuts.trunk_range)
    if trunk.engine == RAY:
        with findings.looking(TOPIC):
            check_stages(cuts, trunk.stages, key="trunk.stages")
            actors = trunk.stages * trunk.replicas
            findings.ok(
                TOPIC,
                f"its {layers} layers are laid over {_many(trunk.stages, 'stage')}, in "
                f"{_many(trunk.replicas, 'replica')}: {_many(actors, 'actor')} on Ray",
            )
        return
    with findings.looking(TOPIC):
        if trunk.devices:
            check_stages(cuts, len(trunk.devices))
        try:
            if trunk.devices:
                stage_devices(trunk.devices)
            else:
                resolve_device(trunk.device, key="trunk.device")
        except ConfigError as error:
            if silos:
                raise
            findings.warn(TOPIC, f"on this machine, {error}")
        else:
            if trunk.devices:
                where = ", ".join(trunk.devices)
                findings.ok(TOPIC, f"its {layers} layers are laid over {where}, by free memory")


def _many(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"
