"""The node config: what a silo's own operator decides, with `flower-supernode --node-config`.

Field `data_path` is the key `data-path`. Keys under `app.` belong to the app's own code. A key
that only the operator may decide has no twin in the run config, which whoever submits the run
writes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, get_type_hints

from flower_split.config.checks import device_name
from flower_split.config.keys import OWN_PREFIX
from flower_split.config.problems import nearest, raise_problems
from flower_split.config.sections import CutConfig, DataConfig, LoraSettings, PeftSettings
from flower_split.data.callables import is_reference
from flower_split.errors import ConfigError
from flower_split.lowrank.scaling import MOST_ALPHA

_WANTED = {str: "text, in quotes", float: "a number"}

Partition = tuple[int, int]
"""Which part of a data set is the silo's, from 0, and of how many."""


@dataclass(frozen=True, kw_only=True)
class NodeConfig:
    """The keys of `--node-config` that flower_split reads."""

    silo: str = ""
    """The silo's name in logs and results; empty for its partition id, or else its node id."""
    partition_id: int | None = None
    """Which part of a data set that all silos share is this silo's, from 0."""
    num_partitions: int | None = None
    """Into how many parts that data set is cut."""
    data_path: str = ""
    """The silo's own data, which replaces `data.path` and `data.eval-path`: an absolute path of a
    file of examples, which is not partitioned, or a `module:function`."""
    eval_path: str = ""
    """The silo's own held-out data, like `data_path`; replaces `data.eval-path`."""
    device: str = "auto"
    """Where the silo computes: `cpu`, `mps`, `cuda`, `cuda:N`, or `auto`, the first of `cuda`,
    `mps` and `cpu` that its machine has."""
    state_dir: str = ""
    """Folder of the silo's session states, an absolute path; empty for
    `$XDG_STATE_HOME/flower-split`, or else `~/.local/state/flower-split`; see
    [security.md](security.md#files-and-folders)."""
    state_days: int = 14
    """Age in days at which files are removed that a killed run has left there."""
    trunk_ca: str = ""
    """PEM file with the CA of the trunk's certificate; wins over the one that the server sends."""
    trunk_certificate: str = ""
    """PEM file with the silo's certificate, where the trunk demands one."""
    trunk_private_key: str = ""
    """PEM file with that certificate's unencrypted private key."""
    trunk_verifier: str = ""
    """Name of an installed plug-in that judges the trunk's evidence before anything is sent to it;
    empty demands none; see [privacy.md](privacy.md#attestation)."""
    cache_dir: str = ""
    """Folder for what the server delivers of the model, an absolute path; empty for
    `$XDG_CACHE_HOME/flower-split`, or else `~/.cache/flower-split`; see
    [security.md](security.md#files-and-folders)."""
    max_download_gib: int = 64
    """GiB that the silo takes at most of a model that the server delivers."""
    lora_r: int = 0
    """Rank of the silo's adapter, where the strategy takes mixed ranks; empty for the run's."""
    lora_alpha: float = 0.0
    """Alpha of the silo's adapter, where the strategy takes mixed alphas; empty for the run's."""
    bottom_layers: int | None = None
    """Layers the silo holds after the embeddings, where the run leaves it a choice; empty for
    `split.bottom-layers`, the fewest; see [cuts.md](cuts.md)."""
    top_layers: int | None = None
    """Layers the silo holds before the head, where the run leaves it a choice; empty for
    `split.top-layers`, the fewest."""
    ledger_dir: str = ""
    """Folder in which the silo accounts for what leaves it, an absolute path; empty for no account;
    see [ledger.md](ledger.md)."""
    service_dir: str = ""
    """Folder of the silo service to which this SuperNode's messages are handed, an absolute path;
    empty for none; see [services.md](services.md)."""
    show_examples: int = 0
    """Examples of the silo's data that its own log shows before the first round, as the model reads
    them. They are users' texts: for a log that nobody else gets."""

    def __post_init__(self) -> None:
        problems = []
        number, of = self.partition_id, self.num_partitions
        if (number is None) != (of is None) or (
            number is not None and of is not None and not 0 <= number < of
        ):
            problems.append(
                f"the node config has partition-id {number!r} and num-partitions {of!r}: expected "
                "both or neither, whole numbers, the first below the second"
            )
        for field in ("data_path", "eval_path"):
            problem = _path_problem(_key(field), getattr(self, field))
            problems += [problem] if problem else []
        paths = (
            *("state_dir", "cache_dir", "ledger_dir", "service_dir"),
            *("trunk_ca", "trunk_certificate", "trunk_private_key"),
        )
        for field in paths:
            value = getattr(self, field)
            if value and not Path(value).is_absolute():
                problems.append(
                    f"the node config has {_key(field)} {value!r}: expected an absolute path"
                )
        for field in (*paths, "data_path", "eval_path"):
            if "\0" in getattr(self, field):
                problems.append(f"the node config has a null character in {_key(field)}")
        if bool(self.trunk_certificate) != bool(self.trunk_private_key):
            problems.append(
                "the node config needs both trunk-certificate and trunk-private-key, or neither"
            )
        try:
            device_name("device", self.device)
        except ConfigError as error:
            problems.append(f"in the node config, {error}")
        if self.max_download_gib < 1:
            problems.append(
                f"the node config has max-download-gib {self.max_download_gib}: expected 1 or more"
            )
        if self.show_examples < 0:
            problems.append(
                f"the node config has show-examples {self.show_examples}: expected 0 or more"
            )
        for field in ("bottom_layers", "top_layers"):
            layers = getattr(self, field)
            if layers is not None and layers < 0:
                problems.append(
                    f"the node config has {_key(field)} {layers}: expected 0 or more layers"
                )
        if self.lora_r < 0:
            problems.append(f"the node config has lora-r {self.lora_r}: expected 1 or more")
        if not 0 <= self.lora_alpha <= MOST_ALPHA:
            problems.append(
                f"the node config has lora-alpha {self.lora_alpha!r}: expected a number above 0 "
                f"and at most {MOST_ALPHA:g}"
            )
        if self.state_days < 1:
            problems.append(f"the node config has state-days {self.state_days}: expected 1 or more")
        if number is not None and self.data_path and not is_reference(self.data_path):
            problems.append(
                f"the node config has data-path {self.data_path!r}, all of which is this silo's, "
                "and a partition-id: leave out partition-id and num-partitions"
            )
        raise_problems(problems, "the node config")

    @classmethod
    def read(cls, node_config: Mapping[str, Any]) -> "NodeConfig":
        """The node config that a ClientApp's context has.

        Raises:
            ConfigError: with every problem of the node config at once, one a line.
        """
        hints = get_type_hints(cls)
        names = {_key(field.name): field.name for field in fields(cls)}
        values: dict[str, Any] = {}
        problems = []
        for key, value in node_config.items():
            if key.startswith(OWN_PREFIX):
                continue
            if key not in names:
                problems.append(f"the node config has an unknown key {key!r}{nearest(key, names)}")
                continue
            field = names[key]
            whole = isinstance(value, int) and not isinstance(value, bool)
            if field == "silo" and whole:
                values[field] = str(value)
            elif hints[field] is float and (whole or isinstance(value, float)):
                values[field] = float(value)
            elif isinstance(value, str) if hints[field] is str else whole:
                values[field] = value
            else:
                wanted = _WANTED.get(hints[field], "a whole number")
                problems.append(f"the node config has {key} {value!r}: expected {wanted}")
        try:
            node = cls(**values)
        except ConfigError as error:
            problems.append(str(error))
        raise_problems(problems, "the node config")
        return node

    @property
    def partition(self) -> Partition | None:
        """The silo's part of shared data; None where all of the data is its own."""
        if self.partition_id is None or self.num_partitions is None:
            return None
        return self.partition_id, self.num_partitions

    def name(self, node_id: int) -> str:
        """The silo's name: its own, else its partition id, else its node id."""
        if self.silo:
            return self.silo
        return str(node_id if self.partition_id is None else self.partition_id)

    def own_lora(self, lora: LoraSettings, peft: PeftSettings | None = None) -> LoraSettings:
        """`lora` with the silo's own rank and alpha in place of the run's, where it has them.

        Raises:
            ConfigError: it has them, and the run's method `peft` is not plain LoRA.
        """
        if peft is not None and not peft.is_plain:
            if self.lora_r or self.lora_alpha:
                raise ConfigError(
                    "the node config has lora-r or lora-alpha, which are for plain LoRA, and the "
                    f"run has {peft}: leave them out"
                )
            return lora
        r, alpha = self.lora_r or lora.r, self.lora_alpha or lora.alpha
        if self.partition_id is not None and lora.ranks and not self.lora_r:
            r = lora.ranks[self.partition_id % len(lora.ranks)]
        if self.partition_id is not None and lora.alphas and not self.lora_alpha:
            alpha = lora.alphas[self.partition_id % len(lora.alphas)]
        return replace(lora, r=r, alpha=alpha, ranks=(), alphas=())

    def own_cut(self, split: CutConfig) -> CutConfig:
        """Where the silo cuts the model: as it has chosen, else as it is its turn, else as the run.

        Raises:
            ConfigError: it has chosen more or fewer layers than the run leaves it.
        """
        bottom, top = self.bottom_layers, self.top_layers
        if self.partition_id is not None and split.bottoms and bottom is None:
            bottom = split.bottoms[self.partition_id % len(split.bottoms)]
        if self.partition_id is not None and split.tops and top is None:
            top = split.tops[self.partition_id % len(split.tops)]
        return split.fixed(
            split.bottom_layers if bottom is None else bottom,
            split.top_layers if top is None else top,
        )

    def own_data(self, config: DataConfig) -> DataConfig:
        """`config` with the silo's own paths in place of those that the run's sender chose."""
        if self.data_path:
            split = "" if config.eval_path else config.eval_split  # which is then of that path
            config = replace(config, path=self.data_path, eval_path="", eval_split=split)
            if not is_reference(self.data_path):
                config = replace(config, partitioner="none", partition_by="")
        if self.eval_path:
            config = replace(config, eval_path=self.eval_path, eval_split="")
        return config


def _key(field: str) -> str:
    return field.replace("_", "-")


def _path_problem(key: str, value: str) -> str:
    """Why `value` names no data; empty when it does, or when nothing was given."""
    if not value or is_reference(value) or Path(value).is_absolute():
        return ""
    return (
        f"the node config has {key} {value!r}: expected an absolute path, because a ClientApp runs "
        "in its SuperNode's working directory, or a module:function"
    )
