"""Moments: the state of AdamW as named tensors, by which an optimizer goes on where one stopped.

For the parameter `n` they are `n/exp_avg` and `n/exp_avg_sq`, shaped like it and in its dtype, and
`n/step`, a float32 scalar that counts its steps for the bias correction (Loshchilov & Hutter 2019,
arXiv:1711.05101). A parameter that was never stepped has none.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from flower_split.errors import StateError

AVERAGES = ("exp_avg", "exp_avg_sq")
STEP = "step"

MOST_STEPS = 1 << 24
"""Steps up to which a float32 counts without gaps."""

Parameters = Mapping[str, nn.Parameter]
"""An optimizer's parameters by name."""


def read_moments(optimizer: torch.optim.AdamW, parameters: Parameters) -> dict[str, Tensor]:
    """CPU copies of the optimizer's state."""
    moments = {}
    for name, parameter in parameters.items():
        for part, value in optimizer.state.get(parameter, {}).items():
            moments[f"{name}/{part}"] = value.detach().to("cpu", copy=True)
    return moments


def load_moments(
    optimizer: torch.optim.AdamW, parameters: Parameters, moments: Mapping[str, Tensor]
) -> None:
    """Make `optimizer` resume from `moments`; nothing is changed when they do not fit.

    Raises:
        StateError: see `check_moments`.
    """
    check_moments(parameters, moments)
    for name, parameter in parameters.items():
        optimizer.state.pop(parameter, None)
        if f"{name}/{STEP}" in moments:
            own = {part: moments[f"{name}/{part}"] for part in AVERAGES}
            optimizer.state[parameter] = {
                STEP: moments[f"{name}/{STEP}"].clone(),
                **{part: value.to(parameter.device, copy=True) for part, value in own.items()},
            }


def check_moments(parameters: Mapping[str, Tensor], moments: Mapping[str, Tensor]) -> None:
    """Raise `StateError` unless `moments` can be a state of AdamW over `parameters`.

    Every parameter has all three tensors or none, of its shape and dtype, finite, the second
    moments not negative, and its steps are a whole number.
    """
    unknown = moments.keys() - {f"{name}/{part}" for name in parameters for part in _PARTS}
    if unknown:
        raise StateError(
            f"the optimizer's state has {len(unknown)} tensors that this model does not train "
            f"(first: {min(unknown)}); it was kept for another model, adapter or cut"
        )
    for name, parameter in parameters.items():
        held = [part for part in _PARTS if f"{name}/{part}" in moments]
        if held and len(held) < len(_PARTS):
            raise StateError(f"the optimizer's state has only {', '.join(held)} of {name}")
        if held:
            for problem in _problems(parameter, {p: moments[f"{name}/{p}"] for p in _PARTS}):
                raise StateError(f"the optimizer's state of {name} {problem}")


def largest_size(parameters: Parameters) -> int:
    """Bytes of the tensors of a state over `parameters`, at most."""
    return sum(2 * p.numel() * p.element_size() + 4 for p in parameters.values())


_PARTS = (*AVERAGES, STEP)


def _problems(parameter: Tensor, own: Mapping[str, Tensor]) -> Iterator[str]:
    for part in AVERAGES:
        value = own[part]
        if value.shape != parameter.shape or value.dtype != parameter.dtype:
            yield (
                f"is {tuple(value.shape)} {value.dtype} in {part}, expected "
                f"{tuple(parameter.shape)} {parameter.dtype}"
            )
        elif not bool(torch.isfinite(value).all()):
            yield f"has values in {part} that are not finite"
    if own["exp_avg_sq"].numel() and bool((own["exp_avg_sq"] < 0).any()):
        yield "has a negative second moment"
    step = own[STEP]
    if step.shape != () or step.dtype != torch.float32:
        yield f"is {tuple(step.shape)} {step.dtype} in {STEP}, expected a float32 scalar"
    elif not (0 < float(step) <= MOST_STEPS and float(step).is_integer()):
        yield f"counts {float(step)} steps, expected a whole number from 1 to {MOST_STEPS}"
