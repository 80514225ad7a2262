"""The inner strategy: made by name from the run config, its options checked by its signature."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from flwr.serverapp.strategy import Strategy

from flower_split.config.model import LoraSettings
from flower_split.config.problems import nearest, raise_problems
from flower_split.config.sections import PeftSettings, SplitConfig, StrategyConfig
from flower_split.config.tasks import HEADS
from flower_split.errors import ConfigError
from flower_split.lowrank import Allowance
from flower_split.strategies.central_privacy import CentralPrivacy
from flower_split.strategies.lora.base import MIXED, MIXED_ALPHAS, LoraStrategy, scaling_of
from flower_split.strategies.personal_parts import PersonalParts
from flower_split.transport.messages import Purpose

NamedStrategies = Mapping[str, Callable[..., Strategy]]

_SET_BY_FIELDS = frozenset(
    {
        "fraction_train",
        "fraction_evaluate",
        "min_train_nodes",
        "min_evaluate_nodes",
        "min_available_nodes",
    }
)


def strategy_options(make: Callable[..., Strategy]) -> dict[str, inspect.Parameter]:
    """The numeric and boolean arguments of a strategy that a run config may set."""
    return {
        name: parameter
        for name, parameter in _parameters(make).items()
        if parameter.annotation in (int, float, bool) and name not in _SET_BY_FIELDS
    }


def inner_problems(settings: StrategyConfig, table: NamedStrategies) -> list[str]:
    """What is wrong with the strategy's name and options; nothing when it can be made."""
    if settings.name not in table:
        return [f"strategy.name {settings.name!r} is not known{nearest(settings.name, table)}"]
    try:
        options = strategy_options(table[settings.name])
    except ConfigError as error:
        return [str(error)]
    problems = []
    for name, value in settings.options.items():
        if name not in options:
            valid = [_key(option) for option in (*options, "name", *_FIELDS)]
            problems.append(
                f"unknown key {_key(name)!r} for strategy {settings.name!r}"
                f"{nearest(_key(name), valid)}"
            )
        elif (wanted := _misfit(options[name].annotation, value)) is not None:
            problems.append(f"{_key(name)} must be {wanted}, not {value!r}")
    for name, parameter in options.items():
        if parameter.default is inspect.Parameter.empty and name not in settings.options:
            problems.append(f"{_key(name)} is missing: strategy {settings.name!r} needs it")
    if not problems:
        try:
            _make(settings, table, LoraSettings())
        except ConfigError as error:
            problems += str(error).splitlines()
        except ValueError as error:
            problems.append(f"strategy {settings.name!r} refuses its options: {error}")
    return problems


def make_inner(
    settings: StrategyConfig, table: NamedStrategies, lora: LoraSettings | None = None
) -> Strategy:
    """The strategy that `settings` describe, for adapters as `lora` describes them.

    Raises:
        ConfigError: with everything that is wrong with them.
    """
    raise_problems(inner_problems(settings, table), "the strategy's settings")
    return _make(settings, table, lora or LoraSettings())


def check_inner(inner: Strategy, lora: LoraSettings, peft: PeftSettings | None = None) -> None:
    """Raise `ConfigError` when `inner` cannot aggregate what `lora` and `peft` describe.

    What is wrong is known before any model is loaded.
    """
    _check_method(inner, peft or PeftSettings())
    private = central_privacy(inner)
    if private is not None:
        private.check_budget()
    run = scaling_of(lora)
    wrappers = list[str]()
    for one in nested(inner):
        if isinstance(one, (LoraStrategy, PersonalParts)) and one.scaling != run:
            raise ConfigError(
                f"{type(one).__name__} was made for {one.scaling}, and the run has "
                f"{run}: pass it lora=config.lora"
            )
        if isinstance(one, LoraStrategy) and wrappers and not one.returns_what_it_sends:
            raise ConfigError(
                f"{wrappers[0]} compares the tensors of a reply with those of the message, one by "
                f"one, and with {type(one).__name__} they are not the same ones: put 'fedavglora' "
                "or a strategy of Flower's into it"
            )
        if not isinstance(one, PersonalParts):
            wrappers.append(type(one).__name__)
    allowance = allowance_of(inner, lora)
    for key, values, own, taken, others in (
        ("lora.ranks", lora.ranks, lora.r, allowance.ranks, MIXED),
        ("lora.alphas", lora.alphas, lora.alpha, allowance.alphas, MIXED_ALPHAS),
    ):
        if not taken and {*values} - {own}:
            raise ConfigError(
                f"{key} are {', '.join(f'{value:g}' for value in values)}, the run's is {own:g}, "
                f"and {allowance.strategy} aggregates only adapters that all have that: leave "
                f"{key} empty, or choose another strategy.name: {others}"
            )


def _check_method(inner: Strategy, peft: PeftSettings) -> None:
    if peft.is_plain:
        return
    for one in nested(inner):
        if isinstance(one, PersonalParts):
            raise ConfigError(
                "strategy.personal keeps modules of plain LoRA in the silos, as the keys under "
                f"lora describe it, and the run has {peft}: leave strategy.personal empty"
            )
        if isinstance(one, LoraStrategy):
            raise ConfigError(
                f"strategy.name {one.name!r} aggregates updates of plain LoRA, as the keys under "
                f"lora describe it, and the run has {peft}{_of_head(peft)}: choose a strategy that "
                "averages every tensor by itself, such as 'fedavg', 'fedadam', 'fedmedian' or "
                "'krum'"
            )


def _of_head(peft: PeftSettings) -> str:
    """Why a classifier's run trains modules as a whole that nobody named."""
    named = str(peft.options.get("modules_to_save", "")).split(", ")
    return " (model.task trains the head as a whole)" if {*HEADS} <= {*named} else ""


def allowance_of(
    inner: Strategy, lora: LoraSettings, peft: PeftSettings | None = None
) -> Allowance:
    """Which ranks and alphas silos may have with `inner`."""
    run = scaling_of(lora) if peft is None or peft.is_plain else None
    chosen = next((one for one in nested(inner) if not isinstance(one, PersonalParts)), inner)
    return Allowance(
        scaling=run,
        ranks=bool(getattr(chosen, "mixed_ranks", False)),
        alphas=bool(getattr(chosen, "mixed_alphas", False)),
        max_r=lora.max_r,
        strategy=str(getattr(chosen, "name", "")) or type(chosen).__name__,
        takes_ranks=MIXED,
        takes_alphas=MIXED_ALPHAS,
    )


def takes_any_ranks(inner: Strategy) -> bool:
    """Whether the adapter that `inner` aggregates may have modules of other ranks than the run's,
    and folded factors."""
    return any(isinstance(one, LoraStrategy) for one in nested(inner))


def weight_key(inner: Strategy) -> str:
    """The metric by which `inner`, or the strategy that it wraps, weighs replies."""
    return str(_attribute(inner, "weighted_by_key", "num-examples"))


def least_nodes(inner: Strategy, purpose: Purpose) -> int:
    """The nodes that must be connected before `inner` sends anything for `purpose`."""
    if not _attribute(inner, f"fraction_{purpose}", 1.0):
        return 0
    names = ("min_available_nodes", f"min_{purpose}_nodes")
    return max(int(_attribute(inner, name, 1)) for name in names)


def order_matters(config: SplitConfig, inner: Strategy) -> bool:
    """Whether a run depends on the order of the silos: who is drawn, steps first, is sampled.

    Replies are aggregated in the order of the silos' names in any case.
    """
    if config.trunk.adapters == "shared" or config.sample_prompt:
        return True
    shares = (_attribute(inner, f"fraction_{purpose}", 1.0) for purpose in ("train", "evaluate"))
    return any(share not in (0.0, 1.0) for share in shares)


def _attribute(inner: Any, name: str, default: Any) -> Any:
    return next((getattr(one, name) for one in nested(inner) if hasattr(one, name)), default)


def nested(inner: Any) -> Iterator[Any]:
    """`inner` and the strategies inside it, as Flower's privacy wrappers hold one."""
    while inner is not None:
        yield inner
        inner = getattr(inner, "strategy", None)


def central_privacy(inner: Strategy) -> CentralPrivacy | None:
    """The central differential privacy in `inner`; None where it has none."""
    return next((one for one in nested(inner) if isinstance(one, CentralPrivacy)), None)


_FIELDS = (
    *("fraction_train", "fraction_evaluate", "min_nodes", "min_replies", "personal"),
    *("filter", "filter_norm", "filter_share"),
    *("dp_noise", "dp_clip", "dp_delta", "dp_max_epsilon"),
)


def _make(settings: StrategyConfig, table: NamedStrategies, lora: LoraSettings) -> Strategy:
    arguments: dict[str, Any] = {
        "fraction_train": settings.fraction_train,
        "fraction_evaluate": settings.fraction_evaluate,
        "min_train_nodes": settings.min_nodes,
        "min_evaluate_nodes": settings.min_nodes,
        "min_available_nodes": settings.min_nodes,
    }
    make = table[settings.name]
    if "lora" in _parameters(make):
        arguments["lora"] = lora
    made = make(**arguments, **settings.options)
    if not isinstance(made, Strategy):
        raise ConfigError(
            f"strategy.name {settings.name!r} makes a {type(made).__name__}, which is no strategy "
            "of Flower's message API (flwr.serverapp.strategy.Strategy)"
        )
    if settings.dp_noise:
        made = CentralPrivacy(
            made,
            noise=settings.dp_noise,
            clip=settings.dp_clip,
            delta=settings.dp_delta,
            max_epsilon=settings.dp_max_epsilon,
        )
    return PersonalParts(made, settings.personal, lora=lora) if settings.personal else made


def _parameters(make: Callable[..., Strategy]) -> dict[str, inspect.Parameter]:
    """The arguments of `make`, and of the base classes that a class passes its keywords on to."""
    found: dict[str, inspect.Parameter] = {}
    for one in make.__mro__ if inspect.isclass(make) else (make,):
        if inspect.isclass(one) and "__init__" not in vars(one):
            continue
        if one is object:
            break
        try:
            own = inspect.signature(one, eval_str=True).parameters
        except (ValueError, TypeError, NameError):  # of a plugin that is no Python of ours
            break
        found = {**own, **found}
        if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in own.values()):
            break
    return found


def _misfit(kind: type, value: float) -> str | None:
    """What `value` should have been, when it is not of `kind`."""
    if kind is bool:
        return None if isinstance(value, bool) else "true or false"
    if isinstance(value, bool):
        return "a number"
    return "a whole number" if kind is int and not isinstance(value, int) else None


def _key(name: str) -> str:
    return f"strategy.{name.replace('_', '-')}"
