"""Conflicts: settings of sections that are each valid and contradict one another, in sentences."""

from flower_split.config.address import Address, is_any, is_loopback
from flower_split.config.data import DataConfig
from flower_split.config.model import CutConfig, ModelConfig
from flower_split.config.peft import ADALORA, PeftSettings
from flower_split.config.privacy import DpConfig
from flower_split.config.rounds import CheckpointConfig, StrategyConfig
from flower_split.config.tasks import CAUSAL_LM, CLASSIFYING, MASKED_LM, SEQUENCE_CLASSIFICATION
from flower_split.config.training import TrainConfig
from flower_split.config.trunk import RAY, TlsConfig, TrunkConfig
from flower_split.errors import ConfigError

_PROMPTS = (
    *("ADAPTION_PROMPT", "CARTRIDGE", "MULTITASK_PROMPT_TUNING", "PREFIX_TUNING", "PROMPT_TUNING"),
    "P_TUNING",
)


def of_bounds(train: TrainConfig, trunk: TrunkConfig, *, before: int = 0) -> list[str]:
    """Microbatches of silos that the trunk would refuse.

    Args:
        train: The run's.
        trunk: The run's.
        before: Virtual tokens that the adapters' method puts before every row.
    """
    found = list[str]()
    length = train.max_length + before
    named = f"train.max-length {train.max_length}"
    if before:
        named = f"({named} + peft.num-virtual-tokens {before})"
    for key, batch in (
        ("train.batch-size", train.batch_size),
        ("train.eval-batch-size", train.eval_batch_size),
    ):
        tokens = batch * length
        if tokens > trunk.max_message_tokens:
            found.append(
                f"{key} {batch} x {named} is {tokens} tokens, more "
                f"than trunk.max-message-tokens {trunk.max_message_tokens} allows in a microbatch"
            )
    if train.in_flight > trunk.max_in_flight:
        found.append(
            f"train.in-flight {train.in_flight} is more than trunk.max-in-flight "
            f"{trunk.max_in_flight}: the trunk would not keep that many microbatches of a silo"
        )
    held = max(1, train.in_flight) * train.batch_size * length
    if 0 < trunk.max_activation_tokens < held:
        found.append(
            f"train.in-flight {train.in_flight} (at least 1) x train.batch-size "
            f"{train.batch_size} x {named} is {held} tokens, more than "
            f"trunk.max-activation-tokens {trunk.max_activation_tokens} lets the trunk keep"
        )
    return found


def of_cuts(split: CutConfig, trunk: TrunkConfig) -> list[str]:
    """Silos with cuts of their own, and a trunk that they share an adapter of."""
    if trunk.adapters != "shared" or not split.leaves_choice:
        return []
    return [
        "split.max-bottom-layers and split.max-top-layers leave silos a choice, and "
        "trunk.adapters 'shared' has one adapter of the trunk's layers for all silos, which would "
        "be of other layers for each: set it to 'federated' or 'frozen', or set both bounds to 0"
    ]


def of_quantization(model: ModelConfig, trunk: TrunkConfig) -> list[str]:
    """Rows of several silos in one batch of a quantized trunk."""
    if model.quantization != "none" and trunk.batching:
        return [
            "trunk.batching puts rows of several silos into one batch, and with "
            f"model.quantization {model.quantization!r} the rows of a batch are not computed each "
            "for itself: set one of them to its default"
        ]
    return []


def of_task(model: ModelConfig, data: DataConfig, sample_prompt: str) -> list[str]:
    """Settings of another task than the run's."""
    task, found = model.task, list[str]()
    default = DataConfig()
    for key, value, usual, tasks in (
        ("data.prompt", data.prompt, default.prompt, (CAUSAL_LM,)),
        ("data.template", data.template, default.template, (CAUSAL_LM,)),
        ("data.messages", data.messages, default.messages, (CAUSAL_LM,)),
        ("data.long-texts", data.long_texts, default.long_texts, (CAUSAL_LM,)),
        ("data.packing", data.packing, default.packing, (CAUSAL_LM,)),
        ("data.text-pair", data.text_pair, default.text_pair, (SEQUENCE_CLASSIFICATION,)),
        ("data.label", data.label, default.label, CLASSIFYING),
        ("data.mlm-probability", data.mlm_probability, default.mlm_probability, (MASKED_LM,)),
        ("sample-prompt", sample_prompt, "", (CAUSAL_LM,)),
    ):
        if value != usual and task not in tasks:
            found.append(
                f"{key} is for model.task {' and '.join(map(repr, tasks))}, and the run's is "
                f"{task!r}: leave it at its default, or change model.task"
            )
    if task in CLASSIFYING and data.label and model.as_task().rewards:
        found.append(
            f"model.labels names {model.labels[0]!r} alone, and there is nothing to tell apart: "
            "name two labels at least, with commas. For a reward model, which a ClientApp of one's "
            "own trains, set data.label to ''"
        )
    if task in CLASSIFYING and not data.label and not model.as_task().rewards:
        found.append("data.label must name a field of the examples; it is empty")
    return found


def of_packing(data: DataConfig, peft: PeftSettings) -> list[str]:
    """Packed rows under a method that puts virtual tokens before every row."""
    if data.packing and (peft.type in _PROMPTS or "num_virtual_tokens" in peft.options):
        return [
            f"data.packing gives every text of a row positions of its own, and peft.type "
            f"{peft.type!r} puts virtual tokens before the row, which only its first text would "
            "see: set data.packing to false"
        ]
    return []


def of_address(trunk: TrunkConfig) -> list[str]:
    """An address that no silo can connect to."""
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


def of_monitor(monitor: bool, address: str, output_dir: str) -> list[str]:
    """A page that has nothing to read, or no address."""
    if not monitor:
        return []
    try:
        Address.parse(address, what="monitor-address")
    except ConfigError as error:
        return [str(error)]
    if not output_dir:
        return [
            "monitor shows the events that a run writes to output-dir, and output-dir is empty: "
            "set it, or set monitor to false"
        ]
    return []


def of_tls(tls: TlsConfig, trunk: TrunkConfig) -> list[str]:
    """Plaintext where others can listen, and TLS settings that would not be used."""
    found = list[str]()
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


def of_stages(split: CutConfig, trunk: TrunkConfig) -> list[str]:
    """Silos with cuts of their own, and a trunk of several stages."""
    if not split.leaves_choice or not (trunk.devices or trunk.engine == RAY):
        return []
    key = "trunk.engine 'ray'" if trunk.engine == RAY else "trunk.devices"
    return [
        f"split.max-bottom-layers and split.max-top-layers leave silos a choice, and with {key} "
        "the trunk's stages hold the layers of one cut: set both bounds to 0, or let one device "
        "hold the trunk (trunk.device)"
    ]


def of_devices(trunk: TrunkConfig, peft: PeftSettings, dp: DpConfig) -> list[str]:
    """What a trunk of several stages does not compute exactly as one trunk does."""
    if not trunk.devices:
        return []
    found = list[str]()
    if trunk.device != TrunkConfig.device:
        found.append(
            f"trunk.device {trunk.device!r} would not be used with trunk.devices: leave one of "
            "them out"
        )
    if trunk.adapters != "frozen" and peft.type == ADALORA:
        found.append(
            "peft.type 'ADALORA' has a term of the loss, and ranks, of all layers at once, "
            "of which with trunk.devices each device has some: set trunk.adapters to 'frozen', or "
            "trunk.device in place of trunk.devices"
        )
    if trunk.adapters != "frozen" and dp.noise:
        found.append(
            "dp.noise needs the trunk's gradients row by row, which a trunk of several stages does "
            "not tell: set trunk.device in place of trunk.devices"
        )
    return found


def of_engine(trunk: TrunkConfig, peft: PeftSettings, dp: DpConfig) -> list[str]:
    """What a trunk on Ray does not do exactly, and settings that would not be used."""
    usual, found = TrunkConfig(), list[str]()
    if trunk.engine != RAY:
        given = [f"trunk.{n}" for n in ("stages", "replicas") if getattr(trunk, n) != 1]
        if given:
            found.append(
                f"{', '.join(given)} would not be used with trunk.engine {trunk.engine!r}: set it "
                "to 'ray', or name trunk.devices for several devices of one machine"
            )
        return found
    if trunk.devices:
        found.append(
            "trunk.devices would not be used with trunk.engine 'ray', which places trunk.stages: "
            "leave trunk.devices out"
        )
    if trunk.device not in (usual.device, "cpu", "cuda"):
        found.append(
            f"trunk.device {trunk.device!r} is of one machine, and Ray gives every stage a device "
            "of its own: set it to 'auto', 'cpu' or 'cuda'"
        )
    if trunk.adapters == "shared":
        found.append(
            "trunk.adapters 'shared' has one adapter that all silos step, which replicas would "
            "have one each of, and a stage that ends would lose: with trunk.engine 'ray' set it to "
            "'federated' or 'frozen'"
        )
    if not peft.is_plain:
        found.append(
            f"peft.type {peft.type!r} may begin with what the trunk's weights are, which with "
            "trunk.engine 'ray' the machine of the ServerApp does not have: leave the section peft "
            "out for plain LoRA, or let one machine hold the trunk (trunk.devices)"
        )
    if trunk.adapters != "frozen" and dp.noise:
        found.append(
            "dp.noise needs the trunk's gradients row by row, which a trunk of several stages does "
            "not tell: leave trunk.engine at 'local', and one device"
        )
    if trunk.attester:
        found.append(
            f"trunk.attester {trunk.attester!r} makes evidence of this machine, and with "
            "trunk.engine 'ray' others compute: leave one of them out"
        )
    return found


def of_service(trunk: TrunkConfig, tls: TlsConfig) -> list[str]:
    """A trunk service that cannot be reached, or settings that would be its own."""
    certificates = {
        "trunk.service-ca": trunk.service_ca,
        "trunk.service-certificate": trunk.service_certificate,
        "trunk.service-key": trunk.service_key,
    }
    if not trunk.service:
        given = [key for key, value in certificates.items() if value]
        return [f"{', '.join(given)} would not be used: set trunk.service"] if given else []
    found = list[str]()
    try:
        address = Address.parse(trunk.service, what="trunk.service")
    except ConfigError as error:
        return [str(error)]
    if bool(trunk.service_certificate) != bool(trunk.service_key):
        found.append("trunk.service-certificate and trunk.service-key come together or not")
    if not trunk.service_certificate and not address.is_loopback:
        found.append(
            f"trunk.service {trunk.service} is on another machine, which knows a strategy by its "
            "certificate: set trunk.service-certificate and trunk.service-key"
        )
    if trunk.service_ca and not trunk.service_certificate:
        found.append("trunk.service-ca would not be used: set trunk.service-certificate too")
    usual_trunk, usual_tls = TrunkConfig(), TlsConfig()
    own = [
        f"trunk.{name}"
        for name in (
            *("advertise", "attester", "device", "devices", "engine", "host", "port"),
            *("replicas", "stages"),
        )
        if getattr(trunk, name) != getattr(usual_trunk, name)
    ]
    own += [] if tls == usual_tls else ["the keys of tls"]
    if own:
        found.append(
            f"{', '.join(own)} would not be used with trunk.service, which has its own: leave them "
            "out"
        )
    return found


def of_quorum(strategy: StrategyConfig) -> list[str]:
    """Rounds that would start with fewer silos than they need."""
    if strategy.min_replies > strategy.min_nodes:
        return [
            f"strategy.min-replies {strategy.min_replies} is more than strategy.min-nodes "
            f"{strategy.min_nodes}: a round would start with fewer silos than it needs; raise "
            "strategy.min-nodes"
        ]
    return []


def of_central_privacy(
    strategy: StrategyConfig, trunk: TrunkConfig, checkpoint: CheckpointConfig
) -> list[str]:
    """Settings under which a silo's data would reach what is published past the noise.

    The strategy's name is looked at by whoever makes it.
    """
    found = list[str]()
    central = "central differential privacy (strategy.dp-noise)"
    if strategy.personal:
        found.append(
            f"strategy.personal keeps modules in the silos, of which {central} publishes nothing: "
            "leave one of them out"
        )
    if trunk.adapters == "shared":
        found.append(
            f"trunk.adapters 'shared' steps while silos train, and what they get back has no noise "
            f"of {central}: set it to 'federated' or 'frozen'"
        )
    if strategy.filter == "refuse":
        found.append(
            "strategy.filter 'refuse' lets one silo's update decide which others count, which "
            f"{central} does not account for; it clips every update anyway: set it to 'warn' or "
            "'off'"
        )
    if strategy.min_nodes < 2:
        found.append(
            f"strategy.min-nodes is {strategy.min_nodes}, and {central} hides a silo among others: "
            "set it to 2 at least"
        )
    if checkpoint.fallback:
        found.append(
            f"checkpoint.fallback may publish a round again, which {central} would count once: "
            "set it to false"
        )
    return found
