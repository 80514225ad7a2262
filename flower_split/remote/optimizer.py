"""AdamW whose step is taken on both sides of the cut."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from flower_split.optimization.clipping import (
    checked_norms,
    clip_by_global_norm,
    gradient_norms,
)
from flower_split.optimization.settings import OptimizerSettings
from flower_split.remote.trunk import RemoteTrunk, find_remote
from flower_split.transport.messages import StepRequest


class SplitAdamW(torch.optim.AdamW):
    """AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101) over the silo's and the trunk's adapters.

    A stock optimizer to learning-rate schedulers, training loops and the Hugging Face `Trainer`
    (with `max_grad_norm=0`, because this one clips). `step()` first has the trunk take the same
    step with the same learning rate, then takes the silo's; both clip by the global norm.

    Args:
        model: A client model with a trunk attached; its trainable tensors are optimised.
        settings: Constants that the session's handshake agreed on; None takes the session's.
        lr: Learning rate until a scheduler sets another.
        correct: Called in every step before anything else; may change the silo's gradients.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        lr: float,
        settings: OptimizerSettings | None = None,
        correct: Callable[[], None] | None = None,
    ) -> None:
        self._remote = find_remote(model)
        self._correct = correct
        self.settings = settings or self._remote.transport.spec.optimizer
        self._before, self._after = _around(model, self._remote)
        self.grad_norm = 0.0
        # Torch refuses an optimizer without tensors, but a silo that holds none (both cuts 0)
        # still has the trunk's step to ask for.
        parameters = [*self._before, *self._after] or [nn.Parameter(torch.empty(0))]
        super().__init__(
            parameters,
            lr=lr,
            betas=(self.settings.beta1, self.settings.beta2),
            eps=self.settings.eps,
            weight_decay=self.settings.weight_decay,
        )

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step on both sides. `grad_norm` is then the global norm before clipping.

        Raises:
            TrunkError: the trunk did not take the step; the silo's tensors are unchanged then.
            ValueError: parameter groups differ in their learning rate.
        """
        if closure is not None:
            raise ValueError("a step on both sides of the cut cannot evaluate a closure")
        rates = {float(group["lr"]) for group in self.param_groups}
        if len(rates) != 1:
            raise ValueError(f"parameter groups must share one learning rate, not {sorted(rates)}")
        if self._correct is not None:
            self._correct()
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
            )
        )
        with transport.waits.waiting():
            reply = answer.result()
        self._remote.steps += 1
        if clips:
            self.grad_norm = clip_by_global_norm(
                [*self._before, *self._after],
                [*before, *checked_norms(reply.norms), *after],
                self.settings.max_grad_norm,
            )
        return super().step()


def _around(model: nn.Module, remote: RemoteTrunk) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The trainable tensors before and after the trunk's place, in model order."""
    sides: tuple[list[nn.Parameter], list[nn.Parameter]] = ([], [])
    seen: set[nn.Parameter] = set()
    side = 0
    for module in model.modules():
        if module is remote:
            side = 1
        for parameter in module.parameters(recurse=False):
            if parameter.requires_grad and parameter not in seen:
                seen.add(parameter)
                sides[side].append(parameter)
    return sides
