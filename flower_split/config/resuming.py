"""Resuming: which settings a run may change when it resumes from a checkpoint, and which not."""

from collections.abc import Mapping
from dataclasses import MISSING
from typing import Any

from flower_split.config.run_config import OPTION_PREFIX, run_keys
from flower_split.config.sections import SplitConfig

MAY_CHANGE = (
    "baseline-alone",
    "best-is",
    "best-metric",
    "checkpoint.fallback",
    "checkpoint.keep",
    "checkpoint.keep-best",
    "early-stop.min-delta",
    "early-stop.patience",
    "lora.max-r",
    "model.delivery",
    "monitor",
    "monitor-address",
    "num-server-rounds",
    "output-dir",
    "resume",
    "round-timeout",
    "sample-prompt",
    "strategy.min-nodes",
    "strategy.min-replies",
    "tensorboard",
    "tls.allow-plaintext",
    "tls.ca",
    "tls.certificate",
    "tls.client-ca",
    "tls.mode",
    "tls.private-key",
    "trackers",
    "trunk.advertise",
    "trunk.attester",
    "trunk.batch-tokens",
    "trunk.batching",
    "trunk.connect-timeout",
    "trunk.device",
    "trunk.devices",
    "trunk.engine",
    "trunk.gather-ms",
    "trunk.host",
    "trunk.max-activation-tokens",
    "trunk.max-cached-tokens",
    "trunk.max-in-flight",
    "trunk.max-memory",
    "trunk.max-message-tokens",
    "trunk.max-sessions",
    "trunk.port",
    "trunk.reconnect-timeout",
    "trunk.recompute",
    "trunk.replicas",
    "trunk.service",
    "trunk.service-ca",
    "trunk.service-certificate",
    "trunk.service-key",
    "trunk.service-timeout",
    "trunk.stages",
)
"""Keys that may differ from those of the run that is resumed: they say how it is run, not what it
computes. `num-server-rounds` may not be below the round that was reached."""

_DERIVED = {
    "peft.total-step": " (without the key it is num-server-rounds times train.local-steps: set it "
    "to what it was, to have more rounds by the same schedule)"
}
"""What a user is told of a key that he may never have set."""


def settings(config: SplitConfig) -> dict[str, Any]:
    """Every setting by its run-config key, those that are left at their default included.

    Without those of the section `peft` where it is left at its default.
    """
    found: dict[str, Any] = {}
    for key in run_keys().values():
        if key.section == "peft" and config.peft.is_plain:
            continue
        held = getattr(config, key.section) if key.section else config
        found[key.key] = _plain(getattr(held, key.field))
    for name, option in config.strategy.options.items():
        found[f"{OPTION_PREFIX}{name.replace('_', '-')}"] = option
    for name, value in config.peft.options.items():
        found[f"peft.{name.replace('_', '-')}"] = value
    return found


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """One sentence for every setting that must be as it was, and is not.

    A key that either side lacks, because another version wrote it, stands at its default.
    """
    defaults = {
        key.key: _plain(key.default) for key in run_keys().values() if key.default is not MISSING
    }
    found = []
    for key in sorted({*then, *now} - {*MAY_CHANGE}):
        was, is_now = (side.get(key, defaults.get(key)) for side in (then, now))
        if was != is_now:
            hint = _DERIVED.get(key, "")
            found.append(f"{key} was {was!r} and is {is_now!r} now{hint}")
    return found


def _plain(value: Any) -> Any:
    return ",".join(map(str, value)) if isinstance(value, tuple) else value
