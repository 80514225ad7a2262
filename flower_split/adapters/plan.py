"""`AdapterPlan`: which modules of the whole model get which adapter.

Both parties derive the same plan from the model's configuration alone, so that each can wrap its
own layers and the union is the adapter of the uncut model. Plain LoRA, as a run's `lora` section
describes it, is resolved here; every other method of PEFT in `resolving`.
"""

import copy
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from flower_split.adapters.methods import PROMPTS, RESIDUAL_INITS, config_class
from flower_split.adapters.notices import without_peft_notices
from flower_split.adapters.prompts import at_random
from flower_split.config.peft import LORA
from flower_split.config.sections import LoraSettings
from flower_split.config.tasks import (
    CAUSAL_LM,
    MASKED_LM,
    SEQUENCE_CLASSIFICATION,
    TOKEN_CLASSIFICATION,
)
from flower_split.errors import AdapterError
from flower_split.lowrank import Scaling
from flower_split.segments import Cuts, held_by_trunk
from flower_split.segments.randomness import numbers_aside
from flower_split.segments.stock_classes import task_of

ADAPTER = "default"
"""PEFT's name of the adapter that is trained and exported."""

PEFT_PREFIX = "base_model.model."
"""What PEFT puts before the names of a wrapped model's modules."""


_ROWS = "token_adapter"
"""PEFT's name of the module that trains rows of embeddings."""

TASK_TYPES = {
    CAUSAL_LM: "CAUSAL_LM",
    SEQUENCE_CLASSIFICATION: "SEQ_CLS",
    TOKEN_CLASSIFICATION: "TOKEN_CLS",
    MASKED_LM: None,
}
"""PEFT's names of the tasks; it has none for masked language models."""


@dataclass(frozen=True, kw_only=True)
class AdapterPlan:
    """The adapter's settings with the target modules resolved on the whole model."""

    r: int
    """LoRA's rank, alpha and the rest; 0 and false where the method is another."""
    alpha: float
    dropout: float
    rslora: bool
    fan_in_fan_out: bool
    """Whether the target modules keep their weights transposed, as GPT-2's do."""
    targets: tuple[str, ...]
    """Suffixes of module names, as PEFT resolves and stores them, sorted."""
    modules: tuple[str, ...]
    """Full names of every module of the uncut model that gets an adapter, in model order."""
    shapes: tuple[tuple[str, tuple[int, ...]], ...]
    """Name and shape of every adapter tensor of the uncut model, in model order, named as in
    PEFT's `adapter_model.safetensors`."""
    method: str = LORA
    """PEFT's name of the method."""
    options: tuple[tuple[str, Any], ...] = ()
    """Fields of PEFT's config that are not at their default, JSON values; none of plain LoRA."""
    task: str = CAUSAL_LM
    """What the model is for."""
    copies: tuple[str, ...] = ()
    """Full names of the modules that are trained as a whole, or some rows of which are."""
    fixed: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    """Name in the PEFT model and SHA-256 of tensors that no party trains, sends or reads from its
    weights, and all must have: projections that are drawn from a seed."""

    @property
    def is_plain(self) -> bool:
        """Whether the adapter is plain LoRA, of one rank and alpha, and nothing else."""
        return self.method == LORA and not self.options

    @property
    def is_prompt(self) -> bool:
        """Whether a prompt is trained, and nothing in any layer."""
        return self.method in PROMPTS

    @property
    def described(self) -> str:
        """The method and what was chosen of it; empty for plain LoRA."""
        if self.is_plain:
            return ""
        chosen = ", ".join(
            f"{name} = {value}"
            for name, value in self.options
            if value is not None and name != "target_modules"
        )
        return f"{self.method} ({chosen})" if chosen else self.method

    @property
    def json(self) -> str:
        """Canonical text of what two parties must have in common."""
        fields = asdict(self)
        if self.is_plain:
            names = ("r", "alpha", "dropout", "rslora", "modules")
            common = {name: fields[name] for name in names}
        else:
            common = {name: fields[name] for name in ("method", "modules", "copies")}
            common |= {f"peft.{name}": value for name, value in self.options}
            if self.fixed:
                told = json.dumps(self.fixed).encode()
                common["fixed"] = hashlib.sha256(told).hexdigest()
        return json.dumps(common, sort_keys=True, separators=(",", ":"))

    @property
    def scaling(self) -> Scaling | None:
        """Rank and alpha, and the factor that they give the tensors' product.

        None where the method is not plain LoRA: its tensors are taken as they are.
        """
        if not self.is_plain:
            return None
        return Scaling(r=self.r, alpha=self.alpha, rslora=self.rslora)

    @property
    def changes_weights(self) -> bool:
        """Whether each layer's own weights lose what its adapter begins with (PiSSA, OLoRA)."""
        return dict(self.options).get("init_lora_weights") in RESIDUAL_INITS

    @property
    def names(self) -> tuple[str, ...]:
        """Names of every adapter tensor of the uncut model, in model order."""
        return tuple(name for name, _ in self.shapes)

    def peft_config(self, targets: tuple[str, ...] | None = None) -> PeftConfig:
        """PEFT's configuration for the whole model, or for a part of it.

        Args:
            targets: Full names of the part's modules with an adapter, and of its `copies`; None for
                the whole model.
        """
        # PEFT would look for a classifier's head in a part that has none.
        whole = targets is None or self.task == CAUSAL_LM
        task_type = TASK_TYPES[self.task] if whole else None
        if self.is_plain:
            return LoraConfig(
                task_type=task_type,
                r=self.r,
                lora_alpha=self.alpha,  # type: ignore[arg-type]  # PEFT takes it as a float
                lora_dropout=self.dropout,
                use_rslora=self.rslora,
                fan_in_fan_out=self.fan_in_fan_out,
                target_modules=list(self.targets if targets is None else targets),
            )
        values = copy.deepcopy(dict(self.options))
        if self.is_prompt:
            values = values if targets is None else at_random(values)
        elif targets is None:
            values.setdefault("target_modules", list(self.targets))
        else:
            values |= self._of_part(values, targets)
        kind = config_class(self.method)
        if self.fan_in_fan_out:
            values["fan_in_fan_out"] = True
        with without_peft_notices():
            return kind(task_type=task_type, **values)

    def restricted(self, modules: Sequence[str], names: Sequence[str]) -> "AdapterPlan":
        """The plan of a part of the model as if it was the whole.

        Args:
            modules: Full names of the part's modules.
            names: Of the adapter tensors that are left.
        """
        held, left = frozenset(modules), frozenset(names)
        own = tuple(name for name in self.modules if name in held)
        copies = tuple(name for name in self.copies if name in held)
        part = replace(
            self,
            modules=own,
            shapes=tuple((name, shape) for name, shape in self.shapes if name in left),
            targets=own,
            copies=copies,
        )
        if self.is_plain or self.is_prompt:
            return part
        values = dict(self.options)
        values |= self._of_part(values, (*own, *copies))
        return replace(part, options=tuple(sorted(values.items())))

    def without_trunk(self, path: str, cuts: Cuts) -> "AdapterPlan":
        """The plan of a model whose trunk has no adapter.

        Args:
            path: Of the model's layers, see `layers_path`.
            cuts: Which of them are the trunk's.
        """
        adapted = (*self.modules, *self.copies)
        return self.restricted(
            tuple(n for n in adapted if not held_by_trunk(f"{n}.", path, cuts)),
            tuple(n for n in self.names if not held_by_trunk(n, path, cuts)),
        )

    def _of_part(self, values: Mapping[str, Any], targets: Sequence[str]) -> dict[str, Any]:
        """The fields of PEFT's config that choose modules, for `targets` and no others."""
        held = frozenset(targets)
        own = [name for name in self.modules if name in held]
        found: dict[str, Any] = {name: None for name in CHOOSERS if name in values}
        found["target_modules"] = own
        if values.get("feedforward_modules") is not None:
            found["feedforward_modules"] = [n for n in own if n in self._feedforward(values)]
        copies = [name for name in self.copies if name in held]
        of_rows = [name for name in copies if self._trains_rows(name)]
        if values.get("modules_to_save") is not None:
            found["modules_to_save"] = [n for n in copies if n not in of_rows] or None
        if values.get("trainable_token_indices") is not None and not of_rows:
            found["trainable_token_indices"] = None
        return found

    def _trains_rows(self, module: str) -> bool:
        """Whether some rows of `module` are trained, and not the whole."""
        inside = f"{PEFT_PREFIX}{module}.{_ROWS}."
        return any(name.startswith(inside) for name, _ in self.shapes)

    def _feedforward(self, values: Mapping[str, Any]) -> frozenset[str]:
        """(IA)³'s modules whose input is scaled in place of their output, as PEFT finds them."""
        wanted = values["feedforward_modules"]
        if isinstance(wanted, str):
            return frozenset(n for n in self.modules if re.fullmatch(wanted, n))
        return frozenset(
            n for n in self.modules if any(n == w or n.endswith(f".{w}") for w in wanted)
        )


CHOOSERS = ("target_modules", "exclude_modules", "layers_pattern", "layers_to_transform")
"""Fields of PEFT's configs that choose the modules with an adapter."""

_GENERAL = ("method", "options", "copies")


def plan_to_fields(plan: AdapterPlan) -> dict[str, Any]:
    """JSON from which `plan_from_fields` makes the same plan, but for what is `fixed`."""
    told = asdict(plan)
    del told["fixed"]
    if plan.task == CAUSAL_LM:
        del told["task"]
    return {n: v for n, v in told.items() if n not in _GENERAL} if plan.is_plain else told


def plan_from_fields(fields: Mapping[str, Any]) -> AdapterPlan:
    """The plan that `plan_to_fields` was given.

    Raises:
        AdapterError: `fields` are not those of a plan.
    """
    try:
        return AdapterPlan(
            r=int(fields["r"]),
            alpha=float(fields["alpha"]),
            dropout=float(fields["dropout"]),
            rslora=bool(fields["rslora"]),
            fan_in_fan_out=bool(fields["fan_in_fan_out"]),
            targets=tuple(fields["targets"]),
            modules=tuple(fields["modules"]),
            shapes=tuple((name, tuple(shape)) for name, shape in fields["shapes"]),
            method=str(fields.get("method", LORA)),
            task=str(fields.get("task", CAUSAL_LM)),
            options=tuple((name, value) for name, value in fields.get("options", ())),
            copies=tuple(fields.get("copies", ())),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise AdapterError(f"these are not the fields of an adapter plan: {error}") from error


def resolve_lora(skeleton: PreTrainedModel, lora: LoraSettings) -> AdapterPlan:
    """The plan for the uncut model whose `skeleton` is given.

    The skeleton may live on the meta device and is left as it is.

    Raises:
        AdapterError: a target module does not exist, or cannot carry a LoRA adapter.
    """
    model = _wrapped_skeleton(skeleton, lora)
    config = model.peft_config[ADAPTER]
    if isinstance(config, LoraConfig) and config.target_parameters:
        raise AdapterError(
            f"lora.target-modules {', '.join(lora.target_modules)} reaches the experts of this "
            f"{skeleton.config.model_type} model, which are parameters and no modules: name the "
            "modules that get an adapter, such as q_proj, k_proj, v_proj, o_proj"
        )
    resolved = config.target_modules if isinstance(config, LoraConfig) else None
    layers = {
        name.removeprefix(PEFT_PREFIX): module
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer)
    }
    return AdapterPlan(
        r=lora.r,
        alpha=lora.alpha,
        dropout=lora.dropout,
        rslora=lora.rslora,
        task=task_of(skeleton.config),
        targets=tuple(sorted(resolved if resolved is not None else ())),
        fan_in_fan_out=all(isinstance(m.get_base_layer(), Conv1D) for m in layers.values()),
        modules=tuple(layers),
        shapes=tuple(
            (name.replace(f".{ADAPTER}", ""), tuple(parameter.shape))
            for name, parameter in model.named_parameters()
            if f".{ADAPTER}" in name
        ),
    )


def initial_state(skeleton: PreTrainedModel, lora: LoraSettings, *, seed: int) -> dict[str, Tensor]:
    """PEFT's own initialisation of the uncut model's adapter tensors, float32, in model order.

    The state is a function of `seed` and the model's shapes; the caller's random state is kept.
    """
    with numbers_aside():
        model = _wrapped_skeleton(skeleton, lora)
        torch.manual_seed(seed)
        for module in model.modules():
            if isinstance(module, LoraLayer):
                for part in (module.lora_A, module.lora_B):
                    part.to_empty(device="cpu")
                for table in (module.lora_embedding_A, module.lora_embedding_B):
                    for key, parameter in table.items():
                        table[key] = torch.nn.Parameter(torch.empty_like(parameter, device="cpu"))
                module.reset_lora_parameters(  # type: ignore[no-untyped-call]
                    ADAPTER, init_lora_weights=True
                )
    return {
        name.replace(f".{ADAPTER}", ""): parameter.detach().float().clone()
        for name, parameter in model.named_parameters()
        if f".{ADAPTER}" in name
    }


def _wrapped_skeleton(skeleton: PreTrainedModel, lora: LoraSettings) -> PeftModel:
    on_meta = copy.deepcopy(skeleton)
    torch.nn.Module.to(on_meta, torch.device("meta"))
    wanted = list(lora.target_modules)
    config = LoraConfig(
        task_type=TASK_TYPES[task_of(skeleton.config)],
        r=lora.r,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # PEFT computes with it as a float
        lora_dropout=lora.dropout,
        use_rslora=lora.rslora,
        target_modules="all-linear" if wanted == ["all-linear"] else wanted,
    )
    available = sorted(
        {
            name.rpartition(".")[2]
            for name, module in on_meta.named_modules()
            if next(module.children(), None) is None and next(module.parameters(), None) is not None
        }
    )
    if wanted != ["all-linear"]:
        names = [name for name, _ in on_meta.named_modules()]
        absent = [w for w in wanted if not any(n == w or n.endswith(f".{w}") for n in names)]
        if absent:
            raise AdapterError(
                f"lora.target-modules names {', '.join(map(repr, absent))}, which this "
                f"{on_meta.config.model_type} model does not have; it has {', '.join(available)}"
            )
    try:
        with without_peft_notices():
            model = get_peft_model(on_meta, config, adapter_name=ADAPTER)
    except ValueError as error:
        raise AdapterError(
            f"lora.target-modules {', '.join(wanted)} cannot carry LoRA adapters in this "
            f"{on_meta.config.model_type} model, which has {', '.join(available)}: {error}"
        ) from error
    if not isinstance(model, PeftModel):
        raise AdapterError(f"PEFT made a {type(model).__name__} of a stock model")
    return model
