"""`AdapterPlan`: which modules of the whole model get which LoRA adapter.

Both parties derive the same plan from the model's configuration alone, so that each can wrap its
own layers and the union is the adapter of the uncut model.
"""

import copy
import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from flower_split.config.sections import LoraSettings
from flower_split.errors import AdapterError
from flower_split.lowrank import Scaling

ADAPTER = "default"
"""PEFT's name of the adapter that is trained and exported."""

PEFT_PREFIX = "base_model.model."
"""What PEFT puts before the names of a wrapped model's modules."""


@dataclass(frozen=True, kw_only=True)
class AdapterPlan:
    """LoRA settings with the target modules resolved on the whole model."""

    r: int
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

    @property
    def json(self) -> str:
        """Canonical text of what two parties must have in common."""
        fields = asdict(self)
        common = {name: fields[name] for name in ("r", "alpha", "dropout", "rslora", "modules")}
        return json.dumps(common, sort_keys=True, separators=(",", ":"))

    @property
    def scaling(self) -> Scaling:
        """Rank and alpha, and the factor that they give the tensors' product."""
        return Scaling(r=self.r, alpha=self.alpha, rslora=self.rslora)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of every adapter tensor of the uncut model, in model order."""
        return tuple(name for name, _ in self.shapes)

    def peft_config(self, targets: tuple[str, ...] | None = None) -> LoraConfig:
        """PEFT's configuration for `targets`, or for the whole model."""
        return LoraConfig(
            task_type="CAUSAL_LM",
            r=self.r,
            lora_alpha=self.alpha,  # type: ignore[arg-type]  # PEFT computes with it as a float
            lora_dropout=self.dropout,
            use_rslora=self.rslora,
            fan_in_fan_out=self.fan_in_fan_out,
            target_modules=list(self.targets if targets is None else targets),
        )


def plan_to_fields(plan: AdapterPlan) -> dict[str, Any]:
    """JSON from which `plan_from_fields` makes the same plan."""
    return asdict(plan)


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
    with torch.random.fork_rng(devices=[]):
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


@contextmanager
def without_peft_notices() -> Iterator[None]:
    """Have PEFT wrap a model without its warnings, for the time of a `with` block."""
    with warnings.catch_warnings():
        # That it corrected `fan_in_fan_out`; the plan notes what it found.
        warnings.filterwarnings("ignore", message="fan_in_fan_out")
        # That it uses a name which transformers has deprecated.
        warnings.filterwarnings(
            "ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning
        )
        yield


def _wrapped_skeleton(skeleton: PreTrainedModel, lora: LoraSettings) -> PeftModel:
    on_meta = copy.deepcopy(skeleton)
    torch.nn.Module.to(on_meta, torch.device("meta"))
    wanted = list(lora.target_modules)
    config = LoraConfig(
        task_type="CAUSAL_LM",
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
        raise AdapterError(f"PEFT made a {type(model).__name__} of a causal language model")
    return model
