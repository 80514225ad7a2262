"""Conflicts: settings that are each valid and contradict one another."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flower_split.config.address import Address, is_any, is_loopback
from flower_split.errors import ConfigError

if TYPE_CHECKING:
    from flower_split.config.sections import SplitConfig


def conflicts(config: SplitConfig) -> list[str]:
    """One sentence for every contradiction between the settings of a run."""
    return [
        *_trunk_bounds(config),
        *_trunk_address(config),
        *_plaintext(config),
        *_schedule(config),
        *_quorum(config),
        *_extras(config),
        *_keeping(config),
    ]


def _trunk_bounds(config: SplitConfig) -> list[str]:
    train, trunk, found = config.train, config.trunk, list[str]()
    for key, batch in (
        ("train.batch-size", train.batch_size),
        ("train.eval-batch-size", train.eval_batch_size),
    ):
        tokens = batch * train.max_length
        if tokens > trunk.max_message_tokens:
            found.append(
                f"{key} {batch} x train.max-length {train.max_length} is {tokens} tokens, more "
                f"than trunk.max-message-tokens {trunk.max_message_tokens} allows in a microbatch"
            )
    if train.in_flight > trunk.max_in_flight:
        found.append(
            f"train.in-flight {train.in_flight} is more than trunk.max-in-flight "
            f"{trunk.max_in_flight}: the trunk would not keep that many microbatches of a silo"
        )
    held = max(1, train.in_flight) * train.batch_size * train.max_length
    if 0 < trunk.max_activation_tokens < held:
        found.append(
            f"train.in-flight {train.in_flight} (at least 1) x train.batch-size "
            f"{train.batch_size} x train.max-length {train.max_length} is {held} tokens, more than "
            f"trunk.max-activation-tokens {trunk.max_activation_tokens} lets the trunk keep"
        )
    return found


def _trunk_address(config: SplitConfig) -> list[str]:
    trunk = config.trunk
    if trunk.advertise:
        try:
            Address.parse(trunk.advertise, what="trunk.advertise", port=trunk.port)
        except ConfigError as error:
            return [str(error)]
    elif is_any(trunk.host):
        return [
            f"trunk.host {trunk.host!r} is every address of this machine and none that a silo can "
            "connect to: set trunk.advertise to the host:port that silos reach"
        ]
    return []


def _plaintext(config: SplitConfig) -> list[str]:
    tls, trunk, found = config.tls, config.trunk, list[str]()
    if tls.mode == "off" and not tls.allow_plaintext and not is_loopback(trunk.host):
        found.append(
            f"tls.mode 'off' sends everything readable for whoever listens, and trunk.host "
            f"{trunk.host!r} is not loopback: leave tls.mode at 'ephemeral', or set "
            "tls.allow-plaintext to true"
        )
    given = [
        key
        for key, value in (
            ("tls.certificate", tls.certificate),
            ("tls.private-key", tls.private_key),
            ("tls.ca", tls.ca),
        )
        if value
    ]
    if given and tls.mode != "files":
        found.append(
            f"{', '.join(given)} would not be used with tls.mode {tls.mode!r}: set tls.mode to "
            "'files', or leave them empty"
        )
    if tls.client_ca and tls.mode == "off":
        found.append("tls.client-ca cannot demand certificates with tls.mode 'off': turn TLS on")
    return found


def _schedule(config: SplitConfig) -> list[str]:
    steps = config.train.local_steps * config.num_server_rounds
    if 0 < steps < config.train.warmup_steps:
        return [
            f"train.warmup-steps is {config.train.warmup_steps}, more than the {steps} steps of "
            f"the whole run (num-server-rounds {config.num_server_rounds} x train.local-steps "
            f"{config.train.local_steps})"
        ]
    return []


def _quorum(config: SplitConfig) -> list[str]:
    strategy = config.strategy
    if strategy.min_replies > strategy.min_nodes:
        return [
            f"strategy.min-replies {strategy.min_replies} is more than strategy.min-nodes "
            f"{strategy.min_nodes}: a round would start with fewer silos than it needs; raise "
            "strategy.min-nodes"
        ]
    return []


def _extras(config: SplitConfig) -> list[str]:
    found = []
    if config.baseline_alone and config.trunk.adapters == "shared":
        found.append(
            "baseline-alone needs trunk adapters of every silo's own: set trunk.adapters to "
            "'federated' or 'frozen', not 'shared'"
        )
    if config.tensorboard and not config.output_dir:
        found.append(
            "tensorboard writes to a folder in output-dir, and output-dir is empty: set it, or set "
            "tensorboard to false"
        )
    if config.sample_prompt and config.strategy.fraction_evaluate == 0:
        found.append(
            "sample-prompt is continued when the silos evaluate, and strategy.fraction-evaluate "
            "is 0: raise it, or leave sample-prompt empty"
        )
    return found


def _keeping(config: SplitConfig) -> list[str]:
    checkpoint, found = config.checkpoint, list[str]()
    writes = bool(config.output_dir) and checkpoint.keep > 0
    if config.resume and not writes:
        lacking = "checkpoint.keep is 0" if config.output_dir else "output-dir is empty"
        found.append(
            f"resume resumes from the checkpoints in output-dir and writes further ones there, and "
            f"{lacking}"
        )
    if checkpoint.keep_best and not writes:
        lacking = "checkpoint.keep is 0" if config.output_dir else "output-dir is empty"
        found.append(f"checkpoint.keep-best keeps a checkpoint, and {lacking}: none is written")
    if config.strategy.fraction_evaluate == 0:
        for key, used in (
            ("checkpoint.keep-best", checkpoint.keep_best),
            ("early-stop.patience", config.early_stop.patience > 0),
        ):
            if used:
                found.append(
                    f"{key} goes by what the silos evaluate, and strategy.fraction-evaluate is 0: "
                    "raise it"
                )
    if (checkpoint.keep_best or config.early_stop.patience) and not config.best_metric:
        found.append("best-metric is empty: name the metric that tells which round is the best")
    return found
