"""Corrections of a silo's gradients against client drift: FedProx's pull and SCAFFOLD's control.

FedProx: Li et al. 2020, arXiv:1812.06127. SCAFFOLD: Karimireddy et al. 2020, arXiv:1910.06378.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from flower_split.errors import AdapterError


class Corrections:
    """What is added to the gradients before each optimizer step.

    The gradient g of a tensor x becomes g + mu (x - x_0) - c_i + c, with x_0 as received. The mean
    of the uncorrected g over the round is the silo's next control variate.

    Args:
        parameters: The trained tensors by name, as they were received.
        proximal_mu: mu; 0 for no pull.
        common: c by name, of the tensors that have one; None without SCAFFOLD.
        own: c_i by name; what is not in it is zero.

    Raises:
        AdapterError: a control variate has another shape than its tensor.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        *,
        proximal_mu: float = 0.0,
        common: Mapping[str, Tensor] | None = None,
        own: Mapping[str, Tensor] | None = None,
    ) -> None:
        self._parameters = dict(parameters)
        self._mu = proximal_mu
        self._start = (
            {name: p.detach().clone() for name, p in parameters.items()} if proximal_mu else {}
        )
        self._shift: dict[str, Tensor] = {}
        self._own: dict[str, Tensor] = {}
        self._sums: dict[str, Tensor] = {}
        self._steps = 0
        for name, control in (common or {}).items():
            if (parameter := parameters.get(name)) is None:
                continue
            zero = torch.zeros_like(parameter)
            mine = (own or {}).get(name, zero)
            if control.shape != parameter.shape or mine.shape != parameter.shape:
                raise AdapterError(
                    f"the control variate of {name} has shape {tuple(control.shape)}, the silo's "
                    f"own {tuple(mine.shape)}, and the tensor {tuple(parameter.shape)}: SCAFFOLD "
                    "needs one rank everywhere and in all rounds"
                )
            self._own[name] = mine.to(parameter)
            self._shift[name] = control.to(parameter) - self._own[name]
            self._sums[name] = torch.zeros_like(parameter)

    def apply(self) -> None:
        """Correct the gradients that the parameters have now; once before every step."""
        self._before = self._sums
        self._sums = dict(self._sums)
        self._steps += 1
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                if parameter.grad is None:
                    continue
                if name in self._sums:
                    self._sums[name] = self._sums[name] + parameter.grad
                    parameter.grad += self._shift[name]
                if self._mu:
                    parameter.grad.add_(parameter - self._start[name], alpha=self._mu)

    def take_back(self) -> None:
        """The step that gradients were corrected for last is not taken; once after `apply`."""
        self._steps -= 1
        self._sums = self._before

    def next_own(self) -> dict[str, Tensor]:
        """The silo's control variates after the round, float32; unchanged without a step."""
        if not self._steps:
            return {name: own.float().cpu() for name, own in self._own.items()}
        return {name: (total / self._steps).float().cpu() for name, total in self._sums.items()}

    def change(self) -> dict[str, Tensor]:
        """By how much the round changed the silo's control variates."""
        return {name: new - self._own[name].float().cpu() for name, new in self.next_own().items()}
