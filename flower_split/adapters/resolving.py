"""Resolving: the plan of any method of PEFT on the uncut model, and the adapter it begins with."""

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from flower_split.adapters.hollow import hollow, weights_of
from flower_split.adapters.methods import (
    PREFIXES,
    PROMPTS,
    RESIDUAL_INITS,
    config_class,
    method_values,
)
from flower_split.adapters.notices import without_peft_notices
from flower_split.adapters.plan import (
    ADAPTER,
    PEFT_PREFIX,
    TASK_TYPES,
    AdapterPlan,
    initial_state,
    resolve_lora,
)
from flower_split.adapters.prompts import (
    at_random,
    embeddings_name,
    resolved_values,
    starts_from_words,
)
from flower_split.adapters.state import adapter_tensors, read_state
from flower_split.config.peft import LORA, PeftSettings
from flower_split.config.sections import LoraSettings
from flower_split.errors import AdapterError
from flower_split.segments.randomness import numbers_aside
from flower_split.segments.stock_classes import task_of
from flower_split.tensor_digest import tensor_digest

PEFT_SAYS = (
    ValueError,
    TypeError,
    RuntimeError,
    RuntimeWarning,
    ImportError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
)
"""What PEFT raises where a method does not fit a model."""


def resolve_plan(
    skeleton: PreTrainedModel, lora: LoraSettings, settings: PeftSettings
) -> AdapterPlan:
    """The plan for the uncut model whose `skeleton` is given, whatever the method.

    The skeleton may live on the meta device and is left as it is.

    Raises:
        ConfigError: the settings are not those of a method that a cut model takes.
        AdapterError: they do not fit this model, or the method is not one of single modules.
    """
    if settings.is_plain:
        return resolve_lora(skeleton, lora)
    values = method_values(lora, settings)
    if settings.type in PROMPTS:
        return _resolve_prompt(skeleton, settings, values)
    _check_targets(skeleton, settings, values.get("target_modules"))
    wrapped = _Hollowed(skeleton, settings, values, seed=0)
    first, tensors = wrapped.model, adapter_tensors(wrapped.model)
    fixed = _fixed(wrapped, _Hollowed(skeleton, settings, values, seed=1), settings)
    redrawn = _Hollowed(skeleton, settings, values, seed=0, drawn_from=1).fixed()
    for name, digest in wrapped.fixed().items():
        if redrawn.get(name) != digest:
            raise AdapterError(
                f"{settings} draws {name} anew at every party, and does not save it: no two would "
                "have the same"
            )
    _check_trained(first, settings, tensors)
    config = first.peft_config[ADAPTER]
    resolved = getattr(config, "target_modules", None)
    modules, copies = _adapted(first)
    if values.get("init_lora_weights") in RESIDUAL_INITS:
        _check_own_weights(skeleton, settings, modules)
    values.pop("target_modules", None)
    if isinstance(resolved, str):
        values["target_modules"] = resolved  # a pattern, or a name that the method itself found
    return AdapterPlan(
        r=lora.r if settings.type == LORA else 0,
        alpha=lora.alpha if settings.type == LORA else 0.0,
        dropout=lora.dropout if settings.type == LORA else 0.0,
        rslora=lora.rslora if settings.type == LORA else False,
        fan_in_fan_out=_transposed(first, modules, config),
        targets=() if isinstance(resolved, str) else tuple(sorted(resolved or modules)),
        modules=modules,
        shapes=tuple((name, tuple(tensor.shape)) for name, tensor in tensors.items()),
        method=settings.type,
        options=tuple(sorted(values.items())),
        task=task_of(skeleton.config),
        copies=copies,
        fixed=fixed,
    )


def _resolve_prompt(
    skeleton: PreTrainedModel, settings: PeftSettings, values: Mapping[str, Any]
) -> AdapterPlan:
    wrapped = _Hollowed(skeleton, settings, at_random(values), seed=0).model
    whole = resolved_values(values, wrapped.peft_config[ADAPTER])
    words: Any = wrapped.word_embeddings
    if settings.type not in PREFIXES and words.weight.shape[1] != whole["token_dim"]:
        raise AdapterError(
            f"{settings} makes virtual tokens of {whole['token_dim']} numbers, and the embeddings "
            f"of this {skeleton.config.model_type} model have {words.weight.shape[1]}: PEFT cannot "
            "put them together, use PREFIX_TUNING"
        )
    return AdapterPlan(
        r=0,
        alpha=0.0,
        dropout=0.0,
        rslora=False,
        fan_in_fan_out=False,
        targets=(),
        modules=(),
        shapes=tuple((n, tuple(t.shape)) for n, t in adapter_tensors(wrapped).items()),
        method=settings.type,
        options=tuple(sorted(whole.items())),
    )


def initial_adapter(
    skeleton: PreTrainedModel,
    plan: AdapterPlan,
    lora: LoraSettings,
    parts: Iterable[nn.Module],
    *,
    seed: int,
) -> dict[str, Tensor]:
    """PEFT's own initialisation of the uncut model's adapter, float32, in model order.

    It is what `get_peft_model` makes of the uncut model on the CPU right after
    `torch.manual_seed(seed)`; plain LoRA's is `initial_state`'s. The caller's random state is kept.

    Args:
        skeleton: Of the uncut model.
        plan: Of its adapter.
        lora: What plain LoRA is made of.
        parts: Segments that hold all of the model's weights between them, not wrapped by PEFT yet;
            they are left as they are. Not looked at for plain LoRA.
        seed: Of the random numbers.

    Raises:
        AdapterError: PEFT fails at it, such as on the tokenizer of a prompt's words.
    """
    if plan.is_plain:
        return initial_state(skeleton, lora, seed=seed)
    read = [*plan.modules, *plan.copies]
    if plan.is_prompt and starts_from_words(dict(plan.options)):
        read.append(embeddings_name(hollow(skeleton), plan.peft_config(())))
    weights = weights_of(parts, read) if read else {}
    if plan.changes_weights:
        weights = {name: tensor.clone() for name, tensor in weights.items()}
    model = hollow(skeleton, weights=weights)
    try:
        with numbers_aside(), without_peft_notices():
            torch.manual_seed(seed)
            wrapped = get_peft_model(model, plan.peft_config(), adapter_name=ADAPTER)
    except (*PEFT_SAYS, OSError) as error:
        raise AdapterError(
            f"the adapter ({plan.described or 'LoRA'}) cannot begin as PEFT begins it: {error}"
        ) from error
    return read_state(wrapped)


def fixed_tensors(model: nn.Module, before: frozenset[int]) -> dict[str, Tensor]:
    """The tensors that PEFT has put into `model` beside the adapter's, which are drawn from a seed.

    Args:
        model: Wrapped by PEFT.
        before: Ids of the buffers that the model had before.
    """
    held = {id(tensor) for tensor in adapter_tensors(model).values()}
    return {
        name: buffer
        for name, buffer in model.named_buffers(remove_duplicate=False)
        if id(buffer) not in before and id(buffer) not in held and not buffer.is_meta
    }


def digests(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """SHA-256 of every tensor, hexadecimal; one that has several names is read once."""
    known: dict[int, str] = {}
    for tensor in tensors.values():
        if id(tensor) not in known:
            known[id(tensor)] = tensor_digest([("", tensor)])
    return {name: known[id(tensor)] for name, tensor in tensors.items()}


class _Hollowed:
    """PEFT's model of a hollow one, which tells names, shapes and what depends on the weights."""

    def __init__(
        self,
        skeleton: PreTrainedModel,
        settings: PeftSettings,
        values: Mapping[str, Any],
        *,
        seed: int,
        drawn_from: int = 0,
    ) -> None:
        base = hollow(skeleton, seed=seed)
        plain = copy.deepcopy(dict(values))
        if plain.get("init_lora_weights") in RESIDUAL_INITS:
            plain["init_lora_weights"] = True  # of the same names and shapes
        before = [(name, p, p.data_ptr(), p._version) for name, p in base.named_parameters()]
        self.buffers = frozenset(id(buffer) for buffer in base.buffers())
        """Ids of those that the model had before."""
        try:
            with numbers_aside(), without_peft_notices(patterns=False):
                task_type = TASK_TYPES[task_of(skeleton.config)]
                config = config_class(settings.type)(task_type=task_type, **plain)
                torch.manual_seed(drawn_from)
                model = get_peft_model(base, config, adapter_name=ADAPTER)
        except PEFT_SAYS as error:
            unset = "target_modules" in str(error) and "target_modules" not in values
            raise AdapterError(
                f"{settings} does not fit this {skeleton.config.model_type} model: {error}"
                + (", which is the key peft.target-modules" if unset else "")
            ) from error
        if not isinstance(model, PeftModel):
            raise AdapterError(f"PEFT made a {type(model).__name__} of a stock model")
        for name, parameter, place, version in before:
            if parameter.data_ptr() != place or parameter._version != version:
                raise AdapterError(
                    f"{settings} changes the layers' own weights ({name}) as it begins, which the "
                    "sessions of a trunk have in common"
                )
        self.model: PeftModel = model

    def fixed(self) -> dict[str, str]:
        """Digests of `fixed_tensors`."""
        return digests(fixed_tensors(self.model, self.buffers))


def _check_targets(skeleton: PreTrainedModel, settings: PeftSettings, wanted: object) -> None:
    if not isinstance(wanted, list):
        return
    names = [name for name, _ in skeleton.named_modules()]
    absent = [w for w in wanted if not any(n == w or n.endswith(f".{w}") for n in names)]
    if absent:
        available = sorted(
            {
                name.rpartition(".")[2]
                for name, module in skeleton.named_modules()
                if next(module.parameters(recurse=False), None) is not None
            }
        )
        raise AdapterError(
            f"the target modules of {settings} name {', '.join(map(repr, absent))}, which this "
            f"{skeleton.config.model_type} model does not have; it has {', '.join(available)}"
        )


def _check_trained(model: PeftModel, settings: PeftSettings, tensors: Mapping[str, Tensor]) -> None:
    """Raise `AdapterError` unless every tensor belongs to one module, and is an average's kind."""
    ids = [id(tensor) for tensor in tensors.values()]
    outside = [name for name in tensors if not name.startswith(PEFT_PREFIX)]
    shared = outside or [
        name
        for name, tensor in tensors.items()
        if ids.count(id(tensor)) > 1 and not _in_one_copy(model, tensor)
    ]
    if shared:
        raise AdapterError(
            f"{settings} has tensors that several layers have in common ({shared[0]}), and no "
            "party holds all layers"
        )
    whole = [name for name, tensor in tensors.items() if not tensor.is_floating_point()]
    if whole:
        raise AdapterError(f"{settings} keeps whole numbers ({whole[0]}), which have no average")
    unsaved = [n for n, p in model.named_parameters() if p.requires_grad and id(p) not in ids]
    if unsaved:
        raise AdapterError(f"{settings} trains {unsaved[0]}, which PEFT does not save")
    frozen = [
        name
        for name, tensor in tensors.items()
        if isinstance(tensor, nn.Parameter) and not tensor.requires_grad
    ]
    if frozen:
        raise AdapterError(f"{settings} saves {frozen[0]}, which it does not train")


def _in_one_copy(model: PeftModel, tensor: Tensor) -> bool:
    """Whether all names of a tensor lie in one module that is trained as a whole."""
    copies = tuple(n for n, m in model.named_modules() if isinstance(m, AuxiliaryTrainingWrapper))
    names = [n for n, p in model.named_parameters(remove_duplicate=False) if p is tensor]
    return any(all(name.startswith(f"{copy}.") for name in names) for copy in copies)


def _check_own_weights(
    skeleton: PreTrainedModel, settings: PeftSettings, modules: Iterable[str]
) -> None:
    """Raise `AdapterError` where a weight that loses something is another module's too."""
    owners = dict[int, str]()
    wanted = frozenset(modules)
    for path, module in skeleton.named_modules():
        for parameter in module.parameters(recurse=False):
            other = owners.setdefault(id(parameter), path)
            if other != path and {other, path} & wanted:
                raise AdapterError(
                    f"{settings} changes the weight of {path}, which is also that of {other}: "
                    "leave both out of lora.target-modules"
                )


def _fixed(
    first: _Hollowed, second: _Hollowed, settings: PeftSettings
) -> tuple[tuple[str, str], ...]:
    """What is the same whatever the weights are."""
    theirs, found = second.fixed(), []
    for name, digest in first.fixed().items():
        if theirs.get(name) == digest:
            found.append((name, digest))
        elif not name.startswith(PEFT_PREFIX):
            raise AdapterError(
                f"{settings} computes {name} from the weights of all layers, and no party has all"
            )
    return tuple(found)


def _adapted(model: PeftModel) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Full names of the modules with an adapter, and of those that are trained as a whole."""
    modules, copies = list[str](), list[str]()
    for path, module in model.named_modules():
        name = path.removeprefix(PEFT_PREFIX)
        if isinstance(module, AuxiliaryTrainingWrapper):
            copies.append(name)
        elif isinstance(module, BaseTunerLayer) and not any(
            name.startswith(f"{copy}.") for copy in copies
        ):
            modules.append(name)
    return tuple(modules), tuple(copies)


def _transposed(model: PeftModel, modules: Iterable[str], config: object) -> bool:
    """Whether the target modules keep their weights transposed, where PEFT's config asks that."""
    if not hasattr(config, "fan_in_fan_out"):
        return False
    layers = [model.get_submodule(PEFT_PREFIX + name) for name in modules]
    bases = [layer.get_base_layer() for layer in layers if isinstance(layer, BaseTunerLayer)]
    return bool(bases) and all(isinstance(base, Conv1D) for base in bases)
