"""AdamW whose step is taken on both sides of the cut."""

import weakref
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from flower_split.config.privacy import STARTS_OF_DATA
from flower_split.errors import AdapterError
from flower_split.optimization.clipping import (
    checked_norms,
    clip_by_global_norm,
    gradient_norms,
)
from flower_split.optimization.settings import OptimizerSettings
from flower_split.privacy import SiloClipping
from flower_split.remote.attach import unclip
from flower_split.remote.gradient_watch import GradientWatch
from flower_split.remote.layer_watch import check_frozen
from flower_split.remote.moment_watch import MomentWatch, moments_digest
from flower_split.remote.trunk import RemoteTrunk, find_remote
from flower_split.segments.refusals import check_rows_apart
from flower_split.transport.messages import StepRequest


class SplitAdamW(torch.optim.AdamW):
    """AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101) over the silo's and the trunk's adapters.

    A stock optimizer to learning-rate schedulers, training loops, gradient scalers and the Hugging
    Face `Trainer`. `step()` first has the trunk take the same step with the same learning rate,
    then takes the silo's. Both clip by the global norm where the settings say so, and the trunk's
    gradient is zeroed, scaled and clipped as the silo's is. `state_dict()` has the trunk keep its
    half, and holds the tag by which `load_state_dict` has it go back there.

    Args:
        model: A client model with a trunk attached; its trainable tensors are optimised.
        settings: Constants that the session's handshake agreed on; None takes the session's.
        lr: Learning rate until a scheduler sets another.
        correct: Called in every step before anything else; may change the silo's gradients. None
            takes the session's, which adds what its strategy asks for.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        lr: float,
        settings: OptimizerSettings | None = None,
        correct: Callable[[], None] | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise AdapterError(
                "SplitAdamW takes the client model itself and not its parameters, in which the "
                "trunk's are not: SplitAdamW(model, lr=...), and optimizers=(that, None) of a "
                f"Trainer in place of optimizer_cls_and_kwargs{_ANY}"
            )
        self._remote = find_remote(model)
        self._correct = correct
        self.settings = settings or self._remote.transport.spec.optimizer
        if self._remote.own is not None:
            raise AdapterError(
                "the trunk's adapter is parameters of this client model (trunk_parameters=True): "
                "any optimizer of torch trains it, and SplitAdamW would train it twice"
            )
        agreed = self._remote.transport.spec.optimizer.max_grad_norm
        if self.settings.max_grad_norm != agreed:
            raise AdapterError(
                f"SplitAdamW is to clip by a norm of {self.settings.max_grad_norm}, and the trunk "
                f"by {agreed}: open the session with these settings, or leave them out"
            )
        self._remote.late.follow()
        self._before, self._after = _around(model, self._remote)
        self._clipping = _clipping(model, self._remote, [*self._before, *self._after])
        self.grad_norm = 0.0
        self._mirror = self._remote.trunk_gradient
        self._has_state = False
        self._moments = MomentWatch()
        remote = weakref.ref(self._remote)
        self._watch = GradientWatch((*self._before, *self._after), partial(_measured_step, remote))
        self._transport = weakref.ref(self._remote.transport)
        super().__init__(
            # the mirror's gradient is the trunk's, to whoever scales or clips all of them
            [*self._before, *self._after, self._mirror],
            lr=lr,
            betas=(self.settings.beta1, self.settings.beta2),
            eps=self.settings.eps,
            weight_decay=self.settings.weight_decay,
        )

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step on both sides. `grad_norm` is then the global norm before clipping.

        Raises:
            TrunkError: the trunk did not take the step; the silo's tensors are unchanged then.
            AdapterError: parameter groups differ in their learning rate, or the step is otherwise
                none that the trunk can take alike.
        """
        if closure is not None:
            raise AdapterError(
                "a step on both sides of the cut cannot evaluate a closure: call forward and "
                f"backward before step(){_ANY}"
            )
        rates = {float(group["lr"]) for group in self.param_groups}
        if len(rates) != 1:
            raise AdapterError(
                f"parameter groups must share one learning rate, not {sorted(rates)}: the trunk's "
                f"tensors are in no group of the silo's{_ANY}"
            )
        constants = self._constants()
        self._remote.take_loaded()
        self._check_halves()
        if self._clipping is not None:
            return self._noisy_step(self._clipping, rates.pop(), constants)
        number = self._remote.gradient_number
        change = self._remote.gradient_change()
        zeroed = number != self._remote.gradient_number
        self._watch.check(number, change, None if zeroed else self._remote.largest_gradient)
        correct = self._correct or self._remote.correct
        if correct is not None:
            correct()
        clips = self.settings.max_grad_norm > 0
        before = gradient_norms(self._before) if clips else ()
        after = gradient_norms(self._after) if clips else ()
        transport = self._remote.transport
        answer = transport.step(
            StepRequest(
                step=self._remote.steps,
                learning_rate=rates.pop(),
                norms_before=before,
                norms_after=after,
                constants=None if constants == transport.spec.optimizer else constants,
                scale=change.scale,
                clip=change.clip,
                keeps_gradient=True,
            )
        )
        with transport.waits.waiting():
            reply = answer.result()
        if clips:
            self.grad_norm = clip_by_global_norm(
                [*self._before, *self._after],
                [*before, *checked_norms(reply.norms), *after],
                self.settings.max_grad_norm,
            )
        mirrored, self._mirror.grad = self._mirror.grad, None
        result = _plain(torch.optim.AdamW.step)(self)
        self._mirror.grad = mirrored
        self._note_moments()
        self._watch.note_all()
        self._remote.stepped()
        return result

    @property
    def steps(self) -> int:
        """Steps of both sides in this session."""
        return self._remote.steps

    def count_steps(self, before: Callable[[], None]) -> None:
        """Have `before` called before every step of DP-SGD; where it raises, none is taken."""
        if self._clipping is not None:
            self._clipping.before_step = before

    def _noisy_step(self, clipping: SiloClipping, rate: float, constants: OptimizerSettings) -> Any:
        """One step of DP-SGD on both sides, each with noise on its own part of the gradient.

        What is asked for of the gradients, such as FedProx's pull, is added to the noisy ones. The
        gradients are gone afterwards: noise is drawn for one step alone.
        """
        transport = self._remote.transport
        clipping.begin_step()
        answer = transport.step(
            StepRequest(
                step=self._remote.steps,
                learning_rate=rate,
                constants=None if constants == transport.spec.optimizer else constants,
            )
        )
        with transport.waits.waiting():
            answer.result()
        clipping.place()
        correct = self._correct or self._remote.correct
        if correct is not None:
            correct()
        result = _plain(torch.optim.AdamW.step)(self)
        clipping.end_step()
        self._note_moments()
        self._watch.forget()
        self._remote.stepped()
        self._remote.forget_gradient(zeros=False)
        return result

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Zero the gradients on both sides."""
        super().zero_grad(set_to_none)
        if self._clipping is not None:
            self._clipping.forget()
        self._watch.forget()
        self._remote.forget_gradient(zeros=not set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """The silo's half, and the tag under which the trunk keeps the other one from now on."""
        state = super().state_dict()
        if self._remote.adapter.is_there:
            self._check_moments()
            state[SILO] = moments_digest(state["state"])
            state[TRUNK] = self._remote.adapter.snapshot_moments()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from `state_dict` on both sides.

        Raises:
            AdapterError: it has no tag of the trunk's half, or the silo's was changed since.
            TrunkError: the trunk does not have that half any more.
        """
        tag = state_dict.get(TRUNK)
        if self._remote.adapter.is_there:
            if not isinstance(tag, str):
                raise AdapterError(
                    "this optimizer state has no tag of the trunk's half, so that the two would "
                    "go on from different states: load one that SplitAdamW.state_dict() gave"
                )
            if state_dict.get(SILO) != moments_digest(state_dict["state"]):
                raise AdapterError(
                    "the moments in this optimizer state are not those with which "
                    "SplitAdamW.state_dict() gave it, and the trunk's half would go on from its "
                    f"own: load it as it was given{_ANY}"
                )
            self._remote.adapter.restore_moments(tag)
        self.take_trunk()
        super().load_state_dict({k: v for k, v in state_dict.items() if k not in (SILO, TRUNK)})
        self._note_moments()

    def _note_moments(self) -> None:
        """The silo's half of the state is as it should be now."""
        self._has_state = bool(self.state)
        self._moments.note(self.state)

    def _check_moments(self) -> None:
        """Raise `AdapterError` where the silo's half of the state was changed by hand."""
        if self._has_state and not self.state:
            raise AdapterError(
                "the state of this SplitAdamW was cleared, and the trunk's half of it was not: "
                "load a state_dict() that was taken before its first step, or train in a new "
                "session"
            )
        self._moments.check(self.state)

    def _constants(self) -> OptimizerSettings:
        """AdamW's, as the parameter groups have them.

        Raises:
            AdapterError: they differ between the groups, or the trunk does not know one.
        """
        found = {
            (*group["betas"], group["eps"], group["weight_decay"]) for group in self.param_groups
        }
        if len(found) != 1:
            raise AdapterError(
                f"parameter groups must share betas, eps and weight_decay, not {sorted(found)}: "
                "the trunk's tensors are in no group of the silo's"
            )
        for name, plain in (
            ("amsgrad", False),
            ("maximize", False),
            ("decoupled_weight_decay", True),
        ):
            if any(bool(group.get(name, plain)) != plain for group in self.param_groups):
                raise AdapterError(f"SplitAdamW has no {name}={not plain}: the trunk's is plain")
        ((beta1, beta2, eps, weight_decay),) = found
        return replace(
            self.settings,
            beta1=float(beta1),
            beta2=float(beta2),
            eps=float(eps),
            weight_decay=float(weight_decay),
        )

    def take_trunk(self) -> None:
        """The trunk's half of the optimizer's state now belongs to this optimizer's, as it is."""
        self._note_moments()
        self._own_trunk()

    def _own_trunk(self) -> None:
        self._remote.adapter.is_stepped_with(self)
        self._transport = weakref.ref(self._remote.transport)

    def _check_halves(self) -> None:
        """Raise `AdapterError` unless both halves of the step are of one optimizer."""
        adapter, transport = self._remote.adapter, self._remote.transport
        if not adapter.is_there:
            return
        if self._transport() is not transport and self.state and not adapter.is_shared:
            raise AdapterError(
                "this SplitAdamW has taken steps in another session, where the trunk's half of its "
                "state was left: make a new one (session.optimizer in a ClientApp goes on where "
                "the last round ended), or load its state_dict into it"
            )
        adapter.check_steps_with(self)
        self._watch.check_hooks()
        check_frozen(adapter.stock, transport.spec)
        self._check_moments()
        stepped = {id(p) for group in self.param_groups for p in group["params"]}
        left_out = [n for n, p in adapter.trained().items() if id(p) not in stepped]
        if left_out:
            raise AdapterError(
                f"{len(left_out)} tensors of the silo's adapter (first: {left_out[0]}) are trained "
                "and not stepped by this SplitAdamW, and the trunk's would be: make it after they "
                "require gradients, and leave its groups whole"
            )
        self._own_trunk()  # the moments are as they were noted: that was checked above


_ANY = ". attach_trunk(..., trunk_parameters=True) takes any optimizer of torch"


def _plain(step: Callable[..., Any]) -> Callable[..., Any]:
    """`step` of an optimizer without torch's calls of the hooks that are registered for steps.

    They are around the step of the class that was instantiated: once around both sides' step.
    """
    while getattr(step, "hooked", False):
        step = step.__wrapped__  # type: ignore[attr-defined]
    return step


TRUNK = "trunk"
"""Under which an optimizer state has the tag of the trunk's half."""
SILO = "silo"
"""Under which it has the digest of the silo's moments."""


def _clipping(
    model: nn.Module, remote: RemoteTrunk, parameters: list[nn.Parameter]
) -> SiloClipping | None:
    """What clips the examples of the session, in place of an earlier optimizer's.

    Raises:
        AdapterError: gradients cannot be told by example.
    """
    spec = remote.transport.spec
    unclip(remote)
    if not (spec.privacy.is_on and spec.purpose == "train"):
        return None
    check_rows_apart(remote.adapter.stock.config)
    for config in getattr(remote.adapter.stock, "peft_config", {}).values():
        start = str(getattr(config, "init_lora_weights", "")).lower()
        if start.startswith(STARTS_OF_DATA):
            raise AdapterError(
                f"an adapter that begins with init_lora_weights={start!r} tells of the silo's "
                "examples past the noise of DP-SGD (dp.noise): leave it out"
            )
    remote.clipping = SiloClipping(model, parameters, spec.privacy)
    return remote.clipping


def _measured_step(remote: "weakref.ref[RemoteTrunk]") -> int | None:
    held = remote()
    return held.gradient_number if held is not None and held.measures else None


def _around(model: nn.Module, remote: RemoteTrunk) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The trainable tensors before and after the trunk's place, in model order."""
    sides: tuple[list[nn.Parameter], list[nn.Parameter]] = ([], [])
    seen: set[nn.Parameter] = set()
    side = 0
    for module in model.modules():
        if module is remote:
            side = 1
            seen.add(remote.trunk_gradient)
        for parameter in module.parameters(recurse=False):
            if parameter.requires_grad and parameter not in seen:
                seen.add(parameter)
                sides[side].append(parameter)
    return sides
